//! Numbers from programs of the guest, through a unix datagram socket.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use concertina_guest::channel::{Gauge, MAX_GAUGES, is_gauge_name, parse_gauge};

const FOLDER: &str = "/run/concertina";
const SOCKET: &str = "/run/concertina/metrics.sock";
/// Most datagrams taken at once: reports must go out whatever programs do.
const MAX_DATAGRAMS: usize = 64;
/// Longest datagram; what is longer is cut.
const MAX_DATAGRAM_BYTES: usize = 4096;
/// A number that is not repeated for so long is unknown.
const LIFETIME: Duration = Duration::from_secs(60);

/// The numbers, and the socket that they come from.
pub struct Gauges {
    socket: Option<UnixDatagram>,
    values: BTreeMap<String, (f64, Instant)>,
}

impl Gauges {
    /// Opens the socket, for every program of the guest. Where it cannot be made there are no numbers.
    pub fn open() -> Self {
        let socket = listen()
            .inspect_err(|error| eprintln!("concertina-guest: {SOCKET} cannot be made: {error}"))
            .ok();
        Self {
            socket,
            values: BTreeMap::new(),
        }
    }

    /// Readable when there are numbers; -1 without a socket.
    pub fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Takes what has come.
    pub fn receive(&mut self) {
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        for _ in 0..MAX_DATAGRAMS {
            let Some(Ok(len)) = self.socket.as_ref().map(|s| s.recv(&mut datagram)) else {
                return;
            };
            let text = String::from_utf8_lossy(datagram.get(..len).unwrap_or_default());
            let now = Instant::now();
            text.lines()
                .filter_map(parse_gauge)
                .for_each(|gauge| self.take(gauge, now));
        }
    }

    fn take(&mut self, gauge: Gauge<'_>, now: Instant) {
        let (name, value) = match gauge {
            Gauge::Set(name, value) => (name, value),
            Gauge::Change(name, by) => (name, self.values.get(name).map_or(0.0, |v| v.0) + by),
        };
        if self.values.len() >= MAX_GAUGES && !self.values.contains_key(name) {
            self.values.retain(|_, (_, at)| is_alive(*at, now));
        }
        if value.is_finite() && (self.values.len() < MAX_GAUGES || self.values.contains_key(name)) {
            self.values.insert(name.to_owned(), (value, now));
        }
    }

    /// The numbers that are known.
    pub fn values(&self, now: Instant) -> BTreeMap<String, Option<f64>> {
        let alive = self.values.iter().filter(|(_, (_, at))| is_alive(*at, now));
        alive
            .map(|(name, (value, _))| (name.clone(), Some(*value)))
            .collect()
    }
}

fn is_alive(at: Instant, now: Instant) -> bool {
    now.duration_since(at) < LIFETIME
}

fn listen() -> io::Result<UnixDatagram> {
    fs::create_dir_all(FOLDER)?;
    // Left by an agent before this one.
    let _ = fs::remove_file(SOCKET);
    let socket = UnixDatagram::bind(SOCKET)?;
    socket.set_nonblocking(true)?;
    fs::set_permissions(Path::new(SOCKET), fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

/// Says one number to the agent of this guest.
pub fn send(name: &str, value: &str) -> Result<(), String> {
    let line = format!("{name}:{value}|g");
    if !is_gauge_name(name) {
        return Err(format!(
            "Name '{name}' is not allowed: 1 to 64 of a-z, 0-9, '_', '.' and '-'"
        ));
    }
    if parse_gauge(&line).is_none() {
        return Err(format!("Value '{value}' is no number"));
    }
    UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(line.as_bytes(), SOCKET))
        .map(drop)
        .map_err(|error| format!("The agent of this guest does not listen on {SOCKET}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_changes_add_up_and_what_is_not_repeated_is_forgotten() {
        let mut gauges = Gauges {
            socket: None,
            values: BTreeMap::new(),
        };
        let begin = Instant::now();
        gauges.take(Gauge::Set("a", 1.0), begin);
        gauges.take(Gauge::Change("a", 2.5), begin);
        for i in 0..2 * MAX_GAUGES {
            gauges.take(Gauge::Set(&format!("g{i}"), 0.0), begin);
        }
        assert_eq!(gauges.values(begin).len(), MAX_GAUGES);
        assert_eq!(gauges.values(begin)["a"], Some(3.5));
        gauges.take(Gauge::Set("a", f64::MAX), begin);
        gauges.take(Gauge::Change("a", f64::MAX), begin);
        assert_eq!(gauges.values(begin)["a"], Some(f64::MAX));
        let later = begin + LIFETIME;
        gauges.take(Gauge::Set("late", 7.0), later);
        assert_eq!(
            gauges.values(later),
            BTreeMap::from([("late".to_owned(), Some(7.0))])
        );
    }
}
