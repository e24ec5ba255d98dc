//! A server and its clients over real sockets: good requests, bad ones, many at a time, stopping.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use concertina_http::{
    CONNECTION_LIMIT, HttpError, Method, Request, Response, Server, Stopper, client,
};

use socket2::{Domain, SockAddr, Socket, Type};

const TIMEOUT: Duration = Duration::from_secs(5);

struct Running {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), HttpError>>>,
}

impl Running {
    fn stop(&mut self) -> Result<(), HttpError> {
        self.stopper.stop();
        self.thread
            .take()
            .map_or(Ok(()), |thread| thread.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn answer(request: &Request) -> Response {
    match (request.method, request.path.as_str()) {
        (Method::Get, "/number") => Response::json(200, &42),
        (Method::Put, "/double") => match request.json::<u32>() {
            Ok(number) => Response::json(200, &(2 * u64::from(number))),
            Err(problem) => problem,
        },
        (Method::Put, "/nothing") => Response::empty(204),
        (Method::Put, "/length") => Response::json(200, &request.body.len()),
        (Method::Get, "/stream") => Response::stream("text/plain", |sink| {
            for number in 0..3 {
                sink.write(format!("{number}\n").as_bytes())?;
            }
            while !sink.is_gone() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }),
        (Method::Get, "/short-stream") => {
            Response::stream("text/plain", |sink| sink.write(b"all of it"))
        }
        (_, "/number") => Response::method_not_allowed(request, "GET"),
        _ => Response::not_found(request),
    }
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let server = Server::bind(&socket).unwrap();
    let stopper = server.stopper();
    let thread = std::thread::spawn(move || server.serve(Arc::new(answer)));
    Running {
        _folder: folder,
        socket,
        stopper,
        thread: Some(thread),
    }
}

/// Sends raw bytes, closes the sending half, returns everything that comes back.
fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // The server may refuse and close before it has everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn values_go_there_and_back() {
    let server = start();
    assert_eq!(
        client::get_json::<u32>(&server.socket, "/number", TIMEOUT).unwrap(),
        42
    );
    assert_eq!(
        client::put_json::<_, u64>(&server.socket, "/double", &21, TIMEOUT).unwrap(),
        42
    );
    client::put_json::<_, ()>(&server.socket, "/nothing", &(), TIMEOUT).unwrap();
}

#[test]
fn a_refusal_reaches_the_client_with_status_and_detail() {
    let server = start();
    let error = client::get_json::<u32>(&server.socket, "/nowhere", TIMEOUT).unwrap_err();
    assert!(
        matches!(&error, HttpError::Status { status: 404, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("/nowhere"), "{error}");
    let error = client::put_json::<_, u64>(&server.socket, "/double", "x", TIMEOUT).unwrap_err();
    assert!(
        matches!(error, HttpError::Status { status: 400, .. }),
        "{error:?}"
    );
    let error =
        client::send::<()>(&server.socket, Method::Delete, "/number", None, TIMEOUT).unwrap_err();
    assert!(
        matches!(error, HttpError::Status { status: 405, .. }),
        "{error:?}"
    );
    assert!(raw(&server.socket, b"POST /number HTTP/1.1\r\n\r\n").contains("\r\nAllow: GET\r\n"));
}

#[test]
fn a_body_above_the_limit_is_refused_and_one_at_the_limit_is_taken() {
    let server = start();
    let fits = "x".repeat(concertina_http::BODY_LIMIT_BYTES - 2);
    assert_eq!(
        client::put_json::<_, usize>(&server.socket, "/length", &fits, TIMEOUT).unwrap(),
        concertina_http::BODY_LIMIT_BYTES
    );
    let large = "x".repeat(8 * concertina_http::BODY_LIMIT_BYTES);
    let error =
        client::put_json::<_, usize>(&server.socket, "/length", &large, TIMEOUT).unwrap_err();
    assert!(
        matches!(error, HttpError::Status { status: 413, .. }),
        "{error:?}"
    );
}

#[test]
fn garbage_is_refused_and_the_server_goes_on() {
    let server = start();
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        assert!(
            raw(&server.socket, bytes).starts_with("HTTP/1.1 400 "),
            "{bytes:?}"
        );
    }
    let cut = b"PUT /double HTTP/1.1\r\nContent-Length: 10\r\n\r\n1";
    assert!(raw(&server.socket, cut).starts_with("HTTP/1.1 400 "));
    assert_eq!(raw(&server.socket, b""), "");
    assert_eq!(
        client::get_json::<u32>(&server.socket, "/number", TIMEOUT).unwrap(),
        42
    );
}

#[test]
fn requests_on_one_connection_are_answered_in_order_even_when_pipelined() {
    let server = start();
    let answers = raw(
        &server.socket,
        b"GET /number HTTP/1.1\r\n\r\nPUT /double HTTP/1.1\r\nContent-Length: 1\r\n\r\n4\
          HEAD /number HTTP/1.1\r\nConnection: close\r\n\r\n",
    );
    let found: Vec<_> = answers.matches("HTTP/1.1 ").collect();
    assert_eq!(found.len(), 3, "{answers}");
    assert!(
        answers.contains("42\nHTTP") && answers.contains("8\nHTTP"),
        "{answers}"
    );
    assert!(
        answers.ends_with("\r\n\r\n"),
        "the answer to HEAD has a body: {answers}"
    );
}

#[test]
fn a_client_that_expects_100_continue_gets_it_before_it_sends_the_body() {
    let server = start();
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .write_all(b"PUT /double HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    let mut interim = [0u8; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"21").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("42\n"),
        "{answer}"
    );
}

#[test]
fn connections_are_bounded_and_places_come_back() {
    let server = start();
    let held: Vec<_> = (0..CONNECTION_LIMIT)
        .map(|_| UnixStream::connect(&server.socket).unwrap())
        .collect();
    assert!(raw(&server.socket, b"GET /number HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
    drop(held);
    let deadline = Instant::now() + TIMEOUT;
    while client::get_json::<u32>(&server.socket, "/number", TIMEOUT).is_err() {
        assert!(Instant::now() < deadline, "no place came back");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_socket_is_private_and_goes_with_its_server() {
    let mut server = start();
    let mode = std::fs::metadata(&server.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        std::fs::read_dir(server.socket.parent().unwrap())
            .unwrap()
            .count(),
        1
    );
    server.stop().unwrap();
    assert!(!server.socket.exists());
}

#[test]
fn a_stale_socket_is_replaced_but_a_live_one_and_a_plain_file_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let live = Server::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(HttpError::Bind { .. })));
    assert!(
        path.exists(),
        "the refused server removed the live one's socket"
    );
    drop(live);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path), Err(HttpError::Bind { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_silent_server_costs_a_client_its_timeout_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _silent = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let error = client::get_json::<u32>(&path, "/", Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, HttpError::Exchange { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_kept_connection_is_used_again_and_made_again_when_its_server_has_gone() {
    let mut kept = client::Kept::default();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = |listener: &UnixListener, requests: usize| {
        let (mut stream, _) = listener.accept().unwrap();
        for _ in 0..requests {
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")
                .unwrap();
        }
    };
    let server = std::thread::spawn(move || {
        serve(&listener, 2);
        serve(&listener, 1);
    });
    for _ in 0..3 {
        let number: u32 = kept.get_json(&socket, "/number", TIMEOUT).unwrap();
        assert_eq!(number, 7);
    }
    server.join().unwrap();
    assert!(kept.get_json::<u32>(&socket, "/number", TIMEOUT).is_err());
}

#[test]
fn a_body_that_goes_on_is_followed_until_either_side_ends_it() {
    let running = start();
    let mut heard = Vec::new();
    let take = |bytes: &[u8]| {
        heard.extend_from_slice(bytes);
        heard.len() < 6
    };
    client::follow(&running.socket, "/stream", TIMEOUT, take).unwrap();
    assert_eq!(heard, b"0\n1\n2\n");
    let mut heard = Vec::new();
    let take = |bytes: &[u8]| {
        heard.extend_from_slice(bytes);
        true
    };
    client::follow(&running.socket, "/short-stream", TIMEOUT, take).unwrap();
    assert_eq!(heard, b"all of it");
    let missing = client::follow(&running.socket, "/none", TIMEOUT, |_| true);
    assert!(
        matches!(missing, Err(HttpError::Status { status: 404, .. })),
        "{missing:?}"
    );
}

#[test]
fn a_server_whose_queue_is_full_costs_a_client_its_timeout_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&socket).unwrap()).unwrap();
    listener.listen(1).unwrap();
    // Nobody accepts: soon the queue is full, and connecting itself has to wait.
    for _ in 0..100 {
        let asked = Instant::now();
        // Each leaves a connection in the queue, though it has been given up.
        let answer = client::get_json::<u32>(&socket, "/number", Duration::from_millis(1));
        assert!(asked.elapsed() < TIMEOUT, "{:?}", asked.elapsed());
        if matches!(answer, Err(HttpError::Connect { .. })) {
            return;
        }
    }
    drop(listener);
    panic!("the queue is never full");
}
