//! What an instance held: sums for the bill, and the records that they are sums of.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::instances::read_own;
use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Caller, Query};
use crate::model::{Scope, UsageTotal};
use crate::problem::{Answer, ProblemDocument};

const KIB_MS_PER_GIB_S: f64 = 1_048_576.0 * 1000.0;

/// What an instance has held since its launch, over all its placements.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageView {
    /// How long it ran.
    seconds: f64,
    /// CPU quota x time.
    vcpu_seconds: f64,
    /// Promised memory x time.
    promised_gib_seconds: f64,
    /// Memory resident on the host x time.
    resident_gib_seconds: f64,
    /// Records that this is the sum of.
    records: u64,
}

/// A record of usage.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageRecordView {
    /// Which placement.
    generation: u64,
    /// The line of the host's chain as it is: each has the hash of itself and of the one before.
    line: String,
}

/// Sums of an instance's usage.
#[utoipa::path(get, path = "/v1/instances/{instance}/usage", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path)), responses(
    (status = 200, body = UsageView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn total(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<UsageView>> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let (total, _) = control
        .registry
        .read::<UsageTotal>(format!("usage-total/{id}"))
        .await?;
    let total = total.unwrap_or_default();
    Ok(Json(UsageView {
        seconds: total.span_ms as f64 / 1000.0,
        vcpu_seconds: total.vcpu_us as f64 / 1e6,
        promised_gib_seconds: total.promised_kib_ms as f64 / KIB_MS_PER_GIB_S,
        resident_gib_seconds: total.resident_kib_ms as f64 / KIB_MS_PER_GIB_S,
        records: total.records,
    }))
}

/// The records, in their order.
#[utoipa::path(get, path = "/v1/instances/{instance}/usage/records", tag = "instances", security(("key" = [])),
    params(("instance" = String, Path), PageQuery), responses(
    (status = 200, body = Page<UsageRecordView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn records(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<UsageRecordView>>> {
    caller.require(Scope::Read)?;
    read_own(&control, &caller, &id).await?;
    let prefix = format!("usage/{id}/");
    let (entries, next_cursor) = page.list(control.registry.as_ref(), &prefix).await?;
    let mut items = Vec::new();
    for entry in entries {
        let place = entry
            .key
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split('/').next());
        items.push(UsageRecordView {
            generation: place.and_then(|text| text.parse().ok()).unwrap_or(0),
            line: entry.read()?,
        });
    }
    Ok(Json(Page { items, next_cursor }))
}
