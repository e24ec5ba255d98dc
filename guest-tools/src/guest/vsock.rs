//! `concertina-guest vsock`: byte streams to and from the host for shells and tests.

use std::io::{self, Read, Write};
use std::thread;

use super::command::Problem;
use super::sys;
use super::sys::vsock::VsockSocket;

const HELP: &str = "\
Usage: concertina-guest vsock connect PORT | listen PORT | echo PORT

  connect PORT   joins standard input and output to a port of the host
  listen PORT    joins them to the first connection that the host makes to this port
  echo PORT      sends back what comes on any connection of the host to this port, until it is ended

On the host, port N is the unix socket vsock.sock_N in the instance's folder. The host reaches a
port here by connecting to vsock.sock, writing 'CONNECT PORT', and reading 'OK …'.";

/// Runs `vsock` with its arguments.
pub fn run(arguments: &[&str]) -> Result<(), Problem> {
    let (act, port): (fn(u32) -> io::Result<()>, &str) = match arguments {
        ["connect", port] => (|port| join(&VsockSocket::connect(port)?), port),
        ["listen", port] => (|port| join(&VsockSocket::listen(port)?.accept()?), port),
        ["echo", port] => (echo, port),
        ["help" | "--help" | "-h"] => {
            sys::say(HELP);
            return Ok(());
        }
        _ => return Err(Problem::Usage(HELP.into())),
    };
    let number = port
        .parse()
        .map_err(|_| Problem::Usage(format!("Port '{port}' is not allowed: 0 to 4294967295 is")))?;
    act(number).map_err(|error| Problem::Failed(format!("Port {number}: {error}")))
}

/// Standard input to the other side until it ends, and the other side to standard output until that
/// ends.
fn join(socket: &VsockSocket) -> io::Result<()> {
    let mut sender = socket.stream()?;
    let mut receiver = socket.stream()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            // What the other side does not take any more shows in what it sends.
            let _ = io::copy(&mut io::stdin().lock(), &mut sender);
            let _ = socket.end_sending();
        });
        copy(&mut receiver, &mut io::stdout().lock())
    })
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to)?;
    to.flush()
}

fn echo(port: u32) -> io::Result<()> {
    let listener = VsockSocket::listen(port)?;
    loop {
        let socket = listener.accept()?;
        thread::Builder::new().stack_size(64 << 10).spawn(move || {
            // A side that is gone ends it either way.
            let _ = send_back(&socket);
        })?;
    }
}

fn send_back(socket: &VsockSocket) -> io::Result<()> {
    copy(&mut socket.stream()?, &mut socket.stream()?)?;
    socket.end_sending()
}
