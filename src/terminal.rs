//! The terminal in raw mode or as a full screen, and its way back: at the end, on an error, on a
//! panic, on a crash.
//!
//! The settings to go back to lie in a static, because the panic hook and the handlers of fatal
//! signals have nothing else. Signals that ask for an end are caught elsewhere and lead to a normal
//! end. Only `SIGKILL` leaves a raw terminal behind (`reset` mends it).

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use crate::signals::{self, set_handler};

/// Settings of standard input before the first raw mode.
static COOKED: OnceLock<libc::termios> = OnceLock::new();
/// Standard input is raw at the moment.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Standard output shows a full screen at the moment.
static IS_FULL: AtomicBool = AtomicBool::new(false);

/// To the alternate screen, without a cursor (the private modes of xterm).
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
/// No colours, the cursor, and the screen from before.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

const FATAL: [libc::c_int; 5] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
];

/// Standard input in raw mode until this is dropped.
pub struct RawMode(());

impl RawMode {
    /// Makes standard input raw; `None` where it is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        make_raw()?;
        Ok(Some(Self(())))
    }
}

fn make_raw() -> io::Result<()> {
    let mut now = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr(3) fills the whole structure, which is large enough, when it returns 0.
    let now = unsafe {
        if libc::tcgetattr(libc::STDIN_FILENO, now.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        now.assume_init()
    };
    let mut raw = *COOKED.get_or_init(|| now);
    restore_on_crash()?;
    // SAFETY: `raw` is a complete structure that is ours.
    unsafe { libc::cfmakeraw(&mut raw) };
    IS_RAW.store(true, Ordering::SeqCst);
    // SAFETY: tcsetattr(3) only reads `raw`.
    if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } != 0 {
        IS_RAW.store(false, Ordering::SeqCst);
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal as a full screen until this is dropped: standard input raw, standard output on the
/// alternate screen without a cursor.
pub struct FullScreen(RawMode);

impl FullScreen {
    /// Takes the terminal; `None` where standard input or output is none.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        let Some(raw) = RawMode::enter()? else {
            return Ok(None);
        };
        // Where this fails, `raw` undoes both.
        take_screen()?;
        Ok(Some(Self(raw)))
    }

    /// Gives the terminal back as it was, stops this process until somebody lets it go on, and takes the
    /// terminal again. The screen is empty then.
    pub fn suspend(&self) -> io::Result<()> {
        restore();
        signals::stop()?;
        // Where a shell goes on with it in the background, this stops it once more.
        make_raw()?;
        take_screen()
    }
}

fn take_screen() -> io::Result<()> {
    IS_FULL.store(true, Ordering::SeqCst);
    io::stdout().write_all(ENTER)?;
    io::stdout().flush()
}

/// Standard output that is written picture by picture: what was not flushed is never shown, so that
/// nothing of an unfinished picture comes after the way back from the full screen.
pub struct Pictures {
    out: File,
    picture: Vec<u8>,
}

impl Pictures {
    /// To standard output, past the buffer of [`io::stdout`].
    pub fn to_stdout() -> io::Result<Self> {
        Ok(Self {
            out: File::from(io::stdout().as_fd().try_clone_to_owned()?),
            picture: Vec::new(),
        })
    }
}

impl Write for Pictures {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.picture.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let picture = std::mem::take(&mut self.picture);
        self.out.write_all(&picture)
    }
}

/// Drops what was typed and not read, where standard input is a terminal. Among it may be the
/// terminal's own answers to questions in a guest's output, such as where its cursor is; the person's
/// shell would take them for typed text.
pub fn discard_typed() {
    if io::stdin().is_terminal() {
        // SAFETY: tcflush(3) takes two integers and touches no memory of ours. What it cannot drop
        // stays, as without it.
        unsafe { libc::tcflush(libc::STDIN_FILENO, libc::TCIFLUSH) };
    }
}

/// Goes back to the screen and the settings from before, when they were changed. Async-signal-safe.
fn restore() {
    if IS_FULL.swap(false, Ordering::SeqCst) {
        // SAFETY: write(2) is async-signal-safe and reads a constant. A terminal that is gone has
        // nothing to be restored.
        unsafe { libc::write(libc::STDOUT_FILENO, LEAVE.as_ptr().cast(), LEAVE.len()) };
    }
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(cooked) = COOKED.get()
    {
        // SAFETY: tcsetattr(3) is async-signal-safe and only reads `cooked`, which is never changed
        // once it is set.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, cooked) };
    }
}

