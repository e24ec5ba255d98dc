//! `launch.json`: what an agent needs to take over an instance from one that died. Nothing of it
//! changes while the instance lives but the policy.

use std::fs;
use std::path::Path;

use concertina_api::net::NetWish;
use concertina_api::policy::Policy;
use concertina_api::vm::VmSpec;
use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::launch::BootImage;
use crate::state_dir::{StateError, write_json};

/// Content of `launch.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRecord {
    /// Bounds and rules in force.
    pub policy: Policy,
    /// 1 at launch, one more with each replacement.
    pub policy_version: u64,
    /// The zero of uptimes and of the policy state's times.
    pub launched: Moment,
    /// What the vmm of the next life is told, but for its network interfaces.
    pub vm: VmSpec,
    /// Network interfaces as they were asked for.
    #[serde(default)]
    pub nets: Vec<NetWish>,
    /// Finds the kernel of the next life; absent: it stays the same.
    #[serde(default)]
    pub boot_image: Option<BootImage>,
}

impl LaunchRecord {
    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not a launch record.
    pub fn read(path: &Path) -> Result<Option<Self>, StateError> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| StateError::io("Reading", path, error))?,
        };
        let record = serde_json::from_slice(&bytes).map_err(|source| StateError::Record {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Some(record))
    }

    /// Replaces it.
    ///
    /// # Errors
    /// It cannot be written; the one before stays.
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        write_json(path, self)
    }
}
