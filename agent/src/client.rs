//! Talks to the agent of one instance over its `agent.sock`: what `status`, `resize` and `stop` of
//! the command line use.

use std::time::Duration;

use concertina_api::instance::{InstanceResize, InstanceSize, InstanceStatus, StopRequest};
use concertina_api::vm::ResizeReport;
use concertina_http::{HttpError, Method, client};

use crate::state_dir::InstancePaths;

/// How long an answer that needs no guest may take.
const QUICK: Duration = Duration::from_secs(10);
/// Deadline of a resize when the request names none, in milliseconds.
pub const DEFAULT_RESIZE_TIMEOUT_MS: u64 = 10_000;
/// A resize is made of several steps in the guest, each with the request's deadline at most, and
/// of reading back; the client waits longer than all of them so that it always hears the outcome.
const RESIZE_MARGIN: Duration = Duration::from_secs(60);

/// The instance as it is.
pub fn status(paths: &InstancePaths) -> Result<InstanceStatus, HttpError> {
    client::get_json(&paths.agent_socket, "/v1/instance", QUICK)
}

/// Asks for another size and waits for the outcome.
pub fn resize(
    paths: &InstancePaths,
    wish: &InstanceResize,
) -> Result<ResizeReport<InstanceSize>, HttpError> {
    let deadline = Duration::from_millis(wish.timeout_ms.unwrap_or(DEFAULT_RESIZE_TIMEOUT_MS));
    let timeout = deadline.saturating_mul(2).saturating_add(RESIZE_MARGIN);
    client::put_json(&paths.agent_socket, "/v1/instance/resize", wish, timeout)
}

/// Asks the instance to end; returns when the request was taken, not when the guest has ended.
pub fn stop(paths: &InstancePaths, request: &StopRequest) -> Result<(), HttpError> {
    client::send(
        &paths.agent_socket,
        Method::Put,
        "/v1/instance/stop",
        Some(request),
        QUICK,
    )
    .map(|_| ())
}
