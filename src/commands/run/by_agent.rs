//! `run` where an agent owns the state folder: the agent launches the instance and keeps it. In the
//! foreground this process shows the console, passes signals on, and ends as the instance ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use concertina_agent::client;
use concertina_agent::host::HostRecord;
use concertina_agent::launch::LaunchSpec;
use concertina_agent::state_dir::{Ending, InstancePaths, StateDir};
use concertina_api::host::{ImageSource, LaunchRequest};
use concertina_api::instance::StopRequest;
use concertina_http::HttpError;

use super::foreground::{report_console, show_console};
use crate::failure::Usage;
use crate::signals::Signals;
use crate::{output, state, terminal};

/// How often to look whether the instance has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// What is launched.
pub struct Launch {
    /// The instance.
    pub spec: LaunchSpec,
    /// How long it may wait for room; zero: it is refused at once.
    pub wait_for_room: Duration,
}

/// Launches; gives the instance's exit status, or 0 once it runs in the background.
pub fn run(
    launch: Launch,
    agent: &HostRecord,
    state: &StateDir,
    with_console: bool,
    detach: bool,
) -> anyhow::Result<i32> {
    let Launch {
        spec,
        wait_for_room,
    } = launch;
    let name = spec.name.clone();
    let seed = Seed::write(spec.seed.as_deref(), state.root())?;
    let request = LaunchRequest {
        wait_ms: u64::try_from(wait_for_room.as_millis()).unwrap_or(u64::MAX),
        ..request(spec, &seed)?
    };
    client::launch(&agent.socket, &name, &request).map_err(refused)?;
    drop(seed);
    if detach {
        output::line(&name)?;
        return Ok(0);
    }
    stay(&name, state, with_console)
}

/// What the agent says is wrong with the request is the command line's fault.
fn refused(error: HttpError) -> anyhow::Error {
    match error {
        HttpError::Status {
            status: 400 | 422,
            detail,
        } => Usage(detail).into(),
        HttpError::Status { detail, .. } => anyhow::anyhow!(detail),
        error => error.into(),
    }
}

fn request(spec: LaunchSpec, seed: &Seed) -> anyhow::Result<LaunchRequest> {
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("Path '{}'", path.display()))
    };
    let mut disks = spec.disks;
    for disk in &mut disks {
        disk.path = absolute(&disk.path)?;
    }
    let image = spec.boot_source.as_ref().and_then(|source| source.image());
    Ok(LaunchRequest {
        kernel: absolute(&spec.kernel)?,
        initrd: spec.initrd.as_deref().map(absolute).transpose()?,
        append: spec.append,
        disks,
        nets: spec.nets,
        seed: seed.0.clone(),
        boot_image: image.map(|boot| ImageSource {
            image: boot.image.clone(),
            cache: boot.cache.clone(),
        }),
        policy: spec.policy,
        wait_ms: 0,
    })
}

/// The content of the seed disk on its way to the agent; the file goes when this is dropped.
struct Seed(Option<PathBuf>);

impl Seed {
    fn write(content: Option<&[u8]>, folder: &Path) -> anyhow::Result<Self> {
        let Some(content) = content else {
            return Ok(Self(None));
        };
        // A name with a dot is no instance's.
        let path = folder.join(format!(".seed.{}", std::process::id()));
        let written = concertina_agent::state_dir::write_private(&path, content);
        let seed = Self(Some(path));
        written?;
        Ok(seed)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Stays until the instance has ended.
fn stay(name: &str, state: &StateDir, with_console: bool) -> anyhow::Result<i32> {
    let paths = state.paths(name)?;
    pass_signals_on(&paths)?;
    let ended = Arc::new(AtomicBool::new(false));
    let console = show_console(paths, with_console, Arc::clone(&ended))?;
    let ending = wait_for_end(name, state);
    ended.store(true, Ordering::SeqCst);
    report_console(console);
    terminal::discard_typed();
    let ending = ending?;
    if ending.status != 0 {
        eprintln!("concertina: {}", ending.reason);
    }
    Ok(ending.status)
}

fn wait_for_end(name: &str, state: &StateDir) -> anyhow::Result<Ending> {
    let mut is_left = false;
    loop {
        let entry = state::find(state, name)?;
        if let Some(ending) = entry.ending {
            return Ok(ending);
        }
        if entry.left_vmm.is_some() && !is_left {
            is_left = true;
            eprintln!(
                "concertina: The agent is gone; the VM runs on, and the next agent takes it over"
            );
        }
        if !entry.alive && entry.left_vmm.is_none() && is_left {
            bail!("Instance '{name}' has ended while it had no agent");
        }
        std::thread::sleep(LOOK_PERIOD);
    }
}

/// From here on the first signal that asks for an end lets the guest power off, a second one ends
/// the VM.
fn pass_signals_on(paths: &InstancePaths) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let paths = paths.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut force = false;
            while signals.next().is_ok() {
                if !force {
                    eprint!("concertina: asking the guest to power off; once more ends it now\r\n");
                }
                let request = StopRequest {
                    force,
                    timeout_ms: None,
                };
                if let Err(error) = client::stop(&paths, &request) {
                    eprint!("concertina: {}\r\n", crate::failure::sentence(&error));
                }
                force = true;
            }
        })
        .context("Starting the signal thread failed")?;
    Ok(())
}
