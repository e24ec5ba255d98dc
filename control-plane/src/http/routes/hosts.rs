//! Hosts: the operator lets them join, drains and removes them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Body, Caller, Query};
use crate::ids::{self, is_id, now_ms, sha256, time_text};
use crate::model::state::Input;
use crate::model::{Host, HostState, Instance, JoinToken, Live, Promised, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// Longest life of a join token, in seconds.
const TOKEN_MAX_S: u64 = 7 * 24 * 3600;
const TOKEN_DEFAULT_S: u64 = 3600;

/// A host.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostView {
    /// Its id.
    id: String,
    /// Its name.
    name: String,
    /// `ready`, `draining` or `lost`.
    state: HostState,
    /// What it can promise and has promised; CPUs, and memory in bytes.
    #[schema(value_type = Object)]
    capacity: concertina_api::link::HostCapacity,
    /// CPUs that it has promised to instances.
    #[schema(value_type = f64)]
    promised_cpus: concertina_api::Cpus,
    /// Memory that it has promised to instances, in bytes.
    #[schema(value_type = u64)]
    promised_memory: concertina_api::Bytes,
    /// Instances that it has promised something to.
    instances: u32,
    /// Where it connects from; absent: not connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    /// Version of its agent.
    version: String,
    /// Placements on it that no record tells of. They are left alone.
    unknown: Vec<String>,
    /// When it joined.
    created: String,
}

async fn view(control: &Control, host: Host) -> Answer<HostView> {
    let keys = [format!("promised/{}", host.id), format!("live/{}", host.id)];
    let mut found = control.registry.get_many(&keys).await?.into_iter();
    let promised: Option<Promised> = found.next().flatten().map(|e| e.read()).transpose()?;
    let live: Option<Live> = found.next().flatten().map(|e| e.read()).transpose()?;
    let promised = promised.unwrap_or_default();
    Ok(HostView {
        state: host.state(),
        id: host.id,
        name: host.name,
        capacity: host.capacity,
        promised_cpus: promised.cpus,
        promised_memory: promised.memory,
        instances: promised.instances,
        remote: live.map(|live| live.remote),
        version: host.version,
        unknown: host.unknown,
        created: host.created,
    })
}

/// A join token to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// Seconds until it ends; default one hour, at most a week.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 604_800)]
    expires_in_s: Option<u64>,
}

/// A join token: good for one host.
#[derive(Debug, Serialize, ToSchema)]
pub struct JoinTokenView {
    /// What the agent is given: `concertina agent --join TOKEN`.
    token: String,
    /// When it ends.
    expires: String,
}

