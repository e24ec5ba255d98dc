//! From an order of the control plane to a guest that runs. On error nothing of it is left, but for a
//! disk that was there before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use concertina_api::disk::DiskSpec;
use concertina_api::host::{ImageSource, LaunchRequest};
use concertina_api::link::{Artifact, ImageParts, LaunchOrder, Placement, Restart};
use concertina_api::net::NetWish;
use concertina_api::policy::{self, Policy};

use super::notes::Note;
use super::{Placements, SeedWords};
use crate::sentence;
use crate::state_dir::write_private;

/// A policy with what an order says beside it.
pub(super) fn policy_of(policy: &Policy, restart: Restart) -> Policy {
    let mut policy = policy.clone();
    if restart == Restart::OnFailure {
        policy.restart = policy::Restart::OnFailure;
    }
    policy
}

/// Launches a placement, and returns when its guest runs.
pub(super) fn launch(
    all: &Placements,
    placement: &Placement,
    order: &LaunchOrder,
    policy_version: u64,
) -> Result<(), String> {
    let noted = |error: std::io::Error| format!("The launch cannot be written down: {error}");
    let mut note = Note {
        launched: false,
        owns_disk: !all.disks.path(&placement.id).exists(),
        restart: order.restart,
        images: Some(digests(&order.image)),
        versions: [(1, policy_version)].into(),
    };
    all.notes.write(placement, &note).map_err(noted)?;
    let launched = request(all, placement, order).and_then(|request| run(all, placement, request));
    // Its launch has copied it.
    let _ = std::fs::remove_file(all.disks.seed_path(&placement.name()));
    if let Err(why) = launched {
        let why = undo(all, placement, note.owns_disk, why);
        all.prune();
        return Err(why);
    }
    note.launched = true;
    if matches!(order.image, ImageParts::Disk { .. }) {
        // It has its own copy.
        note.images = Some(BTreeSet::new());
    }
    // Not fatal: an instance that is there tells the next agent that it was launched.
    if let Err(error) = all.notes.write(placement, &note) {
        eprintln!("concertina: The note of {}: {error}", placement.name());
    }
    let kept = all.keep(placement, note);
    all.kept().insert(placement.clone(), kept);
    all.prune();
    Ok(())
}

/// The parts of an image.
fn digests(image: &ImageParts) -> BTreeSet<String> {
    let parts = match image {
        ImageParts::Kernel { kernel, initrd, .. } => [Some(kernel), initrd.as_ref()],
        ImageParts::Disk { disk } => [Some(disk), None],
    };
    let digest = |part: &Artifact| part.sha256.clone();
    parts.into_iter().flatten().map(digest).collect()
}

/// Takes a launch back; says also what could not be removed.
fn undo(all: &Placements, placement: &Placement, owns_disk: bool, why: String) -> String {
    let mut left = Ok(());
    if owns_disk {
        left = all.remove_disk(&placement.id);
    }
    // The note is the last one: as long as it is there, the next agent goes on with this.
    match left.and_then(|()| all.notes.remove(placement)) {
        Ok(()) => why,
        Err(error) => format!("{why}; and what was made for it could not be removed yet: {error}"),
    }
}

/// What it boots from.
struct Boot {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    append: Option<String>,
    disk: Option<PathBuf>,
    image: Option<ImageSource>,
}

fn request(
    all: &Placements,
    placement: &Placement,
    order: &LaunchOrder,
) -> Result<LaunchRequest, String> {
    let nets = order.networks.iter().map(|words| {
        words
            .parse::<NetWish>()
            .map_err(|error| format!("Network '{words}' is not possible: {error}"))
    });
    let nets = nets.collect::<Result<Vec<_>, _>>()?;
    let seed = seed(all, placement, order)?;
    let boot = boot(all, placement, order)?;
    Ok(LaunchRequest {
        kernel: boot.kernel,
        initrd: boot.initrd,
        append: boot.append,
        disks: boot.disk.iter().map(DiskSpec::new).collect(),
        nets,
        seed,
        boot_image: boot.image,
        policy: policy_of(&order.policy, order.restart),
        // The control plane knows other hosts, and is told at once.
        wait_ms: 0,
    })
}

fn boot(all: &Placements, placement: &Placement, order: &LaunchOrder) -> Result<Boot, String> {
    match &order.image {
        ImageParts::Kernel {
            kernel,
            initrd,
            append,
        } => {
            let fetch = |part| all.artifacts.fetch(part);
            let (kernel, initrd) = (fetch(kernel)?, initrd.as_ref().map(fetch).transpose()?);
            let disk = order.disk.map(|_| disk(all, placement, order, None));
            Ok(Boot {
                kernel,
                initrd,
                append: append.clone(),
                disk: disk.transpose()?,
                image: None,
            })
        }
        ImageParts::Disk { disk: part } => {
            let has_disk = all.disks.path(&placement.id).exists();
            // An instance that goes on with its disk needs its image no more.
            let image = (!has_disk).then(|| all.artifacts.fetch(part)).transpose()?;
            let disk = disk(all, placement, order, image.as_deref())?;
            let found = all.images.boot(&disk)?;
            Ok(Boot {
                kernel: found.kernel,
                initrd: found.initrd,
                append: Some(found.arguments).filter(|text| !text.is_empty()),
                image: Some(ImageSource {
                    image: disk.clone(),
                    cache: found.cache,
                }),
                disk: Some(disk),
            })
        }
    }
}

/// The instance's disk: as it is, or made.
fn disk(
    all: &Placements,
    placement: &Placement,
    order: &LaunchOrder,
    image: Option<&Path>,
) -> Result<PathBuf, String> {
    let path = all.disks.path(&placement.id);
    if path.exists() {
        return Ok(path);
    }
    all.disks
        .make(&placement.id, image, order.disk)
        .map_err(|error| format!("The instance's disk cannot be made: {error}"))
}

/// The file with the content of the seed disk, where its customer has something to say.
fn seed(
    all: &Placements,
    placement: &Placement,
    order: &LaunchOrder,
) -> Result<Option<PathBuf>, String> {
    if order.user_data.is_none() && order.ssh_keys.is_empty() {
        return Ok(None);
    }
    let words = SeedWords {
        name: order.hostname.clone(),
        user_data: order.user_data.clone(),
        ssh_keys: order.ssh_keys.clone(),
    };
    let content = all.images.seed(&words)?;
    let path = all.disks.seed_path(&placement.name());
    write_private(&path, &content).map_err(|error| sentence(&error))?;
    Ok(Some(path))
}

fn run(all: &Placements, placement: &Placement, request: LaunchRequest) -> Result<(), String> {
    let launched = all.host.launch(&placement.name(), request);
    launched.map_err(|error| sentence(&error))
}
