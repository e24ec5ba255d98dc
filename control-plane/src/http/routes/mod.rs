//! The routes, one file for each kind of thing; the OpenAPI document is made of them.

pub mod accounts;
pub mod audit;
pub mod events;
pub mod hosts;
pub mod images;
pub mod instances;
pub mod keys;
pub mod launch;
pub mod lifecycle;
pub mod meta;
pub mod policy;
pub mod resizes;
pub mod usage;
pub mod views;
pub mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::Control;
use crate::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Concertina control plane",
        description = "Virtual machines that grow and shrink in place with their load. Errors are \
                       problem documents (RFC 9457) with a stable `code`; lists come in pages; each \
                       answer has an `X-Request-Id`."
    ),
    modifiers(&Security)
)]
struct Api;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme("key", SecurityScheme::Http(bearer));
        }
    }
}

fn routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(meta::health))
        .routes(routes!(meta::openapi))
        .routes(routes!(accounts::own))
        .routes(routes!(accounts::create, accounts::list))
        .routes(routes!(accounts::show, accounts::update))
        .routes(routes!(keys::create_for))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(audit::list))
        .routes(routes!(images::register, images::list))
        .routes(routes!(images::show, images::remove))
        .routes(routes!(launch::launch, instances::list))
        .routes(routes!(instances::show, lifecycle::terminate))
        .routes(routes!(instances::metrics))
        .routes(routes!(lifecycle::stop))
        .routes(routes!(lifecycle::start))
        .routes(routes!(policy::show, policy::replace))
        .routes(routes!(policy::mode))
        .routes(routes!(resizes::resize, resizes::list))
        .routes(routes!(resizes::show))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(usage::total))
        .routes(routes!(usage::records))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::show, hosts::update, hosts::remove))
        .routes(routes!(hosts::join_token))
        .routes(routes!(hosts::rotate_authority))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::remove))
        .routes(routes!(webhooks::dead))
        .routes(routes!(webhooks::retry))
}

/// The OpenAPI document.
pub fn document() -> Document {
    routes().split_for_parts().1
}

/// Everything that is served.
pub fn router(control: Arc<Control>) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(control.settings.body_limit))
        .with_state(control)
}

async fn nothing(uri: Uri) -> Problem {
    Problem::not_found("path", uri.path())
}

async fn wrong_method() -> Problem {
    let detail = "This path does not know this method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
