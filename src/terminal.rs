//! The terminal in raw mode, and its way back: at the end, on an error, on a panic, on a crash.
//!
//! The settings to go back to lie in a static, because the panic hook and the handlers of fatal
//! signals have nothing else. Signals that ask for an end are caught elsewhere and lead to a normal
//! end. Only `SIGKILL` leaves a raw terminal behind (`reset` mends it).

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use crate::signals::set_handler;

/// Settings of standard input before the first raw mode.
static COOKED: OnceLock<libc::termios> = OnceLock::new();
/// Standard input is raw at the moment.
static IS_RAW: AtomicBool = AtomicBool::new(false);

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
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Goes back to the settings from before, when they were changed. Async-signal-safe.
fn restore() {
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
