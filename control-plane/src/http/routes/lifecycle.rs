//! Stop, start, terminate: wishes that are recorded, and that hosts are told of.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::instances::check_id;
use super::views::InstanceView;
use crate::control::Control;
use crate::draft::Draft;
use crate::http::{Body, Caller};
use crate::model::state::{Input, State as Phase};
use crate::model::{Instance, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// Longest time that a guest may be given to stop: an hour.
const STOP_MAX_MS: u64 = 3_600_000;

/// How an instance shall end.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    /// Do not ask the guest.
    #[serde(default)]
    force: bool,
    /// Milliseconds that the guest may take; then the VM is ended. Default 30,000.
    #[serde(default)]
    #[schema(maximum = 3_600_000)]
    timeout_ms: Option<u64>,
}

/// What a customer wants.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Stop { force: bool, timeout_ms: u64 },
    Start,
    Terminate,
}

impl Wish {
    /// Its word in the audit log.
    fn action(self) -> &'static str {
        match self {
            Self::Stop { .. } => "instance.stop",
            Self::Start => "instance.start",
            Self::Terminate => "instance.terminate",
        }
    }

    async fn act(
        self,
        control: &Control,
        draft: &mut Draft<'_>,
        instance: &mut Instance,
    ) -> Answer<()> {
        match self {
            Self::Stop { force, timeout_ms } => {
                instance.life.step(&Input::Stop)?;
                if instance.life.state == Phase::Stopping {
                    instance.stop_force |= force;
                    instance.stop_timeout_ms = timeout_ms;
                }
            }
            Self::Start => {
                instance.life.step(&Input::Start)?;
                // One that waits for a host already is placed by the controller.
                if instance.life.state == Phase::Pending {
                    control.place(draft, instance).await?;
                    (instance.stop_force, instance.capacity_short) = (false, None);
                }
            }
            Self::Terminate => {
                instance.life.step(&Input::Terminate)?;
            }
        }
        Ok(())
    }
}

/// Lets a customer's wish happen to an instance of its own.
async fn wish(control: &Control, caller: &Caller, id: &str, wish: Wish) -> Answer<Instance> {
    check_id(id)?;
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let found = draft.read::<Instance>(format!("instance/{id}")).await?;
        let before = found
            .filter(|instance| instance.account == caller.account.id)
            .ok_or_else(|| Problem::not_found("instance", id))?;
        let mut after = before.clone();
        wish.act(control, &mut draft, &mut after).await?;
        if after == before {
            return Ok(after);
        }
        control
            .change(&mut draft, Some(&before), &mut after)
            .await?;
        caller.audit(&mut draft, wish.action(), id)?;
        draft.commit().await?;
        Ok::<_, Fault>(after)
    })
    .await
}

/// Asks an instance to end; its disk and its record stay. One that has ended is no error.
#[utoipa::path(post, path = "/v1/instances/{instance}/stop", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), request_body = StopBody, responses(
    (status = 202, body = InstanceView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn stop(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body { value: how, .. }: Body<StopBody>,
) -> Answer<(StatusCode, Json<InstanceView>)> {
    caller.require(Scope::Launch)?;
    let timeout_ms = how.timeout_ms.unwrap_or(30_000);
    if timeout_ms > STOP_MAX_MS {
        return Err(Problem::invalid("timeout_ms", timeout_ms, "at most 3600000").into());
    }
    let stop = Wish::Stop {
        force: how.force,
        timeout_ms,
    };
    let instance = wish(&control, &caller, &id, stop).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(InstanceView::of(&instance, None)),
    ))
}

/// Starts an instance that has ended, on the host where its disk is.
#[utoipa::path(post, path = "/v1/instances/{instance}/start", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 202, body = InstanceView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn start(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<InstanceView>)> {
    caller.require(Scope::Launch)?;
    let _placing = control.placing.lock().await;
    let instance = wish(&control, &caller, &id, Wish::Start).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(InstanceView::of(&instance, None)),
    ))
}

/// Ends an instance and removes what is left of it, its disk too. Its record, events and usage stay.
#[utoipa::path(delete, path = "/v1/instances/{instance}", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 202, body = InstanceView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn terminate(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<InstanceView>)> {
    caller.require(Scope::Launch)?;
    let instance = wish(&control, &caller, &id, Wish::Terminate).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(InstanceView::of(&instance, None)),
    ))
}
