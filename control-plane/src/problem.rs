//! Errors as customers see them: problem details of RFC 9457 with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::draft::MayConflict;
use crate::ids::NoRandom;
use crate::model::state::NotNow;
use crate::placement::NoRoom;
use crate::registry::RegistryError;

tokio::task_local! {
    /// Id of the request that is being answered.
    pub static REQUEST_ID: String;
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProblemDocument {
    /// Names the kind of problem; there is nothing to fetch.
    #[schema(example = "urn:concertina:problem:quota_exceeded")]
    pub r#type: String,
    /// Name of the status.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// One sentence.
    pub detail: String,
    /// The kind of problem: a word that programs may rely on.
    pub code: String,
    /// The request's id, as in `X-Request-Id`.
    pub request_id: String,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// A stable word.
    pub code: &'static str,
    /// One sentence.
    pub detail: String,
    /// Seconds after which it may work.
    pub retry_after: Option<u64>,
}

/// An answer that may be a problem.
pub type Answer<T> = Result<T, Fault>;

/// A problem of the request, or of the registry underneath.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// Of the request.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Of the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl MayConflict for Fault {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_conflict())
    }
}

impl Problem {
    /// Any.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// 404: there is none, or it is another account's; which of the two is not said.
    pub fn not_found(what: &str, id: &str) -> Self {
        // What was asked for is shown in part: it may be anything.
        let id: String = id.chars().take(64).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("There is no {what} '{id}'"),
        )
    }

    /// 401.
    pub fn unauthenticated() -> Self {
        let detail = "A valid API key is needed: send 'Authorization: Bearer KEY'";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// 403.
    pub fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 422: the value of a field is not allowed.
    pub fn invalid(field: &str, value: impl std::fmt::Display, allowed: &str) -> Self {
        let value: String = value.to_string().chars().take(80).collect();
        let detail = format!("{field} '{value}' is not allowed: {allowed}");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", detail)
    }

    /// 409.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 412: somebody changed it meanwhile.
    pub fn version_conflict(wanted: &str, found: u64) -> Self {
        let detail = format!("If-Match names {wanted}, and the present version is \"{found}\"");
        Self::new(StatusCode::PRECONDITION_FAILED, "version_conflict", detail)
    }
}

impl From<NotNow> for Fault {
    fn from(refusal: NotNow) -> Self {
        Problem::conflict("wrong_state", refusal.to_string()).into()
    }
}

impl From<NoRoom> for Fault {
    fn from(refusal: NoRoom) -> Self {
        Problem::conflict("no_capacity", refusal.to_string()).into()
    }
}

impl From<NoRandom> for Fault {
    fn from(error: NoRandom) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Problem::new(status, "unavailable", error.to_string()).into()
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Conflict(_) => Self {
                retry_after: Some(1),
                ..Self::conflict(
                    "busy",
                    "Too many changes to the same thing at once: try again",
                )
            },
            error => {
                // The sentence may name keys of others: it is for the operator's log.
                eprintln!("concertina control: {error}");
                Self {
                    retry_after: Some(2),
                    ..Self::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "registry_unavailable",
                        "The registry does not answer: try again",
                    )
                }
            }
        }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Problem(problem) => problem,
            Fault::Registry(error) => error.into(),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = ProblemDocument {
            r#type: format!("urn:concertina:problem:{}", self.code),
            title: self
                .status
                .canonical_reason()
                .unwrap_or("Problem")
                .to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code.to_owned(),
            request_id: REQUEST_ID.try_with(Clone::clone).unwrap_or_default(),
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
