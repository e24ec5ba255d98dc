//! Bytes between standard input, standard output and a serial console's socket.
//!
//! One thread, one poll loop. Input is taken only when the socket has taken the input before it,
//! and output always flows, so a guest that reads slowly never blocks what it writes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::signals::Signals;
use crate::{output, poll};

/// Leaves the console: Ctrl-] as a terminal in raw mode sends it.
pub const DETACH_KEY: u8 = 0x1d;

/// Why the pump stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The person pressed the detach key.
    Detached,
    /// The console's side closed: the VM has ended, or restarts.
    Closed,
    /// Input had ended, and then output was silent for the time of [`Input::linger`].
    Drained,
    /// A signal asked for the end.
    Signal(libc::c_int),
}

/// What feeds the console.
pub struct Input {
    file: Option<File>,
    /// The detach key is looked for: input is a terminal.
    is_interactive: bool,
    /// How long to go on after the end of the input while there is no output; `None`: for ever.
    linger: Option<Duration>,
}

impl Input {
    /// Standard input. Reads bypass the buffer of [`io::stdin`].
    pub fn stdin(is_interactive: bool, linger: Option<Duration>) -> io::Result<Self> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self {
            file: Some(file),
            is_interactive,
            linger,
        })
    }

    /// Reads what is there. True when the detach key is in it: what follows the key is dropped.
    fn read_into(&mut self, pending: &mut Vec<u8>) -> anyhow::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let mut chunk = [0u8; 4096];
        let count = match file.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            // A terminal that hung up reads as an error: the input has ended.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            Err(error) => return Err(error).context("Reading standard input failed"),
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            self.file = None;
        }
        let key = bytes
            .iter()
            .position(|&byte| self.is_interactive && byte == DETACH_KEY);
        pending.extend_from_slice(bytes.get(..key.unwrap_or(count)).unwrap_or_default());
        Ok(key.is_some())
    }
}

/// Copies both ways until there is a reason to stop.
pub fn run(
    mut socket: &UnixStream,
    input: &mut Input,
    mut signals: Option<&mut Signals>,
) -> anyhow::Result<End> {
    const BROKEN: &str = "The console's connection broke";
    socket.set_nonblocking(true).context(BROKEN)?;
    let mut pending: Vec<u8> = Vec::new();
    let mut quiet_since = Instant::now();
    loop {
        let ended = input.file.is_none() && pending.is_empty();
        let left = input
            .linger
            .filter(|_| ended)
            .map(|l| l.saturating_sub(quiet_since.elapsed()));
        if left == Some(Duration::ZERO) {
            return Ok(End::Drained);
        }
        let of_socket = libc::POLLIN | if pending.is_empty() { 0 } else { libc::POLLOUT };
        let wants_input = pending.is_empty() && input.file.is_some();
        let socket_fd = socket.as_fd();
        // A descriptor that is not wanted is replaced by the socket, which is watched anyway.
        let input_fd = input
            .file
            .as_ref()
            .filter(|_| wants_input)
            .map_or(socket_fd, AsFd::as_fd);
        let signal_fd = signals
            .as_ref()
            .map_or(socket_fd, |signals| signals.as_fd());
        let watched = [
            (socket_fd, of_socket),
            (input_fd, libc::POLLIN),
            (signal_fd, libc::POLLIN),
        ];
        let [on_socket, on_input, on_signal] =
            poll::wait(watched, left).context("Waiting for the console failed")?;

        if on_signal != 0
            && let Some(signals) = &mut signals
        {
            return Ok(End::Signal(signals.next()?));
        }
        if on_socket & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            let mut chunk = [0u8; 16 << 10];
            match socket.read(&mut chunk) {
                Ok(0) => return Ok(End::Closed),
                Ok(count) => {
                    output::write(chunk.get(..count).unwrap_or_default())?;
                    quiet_since = Instant::now();
                }
                Err(error) if is_passing(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(End::Closed);
                }
                Err(error) => return Err(error).context(BROKEN),
            }
        }
        if wants_input && on_input != 0 {
            if input.read_into(&mut pending)? {
                // What was typed before the key still goes out, as far as the socket takes it.
                let _ = socket.write(&pending);
                return Ok(End::Detached);
            }
            quiet_since = Instant::now();
        }
        if !pending.is_empty() {
            match socket.write(&pending) {
                Ok(count) => drop(pending.drain(..count.min(pending.len()))),
                Err(error) if is_passing(&error) => {}
                // Its last output may still be there to be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => pending.clear(),
                Err(error) => return Err(error).context(BROKEN),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An input that ends after `bytes`.
    fn input(bytes: &[u8], is_interactive: bool) -> Input {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Input {
            file: Some(file),
            is_interactive,
            linger: Some(Duration::from_millis(30)),
        }
    }

    fn received(mut other: UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        other.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn piped_input_is_sent_whole_and_the_pump_ends_after_a_silence() {
        let (ours, other) = UnixStream::pair().unwrap();
        // More than a socket buffer, so that sending it takes several rounds.
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let reader = std::thread::spawn(move || received(other));
        assert_eq!(
            run(&ours, &mut input(&bytes, false), None).unwrap(),
            End::Drained
        );
        drop(ours);
        assert_eq!(reader.join().unwrap(), bytes);
    }

    #[test]
    fn the_detach_key_ends_the_pump_on_a_terminal_only() {
        let (ours, other) = UnixStream::pair().unwrap();
        assert_eq!(
            run(&ours, &mut input(b"ab\x1dcd", true), None).unwrap(),
            End::Detached
        );
        drop(ours);
        assert_eq!(received(other), b"ab");
        let (ours, other) = UnixStream::pair().unwrap();
        assert_eq!(
            run(&ours, &mut input(b"ab\x1dcd", false), None).unwrap(),
            End::Drained
        );
        drop(ours);
        assert_eq!(received(other), b"ab\x1dcd");
    }

    #[test]
    fn a_console_that_closes_ends_the_pump() {
        let (ours, other) = UnixStream::pair().unwrap();
        drop(other);
        let mut endless = input(b"", false);
        endless.linger = None;
        assert_eq!(run(&ours, &mut endless, None).unwrap(), End::Closed);
    }
}
