//! Gives back what only the start needed of this program's text. The kernel maps sixteen pages around
//! each that is touched, and building a VM touches much that running it does not. The pages stay in the
//! page cache and are mapped again when they are wanted, so that a program that has grown by other
//! subcommands costs a running VM nothing.

use std::fs;
use std::time::{Duration, Instant};

/// Pause before the first time; each later one is twice as long.
const FIRST: Duration = Duration::from_secs(2);
/// No pause is longer: the guest has booted by then.
const LAST: Duration = Duration::from_secs(64);

/// When text is given back.
#[derive(Debug)]
pub struct Shedding {
    due: Instant,
    pause: Duration,
}

impl Shedding {
    /// Begins now.
    pub fn begin() -> Self {
        Self {
            due: Instant::now() + FIRST,
            pause: FIRST,
        }
    }

    /// Time until the next time; `None`: it is over.
    pub fn left(&self) -> Option<Duration> {
        (self.pause <= LAST).then(|| self.due.saturating_duration_since(Instant::now()))
    }

    /// Gives back what is due.
    pub fn look(&mut self) {
        if self.left().is_some_and(|left| left.is_zero()) {
            give_back_text();
            give_back_heap();
            self.pause *= 2;
            self.due = Instant::now() + self.pause;
        }
    }
}

/// Gives back pages of the heap that hold nothing any more, also those in its middle.
pub fn give_back_heap() {
    // SAFETY: malloc_trim(3) may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Unmaps the pages of executable mappings of our own file: read-only, so that nothing is lost.
fn give_back_text() {
    let Ok(own) = fs::read_link("/proc/self/exe") else {
        return;
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps
        .lines()
        .filter_map(|line| text_of(line, &own.to_string_lossy()))
    {
        // SAFETY: the range is a private mapping of a file that is not writable; what is touched of it
        // later is read from the file again.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// The range of a line of `/proc/PID/maps` (proc_pid_maps(5)), if it is executable text of this file.
fn text_of(line: &str, own: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_text = fields.next()? == "r-xp" && fields.nth(3) == Some(own);
    let number = |text| usize::from_str_radix(text, 16).ok();
    is_text.then_some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_the_program_are_text() {
        let line = "00401000-00a00000 r-xp 00001000 08:01 42                 /usr/bin/concertina";
        assert_eq!(
            text_of(line, "/usr/bin/concertina"),
            Some((0x401000, 0xa00000))
        );
        assert_eq!(text_of(line, "/usr/bin/other"), None);
        for permissions in ["r--p", "rw-p", "r-xs"] {
            let line = line.replace("r-xp", permissions);
            assert_eq!(text_of(&line, "/usr/bin/concertina"), None, "{line}");
        }
        assert_eq!(text_of("7f00-7f01 r-xp 0 00:00 0", ""), None);
        assert_eq!(text_of("", ""), None);
    }

    #[test]
    fn a_program_goes_on_without_the_pages_of_its_text() {
        give_back_text();
        assert_eq!("a b".split(' ').count(), 2);
    }
}
