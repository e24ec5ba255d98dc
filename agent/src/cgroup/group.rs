//! The group of one instance: ceilings above what it was promised, and its own accounts.
//!
//! The memory ceiling is a brake for a guest that refuses to shrink, never the means of shrinking:
//! it is raised before the device grows, and lowered only to what a shrink has reached.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::CgroupError;
use super::hierarchy::{Hierarchy, make_dir};
use concertina_api::Bytes;
use concertina_api::vm::cgroup;

/// Threads of the vmm beyond its vCPUs: event loop, API connections, console, disks (one each, and
/// those that the kernel adds for io_uring); the programs of network interfaces; and spare.
const EXTRA_THREADS: u32 = 72;
/// How often a parent that vanishes is made again.
const PARENT_TRIES: u32 = 16;
/// How long a killed process may take to leave its group.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Counters of `memory.events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Times that the brake (`memory.high`) was hit.
    pub high: u64,
    /// Times that the ceiling (`memory.max`) was hit.
    pub max: u64,
    /// Processes killed.
    pub oom_kill: u64,
}

/// The group of one instance. Dropping it leaves the group; [`InstanceGroup::remove`] ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceGroup {
    path: PathBuf,
}

impl InstanceGroup {
    /// Makes the group of an instance, or takes over an empty one of the same name. Names are those of
    /// one state folder: a group in which something runs belongs to an instance of another one, and is
    /// left alone. What a dead supervisor of the same folder has left is ended by its record before.
    pub fn create(tree: &Hierarchy, name: &str) -> Result<Self, CgroupError> {
        let attempt = || -> Result<Self, CgroupError> {
            let path = tree.ensure_parent()?.join(name);
            let group = Self { path };
            if group.path.is_dir() {
                if let Some(process) = group.some_process() {
                    let path = group.path;
                    return Err(CgroupError::InUse { path, process });
                }
                group.remove_itself()?;
            }
            make_dir(&group.path)?;
            Ok(group)
        };
        for _ in 1..PARENT_TRIES {
            match attempt() {
                // The last instance but us has ended just now, and has taken the parent with it.
                Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                ended => return ended,
            }
        }
        attempt()
    }

    /// A group that an earlier supervisor recorded.
    pub fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what stays the same for the instance's life: no swap, all or nothing when the ceiling
    /// kills, and a limit on threads.
    pub fn set_fixed_limits(&self, max_vcpus: u32) -> Result<(), CgroupError> {
        // A kernel without swap accounting has no such file, and then nothing can be swapped out
        // behind the ceiling's back either.
        let swap = self.write("memory.swap.max", "0");
        if let Err(CgroupError::Io { source, .. }) = &swap
            && source.kind() != io::ErrorKind::NotFound
            && source.kind() != io::ErrorKind::PermissionDenied
        {
            return swap;
        }
        self.write("memory.oom.group", "1")?;
        self.write(
            "pids.max",
            &max_vcpus.saturating_add(EXTRA_THREADS).to_string(),
        )?;
        // Threaded children may have a controller of their own only when it is handed down here.
        self.write("cgroup.subtree_control", "+cpu")
    }

    /// Sets brake and ceiling in the order in which neither is below what is used for a moment.
    pub fn set_memory_limits(&self, high: Bytes, max: Bytes) -> Result<(), CgroupError> {
        let grows = self
            .read_number("memory.max")
            .is_none_or(|now| max.get() >= now);
        let set_max = || self.write("memory.max", &max.get().to_string());
        let set_high = || self.write("memory.high", &high.get().to_string());
        if grows {
            set_max()?;
            set_high()
        } else {
            set_high()?;
            set_max()
        }
    }

    /// `cgroup.procs`, open for a child that will write itself into it.
    pub fn open_procs(&self) -> Result<File, CgroupError> {
        Self::open(&self.path)
    }

    /// The same of the group of the vmm's threads that are no vCPUs, for a program that works for the
    /// guest and shall be accounted with it, but not throttled by the quota of its vCPUs. The group is
    /// made when it is not there: such programs are started before the vmm.
    pub fn open_others_procs(&self) -> Result<File, CgroupError> {
        let path = self.path.join(cgroup::OTHERS);
        make_dir(&path)?;
        let others = Self { path };
        others.write("cgroup.type", "threaded")?;
        Self::open(&others.path)
    }

