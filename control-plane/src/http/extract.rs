//! Bodies, queries and preconditions, with our own problems where they are wrong.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::control::Control;
use crate::problem::{Answer, Fault, Problem};

/// A body of JSON. What it was made of is kept, for client tokens.
#[derive(Debug)]
pub struct Body<T> {
    /// The value.
    pub value: T,
    /// SHA-256 of the bytes.
    pub digest: String,
}

impl<T: DeserializeOwned + Send> FromRequest<Arc<Control>> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, control: &Arc<Control>) -> Answer<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or("application/json");
        let essence = kind.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let problem = Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body has to be application/json",
            );
            return Err(problem.into());
        }
        let bytes =
            Bytes::from_request(request, control)
                .await
                .map_err(|rejection| match rejection.into_response_status() {
                    StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "body_too_large",
                        format!(
                            "The body is too large: at most {} bytes",
                            control.settings.body_limit
                        ),
                    ),
                    _ => Problem::new(
                        StatusCode::BAD_REQUEST,
                        "body_unreadable",
                        "The body did not arrive whole",
                    ),
                })?;
        let value = serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_body",
                format!("The body is not what it should be: {error}"),
            ),
            _ => Problem::new(
                StatusCode::BAD_REQUEST,
                "malformed_json",
                format!("The body is no JSON: {error}"),
            ),
        })?;
        Ok(Self {
            value,
            digest: crate::ids::sha256(&bytes),
        })
    }
}

trait RejectionStatus {
    fn into_response_status(self) -> StatusCode;
}

impl<T: axum::response::IntoResponse> RejectionStatus for T {
    fn into_response_status(self) -> StatusCode {
        self.into_response().status()
    }
}

/// The query as a value.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Control>> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Control>) -> Answer<Self> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| {
                let detail = format!("The query is not what it should be: {}", source_of(&error));
                Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail).into()
            })
    }
}

/// The innermost cause of an error, which says what is wrong.
fn source_of(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The precondition of an update, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfMatch(Option<String>);

impl FromRequestParts<Arc<Control>> for IfMatch {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Control>) -> Answer<Self> {
        let header = parts.headers.get(header::IF_MATCH);
        let text = header.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Ok(Self(text.filter(|text| text.trim() != "*")))
    }
}

impl IfMatch {
    /// Whether the thing still has the version that the request names.
    ///
    /// # Errors
    /// It has another one.
    pub fn check(&self, version: u64) -> Answer<()> {
        let Some(wanted) = &self.0 else {
            return Ok(());
        };
        let names = |tag: &str| tag.trim().trim_matches('"') == version.to_string();
        if wanted.split(',').any(names) {
            return Ok(());
        }
        let shown: String = wanted.chars().take(40).collect();
        Err(Problem::version_conflict(&shown, version).into())
    }
}
