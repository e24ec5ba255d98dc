//! What happened to an instance, as pages or as a stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::{IntoParams, ToSchema};

use super::instances::read_own;
use crate::control::{Control, event_key};
use crate::http::{Caller, Query};
use crate::model::{Recorded, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

const PAGE_MAX: usize = 500;
const PAGE_DEFAULT: usize = 100;
/// Longest time of one stream, in seconds.
const STREAM_MAX_S: u64 = 30;

/// An event. Fields that belong to its kind come beside these.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// Its number, from 0, without gaps.
    pub number: u64,
    /// The instance.
    pub instance: String,
    /// When it was recorded.
    pub recorded: String,
    /// `host`: as its host's journal has it; `control`: in the control plane.
    pub source: String,
    /// Its kind: `state`, `capacity_short`, `policy`, `started`, `resized`, …
    pub event: String,
    /// The rest.
    #[serde(flatten)]
    #[schema(additional_properties)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    /// In their order.
    items: Vec<EventView>,
    /// What `from` has to be for those that follow.
    next: u64,
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Number of the first; default 0.
    #[serde(default)]
    from: u64,
    /// At most so many.
    #[serde(default)]
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Which events, and for how long.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// Number of the first; default: what `Last-Event-ID` says, else 0.
    #[serde(default)]
    from: Option<u64>,
    /// Seconds after which the stream ends, at most 30; clients go on with another one.
    #[serde(default)]
    #[param(minimum = 0, maximum = 30)]
    seconds: Option<u64>,
}

fn view(recorded: &Recorded) -> Option<EventView> {
    let value = serde_json::to_value(recorded).ok()?;
    let serde_json::Value::Object(mut rest) = value else {
        return None;
    };
    for field in ["number", "instance", "recorded"] {
        rest.remove(field);
    }
    let mut word = |field: &str| match rest.remove(field) {
        Some(serde_json::Value::String(word)) => word,
        _ => String::new(),
    };
    let (source, event) = (word("source"), word("event"));
    Some(EventView {
        number: recorded.number,
        instance: recorded.instance.clone(),
        recorded: recorded.recorded.clone(),
        source,
        event,
        rest,
    })
}

async fn read(control: &Control, id: &str, from: u64, limit: usize) -> Answer<Vec<EventView>> {
    let after = from.checked_sub(1).map(|before| event_key(id, before));
    let prefix = format!("event/{id}/");
    let listing = control
        .registry
        .list(&prefix, after.as_deref(), limit)
        .await?;
    let mut events = Vec::new();
    for entry in listing.entries {
        events.extend(view(&entry.read()?));
    }
    Ok(events)
}

/// Numbers above this have no key of the usual length.
const NUMBER_MAX: u64 = 999_999_999_999;

/// Lists what happened to an instance.
#[utoipa::path(get, path = "/v1/instances/{instance}/events", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), EventQuery), responses(
    (status = 200, body = EventPage),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<EventQuery>,
) -> Answer<Json<EventPage>> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", limit, "1 to 500").into());
    }
    let from = query.from.min(NUMBER_MAX);
    let items = read(&control, &id, from, limit).await?;
    let next = items.last().map_or(from, |last| last.number + 1);
    Ok(Json(EventPage { items, next }))
}

/// What happens to an instance while it happens: server-sent events, whose ids are the events' numbers.
#[utoipa::path(get, path = "/v1/instances/{instance}/events/stream", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), StreamQuery), responses(
    (status = 200, description = "Events as they come", body = String, content_type = "text/event-stream"),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn stream(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(query): Query<StreamQuery>,
) -> Answer<Response> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let seconds = query.seconds.unwrap_or(STREAM_MAX_S);
    if seconds > STREAM_MAX_S {
        return Err(Problem::invalid("seconds", seconds, "at most 30").into());
    }
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let after_last = last
        .and_then(|text| text.parse::<u64>().ok())
        .map(|last| last.saturating_add(1));
    let from = query.from.or(after_last).unwrap_or(0).min(NUMBER_MAX);
    // One page ahead of its reader: who does not read does not make us read.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let time = Duration::from_secs(seconds);
        let _ = tokio::time::timeout(time, follow(&control, &id, from, &sender)).await;
    });
    let body = Body::new(Receiving(receiver));
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((kind, body).into_response())
}

type Frame = hyper::body::Frame<axum::body::Bytes>;

/// A channel as a body.
struct Receiving(mpsc::Receiver<Frame>);

impl hyper::body::Body for Receiving {
    type Data = axum::body::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// Sends events as they come, until the reader is gone.
async fn follow(
    control: &Control,
    id: &str,
    mut from: u64,
    sender: &mpsc::Sender<Frame>,
) -> Result<(), Fault> {
    let next_key = format!("event-next/{id}");
    loop {
        // The revision comes first: what is recorded after it wakes the watch.
        let (_, revision) = control.registry.read::<u64>(next_key.clone()).await?;
        let events = read(control, id, from, PAGE_DEFAULT).await?;
        let Some(last) = events.last() else {
            if let Ok(mut watch) = control.registry.watch(&next_key, revision).await {
                let _ = watch.next().await;
            }
            continue;
        };
        from = last.number + 1;
        let mut text = String::new();
        for event in &events {
            let json = serde_json::to_string(event).unwrap_or_default();
            text.push_str(&format!(
                "id: {}\nevent: {}\ndata: {json}\n\n",
                event.number, event.event
            ));
        }
        if sender.send(Frame::data(text.into())).await.is_err() {
            return Ok(());
        }
    }
}
