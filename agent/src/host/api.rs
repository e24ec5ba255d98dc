//! The agent's API on its unix socket. Who may connect is decided by the socket's file mode, 0600.

use std::net::SocketAddr;
use std::sync::Arc;

use concertina_api::host::{
    AxisAccount, HostStatus, LaunchRequest, PolicyInForce, Recommendation, WaitStatus,
};
use concertina_api::instance::{InstanceSize, StopRequest};
use concertina_api::policy::{Axis, Policy};
use concertina_http::{Handler, HttpError, Method, Request, Response, Server};

use super::routes::{ROUTES, matched};
use super::{Host, PolicyRefused, openapi as description, streams};
use crate::clock::Moment;
use crate::instance::{Core, api as of_instance};
use crate::launch::LaunchError;
use crate::ledger::Account;
use crate::sentence;
use crate::state_dir::ProcessId;

pub use description::document as openapi_document;

/// Most connections at a time: launches and resizes keep theirs until they have ended, streams for as
/// long as somebody listens.
const CONNECTIONS: usize = 256;
/// Most connections of Prometheus at a time: each answer of a large host takes some MiB.
const METRICS_CONNECTIONS: usize = 4;
const METRICS: &str = "/metrics";

/// A request, and what it is about.
pub(super) struct Call<'a> {
    pub host: &'a Arc<Host>,
    pub request: &'a Request,
    /// Name of the instance, where the path has one; empty elsewhere.
    pub name: &'a str,
}

/// Listens.
///
/// # Errors
/// The socket cannot be made.
pub fn bind(host: &Host) -> Result<Server, HttpError> {
    Server::bind(host.socket()).map(|server| server.with_limit(CONNECTIONS))
}

/// Listens for Prometheus.
///
/// # Errors
/// The address cannot be had.
pub fn bind_metrics(address: SocketAddr) -> Result<Server, HttpError> {
    Server::bind_tcp(address).map(|server| server.with_limit(METRICS_CONNECTIONS))
}

/// Answers Prometheus: metrics, and nothing else.
pub fn metrics_handler(host: Arc<Host>) -> Arc<Handler> {
    Arc::new(
        move |request| match (request.method, request.path.as_str()) {
            (Method::Get, METRICS) => metrics_of(&host),
            (_, METRICS) => Response::problem(405, "Metrics can only be read".to_owned()),
            _ => Response::problem(404, "Here is nothing but /metrics".to_owned()),
        },
    )
}

/// Answers the requests to a host's agent.
pub fn handler(host: Arc<Host>) -> Arc<Handler> {
    Arc::new(move |request| answer(&host, request))
}

fn answer(host: &Arc<Host>, request: &Request) -> Response {
    let mut known = false;
    for route in ROUTES {
        let Some(name) = matched(route, &request.path) else {
            continue;
        };
        known = true;
        if route.method == request.method {
            let name = name.unwrap_or_default();
            return (route.answer)(&Call {
                host,
                request,
                name,
            });
        }
    }
    if known {
        Response::problem(405, format!("'{}' does not know this method", request.path))
    } else {
        Response::not_found(request)
    }
}

impl Call<'_> {
    /// The instance that it is about, or what its sender is told.
    fn with_instance(&self, answer: impl FnOnce(&Arc<Core>) -> Response) -> Response {
        match self.host.find(self.name) {
            Some(core) => answer(&core),
            None => self.unknown(),
        }
    }

    fn unknown(&self) -> Response {
        Response::problem(404, format!("No instance '{}' runs here", self.name))
    }
}

pub(super) fn host(call: &Call<'_>) -> Response {
    let host = call.host;
    let now_ms = Moment::now().monotonic_ms;
    let books = host.books();
    let waiting = books.look(|ledger| {
        let waits = ledger.waiting().iter().map(|wait| WaitStatus {
            instance: wait.instance.clone(),
            axis: wait.axis.as_str().into(),
            target: wait.target,
            waited_ms: now_ms.saturating_sub(wait.since_ms),
            why: wait.why.clone(),
        });
        waits.collect()
    });
    let status = HostStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        agent_pid: ProcessId::of_self().pid,
        uptime_ms: u64::try_from(host.began().elapsed().as_millis()).unwrap_or(u64::MAX),
        instances: host.instances().len() as u64,
        cpus: account(&books.account(Axis::Cpus)),
        memory: account(&books.account(Axis::Memory)),
        waiting,
        open_intents: books.book(|book| book.open().count()) as u64,
        trouble: books.trouble(),
    };
    Response::json(200, &status)
}

