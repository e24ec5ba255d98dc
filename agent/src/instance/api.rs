//! `agent.sock`: the instance's status, resize and stop, in the words of
//! [`concertina_api::instance`].

use std::sync::Arc;
use std::time::Duration;

use concertina_api::instance::{InstanceResize, InstanceSize, InstanceState, StopRequest};
use concertina_api::vm::ResizeReport;
use concertina_http::{Handler, Method, Request, Response};

use super::core::Core;
use super::stop::DEFAULT_GRACE;
use crate::client::DEFAULT_RESIZE_TIMEOUT_MS;
use crate::resize::Order;

/// Longest deadline that a resize may ask for, in milliseconds.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// Longest idempotency key, in characters.
const KEY_MAX: usize = 128;

/// Answers the requests of one instance.
pub(super) fn handler(core: Arc<Core>) -> Arc<Handler> {
    Arc::new(move |request| answer(&core, request))
}

fn answer(core: &Core, request: &Request) -> Response {
    match (request.path.as_str(), request.method) {
        ("/v1/instance", Method::Get) => Response::json(200, &core.status()),
        ("/v1/instance/resize", Method::Put) => resize(core, request),
        ("/v1/instance/stop", Method::Put) => stop(core, request),
        ("/v1/instance", _) => Response::method_not_allowed(request, "GET"),
        ("/v1/instance/resize" | "/v1/instance/stop", _) => {
            Response::method_not_allowed(request, "PUT")
        }
        _ => Response::not_found(request),
    }
}

/// Resizes by hand, and waits for the outcome.
pub(crate) fn resize(core: &Core, request: &Request) -> Response {
    let wish: InstanceResize = match request.json() {
        Ok(wish) => wish,
        Err(response) => return response,
    };
    match resize_by_hand(core, &wish) {
        Ok(report) => Response::json(200, &report),
        Err(refused) => Response::problem(refused.status, refused.detail),
    }
}

/// Why a resize has no outcome.
#[derive(Debug)]
pub(crate) struct Refused {
    /// HTTP status.
    pub status: u16,
    /// A sentence.
    pub detail: String,
}

/// Carries out a person's wish, once for each key.
pub(crate) fn resize_by_hand(
    core: &Core,
    wish: &InstanceResize,
) -> Result<ResizeReport<InstanceSize>, Refused> {
    let timeout_ms = wish.timeout_ms.unwrap_or(DEFAULT_RESIZE_TIMEOUT_MS);
    check(wish, timeout_ms).map_err(|detail| Refused {
        status: 400,
        detail,
    })?;
    if core.state() != InstanceState::Running {
        return Err(Refused {
            status: 409,
            detail: format!(
                "Instance {} is not running: its size cannot change",
                core.name
            ),
        });
    }
    let order = Order::manual(wish.cpus, wish.memory, Duration::from_millis(timeout_ms))
        .with_disk_rate(wish.disk_rate)
        .with_net_rate(wish.net_rate)
        .with_key(wish.key.clone())
        .by_policy(core.policy().version);
    let carry_out = || match wish
        .key
        .as_deref()
        .and_then(|key| core.answered_before(key))
    {
        Some(report) => report,
        None => {
            let report = core.resizer.carry_out(&order);
            core.commit_wakeup.set();
            report
        }
    };
    core.answers
        .once(wish, carry_out)
        .map_err(|detail| Refused {
            status: 422,
            detail,
        })
}

/// Whether a wish makes sense at all.
fn check(wish: &InstanceResize, timeout_ms: u64) -> Result<(), String> {
    let rates = wish.disk_rate.is_some() || wish.net_rate.is_some();
    if wish.cpus.is_none() && wish.memory.is_none() && !rates {
        return Err(
            "Resize names no size: give cpus, memory, disk_rate, net_rate, or several of them"
                .into(),
        );
    }
    if let Some(key) = &wish.key
        && (key.is_empty() || key.chars().count() > KEY_MAX || key.chars().any(char::is_control))
    {
        return Err(format!(
            "Key is not allowed: 1 to {KEY_MAX} characters without control characters are"
        ));
    }
    if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) {
        return Err(format!(
            "Deadline timeout_ms is {timeout_ms}: 1 to {MAX_TIMEOUT_MS} milliseconds are allowed"
        ));
    }
    Ok(())
}

/// Asks it to end; does not wait for the end.
pub(crate) fn stop(core: &Core, request: &Request) -> Response {
    match request.json() {
        Ok(wish) => {
            stop_by_hand(core, &wish);
            Response::empty(202)
        }
        Err(response) => response,
    }
}

/// The same for a wish that was read.
pub(crate) fn stop_by_hand(core: &Core, wish: &StopRequest) {
    if wish.force {
        core.stop.force();
    } else {
        core.stop
            .ask(wish.timeout_ms.map_or(DEFAULT_GRACE, Duration::from_millis));
    }
}
