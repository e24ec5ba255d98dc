//! Names to addresses: numbers, `/etc/hosts`, then the servers of `/etc/resolv.conf` (RFC 1035 over UDP).
//!
//! The system's own resolver loads libraries of its host at run time, which a static program cannot rely
//! on. This one does what those who connect by a configured name need, and no more: no caches, no
//! DNSSEC, no sources other than the two files.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long one server may take for one question.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds over all servers.
const ROUNDS: usize = 2;
/// Longest answer over UDP that we take.
const ANSWER_MAX: usize = 1500;
/// Servers that are asked.
const SERVERS_MAX: usize = 3;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The addresses of a name, IPv4 first.
///
/// # Errors
/// It is no name, nobody knows it, or no server answers.
pub fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let hosts = fs::read_to_string(HOSTS).unwrap_or_default();
    let found = in_hosts(&hosts, name);
    if !found.is_empty() {
        return Ok(found);
    }
    if name.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let config = Config::parse(&fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    let mut last = unknown(name);
    for full in config.names(name) {
        match ask_all(&config, &full) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where `HOST:PORT` leads.
///
/// # Errors
/// It has not this form, or the name has no address.
pub fn socket_addresses(text: &str) -> io::Result<Vec<SocketAddr>> {
    let bad = || {
        let why = format!("'{text}' is not HOST:PORT");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    let found = addresses(host)?;
    Ok(found
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect())
}

fn unknown(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("no address is known for '{name}'"),
    )
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or("")
            .split_ascii_whitespace();
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            found.extend(address);
        }
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Config {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Config {
    fn parse(text: &str) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            search: Vec::new(),
        };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    config
                        .servers
                        .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        config.servers.truncate(SERVERS_MAX);
        config
    }

    /// The full names that a name may mean.
    fn names(&self, name: &str) -> Vec<String> {
        let plain = name.trim_end_matches('.').to_owned();
        let searched = self.search.iter().map(|domain| format!("{plain}.{domain}"));
        if name.ends_with('.') {
            return vec![plain];
        }
        if plain.contains('.') {
            return std::iter::once(plain.clone()).chain(searched).collect();
        }
        searched.chain(std::iter::once(plain.clone())).collect()
    }
}

fn ask_all(config: &Config, name: &str) -> io::Result<Vec<IpAddr>> {
    let mut last = unknown(name);
    for server in config
        .servers
        .iter()
        .cycle()
        .take(config.servers.len() * ROUNDS)
    {
        let asked = ask(*server, name, TYPE_A).and_then(|mut found| {
            found.extend(ask(*server, name, TYPE_AAAA)?);
            Ok(found)
        });
        match asked {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(server: IpAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let any: SocketAddr = match server {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let id = random_id()?;
    let question = question(id, name, kind).ok_or_else(|| unknown(name))?;
    socket.send(&question)?;
    let mut buffer = [0; ANSWER_MAX];
    // Strangers may send something, too: a few answers that are not ours are passed over.
    for _ in 0..8 {
        let length = socket.recv(&mut buffer)?;
        let answer = buffer.get(..length).unwrap_or_default();
        if let Some(found) = read_answer(answer, &question) {
            return Ok(found);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the name server's answers make no sense",
    ))
}

fn random_id() -> io::Result<u16> {
    use std::io::Read;
    let mut bytes = [0; 2];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}

/// A question for one name; `None`: it is no name.
fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 18);
    bytes.extend(id.to_be_bytes());
    // Recursion desired; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            return None;
        }
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    (bytes.len() <= 255 + 16).then_some(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let [high, low] = *bytes.get(at..at + 2)? else {
        return None;
    };
    Some(u16::from_be_bytes([high, low]))
}

/// The end of a name that begins at `at`. Pointers (RFC 1035 §4.1.4) are not followed: they end it.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// The addresses of an answer to a question; `None`: it is no answer to it.
fn read_answer(answer: &[u8], question: &[u8]) -> Option<Vec<IpAddr>> {
    let is_response = answer.get(2)? & 0x80 != 0;
    let asked = question.get(12..)?;
    let repeated = answer.get(12..12 + asked.len())?;
    let is_ours = answer.get(..2) == question.get(..2) && repeated.eq_ignore_ascii_case(asked);
    if !is_response || !is_ours || u16_at(answer, 4)? != 1 {
        return None;
    }
    match answer.get(3)? & 0x0f {
        0 => {}
        // No such name.
        3 => return Some(Vec::new()),
        _ => return None,
    }
    let mut found = Vec::new();
    let mut at = 12 + asked.len();
    for _ in 0..u16_at(answer, 6)? {
        at = after_name(answer, at)?;
        let kind = u16_at(answer, at)?;
        let length = usize::from(u16_at(answer, at + 8)?);
        let data = answer.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        match kind {
            TYPE_A => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            TYPE_AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            // The server follows other names of the same thing (CNAME) for us.
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_hosts_need_no_server() {
        assert_eq!(
            addresses("10.1.2.3").unwrap(),
            [IpAddr::from([10, 1, 2, 3])]
        );
        assert_eq!(
            addresses("[::1]").unwrap(),
            [IpAddr::from(Ipv6Addr::LOCALHOST)]
        );
        assert!(!addresses("localhost").unwrap().is_empty());
        let hosts = "10.0.0.1 a b # c\n# 10.0.0.2 b\n10.0.0.3\tB\n";
        assert_eq!(in_hosts(hosts, "b").len(), 2);
        assert!(in_hosts(hosts, "c").is_empty());
        assert_eq!(socket_addresses("[::1]:80").unwrap()[0].port(), 80);
        for text in ["", "host", "1.2.3.4:x", "1.2.3.4:70000"] {
            assert!(socket_addresses(text).is_err(), "{text}");
        }
    }

    #[test]
    fn short_names_are_searched_first_and_a_dot_ends_the_search() {
        let config = Config::parse("nameserver 10.0.0.53\nnameserver bad\nsearch one two\n");
        assert_eq!(config.servers, [IpAddr::from([10, 0, 0, 53])]);
        assert_eq!(config.names("web"), ["web.one", "web.two", "web"]);
        assert_eq!(config.names("web.org")[0], "web.org");
        assert_eq!(config.names("web."), ["web"]);
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        // An alias first, then the address; names are pointers to the question.
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 9, 8, 7]);
        bytes
    }

    #[test]
    fn an_answer_is_read_and_whatever_is_cut_off_is_none() {
        let question = question(7, "control.example.org", TYPE_A).unwrap();
        let answer = answer(&question);
        assert_eq!(
            read_answer(&answer, &question).unwrap(),
            [IpAddr::from([10, 9, 8, 7])]
        );
        for length in 0..answer.len() {
            assert_eq!(read_answer(&answer[..length], &question), None, "{length}");
        }
        for at in 0..answer.len() {
            let mut changed = answer.clone();
            changed[at] ^= 0xff;
            // It must not panic; what is not ours is not taken.
            let read = read_answer(&changed, &question);
            if at < 2 {
                assert_eq!(read, None);
            }
        }
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for name in ["", "a..b", "a b", &"x".repeat(64), &"x.".repeat(200)] {
            assert!(question(1, name, TYPE_A).is_none(), "{name}");
        }
    }
}
