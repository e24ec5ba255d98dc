//! Who calls: the key of a request, its account, and what they may do.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use crate::control::Control;
use crate::draft::Draft;
use crate::ids::{self, now_ms, now_text};
use crate::keys;
use crate::model::{Account, ApiKey, Audit, OPERATOR, Scope};
use crate::problem::{Answer, Fault, Problem, REQUEST_ID};

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The account.
    pub account: Account,
    /// The key.
    pub key: ApiKey,
    /// Where the request comes from.
    pub remote: String,
}

impl FromRequestParts<Arc<Control>> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Answer<Self> {
        let header = parts.headers.get(header::AUTHORIZATION);
        let text = header.and_then(|value| value.to_str().ok()).unwrap_or("");
        let (scheme, token) = text.split_once(' ').unwrap_or(("", ""));
        // A text that has not the form of a key costs no look-up.
        let parsed = scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| keys::split(token.trim()));
        let Some((id, secret)) = parsed.flatten() else {
            return Err(Problem::unauthenticated().into());
        };
        let entry = control.registry.get(format!("key/{id}")).await?;
        let key: Option<ApiKey> = entry.map(|entry| entry.read()).transpose()?;
        let is_valid = keys::is_valid(key.as_ref(), secret, now_ms());
        let Some(key) = key.filter(|_| is_valid) else {
            return Err(Problem::unauthenticated().into());
        };
        let (account, _) = control
            .registry
            .read::<Account>(format!("account/{}", key.account))
            .await?;
        let account = account.ok_or_else(Problem::unauthenticated)?;
        let rate = account.quota.requests_per_second;
        if let Err(wait) = control.limiter.take(&account.id, rate) {
            let detail = format!("More than {rate} requests a second: slow down");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            return Err(Problem {
                retry_after: Some(wait.as_secs() + 1),
                ..problem
            }
            .into());
        }
        let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        Ok(Self {
            account,
            key,
            remote: remote.map_or_else(String::new, |info| info.0.ip().to_string()),
        })
    }
}

impl Caller {
    /// Whether it is the operator.
    pub fn is_operator(&self) -> bool {
        self.account.id == OPERATOR
    }

    /// Only with this scope, or a wider one.
    ///
    /// # Errors
    /// The key's scope is narrower, or the account is suspended and wants to change something.
    pub fn require(&self, scope: Scope) -> Answer<()> {
        if self.key.scope < scope {
            let detail = format!(
                "The key's scope is '{}', and this needs '{}'",
                word(self.key.scope),
                word(scope)
            );
            return Err(Problem::forbidden("insufficient_scope", detail).into());
        }
        if self.account.suspended && scope > Scope::Read {
            let detail = "The account is suspended: ask the operator";
            return Err(Problem::forbidden("account_suspended", detail).into());
        }
        Ok(())
    }

    /// Only the operator, with this scope.
    ///
    /// # Errors
    /// It is somebody else.
    pub fn require_operator(&self, scope: Scope) -> Answer<()> {
        if !self.is_operator() {
            return Err(
                Problem::forbidden("operator_only", "This is the operator's business").into(),
            );
        }
        self.require(scope)
    }

    /// Puts what is done in the audit log, in the same transaction.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn audit(&self, draft: &mut Draft<'_>, action: &str, target: &str) -> Answer<()> {
        let entry = Audit {
            time: now_text(),
            account: self.account.id.clone(),
            key: self.key.id.clone(),
            action: action.to_owned(),
            target: target.to_owned(),
            request_id: REQUEST_ID.try_with(Clone::clone).unwrap_or_default(),
            remote: self.remote.clone(),
        };
        let id = ids::fresh("a")?;
        draft.write(format!("audit/{}/{id}", self.account.id), &entry)?;
        Ok(())
    }
}

fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Launch => "launch",
        Scope::Admin => "admin",
    }
}
