//! A client of the API, for the command line and for measurements: one connection that is kept, problems
//! as errors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer, except for streams.
const ANSWER_MAX: usize = 16 << 20;
/// How long an answer may take: longer than a resize is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("'{0}' is no address of a control plane: write https://HOST:PORT")]
    Address(String),
    /// It cannot be reached, or is not trusted.
    #[error("The control plane at {url} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        why: String,
    },
    /// It says no.
    #[error("{detail} ({code})")]
    Problem {
        /// HTTP status.
        status: u16,
        /// The problem's code.
        code: String,
        /// One sentence.
        detail: String,
    },
}

/// A client with one key.
pub struct Client {
    url: String,
    host: String,
    authority: String,
    port: u16,
    key: String,
    tls: Option<TlsConnector>,
    sender: tokio::sync::Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the key.
        f.debug_struct("Client")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of `https://HOST:PORT` (or `http://`). It trusts the certificates in `authorities`
    /// (PEM); absent: those that this machine trusts.
    ///
    /// # Errors
    /// The address or a certificate is none.
    pub fn new(url: &str, key: &str, authorities: Option<&str>) -> Result<Self, ClientError> {
        let bad = || ClientError::Address(url.to_owned());
        let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        if uri.path() != "/" && !uri.path().is_empty() {
            return Err(bad());
        }
        let host = uri
            .host()
            .ok_or_else(bad)?
            .trim_matches(['[', ']'])
            .to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            host,
            port,
            key: key.to_owned(),
            tls: is_tls.then(|| connector(url, authorities)).transpose()?,
            sender: tokio::sync::Mutex::default(),
        })
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Unreachable {
            url: self.url.clone(),
            why: why.to_string(),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let name = self.host.clone();
        let asked = tokio::task::spawn_blocking(move || concertina_http::resolve::addresses(&name));
        let found = asked.await.map_err(|error| self.unreachable(error))?;
        let mut last = self.unreachable("the name has no address");
        for address in found.map_err(|error| self.unreachable(error))? {
            let connecting = self.connect_to(SocketAddr::new(address, self.port));
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(sender)) => return Ok(sender),
                Ok(Err(error)) => last = error,
                Err(_) => last = self.unreachable("no connection in time"),
            }
        }
        Err(last)
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
    ) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| self.unreachable(error))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let (sender, connection) = handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.unreachable(error))?;
            tokio::spawn(connection);
            return Ok(sender);
        };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| self.unreachable(error))?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|error| self.unreachable(error))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let bytes = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| self.unreachable(error))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<hyper::Response<Incoming>, ClientError> {
        let request = self.request(method, path, body)?;
        let mut kept = self.sender.lock().await;
        let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let sending = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, sending)
            .await
            .map_err(|_| self.unreachable("no answer in time"))?
            .map_err(|error| self.unreachable(error))?;
        *kept = Some(sender);
        Ok(answer)
    }

    /// One request; the body of a good answer (null where there is none).
    ///
    /// # Errors
    /// There is no answer, or it is a problem.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let answer = self.exchange(method, path, body).await?;
        let status = answer.status();
        let read = Limited::new(answer.into_body(), ANSWER_MAX).collect();
        let bytes = read
            .await
            .map_err(|error| self.unreachable(error))?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        Err(problem(status.as_u16(), &value, &bytes))
    }

    /// Reads a value.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path, None).await
    }

    /// Everything of a list, page by page.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn all(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let page = match &cursor {
                Some(cursor) => format!("{path}{sign}limit=200&cursor={cursor}"),
                None => format!("{path}{sign}limit=200"),
            };
            let mut page = self.get(&page).await?;
            if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
                items.extend(found);
            }
            cursor = page
                .get("next_cursor")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if cursor.is_none() {
                return Ok(items);
            }
        }
    }
}

fn problem(status: u16, value: &Value, bytes: &[u8]) -> ClientError {
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    ClientError::Problem {
        status,
        code: text("code").unwrap_or_else(|| format!("status {status}")),
        detail: text("detail")
            .unwrap_or_else(|| String::from_utf8_lossy(bytes).chars().take(200).collect()),
    }
}

fn connector(url: &str, authorities: Option<&str>) -> Result<TlsConnector, ClientError> {
    let bad = |why: String| ClientError::Unreachable {
        url: url.to_owned(),
        why,
    };
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| bad(error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
