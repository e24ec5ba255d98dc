//! Webhooks: who is told of an account's events, and what could not be delivered.

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
use crate::ids::{self, is_id, now_text};
use crate::model::{Delivery, Scope, Webhook};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};
use crate::registry::{TRANSACTION_MAX, Transaction};
use crate::webhooks::check_url;

/// Most webhooks of one account: each event is written once for each of them, in one transaction.
const WEBHOOKS_MAX: usize = 5;

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookView {
    /// Its id.
    id: String,
    /// Where events are sent.
    url: String,
    /// Kinds of events; empty: all.
    events: Vec<String>,
    /// When it was made.
    created: String,
    /// What messages are signed with: shown when it is made, and not again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// A webhook to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// `https://…`
    #[schema(max_length = 2048)]
    url: String,
    /// Kinds of events, like `state` or `capacity_short`; absent: all.
    #[serde(default)]
    #[schema(max_items = 32)]
    events: Vec<String>,
}

fn view(webhook: Webhook, secret: Option<String>) -> WebhookView {
    WebhookView {
        id: webhook.id,
        url: webhook.url,
        events: webhook.events,
        created: webhook.created,
        secret,
    }
}

/// Makes a webhook. Messages are signed: `Concertina-Signature: t=SECONDS,v1=HEX`, the HMAC-SHA-256 of
/// `SECONDS.BODY` with the secret that is shown here.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", security(("key" = [])),
    request_body = NewWebhook, responses(
    (status = 201, body = WebhookView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body { value: wanted, .. }: Body<NewWebhook>,
) -> Answer<(StatusCode, Json<WebhookView>)> {
    caller.require(Scope::Admin)?;
    check_url(&wanted.url, control.settings.webhooks_anywhere)
        .map_err(|allowed| Problem::invalid("url", &wanted.url, &allowed))?;
    let is_word = |kind: &String| {
        (1..=64).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    if wanted.events.len() > 32 || !wanted.events.iter().all(is_word) {
        let allowed = "at most 32 kinds of events";
        return Err(Problem::invalid("events", wanted.events.join(" "), allowed).into());
    }
    let prefix = format!("webhook/{}/", caller.account.id);
    let there = control
        .registry
        .list(&prefix, None, WEBHOOKS_MAX + 1)
        .await?;
    if there.entries.len() >= WEBHOOKS_MAX {
        let detail = format!("An account has at most {WEBHOOKS_MAX} webhooks");
        return Err(Problem::forbidden("quota_exceeded", detail).into());
    }
    let webhook = Webhook {
        id: ids::fresh("w")?,
        account: caller.account.id.clone(),
        url: wanted.url,
        events: wanted.events,
        secret: format!("whsec_{}", ids::secret()?),
        created: now_text(),
    };
    let mut draft = control.draft();
    draft.write(format!("{prefix}{}", webhook.id), &webhook)?;
    caller.audit(&mut draft, "webhook.create", &webhook.id)?;
    draft.commit().await?;
    let secret = webhook.secret.clone();
    Ok((StatusCode::CREATED, Json(view(webhook, Some(secret)))))
}

/// Lists the account's webhooks.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", security(("key" = [])),
    params(PageQuery), responses(
    (status = 200, body = Page<WebhookView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<WebhookView>>> {
    caller.require(Scope::Admin)?;
    let prefix = format!("webhook/{}/", caller.account.id);
    let (entries, next_cursor) = page.list(control.registry.as_ref(), &prefix).await?;
    let mut items = Vec::new();
    for entry in entries {
        items.push(view(entry.read()?, None));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// A webhook of the caller's account.
async fn own(draft: &mut Draft<'_>, caller: &Caller, id: &str) -> Answer<Webhook> {
    let found = match is_id("w", id) {
        true => {
            draft
                .read(format!("webhook/{}/{id}", caller.account.id))
                .await?
        }
        false => None,
    };
    found.ok_or_else(|| Problem::not_found("webhook", id).into())
}

/// Removes a webhook, its dead letters, and what is on its way to it.
#[utoipa::path(delete, path = "/v1/webhooks/{webhook}", tag = "webhooks", security(("key" = [])),
    params(("webhook" = String, Path)), responses(
    (status = 204, description = "It is removed"),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn remove(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    caller.require(Scope::Admin)?;
    let mut draft = control.draft();
    own(&mut draft, &caller, &id).await?;
    draft.remove(format!("webhook/{}/{id}", caller.account.id));
    caller.audit(&mut draft, "webhook.remove", &id)?;
    draft.commit().await?;
    // What is on its way is dropped by the sender, which finds no webhook.
    let dead = control.registry.list_all(&format!("dead/{id}/")).await?;
    for chunk in dead.entries.chunks(TRANSACTION_MAX) {
        let mut transaction = Transaction::new();
        for entry in chunk {
            transaction.delete(entry.key.clone());
        }
        control.registry.commit(transaction).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Messages that could not be delivered.
#[utoipa::path(get, path = "/v1/webhooks/{webhook}/dead-letters", tag = "webhooks", security(("key" = [])),
    params(("webhook" = String, Path), PageQuery), responses(
    (status = 200, body = Page<Delivery>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn dead(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Answer<Json<Page<Delivery>>> {
    caller.require(Scope::Admin)?;
    own(&mut control.draft(), &caller, &id).await?;
    let prefix = format!("dead/{id}/");
    let (entries, next_cursor) = page.list(control.registry.as_ref(), &prefix).await?;
    let items = entries
        .iter()
        .map(crate::registry::Entry::read)
        .collect::<Result<_, _>>()?;
    Ok(Json(Page { items, next_cursor }))
}

/// Which message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Id of the message.
    delivery: String,
}

/// Sends a message again that could not be delivered.
#[utoipa::path(post, path = "/v1/webhooks/{webhook}/dead-letters/retry", tag = "webhooks", security(("key" = [])),
    params(("webhook" = String, Path)), request_body = Retry, responses(
    (status = 202, body = Delivery),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn retry(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body { value: wanted, .. }: Body<Retry>,
) -> Answer<(StatusCode, Json<Delivery>)> {
    caller.require(Scope::Admin)?;
    crate::draft::again(|| async {
        let mut draft = control.draft();
        own(&mut draft, &caller, &id).await?;
        let missing = || Problem::not_found("message", &wanted.delivery);
        if !is_id("d", &wanted.delivery) {
            return Err(missing().into());
        }
        let key = format!("dead/{id}/{}", wanted.delivery);
        let mut delivery = draft
            .read::<Delivery>(key.clone())
            .await?
            .ok_or_else(missing)?;
        (delivery.attempts, delivery.not_before_ms) = (0, 0);
        draft.remove(key);
        draft.write(format!("outbox/{id}/{}", delivery.id), &delivery)?;
        caller.audit(&mut draft, "webhook.retry", &delivery.id)?;
        draft.commit().await?;
        Ok::<_, Fault>((StatusCode::ACCEPTED, Json(delivery)))
    })
    .await
}
