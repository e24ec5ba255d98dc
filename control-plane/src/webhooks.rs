//! Sends events to webhooks: signed, again when it fails, aside when it fails for good.
//!
//! ```text
//! outbox/W/D ──due──► POST ── 2xx ──► removed
//!     ▲                 │
//!     └── later, twice ─┴── failed for the last time ──► dead/W/D ── retry by its owner ──► outbox
//!         as long
//! ```
//! A message is removed after it was taken: a crash between the two sends it twice, with the same id.
//! Addresses of this machine and of private networks are refused, also when a name leads there, unless
//! the operator allows them: else a customer could reach what only the control plane can.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::http::{Request, Uri, header};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::control::Control;
use crate::draft::again;
use crate::ids::{hex, now_ms};
use crate::model::{Delivery, Webhook};
use crate::problem::{Answer, Fault};
use crate::registry::LIST_MAX;

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look for what is due.
const TICK: Duration = Duration::from_millis(250);
/// Attempts at a time.
const AT_ONCE: usize = 16;
/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 16 << 10;

/// Whether a text may be a webhook's address; the error says what is allowed.
///
/// # Errors
/// It may not.
pub fn check_url(url: &str, anywhere: bool) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "an https:// address".to_owned())?;
    let is_good = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => anywhere,
        _ => false,
    };
    let host = uri.host().unwrap_or("");
    if !is_good
        || host.is_empty()
        || url.len() > 2048
        || uri.authority().is_some_and(|a| a.as_str().contains('@'))
    {
        return Err("an https:// address without a user".into());
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) if !anywhere && !is_public(address) => {
            Err("an address that is not of this machine or a private network".into())
        }
        _ => Ok(()),
    }
}

/// Whether an address is one of the whole Internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
                || is_shared
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_public(IpAddr::V4(v4)),
            // Global unicast only (RFC 4291), without what leads to IPv4 addresses (6to4, Teredo, NAT64).
            None => {
                let [first, second, ..] = v6.segments();
                first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && second == 0)
            }
        },
    }
}

/// The signature of a message: `t=SECONDS,v1=HEX` with the HMAC-SHA-256 of `SECONDS.BODY`.
pub fn signature(secret: &str, seconds: u64, body: &[u8]) -> String {
    let mut mac = match Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()) {
        Ok(mac) => mac,
        // HMAC takes keys of any length.
        Err(_) => return String::new(),
    };
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    format!("t={seconds},v1={}", hex(&mac.finalize().into_bytes()))
}

/// Sends what is due, for as long as this node leads.
pub async fn run(control: &Arc<Control>) {
    loop {
        if let Err(fault) = round(control).await {
            eprintln!("concertina control: webhooks: {fault}");
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn round(control: &Arc<Control>) -> Answer<()> {
    let mut after = None;
    loop {
        let page = control
            .registry
            .list("outbox/", after.as_deref(), LIST_MAX)
            .await?;
        let now = now_ms();
        let mut due = Vec::new();
        for entry in &page.entries {
            let delivery: Delivery = entry.read()?;
            if delivery.not_before_ms <= now {
                due.push(delivery);
            }
        }
        for chunk in due.chunks(AT_ONCE) {
            let tasks = chunk.iter().map(|delivery| {
                let (control, delivery) = (Arc::clone(control), delivery.clone());
                tokio::spawn(async move { deliver(&control, delivery).await })
            });
            for task in tasks.collect::<Vec<_>>() {
                if let Ok(done) = task.await {
                    done?;
                }
            }
        }
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.has_more {
            return Ok(());
        }
    }
}

async fn deliver(control: &Control, delivery: Delivery) -> Answer<()> {
    let Delivery {
        webhook, account, ..
    } = &delivery;
    let (hook, _) = control
        .registry
        .read::<Webhook>(format!("webhook/{account}/{webhook}"))
        .await?;
    let outcome = match &hook {
        // It was removed meanwhile.
        None => Ok(()),
        Some(hook) => {
            let attempt = post(hook, &delivery, control.settings.webhooks_anywhere);
            match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())),
            }
        }
    };
    again(|| async {
        let key = format!("outbox/{webhook}/{}", delivery.id);
        let mut draft = control.draft();
        let Some(mut delivery) = draft.read::<Delivery>(key.clone()).await? else {
            return Ok(());
        };
        match &outcome {
            Ok(()) => draft.remove(key),
            Err(error) => {
                delivery.attempts += 1;
                delivery.last_error = Some(error.clone());
                if delivery.attempts >= control.settings.webhook_attempts {
                    draft.remove(key);
                    draft.write(format!("dead/{webhook}/{}", delivery.id), &delivery)?;
                } else {
                    let wait = backoff(control.settings.webhook_backoff, delivery.attempts);
                    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                    delivery.not_before_ms = now_ms().saturating_add(wait_ms);
                    draft.write(key, &delivery)?;
                }
            }
        }
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}

fn backoff(first: Duration, attempts: u32) -> Duration {
    let factor = 1u32 << attempts.saturating_sub(1).min(20);
    first.saturating_mul(factor).min(BACKOFF_MAX)
}

static TLS: LazyLock<Option<TlsConnector>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
});

