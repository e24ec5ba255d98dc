//! Talks to whoever supervises an instance: a process of its own, on its `agent.sock`, or the agent of
//! its host. What `status`, `resize`, `stop` and others of the command line use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use concertina_api::host::{HostStatus, LaunchRequest};
use concertina_api::instance::{InstanceResize, InstanceSize, InstanceStatus, StopRequest};
use concertina_api::vm::ResizeReport;
use concertina_http::{HttpError, Method, client};

use crate::state_dir::{InstancePaths, InstanceRecord};

/// How long an answer that needs no guest may take.
const QUICK: Duration = Duration::from_secs(10);
/// How long a list may take, some of whose instances hang.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a launch may take: most of it is the guest's start.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(180);
/// Deadline of a resize when the request names none, in milliseconds.
pub const DEFAULT_RESIZE_TIMEOUT_MS: u64 = 10_000;
/// A resize is made of several steps in the guest, each with the request's deadline at most, and
/// of reading back; the client waits longer than all of them so that it always hears the outcome.
const RESIZE_MARGIN: Duration = Duration::from_secs(60);

/// Where an instance's supervisor listens, and under which path it knows the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Door {
    socket: PathBuf,
    path: String,
}

impl Door {
    /// The instance's own socket, or that of the agent of its host.
    fn of(paths: &InstancePaths) -> Self {
        let record = InstanceRecord::read(&paths.record).ok().flatten();
        match record.and_then(|record| Some((record.socket?, record.name))) {
            Some((socket, name)) => Self {
                socket,
                path: format!("/v1/instances/{name}"),
            },
            None => Self {
                socket: paths.agent_socket.clone(),
                path: "/v1/instance".into(),
            },
        }
    }

    fn to(&self, what: &str) -> String {
        format!("{}/{what}", self.path)
    }
}

/// The instance as it is.
pub fn status(paths: &InstancePaths) -> Result<InstanceStatus, HttpError> {
    status_within(paths, QUICK)
}

/// The same with another deadline.
pub fn status_within(
    paths: &InstancePaths,
    timeout: Duration,
) -> Result<InstanceStatus, HttpError> {
    let door = Door::of(paths);
    client::get_json(&door.socket, &door.path, timeout)
}

/// All instances of a host, from its agent.
pub fn statuses(agent: &Path) -> Result<Vec<InstanceStatus>, HttpError> {
    client::get_json(agent, "/v1/instances", LIST_TIMEOUT)
}

/// Asks for another size and waits for the outcome.
pub fn resize(
    paths: &InstancePaths,
    wish: &InstanceResize,
) -> Result<ResizeReport<InstanceSize>, HttpError> {
    let deadline = Duration::from_millis(wish.timeout_ms.unwrap_or(DEFAULT_RESIZE_TIMEOUT_MS));
    let timeout = deadline.saturating_mul(2).saturating_add(RESIZE_MARGIN);
    let door = Door::of(paths);
    client::put_json(&door.socket, &door.to("resize"), wish, timeout)
}

/// Asks the instance to end; returns when the request was taken, not when the guest has ended.
pub fn stop(paths: &InstancePaths, request: &StopRequest) -> Result<(), HttpError> {
    let door = Door::of(paths);
    client::send(
        &door.socket,
        Method::Put,
        &door.to("stop"),
        Some(request),
        QUICK,
    )
    .map(|_| ())
}

/// A host as its agent, which listens on this socket, sees it.
pub fn host(agent: &Path) -> Result<HostStatus, HttpError> {
    client::get_json(agent, "/v1/host", QUICK)
}

/// Lets the agent of a host launch an instance; returns when its guest runs.
pub fn launch(
    agent: &Path,
    name: &str,
    request: &LaunchRequest,
) -> Result<InstanceStatus, HttpError> {
    let path = format!("/v1/instances/{name}");
    let timeout = LAUNCH_TIMEOUT.saturating_add(Duration::from_millis(request.wait_ms));
    client::put_json(agent, &path, request, timeout)
}

/// Reads an instance's events from the agent of its host, piece by piece, until they end or `take` says
/// that it is enough.
pub fn events(
    agent: &Path,
    name: &str,
    follow: bool,
    take: impl FnMut(&[u8]) -> bool,
) -> Result<(), HttpError> {
    let path = format!("/v1/instances/{name}/events?follow={follow}");
    client::follow(agent, &path, QUICK, take)
}
