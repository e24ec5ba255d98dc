//! Fetches a file of a known length by HTTP or HTTPS.
//!
//! It asks in HTTP/1.0 (RFC 1945), to which no server may answer in chunks: what follows the head is the
//! file. Redirections are followed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(30);
/// Most redirections.
const HOPS: usize = 5;
/// Longest head of an answer, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Most header fields.
const HEADERS_MAX: usize = 64;

/// The content of an address. `size_bytes` is how long it has to be: where the server says otherwise it
/// is not fetched at all.
///
/// # Errors
/// The end of a sentence.
pub(super) fn open(url: &str, size_bytes: u64) -> Result<impl Read + use<>, String> {
    let mut address = Address::parse(url)?;
    for _ in 0..=HOPS {
        let mut reader = address.ask()?;
        match read_head(&mut reader)? {
            Answer::Content(Some(length)) if length != size_bytes => {
                return Err(format!(
                    "it has {length} bytes there, and {size_bytes} were expected"
                ));
            }
            Answer::Content(_) => return Ok(reader),
            Answer::Elsewhere(location) => address = address.follow(&location)?,
        }
    }
    Err(format!("it leads on more than {HOPS} times"))
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    is_tls: bool,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
}

impl Address {
    fn parse(url: &str) -> Result<Self, String> {
        let bad = || format!("'{url}' is no http:// or https:// address");
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(bad()),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or_else(bad)?;
        let is_good = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.contains('@') || !is_good(authority) || !is_good(path) {
            return Err(bad());
        }
        let default = if is_tls { 443 } else { 80 };
        // A colon inside of brackets belongs to an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (authority, default),
        };
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            is_tls,
            host: host.to_owned(),
            port,
            path: match path.strip_prefix('/') {
                Some(_) => path.to_owned(),
                None => format!("/{path}"),
            },
        })
    }

    fn follow(&self, location: &str) -> Result<Self, String> {
        let next = match location.strip_prefix('/') {
            Some(_) => Self::parse(&format!(
                "{}://{}:{}{location}",
                if self.is_tls { "https" } else { "http" },
                self.host,
                self.port
            ))?,
            None => Self::parse(location)?,
        };
        if self.is_tls && !next.is_tls {
            return Err(format!("it leads from https to '{location}'"));
        }
        Ok(next)
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let addresses = concertina_http::resolve::addresses(&self.host);
        let mut last = "the name has no address".to_owned();
        for address in addresses.map_err(|error| error.to_string())? {
            match TcpStream::connect_timeout(&(address, self.port).into(), CONNECT_TIMEOUT) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn ask(&self) -> Result<BufReader<Box<dyn ReadWrite>>, String> {
        let said = |error: std::io::Error| error.to_string();
        let socket = self.connect()?;
        socket.set_read_timeout(Some(SILENCE)).map_err(said)?;
        socket.set_write_timeout(Some(SILENCE)).map_err(said)?;
        let mut stream: Box<dyn ReadWrite> = if self.is_tls {
            let name = self.host.trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
            let tls = ClientConnection::new(trust()?, name).map_err(|error| error.to_string())?;
            Box::new(StreamOwned::new(tls, socket))
        } else {
            Box::new(socket)
        };
        let request = format!(
            "GET {} HTTP/1.0\r\nHost: {}:{}\r\nUser-Agent: concertina/{}\r\nAccept: */*\r\n\r\n",
            self.path,
            self.host,
            self.port,
            env!("CARGO_PKG_VERSION")
        );
        stream.write_all(request.as_bytes()).map_err(said)?;
        Ok(BufReader::with_capacity(64 << 10, stream))
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// TLS with the authorities that this host trusts.
fn trust() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let make = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("this host has no certificates to trust (package ca-certificates)".into());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    };
    CONFIG.get_or_init(make).clone()
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The file follows; its length, where the server says it.
    Content(Option<u64>),
    /// It is at another address.
    Elsewhere(String),
}

/// Reads the head of an answer, and nothing of what follows.
fn read_head(reader: &mut impl BufRead) -> Result<Answer, String> {
    let mut head = Vec::new();
    loop {
        let mut line = Vec::new();
        let mut limited = Read::take(&mut *reader, HEAD_MAX as u64);
        let count = limited
            .read_until(b'\n', &mut line)
            .map_err(|error| error.to_string())?;
        head.extend_from_slice(&line);
        if count == 0 || head.len() > HEAD_MAX {
            return Err("the answer has no end of its head".into());
        }
        if matches!(line.as_slice(), b"\r\n" | b"\n") {
            return judge(&head);
        }
    }
}

fn judge(head: &[u8]) -> Result<Answer, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    answer
        .parse(head)
        .map_err(|error| format!("the answer is no HTTP: {error}"))?;
    let header = |name: &str| {
        let found = answer
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    match answer.code.unwrap_or(0) {
        200 if header("transfer-encoding").is_some() || header("content-encoding").is_some() => {
            Err("the server encodes it, though it was asked not to".into())
        }
        200 => {
            let length = header("content-length").map(str::parse).transpose();
            let length = length.map_err(|_| "its length is no number".to_owned())?;
            Ok(Answer::Content(length))
        }
        301 | 302 | 303 | 307 | 308 => header("location")
            .map(|location| Answer::Elsewhere(location.to_owned()))
            .ok_or_else(|| "it leads on, and does not say where".into()),
        code => Err(format!("the answer is status {code}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives these answers, one a connection; and what it was asked.
    fn server(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                asked.push(line.trim().to_owned());
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                }
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        (url, thread)
    }

    #[test]
    fn a_file_is_fetched_also_where_it_has_moved_to() {
        let (url, thread) = server(vec![
            "HTTP/1.1 302 Found\r\nLocation: /there?x=1\r\n\r\n".into(),
            "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\ncontent".into(),
        ]);
        let mut content = String::new();
        let mut reader = open(&format!("{url}/here"), 7).unwrap();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        let asked = thread.join().unwrap();
        assert_eq!(asked, ["GET /here HTTP/1.0", "GET /there?x=1 HTTP/1.0"]);
    }

    #[test]
    fn what_is_no_file_of_that_length_is_refused() {
        let loops = vec!["HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n".to_owned(); HOPS + 1];
        for (answers, word) in [
            (vec!["HTTP/1.0 404 Not Found\r\n\r\n".to_owned()], "404"),
            (
                vec!["HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n".into()],
                "8 bytes",
            ),
            (vec!["SSH-2.0-OpenSSH\r\n\r\n".into()], "no HTTP"),
            (
                vec!["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into()],
                "encodes",
            ),
            (vec![String::new()], "no end"),
            (loops, "more than 5"),
        ] {
            let (url, thread) = server(answers);
            let error = open(&url, 7).err().unwrap();
            assert!(error.contains(word), "{error}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let of = |url: &str| Address::parse(url).map(|a| (a.is_tls, a.host, a.port, a.path));
        let parts =
            |tls, host: &str, port, path: &str| (tls, host.to_owned(), port, path.to_owned());
        assert_eq!(
            of("https://a.b/c?d#e").unwrap(),
            parts(true, "a.b", 443, "/c?d")
        );
        assert_eq!(
            of("http://[::1]:8080").unwrap(),
            parts(false, "[::1]", 8080, "/")
        );
        assert_eq!(
            of("http://[::1]/x").unwrap(),
            parts(false, "[::1]", 80, "/x")
        );
        for url in [
            "",
            "a",
            "ftp://a/",
            "http://",
            "http://u@a/",
            "http://a:x/",
            "http://a/ b",
        ] {
            assert!(of(url).is_err(), "{url}");
        }
        let here = Address::parse("https://a/b").unwrap();
        assert!(here.follow("http://a/b").is_err(), "not from https to http");
    }
}