    fn open(group: &Path) -> Result<File, CgroupError> {
        let path = group.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| CgroupError::io("Opening", &path, e))
    }

    /// A file that holds one number; `None` when it is missing, or says `max`.
    pub fn read_number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.path.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Counters of `memory.events`; `None` when they cannot be read.
    pub fn memory_events(&self) -> Option<MemoryEvents> {
        let text = fs::read_to_string(self.path.join("memory.events")).ok()?;
        Some(MemoryEvents {
            high: flat_value(&text, "high")?,
            max: flat_value(&text, "max")?,
            oom_kill: flat_value(&text, "oom_kill")?,
        })
    }

    /// Kills what is inside, waits until it has left, and removes the group with its children, and
    /// the folder of all our groups when this was the last one in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.remove_itself()?;
        if let Some(parent) = self.path.parent() {
            // Refused by the kernel while another instance has its group there.
            let _ = remove_if_empty(parent);
        }
        Ok(())
    }

    fn remove_itself(&self) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        if self.is_populated() {
            // `cgroup.kill` is there since Linux 5.14.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
        }
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        loop {
            match remove_tree(&self.path) {
                Ok(()) => return Ok(()),
                // A process that was reaped just now may still be counted for a moment.
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Err(e) => return Err(CgroupError::io("Removing cgroup", &self.path, e)),
            }
        }
    }

    /// A process in it, or in a group below it.
    fn some_process(&self) -> Option<i32> {
        if !self.is_populated() {
            return None;
        }
        // A vmm moves its threads into groups below; its process is counted in this one (cgroup v2,
        // "Threads": the threaded domain's cgroup.procs).
        let listed = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        let first = listed
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        Some(first.unwrap_or(0))
    }

    fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|text| flat_value(&text, "populated") == Some(1))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|e| CgroupError::io("Writing", &path, e))
    }
}

/// Removes a group that has no children.
fn remove_if_empty(group: &Path) -> io::Result<()> {
    if cfg!(test) {
        let has_child = fs::read_dir(group)?.any(|e| e.is_ok_and(|e| e.path().is_dir()));
        return if has_child {
            Ok(())
        } else {
            remove_tree(group)
        };
    }
    fs::remove_dir(group)
}

/// Removes a group's folder, children first. The control files vanish with it.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else if cfg!(test) {
            // In a folder that only plays a cgroup the files are real.
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// A value out of a flat keyed file (`name number` a line).
pub(crate) fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder that plays a cgroup2 mount.
    pub(crate) fn fake_hierarchy() -> (tempfile::TempDir, Hierarchy) {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let tree = Hierarchy::at(temp.path().into(), None).unwrap();
        (temp, tree)
    }

    #[test]
    fn limits_are_written_and_the_group_goes_with_its_children() {
        let (_temp, tree) = fake_hierarchy();
        let group = InstanceGroup::create(&tree, "web").unwrap();
        group.set_fixed_limits(4).unwrap();
        group
            .set_memory_limits(Bytes::mib(300), Bytes::mib(320))
            .unwrap();
        assert_eq!(group.read_number("memory.high"), Some(300 << 20));
        assert_eq!(group.read_number("memory.max"), Some(320 << 20));
        assert_eq!(
            group.read_number("pids.max"),
            Some(4 + u64::from(EXTRA_THREADS))
        );
        fs::create_dir(group.path().join("vcpu")).unwrap();
        // Made by who comes first, and there for who comes later.
        for _ in 0..2 {
            group.open_others_procs().unwrap();
        }
        let kind = fs::read_to_string(group.path().join("emu/cgroup.type"));
        assert_eq!(kind.unwrap(), "threaded");
        group.remove().unwrap();
        assert!(!group.path().exists());
        group.remove().unwrap();
    }

    #[test]
    fn a_group_left_by_a_dead_supervisor_is_emptied_and_made_again() {
        let (_temp, tree) = fake_hierarchy();
        let left = InstanceGroup::create(&tree, "web").unwrap();
        fs::write(left.path().join("memory.max"), "1").unwrap();
        let group = InstanceGroup::create(&tree, "web").unwrap();
        assert_eq!(group.read_number("memory.max"), None);
    }

    #[test]
    fn a_group_with_processes_belongs_to_somebody_else_and_is_left_alone() {
        let (_temp, tree) = fake_hierarchy();
        let theirs = InstanceGroup::create(&tree, "web").unwrap();
        fs::write(
            theirs.path().join("cgroup.events"),
            "populated 1\nfrozen 0\n",
        )
        .unwrap();
        fs::write(theirs.path().join("cgroup.procs"), "4711\n").unwrap();
        let error = InstanceGroup::create(&tree, "web").unwrap_err().to_string();
        assert!(
            error.contains("4711") && error.contains("another name"),
            "{error}"
        );
        assert!(theirs.path().join("cgroup.procs").exists());
    }

    #[test]
    fn keyed_files_are_read_by_whole_key() {
        let text = "low 0\nhigh 3\nmax 4\noom 1\noom_kill 2\n";
        assert_eq!(flat_value(text, "oom_kill"), Some(2));
        assert_eq!(flat_value(text, "oo"), None);
        assert_eq!(flat_value("high x", "high"), None);
    }
}
