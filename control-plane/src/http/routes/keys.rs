//! API keys: shown once, stored as hashes, rotated, revoked.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::Control;
use crate::draft::Draft;
use crate::http::page::{Page, PageQuery};
use crate::http::{Body, Caller, Query};
use crate::ids::{is_id, now_ms, now_text, time_text};
use crate::keys;
use crate::model::{Account, ApiKey, OPERATOR, Scope};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// Longest life of a key that ends, in seconds: ten years.
const LIFE_MAX_S: u64 = 10 * 365 * 24 * 3600;
/// Longest time that a rotated key may go on, in seconds.
const GRACE_MAX_S: u64 = 7 * 24 * 3600;

/// A key, without the key itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyView {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created: String,
    /// When it ends; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// It was revoked.
    pub revoked: bool,
}

/// A key in full: the only time that it is shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewKeyView {
    /// The key: keep it safe, it is not shown again.
    pub key: String,
    /// What is known of it.
    #[serde(flatten)]
    pub about: KeyView,
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it is for, at most 64 characters.
    #[schema(max_length = 64)]
    name: String,
    /// What it may do.
    scope: Scope,
    /// Seconds until it ends; absent: never.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 315_360_000)]
    expires_in_s: Option<u64>,
}

/// How a key is replaced.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Seconds for which the old key goes on; default 0.
    #[serde(default)]
    #[schema(maximum = 604_800)]
    grace_s: u64,
}

fn view(key: &ApiKey) -> KeyView {
    KeyView {
        id: key.id.clone(),
        name: key.name.clone(),
        scope: key.scope,
        created: key.created.clone(),
        expires: key.expires_ms.map(time_text),
        revoked: key.revoked,
    }
}

fn index(key: &ApiKey) -> String {
    format!("account-key/{}/{}", key.account, key.id)
}

/// Puts a fresh key in a draft.
fn make(draft: &mut Draft<'_>, account: &str, wanted: &NewKey) -> Answer<NewKeyView> {
    if wanted.name.chars().count() > 64 || wanted.name.chars().any(char::is_control) {
        return Err(Problem::invalid("name", &wanted.name, "at most 64 characters").into());
    }
    if let Some(seconds) = wanted.expires_in_s
        && !(1..=LIFE_MAX_S).contains(&seconds)
    {
        let allowed = "1 to 315360000 seconds, or leave it out";
        return Err(Problem::invalid("expires_in_s", seconds, allowed).into());
    }
    let (key, id, hash) = keys::fresh()?;
    let record = ApiKey {
        id,
        account: account.to_owned(),
        name: wanted.name.clone(),
        scope: wanted.scope,
        hash,
        created: now_text(),
        expires_ms: wanted
            .expires_in_s
            .map(|s| now_ms().saturating_add(s * 1000)),
        revoked: false,
    };
    draft.write(index(&record), &())?;
    draft.write(format!("key/{}", record.id), &record)?;
    Ok(NewKeyView {
        key,
        about: view(&record),
    })
}

