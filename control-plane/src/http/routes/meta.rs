//! What everybody may ask: whether it works, and what the API is.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::control::Control;
use crate::problem::{Answer, ProblemDocument};

/// The document as it is sent; made once.
static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| super::document().to_json().unwrap_or_default());

/// Whether the control plane works: it reads from its registry.
#[utoipa::path(get, path = "/healthz", tag = "meta", responses(
    (status = 204, description = "It works"),
    (status = 503, description = "The registry does not answer", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn health(State(control): State<Arc<Control>>) -> Answer<StatusCode> {
    control.registry.get("cluster").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "meta", responses(
    (status = 200, description = "The OpenAPI document", body = serde_json::Value),
))]
pub async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, DOCUMENT.as_str()).into_response()
}