/// Makes a join token. Operator.
#[utoipa::path(post, path = "/v1/hosts/join-tokens", tag = "hosts", security(("key" = [])),
    request_body = NewJoinToken, responses(
    (status = 201, body = JoinTokenView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn join_token(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body { value: wanted, .. }: Body<NewJoinToken>,
) -> Answer<(StatusCode, Json<JoinTokenView>)> {
    caller.require_operator(Scope::Admin)?;
    let seconds = wanted.expires_in_s.unwrap_or(TOKEN_DEFAULT_S);
    if !(1..=TOKEN_MAX_S).contains(&seconds) {
        return Err(Problem::invalid("expires_in_s", seconds, "1 to 604800").into());
    }
    let secret = ids::secret()?;
    let token = JoinToken {
        id: ids::fresh("j")?,
        hash: sha256(&secret),
        expires_ms: now_ms().saturating_add(seconds * 1000),
        used_by: None,
        public_key: None,
    };
    let authority = control
        .authorities
        .signing()
        .and_then(|authority| authority.fingerprint());
    let fingerprint = authority.map_err(|error| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            error.to_string(),
        )
    })?;
    let address = control.agents_address();
    let text = format!("{address}/{}_{secret}/{fingerprint}", token.id);
    let mut draft = control.draft();
    draft.write(format!("join/{}", token.id), &token)?;
    caller.audit(&mut draft, "host.join-token", &token.id)?;
    draft.commit().await?;
    let view = JoinTokenView {
        token: text,
        expires: time_text(token.expires_ms),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// Lists hosts. Operator.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<HostView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<HostView>>> {
    caller.require_operator(Scope::Read)?;
    let (entries, next_cursor) = page.list(control.registry.as_ref(), "host/").await?;
    let mut items = Vec::new();
    for entry in entries {
        items.push(view(&control, entry.read()?).await?);
    }
    Ok(Json(Page { items, next_cursor }))
}

fn check_id(id: &str) -> Answer<()> {
    if is_id("h", id) {
        return Ok(());
    }
    Err(Problem::not_found("host", id).into())
}

/// Shows a host. Operator.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", security(("key" = [])),
    params(("host" = String, Path)), responses(
    (status = 200, body = HostView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<HostView>> {
    caller.require_operator(Scope::Read)?;
    check_id(&id)?;
    let (host, _) = control.registry.read::<Host>(format!("host/{id}")).await?;
    let host = host.ok_or_else(|| Problem::not_found("host", &id))?;
    Ok(Json(view(&control, host).await?))
}

/// What may change of a host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostUpdate {
    /// It takes no further instances. Those on it stay.
    draining: bool,
}

/// Drains a host, or lets it take instances again. Operator.
#[utoipa::path(put, path = "/v1/hosts/{host}", tag = "hosts", security(("key" = [])),
    params(("host" = String, Path)), request_body = HostUpdate, responses(
    (status = 200, body = HostView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn update(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body { value: wanted, .. }: Body<HostUpdate>,
) -> Answer<Json<HostView>> {
    caller.require_operator(Scope::Admin)?;
    check_id(&id)?;
    let host = crate::draft::again(|| async {
        let mut draft = control.draft();
        let key = format!("host/{id}");
        let host = draft.read::<Host>(key.clone()).await?;
        let mut host = host.ok_or_else(|| Problem::not_found("host", &id))?;
        host.draining = wanted.draining;
        draft.write(key, &host)?;
        let action = if wanted.draining {
            "host.drain"
        } else {
            "host.ready"
        };
        caller.audit(&mut draft, action, &id)?;
        draft.commit().await?;
        Ok::<_, Fault>(host)
    })
    .await?;
    Ok(Json(view(&control, host).await?))
}

/// Removes a host that is lost, for good: its certificate is no longer taken, and what was on it is
/// given up. Operator.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts", security(("key" = [])),
    params(("host" = String, Path)), responses(
    (status = 204, description = "It is removed"),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn remove(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    caller.require_operator(Scope::Admin)?;
    check_id(&id)?;
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let host = draft.read::<Host>(format!("host/{id}")).await?;
        let host = host.ok_or_else(|| Problem::not_found("host", &id))?;
        if !host.lost {
            let detail = "Only a host that is lost can be removed: stop its agent first";
            return Err(Problem::conflict("host_not_lost", detail).into());
        }
        draft.remove(format!("host/{id}"));
        draft.remove(format!("host-key/{}", host.public_key));
        draft.remove(format!("host-name/{}", host.name));
        caller.audit(&mut draft, "host.remove", &id)?;
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await?;
    // Each by itself: whatever is left over by a crash here is found by the controller.
    let prefix = format!("host-instance/{id}/");
    for entry in control.registry.list_all(&prefix).await?.entries {
        if let Some(instance) = entry.key.strip_prefix(&prefix) {
            let is_here = |instance: &Instance| {
                let here = instance.life.host.as_deref() == Some(id.as_str());
                here.then_some(Input::HostRemoved)
            };
            control.happen(instance, is_here).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The control plane's authorities.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuthorityView {
    /// Number of the newest.
    number: u32,
    /// It signs from this time on.
    signs_from: String,
    /// SHA-256 of its certificate.
    fingerprint: String,
}

/// Makes the next authority for hosts' certificates. It is trusted at once, and signs when every host
/// has renewed its certificate. Operator.
#[utoipa::path(post, path = "/v1/hosts/authority/rotate", tag = "hosts", security(("key" = [])), responses(
    (status = 201, body = AuthorityView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn rotate_authority(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Answer<(StatusCode, Json<AuthorityView>)> {
    caller.require_operator(Scope::Admin)?;
    let broken = |error: crate::ca::CaError| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            error.to_string(),
        )
    };
    let overlap: Duration = control.settings.certificate_life;
    let rotated = control
        .authorities
        .rotate(control.registry.as_ref(), overlap)
        .await;
    let authority = rotated.map_err(broken)?;
    let mut draft = control.draft();
    caller.audit(
        &mut draft,
        "host.rotate-authority",
        &authority.number.to_string(),
    )?;
    draft.commit().await?;
    let view = AuthorityView {
        number: authority.number,
        signs_from: time_text(authority.signs_from_ms),
        fingerprint: authority.fingerprint().map_err(broken)?,
    };
    Ok((StatusCode::CREATED, Json(view)))
}
