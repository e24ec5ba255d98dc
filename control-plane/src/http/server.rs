//! Connections of the API: TLS, limits of time, request ids.
//!
//! axum's own server has no limit for how long a head may take: a public port needs one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::IntoResponse;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::ids;
use crate::problem::{Problem, REQUEST_ID};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// How long a handshake or the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body and its answer may take; a stream's answer is there when it begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before accepting again when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` says so.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = crate::server::asked_to_stop(&mut stop) => return,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small: to wait for more would only cost time.
        let _ = stream.set_nodelay(true);
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            match acceptor {
                None => connection(stream, remote, router, stop).await,
                Some(acceptor) => {
                    let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
                    if let Ok(Ok(stream)) = handshake.await {
                        connection(stream, remote, router, stop).await;
                    }
                }
            }
            drop(place);
        });
    }
}

fn too_slow() -> Problem {
    let detail = format!(
        "The request took longer than {} s",
        ANSWER_TIMEOUT.as_secs()
    );
    Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", detail)
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    remote: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        let router = router.clone();
        async move {
            let id = ids::fresh("r").unwrap_or_default();
            let header = HeaderValue::from_str(&id);
            let answer = async {
                let answering = router.oneshot(request.map(axum::body::Body::new));
                match tokio::time::timeout(ANSWER_TIMEOUT, answering).await {
                    Ok(answered) => answered,
                    Err(_) => Ok(too_slow().into_response()),
                }
            };
            let mut response = REQUEST_ID.scope(id, answer).await?;
            if let Ok(header) = header {
                response.headers_mut().insert("x-request-id", header);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // Whatever went wrong went wrong with this connection alone, whose client sees it.
        _ = serving.as_mut() => {}
        () = crate::server::asked_to_stop(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(HEAD_TIMEOUT, serving).await;
        }
    }
}
