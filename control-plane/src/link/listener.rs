//! Accepts agents: TLS first, then either a host that wants to join, or one that shows our certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use concertina_api::link::{FromAgent, ToAgent};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::lines::{LineError, Lines, send};
use super::{join, session};
use crate::ca::key_of_certificate;
use crate::control::Control;
use crate::model::Host;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// How long a handshake and the first message may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the certificate that we show is made anew, and authorities are read again.
const CERTIFICATE_AGE: Duration = Duration::from_secs(60);

/// Serves agents until `stop` says so.
pub async fn serve(control: Arc<Control>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut acceptor: Option<(tokio::time::Instant, (usize, u32), TlsAcceptor)> = None;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = crate::server::asked_to_stop(&mut stop) => return,
        };
        let Ok((stream, remote)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let mark = control.authorities.mark();
        let is_fresh = |made: &tokio::time::Instant| made.elapsed() < CERTIFICATE_AGE;
        let kept = acceptor
            .take()
            .filter(|(made, of, _)| is_fresh(made) && *of == mark);
        let tls = match kept {
            Some((made, of, tls)) => {
                acceptor = Some((made, of, tls.clone()));
                tls
            }
            None => match make_acceptor(&control).await {
                Ok(tls) => {
                    let mark = control.authorities.mark();
                    acceptor = Some((tokio::time::Instant::now(), mark, tls.clone()));
                    tls
                }
                Err(error) => {
                    eprintln!("concertina control: {error}");
                    continue;
                }
            },
        };
        let (control, stop) = (Arc::clone(&control), stop.clone());
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(HELLO_TIMEOUT, tls.accept(stream)).await {
                // Whatever went wrong: the agent connects again.
                let _ = connection(&control, stream, remote, stop).await;
            }
            drop(place);
        });
    }
}

async fn make_acceptor(control: &Control) -> Result<TlsAcceptor, crate::ca::CaError> {
    control.authorities.load(control.registry.as_ref()).await?;
    control.authorities.agents_tls().map(TlsAcceptor::from)
}

async fn connection(
    control: &Arc<Control>,
    stream: TlsStream<TcpStream>,
    remote: SocketAddr,
    stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let _ = stream.get_ref().0.set_nodelay(true);
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|chain| chain.first());
    let key = certificate.and_then(|certificate| key_of_certificate(certificate).ok());
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines::new(reader);
    let first = tokio::time::timeout(HELLO_TIMEOUT, lines.next()).await;
    let first = first.map_err(|_| LineError::Ended)??;
    let refuse = |code: &str, detail: String| ToAgent::Refused {
        code: code.into(),
        detail,
    };
    match (first, key) {
        (
            FromAgent::Join {
                token,
                name,
                request,
            },
            _,
        ) => {
            let answer = match join::join(control, &token, &name, &request).await {
                Ok(answer) => answer,
                Err(fault) => {
                    let problem = crate::problem::Problem::from(fault);
                    refuse(problem.code, problem.detail)
                }
            };
            send(&mut writer, &answer).await?;
            Ok(writer.shutdown().await?)
        }
        (hello @ FromAgent::Hello { .. }, Some(key)) => {
            let host = host_of(control, &key).await;
            let Some(host) = host else {
                let detail = "No host has this certificate: join again with a fresh token";
                return send(&mut writer, &refuse("unknown_host", detail.into())).await;
            };
            session::run(control, host, hello, (lines, writer), remote, stop).await
        }
        _ => {
            let detail = "A connection begins with a certificate and Hello, or with Join";
            send(&mut writer, &refuse("not_joined", detail.into())).await
        }
    }
}

async fn host_of(control: &Control, key: &str) -> Option<Host> {
    let index = control
        .registry
        .read::<String>(format!("host-key/{key}"))
        .await;
    let id = index.ok()?.0?;
    control
        .registry
        .read::<Host>(format!("host/{id}"))
        .await
        .ok()?
        .0
}
