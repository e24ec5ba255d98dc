//! What a host's agent and the control plane say to each other over the one connection that the agent
//! opens: lines of JSON in both directions, inside TLS, in which each side knows the other.
//!
//! ```text
//! agent                                      control plane
//!   Join (token, request) ─────────────────►   once, without a certificate of its own
//!   ◄───────────────────────── Certificate
//!   Hello (capacity, instances) ───────────►   on each connection
//!   ◄───────── Welcome (what is recorded), Wanted …
//!   Report (capacity, what changed) ───────►   each few seconds: it also says "I live"
//!   Events, Usage ─────────────────────────►   numbered
//!   ◄───────────────────────────────── Taken   up to where they are in the record
//!   ◄──────────────────────────────── Wanted   whenever something shall be otherwise
//!   ◄──────────────────────────────── Resize
//!   Resized ───────────────────────────────►
//! ```
//! Level-triggered: [`Wanted`] says what shall be, not what to do, and may come any number of times.
//! Each placement of an instance has a *generation*; an agent never does for a lower one what it has
//! been told of a higher one. Events and usage carry the number of their first entry, and the control
//! plane takes only what follows what it has: each is in the record exactly once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::instance::{InstanceResize, InstanceSize, InstanceStatus};
use crate::policy::Policy;
use crate::units::{Bytes, Cpus};
use crate::vm::ResizeReport;

/// Version of the protocol that is described here.
pub const PROTOCOL: u32 = 1;
/// The name that the control plane's certificate has towards agents, wherever it is.
pub const CONTROL_NAME: &str = "control.concertina.internal";
/// Longest line in either direction, in bytes.
pub const LINE_MAX_BYTES: usize = 4 << 20;
/// Most events, or records of usage, of one message.
pub const BATCH_MAX: usize = 64;

/// One placement of an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Id of the instance: `[a-z0-9-]`, at most 40 bytes.
    pub id: String,
    /// Which placement of it, from 1.
    pub generation: u64,
}

impl Placement {
    /// The name that it has on its host. Names are never used again, so that a placement that is over
    /// cannot be mistaken for a later one.
    pub fn name(&self) -> String {
        format!("{}-{}", self.id, self.generation)
    }

    /// The placement that has this name on its host; `None` for instances of the host's own.
    pub fn of_name(name: &str) -> Option<Self> {
        let (id, generation) = name.rsplit_once('-')?;
        let is_ours = id.starts_with("i-") && id.len() == INSTANCE_ID_BYTES;
        let generation = generation.parse().ok().filter(|_| is_ours)?;
        Some(Self {
            id: id.to_owned(),
            generation,
        })
    }
}

/// Length of an instance's id: `i-` and 26 digits.
pub const INSTANCE_ID_BYTES: usize = 28;

/// What a host can promise, and what it has promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapacity {
    /// CPUs that lower bounds may add up to: what is left after the host's own reserve, with
    /// overcommit.
    pub cpus: Cpus,
    /// The same for memory.
    pub memory: Bytes,
    /// Lower bounds of instances that the control plane does not know.
    pub own_cpus: Cpus,
    /// The same for memory.
    pub own_memory: Bytes,
    /// What is not held by any instance at the moment: where there is more, growth is likelier.
    pub free_cpus: Cpus,
    /// The same for memory.
    pub free_memory: Bytes,
}

/// A part of an image, as hosts fetch it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// `http://`, `https://` or `file:///`.
    pub url: String,
    /// SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
}

/// What an instance boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageParts {
    /// A raw disk of a distribution, with its own kernel; each instance has a copy.
    Disk {
        /// The disk.
        disk: Artifact,
    },
    /// A kernel and an initial ram file system.
    Kernel {
        /// bzImage or ELF vmlinux.
        kernel: Artifact,
        /// Initial ram file system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<Artifact>,
        /// Text that is appended to the kernel command line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        append: Option<String>,
    },
}

impl ImageParts {
    /// Everything that has to be fetched.
    pub fn artifacts(&self) -> Vec<&Artifact> {
        match self {
            Self::Disk { disk } => vec![disk],
            Self::Kernel { kernel, initrd, .. } => std::iter::once(kernel).chain(initrd).collect(),
        }
    }
}

/// What a host does with an instance that has ended by an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Nothing: it has failed.
    #[default]
    Never,
    /// Starts it again, each time after a longer while.
    OnFailure,
}

/// Everything that a host needs for a launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchOrder {
    /// What it boots from.
    pub image: ImageParts,
    /// Bounds and rules.
    pub policy: Policy,
    /// Network interfaces, in the words of [`crate::net::NetWish`].
    pub networks: Vec<String>,
    /// cloud-init user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// SSH keys for the image's first user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Host name of the guest.
    pub hostname: String,
    /// Least size of its disk; it is made longer where the image is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// When it has ended by an error.
    #[serde(default)]
    pub restart: Restart,
}

/// What shall become of a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "goal", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one at a time, on its way to a socket
pub enum Goal {
    /// It runs. One that has ended is not started again: that would be another generation.
    Run {
        /// How.
        order: LaunchOrder,
        /// Which version of its policy `order` has.
        policy_version: u64,
    },
    /// It does not run; its disk stays.
    Stop {
        /// End it without asking the guest.
        force: bool,
        /// How long the guest may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Nothing of it is left, once its events and usage are in the record. Its disk goes, too, unless
    /// a later generation of it is on the same host.
    Absent,
}

/// A placement and what shall become of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which.
    #[serde(flatten)]
    pub placement: Placement,
    /// What.
    #[serde(flatten)]
    pub goal: Goal,
}

