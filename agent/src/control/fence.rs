//! Which generation of each instance is the highest that was wanted here, and whether it was launched:
//! written down before a launch, so that an agent that dies in the middle of one does not launch twice,
//! and does not bring back what was placed elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use concertina_api::link::Placement;
use serde::{Deserialize, Serialize};

/// Instances that are over and are still remembered. Ids sort by time: the oldest are forgotten first.
const OVER_MAX: usize = 10_000;

/// What is known of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    generation: u64,
    /// A launch of this generation was begun.
    #[serde(default)]
    launched: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// Nothing of it is here any more.
    #[serde(default)]
    over: bool,
}

/// The fence, in a file.
#[derive(Debug)]
pub struct Fence {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Fence {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// It cannot be read: to go on without it could launch something twice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let entries = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let why = format!("{} cannot be read: {error}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, why)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            entries,
        })
    }

    /// A placement is wanted, or is here: lower generations of it never run again.
    pub fn see(&mut self, placement: &Placement) {
        let entry = self.entries.entry(placement.id.clone()).or_default();
        if placement.generation > entry.generation {
            *entry = Entry {
                generation: placement.generation,
                ..Entry::default()
            };
        }
    }

    /// Whether a higher generation was seen.
    pub fn is_fenced(&self, placement: &Placement) -> bool {
        let entry = self.entries.get(&placement.id);
        entry.is_some_and(|entry| entry.generation > placement.generation)
    }

    /// Whether a launch was begun.
    pub fn is_launched(&self, placement: &Placement) -> bool {
        self.of(placement).is_some_and(|entry| entry.launched)
    }

    /// Why its launch failed.
    pub fn failure(&self, placement: &Placement) -> Option<&str> {
        self.of(placement)?.failed.as_deref()
    }

    fn of(&self, placement: &Placement) -> Option<&Entry> {
        let entry = self.entries.get(&placement.id);
        entry.filter(|entry| entry.generation == placement.generation)
    }

    /// Writes down that a launch begins.
    ///
    /// # Errors
    /// It cannot be written: then nothing may be launched.
    pub fn launch(&mut self, placement: &Placement) -> io::Result<()> {
        self.see(placement);
        self.change(placement, |entry| entry.launched = true)
    }

    /// Writes down that a launch failed.
    ///
    /// # Errors
    /// It cannot be written. After a restart the launch counts as ended without a reason.
    pub fn fail(&mut self, placement: &Placement, why: &str) -> io::Result<()> {
        self.change(placement, |entry| entry.failed = Some(why.to_owned()))
    }

    /// Nothing of a placement is here any more. It stays fenced.
    pub fn over(&mut self, placement: &Placement) {
        if let Some(entry) = self.entries.get_mut(&placement.id)
            && entry.generation == placement.generation
        {
            entry.over = true;
        }
        let over = self.entries.values().filter(|entry| entry.over).count();
        let excess = over.saturating_sub(OVER_MAX);
        let oldest = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.over)
            .take(excess);
        let oldest: Vec<String> = oldest.map(|(id, _)| id.clone()).collect();
        for id in oldest {
            self.entries.remove(&id);
        }
    }

    fn change(&mut self, placement: &Placement, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        if let Some(entry) = self.entries.get_mut(&placement.id)
            && entry.generation == placement.generation
        {
            change(entry);
        }
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self.entries)?;
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&fresh, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(generation: u64) -> Placement {
        Placement {
            id: "i-1".into(),
            generation,
        }
    }

    #[test]
    fn a_launch_is_remembered_by_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fence.json");
        let mut fence = Fence::open(&path).unwrap();
        fence.launch(&placement(2)).unwrap();
        fence.fail(&placement(2), "No kernel").unwrap();
        let mut fence = Fence::open(&path).unwrap();
        assert!(fence.is_launched(&placement(2)));
        assert_eq!(fence.failure(&placement(2)), Some("No kernel"));
        assert!(fence.is_fenced(&placement(1)));
        fence.see(&placement(3));
        assert!(fence.is_fenced(&placement(2)) && !fence.is_launched(&placement(3)));
    }

    #[test]
    fn a_file_that_is_no_fence_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fence.json");
        fs::write(&path, "{").unwrap();
        assert!(Fence::open(&path).is_err());
    }
}
