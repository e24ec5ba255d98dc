//! Disk, network and socket rates of a guest, ours beside QEMU's on the same host.
//!
//! Both guests run from the beginning to the end, idle but for the one whose turn it is, and take
//! turns within each round: what disturbs the host disturbs both. Disks are files in memory without
//! the host's page cache in between, so that what is measured is the way from the guest to the file.

mod disk;
mod net;
pub mod probe;
mod vsock;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Options;
use crate::footprint;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::report::Results;

const DISK_MIB: u64 = 128;
/// Room for the programs that measure, which the guests have in memory.
const GUEST_MIB: u64 = 768;
/// Context identifier of QEMU's guest; ours needs none on the host.
const PEER_CID: u32 = 42;
/// Documentation addresses (RFC 5737): host and guest of each pair.
const OURS_LINK: net::Link = net::Link {
    tap: "bench-ours",
    host: "192.0.2.1",
    guest: "192.0.2.2",
};
const PEER_LINK: net::Link = net::Link {
    tap: "bench-qemu",
    host: "198.51.100.1",
    guest: "198.51.100.2",
};

/// One of the two guests under measurement.
struct Side {
    name: &'static str,
    guest: Guest,
    link: net::Link,
    vsock: vsock::Host,
}

/// Measures `options.rounds` rounds of everything.
pub fn measure(options: &Options, results: &mut Results) -> Result<()> {
    beside_qemu(options, results, |sides, results| {
        disk::measure(sides, options.rounds, results)?;
        net::measure(sides, options.rounds, results)?;
        vsock::measure(sides, options.rounds, results)
    })
}

/// The same of vsock only.
pub fn measure_vsock(options: &Options, results: &mut Results) -> Result<()> {
    beside_qemu(options, results, |sides, results| {
        vsock::measure(sides, options.rounds, results)
    })
}

/// Measures two guests, and then the memory that they took of the host.
fn beside_qemu(
    options: &Options,
    results: &mut Results,
    measure: impl FnOnce(&mut [Side; 2], &mut Results) -> Result<()>,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ours = launch_ours(options, &disk_file(folder.path(), "ours")?)?;
    let peer = launch_peer(options, &disk_file(folder.path(), "qemu")?)?;
    let mut sides = [
        Side {
            name: "vmm",
            guest: Guest::connect(&ours.console())?,
            link: OURS_LINK,
            vsock: vsock::Host::unix(ours.file("vsock.sock")),
        },
        Side {
            name: "qemu",
            guest: Guest::connect(&peer.console())?,
            link: PEER_LINK,
            vsock: vsock::Host::vhost(),
        },
    ];
    measure(&mut sides, results)?;
    for (name, pid) in [("vmm", ours.pid()), ("qemu", peer.pid())] {
        let mib = footprint::beside_guest_ram_mib(pid)?;
        results.add(
            "VM process beside guest RAM, after this load",
            name,
            "MiB",
            &[mib],
        );
    }
    Ok(())
}

fn launch_ours(options: &Options, disk: &Path) -> Result<Ours> {
    let disk = disk.display().to_string();
    let tap = format!("tap={}", OURS_LINK.tap);
    let memory = format!("{GUEST_MIB}M");
    Ours::launch_with(options, "1", &memory, &["--disk", &disk, "--net", &tap])
}

fn launch_peer(options: &Options, disk: &Path) -> Result<Peer> {
    let mut devices = vec![
        "-drive".to_owned(),
        // The same way to the file as ours: past the page cache, by io_uring.
        format!(
            "file={},format=raw,if=none,id=disk,cache=none,aio=io_uring,discard=unmap",
            disk.display()
        ),
        "-device".into(),
        "virtio-blk-pci,drive=disk".into(),
        "-netdev".into(),
        format!(
            "tap,id=net,ifname={},script=no,downscript=no",
            PEER_LINK.tap
        ),
        "-device".into(),
        "virtio-net-pci,netdev=net".into(),
    ];
    if vsock::host_has_vhost() {
        devices.push("-device".into());
        devices.push(format!("vhost-vsock-pci,guest-cid={PEER_CID}"));
    } else {
        println!("NOT MEASURED: QEMU's vsock, as this host has no /dev/vhost-vsock");
    }
    Peer::launch_with(options, GUEST_MIB, GUEST_MIB, &devices)
}

fn disk_file(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let file = File::create(&path).with_context(|| format!("Creating {}", path.display()))?;
    file.set_len(DISK_MIB << 20)
        .with_context(|| format!("Sizing {}", path.display()))?;
    Ok(path)
}