async fn post(hook: &Webhook, delivery: &Delivery, anywhere: bool) -> Result<(), String> {
    check_url(&hook.url, anywhere)?;
    let uri: Uri = hook
        .url
        .parse()
        .map_err(|_| "the address is none".to_owned())?;
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let addresses = resolve(&host).await?;
    let allowed = addresses
        .into_iter()
        .find(|address| anywhere || is_public(*address));
    let address = allowed.ok_or("the name leads to this machine or a private network")?;
    let stream = TcpStream::connect(SocketAddr::new(address, port))
        .await
        .map_err(|error| format!("no connection: {error}"))?;
    let body = serde_json::to_vec(&delivery.event).map_err(|error| error.to_string())?;
    let seconds = now_ms() / 1000;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(
            header::USER_AGENT,
            concat!("concertina/", env!("CARGO_PKG_VERSION")),
        )
        .header("concertina-delivery", &delivery.id)
        .header(
            "concertina-signature",
            signature(&hook.secret, seconds, &body),
        )
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    if !is_tls {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let connector = TLS
        .as_ref()
        .ok_or("this machine has no certificates to trust")?;
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("no TLS: {error}"))?;
    exchange(stream, request).await
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.to_owned();
    let asked = tokio::task::spawn_blocking(move || concertina_http::resolve::addresses(&name));
    let found = asked.await.map_err(|error| error.to_string())?;
    found.map_err(|error| error.to_string())
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(), String> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let answered = sender.send_request(request).await;
    let outcome = match answered {
        Err(error) => Err(error.to_string()),
        Ok(answer) => {
            let status = answer.status();
            // Redirections are not followed: they would lead past the check of addresses.
            let read = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            match (status.is_success(), read) {
                (true, _) => Ok(()),
                (false, _) => Err(format!("the answer was {status}")),
            }
        }
    };
    driver.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_time_and_body() {
        // By `printf '1.{}' | openssl dgst -sha256 -hmac key`.
        assert_eq!(
            signature("key", 1, b"{}"),
            "t=1,v1=1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224"
        );
    }

    #[test]
    fn inner_addresses_are_refused_in_every_spelling() {
        for url in [
            "https://127.0.0.1/",
            "https://10.0.0.1/x",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00::1]/",
            "https://[2002:7f00:1::]/",
            "https://100.64.0.1/",
            "http://example.com/",
            "https://user@example.com/",
            "ftp://example.com/",
            "example.com",
            "",
        ] {
            assert!(check_url(url, false).is_err(), "{url}");
        }
        assert!(check_url("https://example.com/hook?x=1", false).is_ok());
        assert!(check_url("https://93.184.215.14/", false).is_ok());
        assert!(check_url("http://127.0.0.1:8080/", true).is_ok());
    }

    #[test]
    fn waits_double_up_to_an_hour() {
        let first = Duration::from_secs(5);
        let waits: Vec<u64> = (1..5).map(|n| backoff(first, n).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40]);
        assert_eq!(backoff(first, 60), BACKOFF_MAX);
    }
}
