//! The audit log: who changed what.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Caller, Query};
use crate::model::{Audit, Scope};
use crate::problem::{Answer, ProblemDocument};

/// Changes that keys of the account made, the last first.
#[utoipa::path(get, path = "/v1/audit", tag = "accounts", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<Audit>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<Audit>>> {
    caller.require(Scope::Admin)?;
    let prefix = format!("audit/{}/", caller.account.id);
    let (entries, next_cursor) = page.list_back(control.registry.as_ref(), &prefix).await?;
    let items = entries
        .iter()
        .map(crate::registry::Entry::read)
        .collect::<Result<_, _>>()?;
    Ok(Json(Page { items, next_cursor }))
}
