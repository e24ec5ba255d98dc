//! The serial console: a 16550A on COM1, and what stands on its other side: a unix socket for whoever
//! wants to type and read, and a log file.
//!
//! The guest writes a byte at a time on a vCPU thread. Bytes are collected there, and handed on by the
//! event loop a few milliseconds later or when many have come, not with one system call each.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::BusDevice;

/// Output waits at most so long for more.
const GATHER: Duration = Duration::from_millis(5);
/// So much output does not wait.
const GATHER_BYTES: usize = 4096;
/// Output that a newcomer on the socket gets to see.
const HISTORY_BYTES: usize = 64 << 10;
/// Readers at the same time.
const MAX_CLIENTS: usize = 8;
/// Typed input that waits for the guest.
const MAX_INPUT_BYTES: usize = 16 << 10;

/// The interrupt line.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the UART writes: memory, and a wake-up.
pub struct Output {
    bytes: Vec<u8>,
    timer: TimerFd,
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let wait = match self.bytes.len() {
            0 => Some(GATHER),
            n if n < GATHER_BYTES && n + data.len() >= GATHER_BYTES => {
                Some(Duration::from_nanos(1))
            }
            _ => None,
        };
        // A guest that writes faster than anybody reads loses output, not the host its memory.
        if self.bytes.len() < HISTORY_BYTES {
            self.bytes.extend_from_slice(data);
        }
        if let Some(wait) = wait {
            self.timer.reset(wait, None)?;
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Line, NoEvents, Output>;

/// The UART, shared by vCPU threads and the event loop.
#[derive(Clone)]
pub struct SerialPort(Arc<Mutex<Uart>>);

impl SerialPort {
    /// `line` is an irqfd. The second value becomes readable when output waits.
    ///
    /// # Errors
    /// No timer to be had.
    pub fn new(line: EventFd) -> io::Result<(Self, i32)> {
        let timer = TimerFd::new()?;
        let ready = timer.as_raw_fd();
        let uart = Serial::new(
            Line(line),
            Output {
                bytes: Vec::new(),
                timer,
            },
        );
        Ok((Self(Arc::new(Mutex::new(uart))), ready))
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was written. `timer_fired`: the timer is readable; reading it otherwise would
    /// block, and with it every vCPU that touches the port.
    fn take_output(&self, timer_fired: bool, into: &mut Vec<u8>) {
        let mut uart = self.lock();
        let output = uart.writer_mut();
        if timer_fired {
            let _ = output.timer.wait();
        }
        into.append(&mut output.bytes);
    }

    /// Offers input; says how many bytes found room.
    fn enqueue(&self, input: &[u8]) -> usize {
        let mut uart = self.lock();
        let room = uart.fifo_capacity().min(input.len());
        uart.enqueue_raw_bytes(input.get(..room).unwrap_or_default())
            .unwrap_or(0)
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.lock().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // `outsb` gives several bytes for one port: each is a write of its own.
        for byte in data {
            let _ = self.lock().write(offset as u8, *byte);
        }
    }
}

/// The other side of the cable. Lives on the event loop.
pub struct Console {
    port: SerialPort,
    listener: Option<UnixListener>,
    log: Option<File>,
    clients: Vec<UnixStream>,
    history: VecDeque<u8>,
    input: VecDeque<u8>,
}

impl Console {
    /// Serves `listener`, copies to `log`.
    pub fn new(port: SerialPort, listener: Option<UnixListener>, log: Option<File>) -> Self {
        let (history, input) = (VecDeque::new(), VecDeque::new());
        Self {
            port,
            listener,
            log,
            clients: Vec::new(),
            history,
            input,
        }
    }

    /// Hands on what the guest has written, when the descriptor that says so is readable.
    pub fn drain_output(&mut self) {
        self.hand_on(true);
    }

    /// Hands on the rest, at the end of the VM.
    pub fn finish(&mut self) {
        self.hand_on(false);
    }

    fn hand_on(&mut self, timer_fired: bool) {
        let mut bytes = Vec::new();
        self.port.take_output(timer_fired, &mut bytes);
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &mut self.log
            && log.write_all(&bytes).is_err()
        {
            // A full disk must not stop the guest; the socket still works.
            self.log = None;
        }
        // A reader that does not keep up is cut off rather than waited for.
        self.clients
            .retain_mut(|client| client.write_all(&bytes).is_ok());
        self.history.extend(&bytes);
        let excess = self.history.len().saturating_sub(HISTORY_BYTES);
        self.history.drain(..excess);
        if self.history.capacity() > 2 * HISTORY_BYTES {
            self.history.shrink_to_fit();
        }
    }

    /// Takes the next one who knocks; gives the descriptor to poll for its input.
    pub fn accept(&mut self) -> Option<i32> {
        let (mut stream, _) = self.listener.as_ref()?.accept().ok()?;
        if self.clients.len() >= MAX_CLIENTS {
            let _ = stream.write_all(b"Too many consoles are open\r\n");
            return None;
        }
        let (a, b) = self.history.as_slices();
        stream
            .write_all(a)
            .and_then(|()| stream.write_all(b))
            .ok()?;
        stream.set_nonblocking(true).ok()?;
        let fd = stream.as_raw_fd();
        self.clients.push(stream);
        Some(fd)
    }

    /// Reads what client `fd` has typed. False: it is gone, and its descriptor closed.
    pub fn read_client(&mut self, fd: i32) -> bool {
        let Some(at) = self.clients.iter().position(|c| c.as_raw_fd() == fd) else {
            return false;
        };
        let mut buffer = [0u8; 256];
        let count = self
            .clients
            .get_mut(at)
            .map(|client| client.read(&mut buffer));
        match count {
            Some(Ok(count)) if count > 0 => {
                let room = MAX_INPUT_BYTES.saturating_sub(self.input.len());
                self.input.extend(buffer.iter().take(count.min(room)));
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => {
                self.clients.swap_remove(at);
                return false;
            }
        }
        true
    }

    /// Gives typed input to the guest as far as its FIFO has room. True: some is left, ask again soon.
    pub fn feed_input(&mut self) -> bool {
        loop {
            let (head, _) = self.input.as_slices();
            if head.is_empty() {
                return false;
            }
            match self.port.enqueue(head) {
                0 => return true,
                count => drop(self.input.drain(..count)),
            }
        }
    }

    /// The listening descriptor.
    pub fn listener_fd(&self) -> Option<i32> {
        self.listener.as_ref().map(AsRawFd::as_raw_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_output_is_handed_on_without_waiting_for_the_timer() {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (port, _) = SerialPort::new(line).unwrap();
        let mut log = tempfile::tempfile().unwrap();
        let mut console = Console::new(port.clone(), None, Some(log.try_clone().unwrap()));
        console.finish();
        port.write(0, b"bye");
        console.finish();
        let mut text = String::new();
        std::io::Seek::rewind(&mut log).unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
    }
}
