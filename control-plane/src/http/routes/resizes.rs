//! Resizes by hand: recorded, sent to the host, and answered with what was reached.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use concertina_api::instance::InstanceResize;
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::instances::read_own;
use super::launch::{check_once, once_key};
use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Body, Caller, Query};
use crate::ids::{self, is_id, now_ms, now_text};
use crate::model::state::State as Phase;
use crate::model::{Instance, Once, Resize, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};
use crate::registry::RegistryError;

/// Longest time that a guest may be given for one step.
const TIMEOUT_MAX_MS: u64 = 60_000;
/// Longest time that a request waits for the outcome.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Another size.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeBody {
    /// CPUs, inside the bounds; absent: stays.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    cpus: Option<Cpus>,
    /// Memory in bytes, inside the bounds; absent: stays.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    memory: Option<Bytes>,
    /// Milliseconds that the guest may take for each step; default 10,000.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 60_000)]
    timeout_ms: Option<u64>,
    /// The same resize with the same token is done once.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64)]
    client_token: Option<String>,
}

/// A resize by hand.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResizeView {
    /// Its id.
    id: String,
    /// It has ended.
    done: bool,
    /// What was asked.
    #[schema(value_type = Object)]
    wish: InstanceResize,
    /// How it ended: `outcome`, `asked`, `got`, `reason`, `timeline_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    report: Option<serde_json::Value>,
    /// Why there is no report.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it was asked for.
    created: String,
}

fn view(resize: &Resize) -> ResizeView {
    ResizeView {
        id: resize.id.clone(),
        done: resize.is_done(),
        wish: resize.wish.clone(),
        report: resize
            .report
            .as_ref()
            .and_then(|report| serde_json::to_value(report).ok()),
        error: resize.error.clone(),
        created: resize.created.clone(),
    }
}

fn check(instance: &Instance, wanted: &ResizeBody) -> Answer<InstanceResize> {
    let bounds = instance.spec.policy.bounds;
    if wanted.cpus.is_none() && wanted.memory.is_none() {
        return Err(Problem::invalid("size", "", "name cpus, memory or both").into());
    }
    if let Some(cpus) = wanted.cpus.filter(|cpus| !bounds.cpus.contains(*cpus)) {
        let allowed = format!("the bounds are {}", bounds.cpus);
        return Err(Problem::invalid("cpus", cpus, &allowed).into());
    }
    if let Some(memory) = wanted
        .memory
        .filter(|memory| !bounds.memory.contains(*memory))
    {
        let allowed = format!("the bounds are {}", bounds.memory);
        return Err(Problem::invalid("memory", memory, &allowed).into());
    }
    let timeout_ms = wanted.timeout_ms.unwrap_or(10_000);
    if !(1..=TIMEOUT_MAX_MS).contains(&timeout_ms) {
        return Err(Problem::invalid("timeout_ms", timeout_ms, "1 to 60000").into());
    }
    Ok(InstanceResize {
        cpus: wanted.cpus,
        memory: wanted.memory,
        timeout_ms: Some(timeout_ms),
        ..InstanceResize::default()
    })
}

/// Resizes by hand, within the bounds. Waits for the outcome, at most 30 s; then it is 202, and the
/// resize can be asked for.
#[utoipa::path(post, path = "/v1/instances/{instance}/resizes", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), request_body = ResizeBody, responses(
    (status = 200, description = "It has ended", body = ResizeView),
    (status = 202, description = "It has not ended yet", body = ResizeView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn resize(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body {
        value: wanted,
        digest,
    }: Body<ResizeBody>,
) -> Answer<(StatusCode, Json<ResizeView>)> {
    caller.require(Scope::Launch)?;
    let instance = read_own(&control, &caller, &id).await?;
    let wish = check(&instance, &wanted)?;
    let once = match &wanted.client_token {
        Some(token) => Some(once_key(
            &caller.account.id,
            &format!("resize-{id}"),
            token,
        )?),
        None => None,
    };
    // One id for all attempts: a commit whose answer was lost is recognised as our own.
    let fresh = ids::fresh("z")?;
    let asked = crate::draft::again(|| async {
        let once = once.as_deref().map(|key| (key, digest.as_str()));
        ask(&control, &caller, (&id, &fresh), wish.clone(), once).await
    })
    .await?;
    let key = format!("resize/{id}/{asked}");
    let resize = wait(&control, &key, wish.timeout_ms.unwrap_or(0)).await?;
    let resize = resize.ok_or_else(|| Problem::not_found("resize", &asked))?;
    let status = if resize.is_done() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, Json(view(&resize))))
}