fn account(account: &Account) -> AxisAccount {
    AxisAccount {
        limit: account.limit,
        held: account.held,
        actual: account.actual,
        guaranteed: account.guaranteed,
        awaited: account.awaited,
        free: account.free(),
    }
}

pub(super) fn instances(call: &Call<'_>) -> Response {
    Response::json(200, &call.host.statuses())
}

pub(super) fn instance(call: &Call<'_>) -> Response {
    call.with_instance(|core| Response::json(200, &core.status()))
}

pub(super) fn launch(call: &Call<'_>) -> Response {
    let request: LaunchRequest = match call.request.json() {
        Ok(request) => request,
        Err(response) => return response,
    };
    match call.host.launch(call.name, request) {
        Ok(()) => match call.host.find(call.name) {
            Some(core) => Response::json(201, &core.status()),
            None => Response::problem(
                503,
                format!("Instance {} has ended right after its launch", call.name),
            ),
        },
        Err(error) => Response::problem(status_of(&error), sentence(&error)),
    }
}

/// 422: the request is at fault; 409: the name is; 503: this host is.
fn status_of(error: &LaunchError) -> u16 {
    match error {
        error if error.is_usage() => 422,
        LaunchError::Name(_) | LaunchError::RunsOn { .. } => 409,
        _ => 503,
    }
}

pub(super) fn resize(call: &Call<'_>) -> Response {
    call.with_instance(|core| of_instance::resize(core, call.request))
}

pub(super) fn stop(call: &Call<'_>) -> Response {
    let wish: StopRequest = match call.request.json() {
        Ok(wish) => wish,
        Err(response) => return response,
    };
    if call.host.stop(call.name, &wish) {
        Response::empty(202)
    } else {
        call.unknown()
    }
}

pub(super) fn policy(call: &Call<'_>) -> Response {
    match call.host.policy(call.name) {
        Some(in_force) => Response::json(
            200,
            &PolicyInForce {
                version: in_force.version,
                policy: in_force.policy.clone(),
            },
        ),
        None => call.unknown(),
    }
}

pub(super) fn replace_policy(call: &Call<'_>) -> Response {
    let wish: Policy = match call.request.json() {
        Ok(wish) => wish,
        Err(response) => return response,
    };
    match call.host.replace_policy(call.name, wish.clone()) {
        Ok(version) => Response::json(
            200,
            &PolicyInForce {
                version,
                policy: wish,
            },
        ),
        Err(error @ PolicyRefused::Unknown(_)) => Response::problem(404, error.to_string()),
        Err(error @ PolicyRefused::Wrong(_)) => Response::problem(422, error.to_string()),
        Err(error @ PolicyRefused::Host(_)) => Response::problem(409, error.to_string()),
    }
}

pub(super) fn events_of_one(call: &Call<'_>) -> Response {
    let follow = match call.request.query.as_str() {
        "" | "follow=false" => false,
        "follow=true" | "follow" => true,
        query => {
            let detail = format!("Query '{query}' is not allowed: follow=true or follow=false is");
            return Response::problem(400, detail);
        }
    };
    match call.host.state_dir().instance(call.name) {
        Ok(Some(entry)) => streams::of_one(call.host, call.name, entry.paths, follow),
        _ => Response::problem(404, format!("No instance '{}' is known here", call.name)),
    }
}

pub(super) fn events_of_all(call: &Call<'_>) -> Response {
    streams::of_all(call.host)
}

pub(super) fn recommendations(call: &Call<'_>) -> Response {
    let of = |core: &Arc<Core>| {
        let size = core.size();
        Recommendation {
            instance: core.name().to_owned(),
            present: InstanceSize {
                cpus: Some(size.cpus),
                memory: Some(size.memory),
                ..InstanceSize::default()
            },
            recommended: core.recommended(),
            policy_version: core.policy().version,
        }
    };
    let all: Vec<Recommendation> = call.host.instances().iter().map(of).collect();
    Response::json(200, &all)
}

pub(super) fn openapi(_call: &Call<'_>) -> Response {
    let document = description::document().into_bytes();
    Response::new(200, "application/json", document)
}

pub(super) fn metrics(call: &Call<'_>) -> Response {
    metrics_of(call.host)
}

fn metrics_of(host: &Arc<Host>) -> Response {
    let text = super::metrics::text(host).into_bytes();
    Response::new(200, "text/plain; version=0.0.4", text)
}
