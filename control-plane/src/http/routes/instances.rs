//! Instances as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::views::InstanceView;
use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Caller, Query};
use crate::ids::is_id;
use crate::model::{Instance, Observed, Scope};
use crate::problem::{Answer, Problem, ProblemDocument};
use crate::registry::Entry;

/// The version of a thing as a header.
pub fn etag(version: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{version}\"")) {
        headers.insert(header::ETAG, value);
    }
    headers
}

/// An instance of the caller's account. One of another account is not there.
///
/// # Errors
/// There is none.
pub fn own(caller: &Caller, id: &str, entry: Option<Entry>) -> Answer<Instance> {
    let missing = || Problem::not_found("instance", id);
    let instance: Instance = entry.ok_or_else(missing)?.read()?;
    if instance.account != caller.account.id {
        return Err(missing().into());
    }
    Ok(instance)
}

/// Reads an instance of the caller's account.
///
/// # Errors
/// There is none.
pub async fn read_own(control: &Control, caller: &Caller, id: &str) -> Answer<Instance> {
    check_id(id)?;
    own(
        caller,
        id,
        control.registry.get(format!("instance/{id}")).await?,
    )
}

/// Whether a text may be an instance's id: nothing else reaches the registry.
///
/// # Errors
/// It is none.
pub fn check_id(id: &str) -> Answer<()> {
    if is_id("i", id) {
        return Ok(());
    }
    Err(Problem::not_found("instance", id).into())
}

/// Lists the account's instances, also those that ended.
#[utoipa::path(get, path = "/v1/instances", tag = "instances", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<InstanceView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<InstanceView>>> {
    caller.require(Scope::Read)?;
    let prefix = format!("account-instance/{}/", caller.account.id);
    let (entries, next_cursor) = page.list(control.registry.as_ref(), &prefix).await?;
    let ids = entries
        .iter()
        .filter_map(|entry| entry.key.strip_prefix(&prefix));
    let keys: Vec<String> = ids
        .flat_map(|id| [format!("instance/{id}"), format!("observed/{id}")])
        .collect();
    let found = control.registry.get_many(&keys).await?;
    let mut items = Vec::new();
    for pair in found.chunks(2) {
        let [Some(instance), observed] = pair else {
            continue;
        };
        let observed: Option<Observed> = observed.as_ref().map(Entry::read).transpose()?;
        items.push(InstanceView::of(&instance.read()?, observed.as_ref()));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// Shows an instance.
#[utoipa::path(get, path = "/v1/instances/{instance}", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 200, body = InstanceView, headers(("etag" = String, description = "Version of its policy"))),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(HeaderMap, Json<InstanceView>)> {
    caller.require(Scope::Read)?;
    check_id(&id)?;
    let keys = [format!("instance/{id}"), format!("observed/{id}")];
    let mut found = control.registry.get_many(&keys).await?.into_iter();
    let instance = own(&caller, &id, found.next().flatten())?;
    let observed = found
        .next()
        .flatten()
        .map(|entry| entry.read())
        .transpose()?;
    let view = InstanceView::of(&instance, observed.as_ref());
    Ok((etag(instance.policy_version), Json(view)))
}

/// The last values of an instance's metrics.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricsView {
    /// Milliseconds since then; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    /// By name: shares in percent, sizes in bytes. What is unknown is absent.
    values: BTreeMap<String, f64>,
}

/// Shows the metrics that its launch asked for.
#[utoipa::path(get, path = "/v1/instances/{instance}/metrics", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 200, body = MetricsView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn metrics(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<MetricsView>> {
    caller.require(Scope::Read)?;
    let instance = read_own(&control, &caller, &id).await?;
    let (observed, _) = control
        .registry
        .read::<Observed>(format!("observed/{id}"))
        .await?;
    let wanted = &instance.spec.metrics;
    let is_wanted = |name: &String| wanted.is_empty() || wanted.contains(name);
    let age_ms = observed
        .as_ref()
        .map(|observed| crate::ids::now_ms().saturating_sub(observed.time_ms));
    let values = observed
        .map(|observed| observed.seen.metrics)
        .unwrap_or_default();
    Ok(Json(MetricsView {
        age_ms,
        values: values
            .into_iter()
            .filter(|(name, _)| is_wanted(name))
            .collect(),
    }))
}