/// Makes a key of an account. Operator.
#[utoipa::path(post, path = "/v1/accounts/{account}/keys", tag = "accounts", security(("key" = [])),
    params(("account" = String, Path)), request_body = NewKey, responses(
    (status = 201, body = NewKeyView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn create_for(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(account): Path<String>,
    Body { value: wanted, .. }: Body<NewKey>,
) -> Answer<(StatusCode, Json<NewKeyView>)> {
    caller.require_operator(Scope::Admin)?;
    let mut draft = control.draft();
    let is_there = is_id("a", &account)
        && draft
            .read::<Account>(format!("account/{account}"))
            .await?
            .is_some();
    if !is_there {
        return Err(Problem::not_found("account", &account).into());
    }
    let made = make(&mut draft, &account, &wanted)?;
    caller.audit(&mut draft, "key.create", &made.about.id)?;
    draft.commit().await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Makes a key of one's own account.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", security(("key" = [])),
    request_body = NewKey, responses(
    (status = 201, body = NewKeyView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body { value: wanted, .. }: Body<NewKey>,
) -> Answer<(StatusCode, Json<NewKeyView>)> {
    caller.require(Scope::Admin)?;
    let mut draft = control.draft();
    let made = make(&mut draft, &caller.account.id, &wanted)?;
    caller.audit(&mut draft, "key.create", &made.about.id)?;
    draft.commit().await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Lists the account's keys.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<KeyView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<KeyView>>> {
    caller.require(Scope::Admin)?;
    let prefix = format!("account-key/{}/", caller.account.id);
    let (entries, next_cursor) = page.list(control.registry.as_ref(), &prefix).await?;
    let ids = entries
        .iter()
        .filter_map(|entry| entry.key.strip_prefix(&prefix));
    let keys: Vec<String> = ids.map(|id| format!("key/{id}")).collect();
    let mut items = Vec::new();
    for entry in control
        .registry
        .get_many(&keys)
        .await?
        .into_iter()
        .flatten()
    {
        items.push(view(&entry.read()?));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// Reads a key of the caller's account.
async fn own_key(draft: &mut Draft<'_>, caller: &Caller, id: &str) -> Answer<ApiKey> {
    let key = match is_id(keys::PREFIX, id) {
        true => draft.read::<ApiKey>(format!("key/{id}")).await?,
        false => None,
    };
    key.filter(|key| key.account == caller.account.id)
        .ok_or_else(|| Problem::not_found("key", id).into())
}

/// Whether the operator would lock itself out: nobody else can make it a key.
async fn is_last(control: &Control, draft: &mut Draft<'_>, key: &ApiKey) -> Answer<bool> {
    if key.account != OPERATOR || key.scope != Scope::Admin || key.revoked {
        return Ok(false);
    }
    let prefix = format!("account-key/{OPERATOR}/");
    for entry in control.registry.list_all(&prefix).await?.entries {
        let id = entry.key.strip_prefix(&prefix).unwrap_or_default();
        // Read through the draft: two that revoke each other's at once conflict.
        let other = draft.read::<ApiKey>(format!("key/{id}")).await?;
        let counts = |other: &ApiKey| {
            let for_ever = other.expires_ms.is_none();
            other.id != key.id && other.scope == Scope::Admin && !other.revoked && for_ever
        };
        if other.is_some_and(|other| counts(&other)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Revokes a key at once. One that is revoked already stays so.
#[utoipa::path(delete, path = "/v1/keys/{key}", tag = "keys", security(("key" = [])),
    params(("key" = String, Path)), responses(
    (status = 204, description = "It is revoked"),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn revoke(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    caller.require(Scope::Admin)?;
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let mut key = own_key(&mut draft, &caller, &id).await?;
        if is_last(&control, &mut draft, &key).await? {
            let detail = "The operator's last key that has no end cannot be revoked: rotate it, or make another one first";
            return Err(Problem::conflict("last_key", detail).into());
        }
        key.revoked = true;
        draft.write(format!("key/{id}"), &key)?;
        caller.audit(&mut draft, "key.revoke", &id)?;
        draft.commit().await?;
        Ok::<_, Fault>(StatusCode::NO_CONTENT)
    })
    .await
}

/// Replaces a key by a fresh one with the same scope; the old one goes on for `grace_s`.
#[utoipa::path(post, path = "/v1/keys/{key}/rotate", tag = "keys", security(("key" = [])),
    params(("key" = String, Path)), request_body = Rotation, responses(
    (status = 201, body = NewKeyView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn rotate(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body { value: how, .. }: Body<Rotation>,
) -> Answer<(StatusCode, Json<NewKeyView>)> {
    caller.require(Scope::Admin)?;
    if how.grace_s > GRACE_MAX_S {
        return Err(Problem::invalid("grace_s", how.grace_s, "at most 604800 seconds").into());
    }
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let mut old = own_key(&mut draft, &caller, &id).await?;
        if !keys::is_in_force(&old, now_ms()) {
            let detail = "A key that is revoked or has ended cannot be rotated: make another one";
            return Err(Problem::conflict("key_not_in_force", detail).into());
        }
        let wanted = NewKey {
            name: old.name.clone(),
            scope: old.scope,
            expires_in_s: None,
        };
        let made = make(&mut draft, &caller.account.id, &wanted)?;
        let end = now_ms().saturating_add(how.grace_s * 1000);
        old.expires_ms = Some(old.expires_ms.map_or(end, |old| old.min(end)));
        draft.write(format!("key/{id}"), &old)?;
        caller.audit(&mut draft, "key.rotate", &id)?;
        draft.commit().await?;
        Ok::<_, Fault>((StatusCode::CREATED, Json(made)))
    })
    .await
}
