//! `/proc` of one process: thread run times and resident memory.

use std::fs;

/// Anonymous resident memory of a process in bytes (`RssAnon`), the cheap figure: reading `smaps`
/// walks page tables. `None`: no such process.
pub fn resident_anonymous(pid: i32) -> Option<u64> {
    if pid <= 0 {
        return None;
    }
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Times of one thread since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// On a CPU, in nanoseconds.
    pub run_ns: u64,
    /// Runnable and waiting for a CPU, in nanoseconds.
    pub wait_ns: u64,
}

/// Reads a `schedstat` line: run time, wait time, number of time slices.
pub fn parse_schedstat(line: &str) -> Option<ThreadTimes> {
    let mut fields = line.split_ascii_whitespace();
    let run_ns = fields.next()?.parse().ok()?;
    let wait_ns = fields.next()?.parse().ok()?;
    Some(ThreadTimes { run_ns, wait_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_figure_is_in_bytes() {
        assert_eq!(
            parse_resident("VmRSS:\t  9 kB\nRssAnon:\t    2 kB\n"),
            Some(2048)
        );
        assert_eq!(parse_resident("VmRSS: 9 kB\n"), None);
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(resident_anonymous(me).unwrap() > 4096);
        assert_eq!(resident_anonymous(0), None);
    }

    #[test]
    fn schedstat_is_run_time_then_wait_time() {
        let times = parse_schedstat("123 45 6\n");
        assert_eq!(
            times,
            Some(ThreadTimes {
                run_ns: 123,
                wait_ns: 45
            })
        );
        assert_eq!(parse_schedstat("123"), None);
        assert_eq!(parse_schedstat("a b c"), None);
    }
}
