//! A watch at one member. A member that hangs sends neither changes nor an end: in silence it is asked
//! whether it lives.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::gateway::{Gateway, answers};
use super::{KeyValue, Streamed, encode, key_of, text};
use crate::registry::{RegistryError, Revision, Seen, WATCH_BACKLOG, Watch, after_prefix};

/// How long a member may be silent before it is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest line of the stream.
const LINE_MAX: usize = 64 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Watched {
    created: bool,
    canceled: bool,
    events: Vec<WatchEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WatchEvent {
    r#type: String,
    kv: KeyValue,
}

/// Begins a watch.
pub async fn begin(
    gateway: &Gateway,
    prefix: &str,
    after: Revision,
) -> Result<Watch, RegistryError> {
    let request = json!({"create_request": {
        "key": encode(prefix),
        "range_end": encode(&after_prefix(prefix)),
        "start_revision": (after + 1).to_string(),
    }});
    let (address, body) = gateway.stream("/v3/watch", &request).await?;
    let mut stream = Stream {
        body,
        rest: Vec::new(),
        address,
    };
    // What is committed after the answer has to be seen.
    let first = stream.next().await?;
    if !first.created || first.canceled {
        return Err(RegistryError::Missed(format!(
            "revision {after} is too long ago"
        )));
    }
    let (sender, receiver) = mpsc::channel(WATCH_BACKLOG);
    tokio::spawn(async move {
        let end = tokio::select! {
            end = pass_on(&mut stream, &sender) => end,
            () = sender.closed() => return,
        };
        // Without an end of its own the channel's end says the same.
        let _ = sender.try_send(Err(end));
    });
    Ok(Watch::new(receiver))
}

async fn pass_on(
    stream: &mut Stream,
    sender: &mpsc::Sender<Result<Seen, RegistryError>>,
) -> RegistryError {
    loop {
        let watched = match stream.next().await {
            Ok(watched) => watched,
            Err(error) => return error,
        };
        if watched.canceled {
            return RegistryError::Missed("etcd has ended the watch".into());
        }
        for event in watched.events {
            let seen = match seen(&event) {
                Ok(seen) => seen,
                Err(error) => return error,
            };
            // Never waits: a reader that is too slow has to list again.
            if sender.try_send(Ok(seen)).is_err() {
                return RegistryError::Missed("the reader is too slow".into());
            }
        }
    }
}

fn seen(event: &WatchEvent) -> Result<Seen, RegistryError> {
    let value = match event.r#type.as_str() {
        "DELETE" => None,
        _ => Some(text(&event.kv.value)?),
    };
    Ok(Seen {
        key: key_of(&event.kv.key)?,
        value,
        revision: event.kv.mod_revision,
    })
}

/// Lines of JSON in a body that does not end.
struct Stream {
    body: Incoming,
    rest: Vec<u8>,
    address: SocketAddr,
}

impl Stream {
    async fn next(&mut self) -> Result<Watched, RegistryError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                let line = std::mem::replace(&mut self.rest, rest);
                let parsed: Streamed<Watched> = serde_json::from_slice(&line)
                    .map_err(|error| RegistryError::Missed(format!("etcd sent: {error}")))?;
                return Ok(parsed.result);
            }
            let broken = |why: String| RegistryError::Missed(format!("etcd's watch broke: {why}"));
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                    if self.rest.len() > LINE_MAX {
                        return Err(broken("a line without an end".into()));
                    }
                }
                Ok(Some(Err(error))) => return Err(broken(error.to_string())),
                Ok(None) => return Err(broken("it has ended".into())),
                Err(_) if answers(self.address).await => {}
                Err(_) => return Err(broken("the member is silent".into())),
            }
        }
    }
}