/// Records the wish; gives its id.
async fn ask(
    control: &Control,
    caller: &Caller,
    (id, fresh): (&str, &str),
    wish: InstanceResize,
    once: Option<(&str, &str)>,
) -> Answer<String> {
    let mut draft = control.draft();
    let key = format!("resize/{id}/{fresh}");
    if draft.read::<Resize>(key.clone()).await?.is_some() {
        return Ok(fresh.to_owned());
    }
    if let Some((key, digest)) = once
        && let Some(found) = draft.read::<Once>(key).await?
    {
        check_once(&found, digest)?;
        return Ok(found.made);
    }
    let instance = draft.read::<Instance>(format!("instance/{id}")).await?;
    let instance = instance.ok_or_else(|| Problem::not_found("instance", id))?;
    let host = instance
        .life
        .host
        .clone()
        .filter(|_| instance.life.state == Phase::Running);
    let Some(host) = host else {
        let state = instance.life.state.as_str();
        let detail = format!("An instance that is {state} cannot be resized");
        return Err(Problem::conflict("wrong_state", detail).into());
    };
    let resize = Resize {
        id: fresh.to_owned(),
        placement: instance.placement(),
        wish,
        report: None,
        error: None,
        created: now_text(),
    };
    draft.write(key, &resize)?;
    draft.write(format!("host-resize/{host}/{id}/{}", resize.id), &())?;
    if let Some((key, digest)) = once {
        let once = Once {
            request: digest.to_owned(),
            made: resize.id.clone(),
            time_ms: now_ms(),
        };
        draft.write(key, &once)?;
    }
    caller.audit(&mut draft, "instance.resize", id)?;
    draft.commit().await?;
    Ok(resize.id)
}

/// Waits until a resize has ended.
async fn wait(control: &Control, key: &str, timeout_ms: u64) -> Answer<Option<Resize>> {
    let waiting = async {
        loop {
            let (resize, revision) = control.registry.read::<Resize>(key).await?;
            if resize.as_ref().is_none_or(Resize::is_done) {
                return Ok::<_, Fault>(resize);
            }
            let mut watch = match control.registry.watch(key, revision).await {
                Err(RegistryError::Missed(_)) => continue,
                watch => watch?,
            };
            // Whether it changed or the watch broke: look again.
            let _ = watch.next().await;
        }
    };
    let most = Duration::from_millis(timeout_ms)
        .saturating_add(Duration::from_secs(5))
        .min(WAIT_MAX);
    match tokio::time::timeout(most, waiting).await {
        Ok(done) => done,
        Err(_) => Ok(control.registry.read(key).await?.0),
    }
}

/// Lists an instance's resizes by hand, the last first.
#[utoipa::path(get, path = "/v1/instances/{instance}/resizes", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), PageQuery), responses(
    (status = 200, body = Page<ResizeView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<ResizeView>>> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let prefix = format!("resize/{id}/");
    let (entries, next_cursor) = page.list_back(control.registry.as_ref(), &prefix).await?;
    let mut items = Vec::new();
    for entry in entries {
        items.push(view(&entry.read()?));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// Shows a resize by hand.
#[utoipa::path(get, path = "/v1/instances/{instance}/resizes/{resize}", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), ("resize" = String, Path)), responses(
    (status = 200, body = ResizeView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path((id, resize)): Path<(String, String)>,
) -> Answer<Json<ResizeView>> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let missing = || Problem::not_found("resize", &resize);
    if !is_id("z", &resize) {
        return Err(missing().into());
    }
    let (found, _) = control
        .registry
        .read::<Resize>(format!("resize/{id}/{resize}"))
        .await?;
    Ok(Json(view(&found.ok_or_else(missing)?)))
}
