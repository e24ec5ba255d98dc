//! What a program on the host says before it is connected: `CONNECT <port>\n`, as with Firecracker and
//! Cloud Hypervisor. The answer, `OK <host port>\n`, comes when the guest has accepted.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// Longest line: the word, a blank and ten digits, with some room for other blanks.
const MAX_LINE_BYTES: usize = 32;

/// A connection that has not said yet where it wants to go.
#[derive(Debug)]
pub struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// How far it has come.
#[derive(Debug)]
pub enum Progress {
    /// The line is not complete.
    Waits(Handshake),
    /// It wants this port of the guest. What follows the line is still in the stream.
    Wants(UnixStream, u32),
    /// It has said something else, or has gone.
    Failed,
}

impl Handshake {
    /// Of a connection that does not block.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Reads what there is, byte by byte: what follows the line is the guest's.
    pub fn read(mut self) -> Progress {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    return match port(&self.line) {
                        Some(port) => Progress::Wants(self.stream, port),
                        None => Progress::Failed,
                    };
                }
                Ok(1) if self.line.len() < MAX_LINE_BYTES => self.line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Progress::Waits(self);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Progress::Failed,
            }
        }
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let command = words.next()?;
    let port = words.next()?;
    let alone = words.next().is_none() && command.eq_ignore_ascii_case("connect");
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    port.parse().ok().filter(|_| alone && digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn the_line_is_read_across_pieces_and_nothing_behind_it_is_taken() {
        let (mut host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(ours);
        for piece in ["CON", "NECT 10", "24"] {
            host.write_all(piece.as_bytes()).unwrap();
            handshake = match handshake.read() {
                Progress::Waits(handshake) => handshake,
                other => panic!("{other:?} after {piece}"),
            };
        }
        host.write_all(b"\nhello").unwrap();
        let Progress::Wants(mut stream, 1024) = handshake.read() else {
            panic!("not port 1024");
        };
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn other_lines_fail() {
        for line in [
            "",
            "CONNECT",
            "CONNECT x",
            "CONNECT +5",
            "CONNECT 4294967296",
            "CONNECT 1 2",
            "HELLO 5",
            "CONNECT 00000000000000000000000000000000000005",
        ] {
            let (mut host, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            host.write_all(format!("{line}\n").as_bytes()).unwrap();
            let progress = Handshake::new(ours).read();
            assert!(matches!(progress, Progress::Failed), "{line}");
        }
        assert_eq!(port(b"connect 4294967295\r"), Some(u32::MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let (mut host, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            host.write_all(&bytes).unwrap();
            drop(host);
            prop_assert!(!matches!(Handshake::new(ours).read(), Progress::Waits(_)));
        }
    }
}
