//! Streams between a program in the guest and one on the host: ours through a unix socket, QEMU's
//! through the host kernel's vhost.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{Side, probe};
use crate::report::Results;

const MIB: usize = 128;
const PORT: u32 = 7000;

/// How the host hears of a guest's connection.
pub enum Host {
    /// Port N is the unix socket of this path and `_N`.
    Unix(PathBuf),
    /// The kernel's.
    Vhost,
}

impl Host {
    /// Ports are unix sockets beside this one.
    pub fn unix(socket: PathBuf) -> Self {
        Self::Unix(socket)
    }

    /// Ports are the kernel's.
    pub fn vhost() -> Self {
        Self::Vhost
    }

    fn is_there(&self) -> bool {
        matches!(self, Self::Unix(_)) || host_has_vhost()
    }

    /// Listens at once; gives what waits for the guest.
    fn listen(&self) -> Result<Box<dyn FnOnce() -> Result<File> + Send>> {
        match self {
            Self::Unix(socket) => {
                let path = format!("{}_{PORT}", socket.display());
                let _ = std::fs::remove_file(&path);
                let listener =
                    UnixListener::bind(&path).with_context(|| format!("Listening on {path}"))?;
                Ok(Box::new(move || {
                    Ok(File::from(OwnedFd::from(listener.accept()?.0)))
                }))
            }
            Self::Vhost => {
                let listener = probe::vsock_listen(PORT).context("Listening on a vsock port")?;
                Ok(Box::new(move || {
                    Ok(File::from(probe::vsock_accept(&listener)?))
                }))
            }
        }
    }
}

/// Whether the host's kernel can give QEMU's guest such a device.
pub fn host_has_vhost() -> bool {
    Path::new("/dev/vhost-vsock").exists()
}

/// Runs both directions on both sides, round by round.
pub fn measure(sides: &mut [Side; 2], rounds: usize, results: &mut Results) -> Result<()> {
    for (name, word) in [
        ("vsock, guest to host", "send"),
        ("vsock, host to guest", "receive"),
    ] {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (side, samples) in sides.iter_mut().zip(&mut samples) {
                if side.vsock.is_there() {
                    samples.push(stream(side, word)?);
                }
            }
        }
        for (side, samples) in sides.iter().zip(&samples) {
            results.add(name, side.name, "MiB/s", samples);
        }
    }
    Ok(())
}

/// MiB a second, from the connection to the word that all has arrived.
fn stream(side: &mut Side, word: &str) -> Result<f64> {
    let accept = side.vsock.listen()?;
    let guest_sends = word == "send";
    let host = thread::spawn(move || -> Result<f64> {
        let mut stream = accept()?;
        let started = Instant::now();
        if guest_sends {
            probe::pull(&mut stream, MIB)?;
        } else {
            probe::push(&mut stream, MIB)?;
            stream.read_exact(&mut [0])?;
        }
        let took = started.elapsed().as_secs_f64();
        if guest_sends {
            stream.write_all(&[1])?;
        }
        Ok(MIB as f64 / took)
    });
    let said = side
        .guest
        .run(&format!("bench probe {word} {PORT} {MIB}"))?;
    if said.is_empty() {
        bail!("The probe in the guest of {} failed", side.name);
    }
    match host.join() {
        Ok(rate) => rate,
        Err(_) => bail!("The host's end panicked"),
    }
}
