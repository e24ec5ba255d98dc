//! Bounds and thresholds of an instance, replaced while it runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use concertina_api::policy::{Mode, Policy};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::instances::{check_id, etag, read_own};
use super::launch::read_policy;
use super::views::{Bounds, PolicyView};
use crate::control::Control;
use crate::http::{Body, Caller, IfMatch};
use crate::model::state::State as Phase;
use crate::model::{Event, Instance, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// Another policy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyBody {
    /// Least and most: they stay as they were at launch; absent: the same.
    #[serde(default)]
    bounds: Option<Bounds>,
    /// Rules and settings, as in a launch.
    #[schema(value_type = Vec<Object>, max_items = 64)]
    thresholds: Vec<Value>,
}

/// Whether the rules' decisions are carried out.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModeDto {
    /// They are.
    Act,
    /// They are only reported.
    Recommend,
}

/// The mode of a policy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModeBody {
    /// Whether the rules' decisions are carried out.
    mode: ModeDto,
}

/// Shows the policy.
#[utoipa::path(get, path = "/v1/instances/{instance}/policy", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 200, body = PolicyView, headers(("etag" = String, description = "Its version"))),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(HeaderMap, Json<PolicyView>)> {
    caller.require(Scope::Read)?;
    let instance = read_own(&control, &caller, &id).await?;
    Ok((
        etag(instance.policy_version),
        Json(PolicyView::of(&instance)),
    ))
}

/// Puts another policy in an instance's record; its host is told.
async fn put(
    control: &Control,
    caller: &Caller,
    id: &str,
    if_match: &IfMatch,
    make: impl Fn(&Policy) -> Answer<Policy>,
) -> Answer<(HeaderMap, Json<PolicyView>)> {
    check_id(id)?;
    let instance = crate::draft::again(|| async {
        let mut draft = control.draft();
        let found = draft.read::<Instance>(format!("instance/{id}")).await?;
        let before = found
            .filter(|instance| instance.account == caller.account.id)
            .ok_or_else(|| Problem::not_found("instance", id))?;
        if_match.check(before.policy_version)?;
        if matches!(before.life.state, Phase::Terminating | Phase::Terminated) {
            let detail = "A terminated instance has no policy any more";
            return Err(Problem::conflict("wrong_state", detail).into());
        }
        let mut after = before.clone();
        after.spec.policy = make(&before.spec.policy)?;
        if after.spec.policy == before.spec.policy {
            return Ok(after);
        }
        after.policy_version = before.policy_version.saturating_add(1);
        let event = Event::Control {
            event: "policy".into(),
            state: after.life.state,
            detail: Some(format!("Version {} of the policy", after.policy_version)),
        };
        control.record(&mut draft, &after, vec![event]).await?;
        control
            .change(&mut draft, Some(&before), &mut after)
            .await?;
        caller.audit(&mut draft, "instance.policy", id)?;
        draft.commit().await?;
        Ok::<_, Fault>(after)
    })
    .await?;
    Ok((
        etag(instance.policy_version),
        Json(PolicyView::of(&instance)),
    ))
}

/// Replaces the thresholds. The bounds are part of what was launched, and stay.
#[utoipa::path(put, path = "/v1/instances/{instance}/policy", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), ("if-match" = Option<String>, Header, description = "Only if it has this version")),
    request_body = PolicyBody, responses(
    (status = 200, body = PolicyView, headers(("etag" = String, description = "Its version"))),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn replace(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
    Body { value: wanted, .. }: Body<PolicyBody>,
) -> Answer<(HeaderMap, Json<PolicyView>)> {
    caller.require(Scope::Launch)?;
    put(&control, &caller, &id, &if_match, |old| {
        let (cpus, memory) = (old.bounds.cpus, old.bounds.memory);
        let bounds = Bounds::of(cpus, memory);
        if wanted.bounds.is_some_and(|wanted| wanted != bounds) {
            let detail =
                format!("Bounds stay as they were launched: {cpus} CPUs and {memory} of memory");
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(Problem::new(status, "bounds_fixed", detail).into());
        }
        let mut policy = read_policy(bounds, Some(&wanted.thresholds))?;
        // The mode is set by its own route, unless the settings name it.
        let names_mode = |rule: &Value| rule.as_str().is_some_and(|text| text.contains("set mode"));
        if !wanted.thresholds.iter().any(names_mode) {
            policy.mode = old.mode;
        }
        Ok(policy)
    })
    .await
}

/// Lets the rules act, or only recommend.
#[utoipa::path(put, path = "/v1/instances/{instance}/policy/mode", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), ("if-match" = Option<String>, Header, description = "Only if it has this version")),
    request_body = ModeBody, responses(
    (status = 200, body = PolicyView, headers(("etag" = String, description = "Its version"))),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn mode(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
    Body { value: wanted, .. }: Body<ModeBody>,
) -> Answer<(HeaderMap, Json<PolicyView>)> {
    caller.require(Scope::Launch)?;
    put(&control, &caller, &id, &if_match, |old| {
        Ok(Policy {
            mode: match wanted.mode {
                ModeDto::Act => Mode::Act,
                ModeDto::Recommend => Mode::Recommend,
            },
            ..old.clone()
        })
    })
    .await
}
