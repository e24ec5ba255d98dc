//! Which state folder is meant, and which instance in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use concertina_agent::state_dir::{InstanceEntry, StateDir};

use crate::failure::Usage;

/// The state folder: as named, or the default of this user. Nothing is created.
pub fn open(named: Option<&Path>) -> anyhow::Result<StateDir> {
    let folder = match named {
        Some(folder) if folder.as_os_str().is_empty() => {
            return Err(Usage("Option --state-dir is empty: name a folder".into()).into());
        }
        Some(folder) => folder.to_owned(),
        None => default_folder(is_root(), std::env::var_os("XDG_RUNTIME_DIR"))?,
    };
    let absolute = std::path::absolute(&folder)
        .with_context(|| format!("State folder '{}' cannot be used", folder.display()))?;
    Ok(StateDir::new(absolute))
}

/// Whether this is the superuser, whose folders are the system's.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn default_folder(is_root: bool, runtime: Option<std::ffi::OsString>) -> anyhow::Result<PathBuf> {
    match runtime.filter(|folder| !folder.is_empty()) {
        _ if is_root => Ok(PathBuf::from("/run/concertina")),
        Some(runtime) => Ok(PathBuf::from(runtime).join("concertina")),
        None => Err(Usage(
            "No state folder: XDG_RUNTIME_DIR is not set, so name one with --state-dir DIR".into(),
        )
        .into()),
    }
}

/// An instance, running or ended.
pub fn find(state: &StateDir, name: &str) -> anyhow::Result<InstanceEntry> {
    state.instance(name)?.ok_or_else(|| {
        anyhow!(
            "No instance '{name}' in {}: 'concertina ps --all' lists those that are there",
            state.root().display()
        )
    })
}

/// An instance that runs.
pub fn find_running(state: &StateDir, name: &str) -> anyhow::Result<InstanceEntry> {
    let entry = find(state, name)?;
    if entry.alive {
        return Ok(entry);
    }
    if let Some(vmm) = entry.left_vmm {
        return Err(anyhow!(
            "Instance '{name}' runs on (process {vmm}) without its agent (process {}): start \
             'concertina agent' with this state folder, which takes it over",
            entry.agent_pid
        ));
    }
    let how = match &entry.ending {
        Some(ending) => format!("it ended at {}: {}", ending.time, ending.reason),
        None => format!("its supervisor (process {}) is gone", entry.agent_pid),
    };
    Err(anyhow!("Instance '{name}' does not run: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_others_have_their_own_default() {
        let runtime = || Some("/run/user/7".into());
        assert_eq!(
            default_folder(true, runtime()).unwrap(),
            Path::new("/run/concertina")
        );
        assert_eq!(
            default_folder(false, runtime()).unwrap(),
            Path::new("/run/user/7/concertina")
        );
        for unset in [None, Some("".into())] {
            assert!(default_folder(false, unset).unwrap_err().is::<Usage>());
        }
    }

    #[test]
    fn an_unknown_instance_is_named_with_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(Some(folder.path())).unwrap();
        let error = find(&state, "web").unwrap_err().to_string();
        assert!(error.contains("'web'"), "{error}");
        assert!(
            error.contains(&folder.path().display().to_string()),
            "{error}"
        );
    }
}
