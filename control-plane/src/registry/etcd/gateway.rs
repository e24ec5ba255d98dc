//! Requests to etcd's members: kept connections, one member after the other when one is silent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long one member may take: longer than an election of a leader.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Rounds over all members.
const ROUNDS: usize = 3;
/// Kept connections of one member.
const IDLE_MAX: usize = 16;
/// Most bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address of a member is wrong.
    #[error("'{0}' is no address of a member: write http://HOST:PORT")]
    Address(String),
    /// No member answers.
    #[error("no member answers: {0}")]
    Silent(String),
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

type Sender = SendRequest<Full<Bytes>>;

#[derive(Debug)]
struct Member {
    address: SocketAddr,
    idle: Mutex<Vec<Sender>>,
}

/// All members.
#[derive(Debug)]
pub struct Gateway {
    members: Vec<Member>,
    /// The one that answered last.
    present: AtomicUsize,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    error: Value,
}

impl Member {
    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let connecting = TcpStream::connect(self.address);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| "no connection in time".to_owned())?
            .map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, path: &str, body: &[u8]) -> Result<Request<Full<Bytes>>, String> {
        Request::post(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(|error| error.to_string())
    }

    /// One request; the status and the body of its answer.
    async fn ask(&self, path: &str, body: &[u8]) -> Result<(bool, Bytes), String> {
        let kept = self.idle().pop().filter(|sender| !sender.is_closed());
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answered = async {
            sender.ready().await.map_err(|error| error.to_string())?;
            let answer = sender.send_request(self.request(path, body)?).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let is_good = answer.status().is_success();
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            Ok::<_, String>((is_good, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let answer = tokio::time::timeout(MEMBER_TIMEOUT, answered)
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
        Ok(answer)
    }

    /// A request whose answer does not end.
    async fn stream(&self, path: &str, body: &[u8]) -> Result<Incoming, String> {
        let begin = async {
            let mut sender = self.connect().await?;
            let answer = sender.send_request(self.request(path, body)?).await;
            let answer = answer.map_err(|error| error.to_string())?;
            if !answer.status().is_success() {
                return Err(format!("the answer was {}", answer.status()));
            }
            // The connection lives as long as its sender, or its body.
            Ok(answer.into_body())
        };
        tokio::time::timeout(MEMBER_TIMEOUT, begin)
            .await
            .map_err(|_| "no answer in time".to_owned())?
    }
}

impl Gateway {
    /// The members `http://HOST:PORT`.
    ///
    /// # Errors
    /// An address is wrong.
    pub async fn new(endpoints: &[String]) -> Result<Self, GatewayError> {
        let mut members = Vec::new();
        for endpoint in endpoints {
            members.push(Member {
                address: address(endpoint).await?,
                idle: Mutex::default(),
            });
        }
        if members.is_empty() {
            return Err(GatewayError::Address(String::new()));
        }
        Ok(Self {
            members,
            present: AtomicUsize::new(0),
        })
    }

    /// The members in the order in which they are tried: the one that answered last comes first.
    fn order(&self) -> impl Iterator<Item = (usize, &Member)> {
        let present = self.present.load(Ordering::Relaxed);
        let all = self.members.iter().enumerate();
        all.cycle().skip(present).take(self.members.len() * ROUNDS)
    }

    /// Asks until a member answers.
    ///
    /// # Errors
    /// None does, or the answer is no.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &Value,
    ) -> Result<T, GatewayError> {
        let body = request.to_string().into_bytes();
        let mut last = String::new();
        for (index, member) in self.order() {
            let answered = member.ask(path, &body).await;
            let (is_good, answer) = match answered {
                Ok(answer) => answer,
                Err(why) => {
                    last = format!("{}: {why}", member.address);
                    continue;
                }
            };
            if is_good {
                self.present.store(index, Ordering::Relaxed);
                return serde_json::from_slice(&answer)
                    .map_err(|error| GatewayError::Silent(format!("{}: {error}", member.address)));
            }
            let why = said(&answer);
            // A member without a leader, or behind a broken network, says so: another may know better.
            let is_temporary = [
                "no leader",
                "timed out",
                "timeout",
                "leader changed",
                "unhealthy",
                "stopped",
            ]
            .iter()
            .any(|word| why.contains(word));
            if !is_temporary {
                return Err(GatewayError::Refused(why));
            }
            last = format!("{}: {why}", member.address);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(GatewayError::Silent(last))
    }

    /// Begins a stream at the first member that answers; says which.
    ///
    /// # Errors
    /// None does.
    pub async fn stream(
        &self,
        path: &str,
        request: &Value,
    ) -> Result<(SocketAddr, Incoming), GatewayError> {
        let body = request.to_string().into_bytes();
        let mut last = String::new();
        for (index, member) in self.order() {
            match member.stream(path, &body).await {
                Ok(incoming) => {
                    self.present.store(index, Ordering::Relaxed);
                    return Ok((member.address, incoming));
                }
                Err(why) => last = format!("{}: {why}", member.address),
            }
        }
        Err(GatewayError::Silent(last))
    }
}

/// Whether a member answers at all.
pub async fn answers(address: SocketAddr) -> bool {
    let member = Member {
        address,
        idle: Mutex::default(),
    };
    let request = br#"{"key":"AA==","serializable":true,"keys_only":true}"#;
    member.ask("/v3/kv/range", request).await.is_ok()
}

fn said(answer: &[u8]) -> String {
    let parsed = serde_json::from_slice::<ErrorAnswer>(answer).ok();
    match parsed.map(|answer| answer.error) {
        Some(Value::String(text)) => text,
        Some(Value::Object(fields)) => fields
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or("an error without words")
            .to_owned(),
        _ => String::from_utf8_lossy(answer).chars().take(200).collect(),
    }
}

async fn address(endpoint: &str) -> Result<SocketAddr, GatewayError> {
    let bad = || GatewayError::Address(endpoint.to_owned());
    let uri: Uri = endpoint.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") {
        return Err(bad());
    }
    let host = uri.host().ok_or_else(bad)?.to_owned();
    let port = uri.port_u16().unwrap_or(2379);
    let asked = tokio::task::spawn_blocking(move || concertina_http::resolve::addresses(&host));
    let found = asked
        .await
        .ok()
        .and_then(Result::ok)
        .and_then(|found| found.into_iter().next());
    Ok(SocketAddr::new(found.ok_or_else(bad)?, port))
}
