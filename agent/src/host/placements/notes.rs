//! What the control plane alone knows of a placement, in one small file each: it has to be known to the
//! next agent as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use concertina_api::event::{Event, EventKind};
use concertina_api::link::{Placement, Restart};
use serde::{Deserialize, Serialize};

use crate::state_dir::write_json;

/// The note of one placement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// Its guest came to run; else the launch is under way, or an agent died over it.
    pub launched: bool,
    /// Its disk was made by its launch, and goes with it when that fails.
    pub owns_disk: bool,
    /// When it has ended by an error.
    pub restart: Restart,
    /// Digests of the parts of images that it boots from, or is made from at this moment; `None`: not known.
    pub images: Option<BTreeSet<String>>,
    /// Versions of its policy: the host counts from 1 for each launch, the control plane goes on.
    pub versions: BTreeMap<u64, u64>,
}

impl Note {
    /// The control plane's version of a host's one; 0: it is not the control plane's.
    pub fn version_of(&self, here: u64) -> u64 {
        self.versions.get(&here).copied().unwrap_or(0)
    }

    /// An event with the versions of the control plane.
    pub fn told(&self, mut event: Event) -> Event {
        event.policy_version = event.policy_version.map(|here| self.version_of(here));
        if let EventKind::PolicyReplaced { version, .. } = &mut event.kind {
            *version = self.version_of(*version);
        }
        event
    }
}

/// All notes.
#[derive(Debug)]
pub(super) struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// In a folder that is there.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, placement: &Placement) -> PathBuf {
        self.folder.join(format!("{}.json", placement.name()))
    }

    /// Every note; one that a power cut has spoilt is an empty one.
    pub fn all(&self) -> io::Result<BTreeMap<Placement, Note>> {
        let mut notes = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let placement = name
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(Placement::of_name);
            if let Some(placement) = placement {
                let note = serde_json::from_slice(&fs::read(&path)?).unwrap_or_default();
                notes.insert(placement, note);
            }
        }
        Ok(notes)
    }

    /// Digests of all parts of images that are used; `None`: one note does not say, or cannot be read.
    pub fn images(&self) -> Option<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for (_, note) in self.all().ok()? {
            all.extend(note.images?);
        }
        Some(all)
    }

    /// Writes a note in one step.
    pub fn write(&self, placement: &Placement, note: &Note) -> io::Result<()> {
        write_json(&self.path(placement), note)
            .map_err(|error| io::Error::other(crate::sentence(&error)))
    }

    /// Removes a note, if there is one.
    pub fn remove(&self, placement: &Placement) -> io::Result<()> {
        match fs::remove_file(self.path(placement)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