/// Arms the panic hook and the handlers of fatal signals, once.
fn restore_on_crash() -> io::Result<()> {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
    });
    for signal in FATAL {
        let handler = crashed as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // The default action is back when the handler begins, so that the second time is fatal.
        set_handler(signal, handler, libc::SA_RESETHAND | libc::SA_ONSTACK)?;
    }
    Ok(())
}

extern "C" fn crashed(signal: libc::c_int) {
    restore();
    // SAFETY: raise(3) is async-signal-safe; the action of this signal is the default one again.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::process::{Command, Stdio};

    use super::*;

    const END: &str = "CONCERTINA_TEST_END";
    const MODE: &str = "CONCERTINA_TEST_MODE";

    /// What the tests below run in a process of its own, on a terminal of its own.
    #[test]
    #[ignore = "a part of the other tests"]
    fn enter_and_end() {
        let (raw, full) = match std::env::var(MODE).unwrap().as_str() {
            "full" => (None, FullScreen::enter().unwrap()),
            _ => (RawMode::enter().unwrap(), None),
        };
        assert!(
            raw.is_some() || full.is_some(),
            "standard input or output is no terminal"
        );
        assert!(!is_cooked(libc::STDIN_FILENO), "the terminal is not raw");
        match std::env::var(END).unwrap().as_str() {
            "return" => {}
            "panic" => panic!("on purpose"),
            "abort" => std::process::abort(),
            // SAFETY: raise(3) takes an integer and touches no memory of ours.
            "segv" => drop(unsafe { libc::raise(libc::SIGSEGV) }),
            other => unreachable!("{other}"),
        }
    }

    fn settings(fd: libc::c_int) -> libc::termios {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr(3) fills the structure when it returns 0, which is asserted.
        unsafe {
            assert_eq!(libc::tcgetattr(fd, settings.as_mut_ptr()), 0);
            settings.assume_init()
        }
    }

    fn is_cooked(fd: libc::c_int) -> bool {
        let settings = settings(fd);
        settings.c_lflag & libc::ICANON != 0 && settings.c_oflag & libc::OPOST != 0
    }

    /// How the part above ended on a fresh terminal.
    #[derive(Debug, PartialEq)]
    struct Ended {
        well: bool,
        /// The settings are those from before.
        cooked: bool,
        /// The program's screen was shown, and is not any more.
        left_screen: bool,
    }

    fn end_by(mode: &str, end: &str) -> Ended {
        let (mut ours, mut theirs) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: openpty(3) writes two descriptors, which are ours alone when it returns 0.
        let (mut ours, theirs) = unsafe {
            assert_eq!(
                libc::openpty(&mut ours, &mut theirs, null, null.cast(), null.cast()),
                0
            );
            (File::from_raw_fd(ours), File::from_raw_fd(theirs))
        };
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "terminal::tests::enter_and_end"])
            .env(MODE, mode)
            .env(END, end)
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let cooked = is_cooked(theirs.as_raw_fd());
        drop(theirs);
        // Reading ends with an error once nobody has the other side.
        let (mut output, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = ours.read(&mut chunk) {
            output.extend_from_slice(&chunk[..count]);
        }
        let mut screen = vt100::Parser::default();
        screen.process(&output);
        let entered = output.windows(ENTER.len()).any(|part| part == ENTER);
        Ended {
            well: status.success(),
            cooked,
            left_screen: entered
                && !screen.screen().alternate_screen()
                && !screen.screen().hide_cursor(),
        }
    }

    fn raw_ended(well: bool) -> Ended {
        Ended {
            well,
            cooked: true,
            left_screen: false,
        }
    }

    fn full_ended(well: bool) -> Ended {
        Ended {
            left_screen: true,
            ..raw_ended(well)
        }
    }

    #[test]
    fn the_terminal_is_as_before_after_a_normal_end() {
        assert_eq!(end_by("raw", "return"), raw_ended(true));
        assert_eq!(end_by("full", "return"), full_ended(true));
    }

    #[test]
    fn the_terminal_is_as_before_after_a_panic() {
        assert_eq!(end_by("raw", "panic"), raw_ended(false));
        assert_eq!(end_by("full", "panic"), full_ended(false));
    }

    #[test]
    fn the_terminal_is_as_before_after_a_crash() {
        for crash in ["abort", "segv"] {
            assert_eq!(end_by("raw", crash), raw_ended(false), "{crash}");
            assert_eq!(end_by("full", crash), full_ended(false), "{crash}");
        }
    }
}
