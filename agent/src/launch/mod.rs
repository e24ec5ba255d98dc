//! From a customer's words to a running instance: checks everything that can be checked before
//! anything is made, then takes the name, and starts the vmm.
//!
//! ```text
//! LaunchSpec ──prepare──► Instance ──start──► guest runs ──supervise──► ExitReport
//!             checks,                vmm,                  reboots, stop,
//!             name taken             agent.sock            cleaning up
//! ```
//! Whatever fails leaves nothing behind: no cgroup, no socket, no process, no folder.

mod bounds;
mod cmdline;
mod disks;
mod error;
mod host;
mod images;
mod rates;
mod source;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use concertina_api::disk::DiskSpec;
use concertina_api::net::NetWish;
use concertina_api::policy::{Policy, Source, Sources};
use concertina_api::vm::{VmSpec, VsockSpec};

pub use cmdline::{CMDLINE_MAX_BYTES, command_line};
pub use error::LaunchError;
pub(crate) use host::Host;
#[cfg(test)]
pub(crate) use images::tests::small_bzimage;
pub use source::{BootFiles, BootImage, BootSource};

use crate::cgroup::InstanceGroup;
use crate::instance::Owner;
pub use crate::instance::{ExitReport, Instance, Stopper};
use crate::net;
use crate::plan::cpu;
use crate::state_dir::{self, InstancePaths, InstanceRecord, StateDir};

/// Context id of every guest: each has a device of its own, so they need not differ.
const GUEST_CID: u32 = 3;

/// What a customer asks for.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// Name: `[a-z0-9][a-z0-9-]{0,62}`.
    pub name: String,
    /// bzImage, or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial ram file system.
    pub initrd: Option<PathBuf>,
    /// Finds kernel and initrd again when the guest starts again; without it they stay the same.
    pub boot_source: Option<BootSource>,
    /// What is appended to our kernel command line.
    pub append: Option<String>,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetWish>,
    /// Content of a small read-only disk from which the guest's cloud-init is configured; it is the
    /// last disk, and lies in the instance's folder while the instance runs.
    pub seed: Option<Vec<u8>>,
    /// Bounds and rules.
    pub policy: Policy,
    /// The folder of all instances; made when it is not there.
    pub state_dir: PathBuf,
    /// Program and first arguments of the vmm; the path of its `vm.json` is added as the last one.
    pub vmm_command: Vec<OsString>,
}

/// Checks a launch and takes its name. On error nothing is left on the host.
pub fn prepare(spec: LaunchSpec) -> Result<Instance, LaunchError> {
    prepare_on(&Host::this(), spec, Owner::process())
}

/// [`prepare`] on a host of which the parts can be replaced, for any owner.
pub(crate) fn prepare_on(
    host: &Host,
    mut spec: LaunchSpec,
    owner: Owner,
) -> Result<Instance, LaunchError> {
    // The vmm may have another working folder than whoever typed these.
    spec.state_dir = host::absolute(&spec.state_dir)?;
    spec.kernel = host::absolute(&spec.kernel)?;
    spec.initrd = spec.initrd.as_deref().map(host::absolute).transpose()?;
    let state = StateDir::new(spec.state_dir.clone());
    let paths = state.paths(&spec.name)?;
    host::check_socket_paths(&paths)?;
    spec.policy.check(&sources(host, &spec))?;
    bounds::check(&spec.policy.bounds)?;
    images::check(
        &spec.kernel,
        spec.initrd.as_deref(),
        spec.policy.bounds.memory.min,
    )?;
    for disk in &mut spec.disks {
        disk.path = host::absolute(&disk.path)?;
    }
    net::check(&spec.nets)?;
    if spec.seed.is_some() {
        spec.disks.push(disks::of_seed(&paths.seed));
    }
    disks::check(&spec.disks, spec.seed.is_some())?;
    rates::put(&spec.policy.io, &mut spec.disks, &mut spec.nets)?;
    let vm = vm_spec(&spec, &paths)?;
    host.check_kvm()?;
    let tree = host.cgroups()?;

    let (lock, paths) = state.claim(&spec.name)?;
    clean_up_after_predecessor(&paths)?;
    // It is needed once, and not in memory for as long as the instance lives.
    if let Some(seed) = spec.seed.take() {
        state_dir::write_private(&paths.seed, &seed).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&paths.dir);
        })?;
    }
    Instance::new(spec, vm, paths, &tree, (owner, lock))
}

/// What the metrics of this instance can be told from.
fn sources(host: &Host, spec: &LaunchSpec) -> Sources {
    let mut sources = host.sources();
    if spec.disks.is_empty() && spec.seed.is_none() {
        sources = sources.without(Source::Disks);
    }
    if spec.nets.is_empty() {
        sources = sources.without(Source::Networks);
    }
    sources
}

/// Ends what a supervisor that died may have left under this name, and removes the logs of an
/// instance that ended. The name's lock is held, so nobody else is using any of it.
fn clean_up_after_predecessor(paths: &InstancePaths) -> Result<(), LaunchError> {
    // A record that cannot be read is of no use.
    if let Ok(Some(record)) = InstanceRecord::read(&paths.record) {
        if record.runs_on() {
            return Err(LaunchError::RunsOn {
                name: record.name,
                vmm: record.vmm.map_or(0, |vmm| vmm.pid),
            });
        }
        if let Some(vmm) = record.vmm {
            vmm.kill();
        }
        if let Some(group) = record.cgroup {
            InstanceGroup::existing(group).remove()?;
        }
    }
    paths.remove_runtime_files();
    paths.remove_old_logs();
    Ok(())
}

/// What the vmm is told. The cgroup is added when it is made, network interfaces when they are open.
fn vm_spec(spec: &LaunchSpec, paths: &InstancePaths) -> Result<VmSpec, LaunchError> {
    let bounds = spec.policy.bounds;
    let first = cpu::rung(bounds.cpus.min);
    let max_vcpus = bounds.cpus.max.vcpus();
    let grows_vcpus = first.vcpus == 1 && max_vcpus > 1;
    Ok(VmSpec {
        name: spec.name.clone(),
        kernel: spec.kernel.clone(),
        initrd: spec.initrd.clone(),
        cmdline: command_line(
            spec.append.as_deref(),
            grows_vcpus,
            net::with_dhcp(&spec.nets),
        )?,
        boot_vcpus: first.vcpus,
        max_vcpus,
        quota: first.quota,
        boot_memory: bounds.memory.min,
        max_memory: bounds.memory.max,
        api_socket: paths.vmm_socket.clone(),
        console_socket: Some(paths.console_socket.clone()),
        console_log: Some(paths.console_log.clone()),
        disks: spec.disks.clone(),
        vsock: Some(VsockSpec {
            cid: GUEST_CID,
            socket: paths.vsock_socket.clone(),
        }),
        cgroup: None,
        nets: Vec::new(),
        exit_file: None,
        counters_file: Some(paths.counters.clone()),
    })
}