/// How a placement stands on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum HostPhase {
    /// Its image is being fetched, or its VM built.
    Preparing,
    /// Its guest runs.
    Running,
    /// It was asked to end.
    Stopping,
    /// It has ended.
    Ended {
        /// 0: powered off or stopped.
        status: i32,
        /// A sentence.
        reason: String,
    },
    /// It could not be launched, and nothing of it is left.
    LaunchFailed {
        /// A sentence.
        reason: String,
    },
}

/// The host could not give an instance what it wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityShort {
    /// A sentence with numbers.
    pub why: String,
}

/// One placement as its host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInstance {
    /// Which.
    #[serde(flatten)]
    pub placement: Placement,
    /// How it stands.
    pub phase: HostPhase,
    /// Version of the policy that is in force; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// Its size and rules; absent while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<InstanceStatus>,
    /// The last values of its metrics, by name; unknown ones are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// What the host cannot give it at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_short: Option<CapacityShort>,
    /// The policy cannot be put in force, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_problem: Option<String>,
}

/// How far the record goes for one placement: numbers of the next event and of the next usage record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Which.
    #[serde(flatten)]
    pub placement: Placement,
    /// The next event, from 0.
    pub events: u64,
    /// The next record of usage, from 0.
    pub usage: u64,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one at a time, on its way to a socket
pub enum FromAgent {
    /// A host wants to belong to the control plane.
    Join {
        /// The join token's secret part.
        token: String,
        /// The name that it wants: 1 to 63 of a-z, 0-9 and '-'.
        name: String,
        /// Certificate signing request, PEM.
        request: String,
    },
    /// A connection begins.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Version of the agent's program.
        version: String,
        /// The host's boot.
        boot: String,
        /// What it can promise.
        capacity: HostCapacity,
        /// Every placement that is there.
        instances: Vec<HostInstance>,
    },
    /// How it is.
    Report {
        /// What it can promise.
        capacity: HostCapacity,
        /// Placements that changed since the last report.
        instances: Vec<HostInstance>,
        /// Placements of which nothing is left.
        gone: Vec<Placement>,
    },
    /// What happened.
    Events {
        /// To which.
        #[serde(flatten)]
        placement: Placement,
        /// Number of the first.
        first: u64,
        /// In their order.
        events: Vec<Event>,
    },
    /// What was held.
    Usage {
        /// By which.
        #[serde(flatten)]
        placement: Placement,
        /// Number of the first.
        first: u64,
        /// Lines of its chain, as they are.
        lines: Vec<String>,
    },
    /// How a resize ended.
    Resized {
        /// Its number.
        command: String,
        /// The outcome.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        report: Option<ResizeReport<InstanceSize>>,
        /// Why there is none: a sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Its certificate ends soon.
    Renew {
        /// Certificate signing request, PEM.
        request: String,
    },
}

/// To the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one at a time, on its way to a socket
pub enum ToAgent {
    /// Answers `Join` and `Renew`.
    Certificate {
        /// The host's id.
        host: String,
        /// Its certificate, PEM.
        certificate: String,
        /// Certificates of authorities that the control plane's own may be signed by, PEM.
        authorities: String,
        /// How long the certificate is good, in seconds.
        life_s: u64,
    },
    /// Answers `Hello`.
    Welcome {
        /// The host's id.
        host: String,
        /// How often to report at least, in milliseconds.
        report_every_ms: u64,
        /// How far the record goes for placements that the agent has named.
        recorded: Vec<Recorded>,
    },
    /// What shall be.
    Wanted(Wanted),
    /// So far the record goes now.
    Taken(Recorded),
    /// Resize by hand.
    Resize {
        /// Its number: the same number is done once.
        command: String,
        /// Which.
        #[serde(flatten)]
        placement: Placement,
        /// To what.
        wish: InstanceResize,
    },
    /// The connection is not wanted; it ends with this.
    Refused {
        /// A stable word.
        code: String,
        /// A sentence.
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flattened parts must not have fields of the same name.
    #[test]
    fn messages_are_read_as_they_were_written() {
        let placement = Placement {
            id: "i".into(),
            generation: 2,
        };
        let seen = |phase| HostInstance {
            placement: placement.clone(),
            phase,
            policy_version: Some(3),
            status: None,
            metrics: BTreeMap::from([("cpu".to_owned(), 1.5)]),
            capacity_short: Some(CapacityShort { why: "full".into() }),
            policy_problem: Some("no".into()),
        };
        let ended = HostPhase::Ended {
            status: 65,
            reason: "Triple fault".into(),
        };
        let started = crate::event::EventKind::Ended {
            status: Some(0),
            reason: "Power off".into(),
            exit_reason: Default::default(),
        };
        let event = Event {
            time: "t".into(),
            uptime_ms: 1,
            policy_version: None,
            kind: started,
        };
        for message in [
            FromAgent::Report {
                capacity: HostCapacity::default(),
                instances: vec![seen(HostPhase::Running), seen(ended)],
                gone: vec![placement.clone()],
            },
            FromAgent::Events {
                placement: placement.clone(),
                first: 7,
                events: vec![event],
            },
        ] {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<FromAgent>(&text).unwrap(), message);
        }
        let wanted = ToAgent::Wanted(Wanted {
            placement,
            goal: Goal::Stop {
                force: true,
                timeout_ms: 5,
            },
        });
        let text = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<ToAgent>(&text).unwrap(), wanted);
    }

    #[test]
    fn names_on_a_host_tell_the_placement_and_others_are_not_mistaken() {
        let placement = Placement {
            id: format!("i-{}", "0".repeat(26)),
            generation: 12,
        };
        assert_eq!(Placement::of_name(&placement.name()), Some(placement));
        for name in ["web", "i-1", "i-web-2", "web-00000000000000000000000000-1"] {
            assert_eq!(Placement::of_name(name), None, "{name}");
        }
    }
}
