//! Accounts: the operator makes them; each sees its own.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::instances::etag;
use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Body, Caller, IfMatch, Query};
use crate::ids::{self, is_id, now_text};
use crate::model::{Account, Quota, Scope, Used};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// An account.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccountView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it may have.
    pub quota: Quota,
    /// Instances that count against the quota.
    pub used_instances: u32,
    /// CPUs that count against it.
    #[schema(value_type = f64)]
    pub used_cpus: concertina_api::Cpus,
    /// Memory that counts against it, in bytes.
    #[schema(value_type = u64)]
    pub used_memory: concertina_api::Bytes,
    /// It can change nothing.
    pub suspended: bool,
    /// When it was made.
    pub created: String,
}

impl AccountView {
    fn of(account: Account, used: Used) -> Self {
        Self {
            id: account.id,
            name: account.name,
            quota: account.quota,
            used_instances: used.instances,
            used_cpus: used.cpus,
            used_memory: used.memory,
            suspended: account.suspended,
            created: account.created,
        }
    }
}

/// An account to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// Its name: 1 to 63 of a-z, 0-9 and '-'.
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    name: String,
    /// What it may have; absent: the defaults.
    #[serde(default)]
    quota: Quota,
}

/// What may change; absent: stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountUpdate {
    /// What it may have.
    #[serde(default)]
    quota: Option<Quota>,
    /// Whether it can change nothing.
    #[serde(default)]
    suspended: Option<bool>,
}

/// Names of accounts, hosts and instances.
///
/// # Errors
/// It is no such name.
pub fn check_name(field: &str, name: &str) -> Answer<()> {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good =
        (1..=63).contains(&name.len()) && name.bytes().all(is_good) && !name.starts_with('-');
    if good {
        return Ok(());
    }
    Err(Problem::invalid(field, name, "1 to 63 of a-z, 0-9 and '-', not '-' first").into())
}

fn check_quota(quota: &Quota) -> Answer<()> {
    let rate = quota.requests_per_second;
    if (1..=1_000_000).contains(&rate) {
        return Ok(());
    }
    Err(Problem::invalid("quota.requests_per_second", rate, "1 to 1000000").into())
}

async fn used(control: &Control, account: &str) -> Answer<Used> {
    let (used, _) = control.registry.read(format!("used/{account}")).await?;
    Ok(used.unwrap_or_default())
}

/// The account of the key.
#[utoipa::path(get, path = "/v1/account", tag = "accounts", security(("key" = [])), responses(
    (status = 200, body = AccountView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn own(State(control): State<Arc<Control>>, caller: Caller) -> Answer<Json<AccountView>> {
    let used = used(&control, &caller.account.id).await?;
    Ok(Json(AccountView::of(caller.account, used)))
}

/// Makes an account. Operator.
#[utoipa::path(post, path = "/v1/accounts", tag = "accounts", security(("key" = [])),
    request_body = NewAccount, responses(
    (status = 201, body = AccountView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body { value: wanted, .. }: Body<NewAccount>,
) -> Answer<(StatusCode, Json<AccountView>)> {
    caller.require_operator(Scope::Admin)?;
    check_name("name", &wanted.name)?;
    check_quota(&wanted.quota)?;
    let account = Account {
        id: ids::fresh("a")?,
        name: wanted.name,
        quota: wanted.quota,
        suspended: false,
        created: now_text(),
    };
    let mut draft = control.draft();
    let taken_key = format!("account-name/{}", account.name);
    if draft.read::<String>(taken_key.clone()).await?.is_some() {
        let detail = format!("There is an account '{}' already", account.name);
        return Err(Problem::conflict("name_taken", detail).into());
    }
    draft.write(taken_key, &account.id)?;
    draft.write(format!("account/{}", account.id), &account)?;
    caller.audit(&mut draft, "account.create", &account.id)?;
    draft.commit().await?;
    Ok((
        StatusCode::CREATED,
        Json(AccountView::of(account, Used::default())),
    ))
}

/// Lists accounts. Operator.
#[utoipa::path(get, path = "/v1/accounts", tag = "accounts", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<AccountView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<AccountView>>> {
    caller.require_operator(Scope::Read)?;
    let (entries, next_cursor) = page.list(control.registry.as_ref(), "account/").await?;
    let mut items = Vec::new();
    for entry in entries {
        let account: Account = entry.read()?;
        let used = used(&control, &account.id).await?;
        items.push(AccountView::of(account, used));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// Whether a text may be an account's id: nothing else reaches the registry.
fn check_id(id: &str) -> Answer<()> {
    if is_id("a", id) || id == crate::model::OPERATOR {
        return Ok(());
    }
    Err(Problem::not_found("account", id).into())
}

/// Shows an account. Operator.
#[utoipa::path(get, path = "/v1/accounts/{account}", tag = "accounts", security(("key" = [])),
    params(("account" = String, Path)), responses(
    (status = 200, body = AccountView, headers(("etag" = String, description = "Its version"))),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(HeaderMap, Json<AccountView>)> {
    caller.require_operator(Scope::Read)?;
    check_id(&id)?;
    let (account, version) = control
        .registry
        .read::<Account>(format!("account/{id}"))
        .await?;
    let account = account.ok_or_else(|| Problem::not_found("account", &id))?;
    let used = used(&control, &id).await?;
    Ok((etag(version), Json(AccountView::of(account, used))))
}

/// Changes an account's quota, or suspends it. Operator.
#[utoipa::path(put, path = "/v1/accounts/{account}", tag = "accounts", security(("key" = [])),
    params(("account" = String, Path), ("if-match" = Option<String>, Header, description = "Only if it has this version")),
    request_body = AccountUpdate, responses(
    (status = 200, body = AccountView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn update(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
    Body { value: wanted, .. }: Body<AccountUpdate>,
) -> Answer<Json<AccountView>> {
    caller.require_operator(Scope::Admin)?;
    check_id(&id)?;
    if let Some(quota) = &wanted.quota {
        check_quota(quota)?;
    }
    let account = crate::draft::again(|| async {
        let mut draft = control.draft();
        let key = format!("account/{id}");
        let account = draft.read::<Account>(key.clone()).await?;
        let mut account = account.ok_or_else(|| Problem::not_found("account", &id))?;
        if_match.check(draft.revision(&key))?;
        account.quota = wanted.quota.unwrap_or(account.quota);
        if id == crate::model::OPERATOR && wanted.suspended == Some(true) {
            let detail = "The operator cannot be suspended: nobody could take it back";
            return Err(Problem::conflict("operator_needed", detail).into());
        }
        account.suspended = wanted.suspended.unwrap_or(account.suspended);
        draft.write(key, &account)?;
        caller.audit(&mut draft, "account.update", &id)?;
        draft.commit().await?;
        Ok::<_, Fault>(account)
    })
    .await?;
    let used = used(&control, &id).await?;
    Ok(Json(AccountView::of(account, used)))
}
