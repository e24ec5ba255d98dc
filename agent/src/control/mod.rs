//! The host's end of the control plane: a thin client that registers, reports and reconciles.
//!
//! ```text
//! control plane ◄──one outgoing TLS connection──► client thread ── actions ──► Host (the agent's core)
//!                                                    │
//!                                               fence.json, identity
//! ```
//! Level-triggered: [`reconcile`] compares what is wanted with what is there, and says what to do;
//! nothing is remembered of how it came to be. When the connection is down the host goes on deciding by
//! itself, and what was wanted last is still brought about. Events and usage lie in the host's own
//! files: the control plane says how far its record goes, and the client sends what follows.

mod client;
mod fence;
mod identity;
mod link;
pub mod reconcile;
mod records;
pub mod simulated;

use concertina_api::event::Event;
use concertina_api::instance::{InstanceResize, InstanceSize};
use concertina_api::link::{HostCapacity, HostInstance, LaunchOrder, Placement};
use concertina_api::policy::Policy;
use concertina_api::vm::ResizeReport;

pub use client::{ClientConfig, ControlClient};
pub use identity::{Identity, IdentityError, JoinWords, join};

/// What a host can do: the seam between the client and the agent's core. Each method may be called from
/// any thread. Errors are sentences for the customer.
pub trait Host: Send + Sync + 'static {
    /// What can be promised to instances.
    fn capacity(&self) -> HostCapacity;

    /// Every placement of the control plane that has a trace here: running, stopping, or ended with its
    /// events, usage or disk still there.
    fn instances(&self) -> Vec<HostInstance>;

    /// Launches a placement and returns when its guest runs. On error nothing of it is left, except for
    /// the disk of an earlier placement of the same instance.
    ///
    /// # Errors
    /// Why it could not be launched.
    fn launch(
        &self,
        placement: &Placement,
        order: &LaunchOrder,
        policy_version: u64,
    ) -> Result<(), String>;

    /// Ends a placement and returns when it has ended. One that does not run is no error.
    ///
    /// # Errors
    /// Why it still runs.
    fn stop(&self, placement: &Placement, force: bool, timeout_ms: u64) -> Result<(), String>;

    /// Removes what is left of a placement that has ended: its events, usage, console, and with
    /// `with_disk` the instance's disk. What is not there is no error.
    ///
    /// # Errors
    /// What could not be removed.
    fn remove(&self, placement: &Placement, with_disk: bool) -> Result<(), String>;

    /// Puts another policy in force.
    ///
    /// # Errors
    /// Why the old one stays.
    fn replace_policy(
        &self,
        placement: &Placement,
        policy: &Policy,
        version: u64,
    ) -> Result<(), String>;

    /// Resizes by hand. The same command is done once, and answered the same each time.
    ///
    /// # Errors
    /// Why there is no outcome.
    fn resize(
        &self,
        placement: &Placement,
        command: &str,
        wish: &InstanceResize,
    ) -> Result<ResizeReport<InstanceSize>, String>;

    /// How many events and records of usage there are of a placement.
    fn lengths(&self, placement: &Placement) -> (u64, u64);

    /// Events from a number on.
    fn events(&self, placement: &Placement, from: u64, limit: usize) -> Vec<Event>;

    /// Lines of the chain of usage from a number on.
    fn usage(&self, placement: &Placement, from: u64, limit: usize) -> Vec<String>;
}
