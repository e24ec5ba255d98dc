//! Signals as bytes on a pipe, so that they can be waited for beside other things.
//!
//! Handlers, not a blocked signal mask: a mask would be inherited by the vmm process, handlers are
//! reset there.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The writing end, for the handler; -1 before anything is caught.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The signals that ask a program to end: from the keyboard, from `kill`, from a closed terminal.
pub const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The caught signals, in order. There is one for the whole process.
pub struct Signals {
    pipe: PipeReader,
}

impl Signals {
    /// Catches the [`ENDING`] signals from here on, for the rest of the process's life.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // A signal storm that fills the pipe must not block the program in its handler.
        // SAFETY: fcntl(2) on a descriptor that `writer` keeps open; no memory is involved.
        if unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The handler needs it for as long as the process lives, so it is never closed.
        PIPE.store(writer.into_raw_fd(), Ordering::SeqCst);
        for signal in ENDING {
            catch(signal)?;
        }
        Ok(Self { pipe: reader })
    }

    /// Catches `SIGTSTP` (Ctrl-Z's signal) as well; [`stop`] is what it asks for.
    pub fn with_stop(self) -> io::Result<Self> {
        catch(libc::SIGTSTP)?;
        Ok(self)
    }

    /// Waits for the next signal.
    pub fn next(&mut self) -> io::Result<libc::c_int> {
        let mut signal = [0u8; 1];
        self.pipe.read_exact(&mut signal)?;
        Ok(signal.first().copied().unwrap_or(0).into())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Stops this process as Ctrl-Z stops a program, until somebody lets it go on. `SIGTSTP` is caught from
/// then on. A process group that no shell looks after cannot be stopped so, and just goes on.
pub fn stop() -> io::Result<()> {
    set_handler(libc::SIGTSTP, libc::SIG_DFL, 0)?;
    // To this very thread: it is stopped before the call returns.
    // SAFETY: raise(3) takes an integer and touches no memory of ours.
    unsafe { libc::raise(libc::SIGTSTP) };
    catch(libc::SIGTSTP)
}

fn catch(signal: libc::c_int) -> io::Result<()> {
    let handler = note as extern "C" fn(libc::c_int);
    set_handler(signal, handler as libc::sighandler_t, 0)
}

/// Handles one signal by `handler`, with the given `SA_` flags.
pub fn set_handler(
    signal: libc::c_int,
    handler: libc::sighandler_t,
    flags: libc::c_int,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags | libc::SA_RESTART;
    // SAFETY: `action` is initialised and outlives the call; the old action is not asked for. Our
    // handlers only use async-signal-safe calls.
    if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn note(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: errno is thread-local and always mapped; write(2) is async-signal-safe, and reads one
    // byte that lives on this stack. Errno is kept, since the interrupted code may look at it.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1);
        *errno = before;
    }
}
