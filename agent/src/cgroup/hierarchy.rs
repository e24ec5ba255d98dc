//! Finds the version 2 tree and a place in it where groups may be made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// Controllers that an instance needs.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Folder of all our groups below the parent.
const OURS: &str = "concertina";
/// Where this process moves when it lives in the parent itself: a group with processes of its own
/// cannot hand controllers to its children.
const AGENT_LEAF: &str = "concertina-agent";

/// A version 2 tree and the groups in it that we may try as parent, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    parents: Vec<PathBuf>,
}

impl Hierarchy {
    /// Looks at the mounts of this process and at its own group.
    pub fn detect() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|e| CgroupError::io("Reading", Path::new(path), e))
        };
        let mount = find_mount(&read("/proc/self/mountinfo")?).ok_or_else(|| {
            CgroupError::VersionOneOnly("no cgroup2 file system is mounted".into())
        })?;
        let own = own_group(&read("/proc/self/cgroup")?);
        Self::at(mount, own.as_deref())
    }

    /// A tree at `mount`, of which this process is in the group `own` (a path below the mount).
    pub fn at(mount: PathBuf, own: Option<&Path>) -> Result<Self, CgroupError> {
        let offered = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let missing = missing_controllers(&offered);
        if !missing.is_empty() {
            return Err(CgroupError::VersionOneOnly(format!(
                "the cgroup2 tree at {} has no controllers {}",
                mount.display(),
                missing.join(", ")
            )));
        }
        // The root: below it the whole machine can be shared out. Where that is not ours, our own group.
        let mut parents = vec![mount.clone()];
        let own = own.map(|own| mount.join(own.strip_prefix("/").unwrap_or(own)));
        if let Some(own) = own.filter(|own| *own != mount && own.is_dir()) {
            // A process that has moved itself aside before, or that systemd has put there
            // (DelegateSubgroup=), finds its delegated group above it: what is in that is ours alone,
            // and the root of a host with systemd is systemd's.
            match own.parent() {
                Some(above) if own.file_name().is_some_and(|name| name == AGENT_LEAF) => {
                    parents.insert(0, above.to_owned());
                }
                _ => parents.push(own),
            }
        }
        Ok(Self { mount, parents })
    }

    /// This host's tree, where instances get their groups below the group at `path`, which is made when
    /// it is not there, and nowhere else.
    ///
    /// # Errors
    /// There is no such tree, or `path` is not in it.
    pub fn below(path: &Path) -> Result<Self, CgroupError> {
        Self::detect()?.limited_to(path)
    }

    fn limited_to(self, path: &Path) -> Result<Self, CgroupError> {
        let inside = path.strip_prefix(&self.mount).ok();
        let is_plain = |inside: &Path| {
            let mut parts = inside.components();
            parts.all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        if inside.is_none_or(|inside| inside.as_os_str().is_empty() || !is_plain(inside)) {
            return Err(CgroupError::Outside {
                path: path.to_owned(),
                mount: self.mount,
            });
        }
        Ok(Self {
            parents: vec![path.to_owned()],
            mount: self.mount,
        })
    }

    /// Where the tree is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The folder in which instances get their groups, made when it is not there, with the
    /// controllers handed down to it. Gives the error of the first candidate when none will do,
    /// except that a lack of permission there says less than what the delegated group answers.
    pub fn ensure_parent(&self) -> Result<PathBuf, CgroupError> {
        let mut first_error = None;
        for parent in &self.parents {
            match prepare(parent) {
                Ok(ours) => return Ok(ours),
                Err(error) => {
                    let denied = matches!(
                        &first_error,
                        Some(CgroupError::Io { source, .. })
                            if source.kind() == io::ErrorKind::PermissionDenied
                    );
                    if first_error.is_none() || denied {
                        first_error = Some(error);
                    }
                }
            }
        }
        Err(first_error.unwrap_or_else(|| CgroupError::VersionOneOnly("no group is usable".into())))
    }
}

/// Hands the controllers down from `parent` to our folder in it, and from there to the instances.
fn prepare(parent: &Path) -> Result<PathBuf, CgroupError> {
    // One that was named may be missing.
    if let Some(above) = parent.parent().filter(|_| !parent.is_dir()) {
        hand_down(above)?;
        make_dir(parent)?;
    }
    let offered_in = parent.join("cgroup.controllers");
    let offered =
        fs::read_to_string(&offered_in).map_err(|e| CgroupError::io("Reading", &offered_in, e))?;
    let missing = missing_controllers(&offered);
    if !missing.is_empty() {
        return Err(CgroupError::ControllersMissing {
            missing: missing.join(", "),
            path: parent.to_owned(),
        });
    }
    if let Err(error) = hand_down(parent) {
        let busy = matches!(&error, CgroupError::Io { source, .. }
            if source.raw_os_error() == Some(libc::EBUSY));
        if !busy {
            return Err(error);
        }
        move_all(parent, &parent.join(AGENT_LEAF))?;
        hand_down(parent)?;
    }
    let ours = parent.join(OURS);
    make_dir(&ours)?;
    hand_down(&ours)?;
    Ok(ours)
}

/// Enables the controllers for the children of a group, unless they are.
fn hand_down(group: &Path) -> Result<(), CgroupError> {
    let control = group.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    let missing = missing_controllers(&enabled);
    if missing.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    fs::write(&control, words.join(" ")).map_err(|e| CgroupError::io("Writing", &control, e))
}

/// Moves the processes of `group` aside into `leaf`: this one, the command that waits for it
/// (`run --detach`), and the shell of the scope, if there is one. The delegated group is ours.
fn move_all(group: &Path, leaf: &Path) -> Result<(), CgroupError> {
    make_dir(leaf)?;
    let (from, to) = (group.join("cgroup.procs"), leaf.join("cgroup.procs"));
    let listed = fs::read_to_string(&from).map_err(|e| CgroupError::io("Reading", &from, e))?;
    for process in listed.split_ascii_whitespace() {
        match fs::write(&to, process) {
            // One that has ended in the meantime is not in the way.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(CgroupError::io("Writing", &to, error));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn make_dir(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::io("Making cgroup", path, e))
        }
        _ => Ok(()),
    }
}

fn missing_controllers(listed: &str) -> Vec<&'static str> {
    let has = |name: &str| listed.split_ascii_whitespace().any(|word| word == name);
    CONTROLLERS.into_iter().filter(|name| !has(name)).collect()
}

/// Mount point of the first cgroup2 file system: a line of mountinfo is
/// `id parent dev root mountpoint options… - type source superoptions`.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        if back.split(' ').next() != Some("cgroup2") {
            return None;
        }
        Some(PathBuf::from(unescape(front.split(' ').nth(4)?)))
    })
}

/// Blanks in mount points are written as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

/// Our group in the version 2 tree: the line `0::/path`.
fn own_group(proc_cgroup: &str) -> Option<PathBuf> {
    proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    fn fake_tree(controllers: &str) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("cgroup.controllers"), controllers).unwrap();
        temp
    }

    #[test]
    fn the_version_two_mount_is_found_among_others() {
        assert_eq!(find_mount(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            find_mount("1 2 0:3 / /my\\040dir rw - cgroup2 x rw"),
            Some("/my dir".into())
        );
        assert_eq!(
            find_mount("1 2 0:3 / /sys/fs/cgroup rw - cgroup cgroup rw"),
            None
        );
        assert_eq!(
            own_group("4:memory:/x\n0::/user.slice\n"),
            Some("/user.slice".into())
        );
        assert_eq!(own_group("4:memory:/x\n"), None);
    }

    #[test]
    fn a_hybrid_tree_without_controllers_is_called_version_one_only() {
        let temp = fake_tree("");
        let error = Hierarchy::at(temp.path().into(), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("v1 only") && error.contains("cpu, memory, pids"),
            "{error}"
        );
        assert!(Hierarchy::at(temp.path().join("none"), None).is_err());
    }

    #[test]
    fn controllers_are_handed_down_on_the_way_to_the_instances() {
        let temp = fake_tree("cpuset cpu io memory pids");
        let tree = Hierarchy::at(temp.path().into(), Some(Path::new("/"))).unwrap();
        let parent = tree.ensure_parent().unwrap();
        assert_eq!(parent, temp.path().join("concertina"));
        for group in [temp.path(), &parent] {
            let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap();
            assert_eq!(enabled, "+cpu +memory +pids", "{}", group.display());
        }
    }

    #[test]
    fn a_group_that_is_named_is_made_and_is_the_only_one() {
        let tree = fake_tree("cpu memory pids");
        let root = tree.path();
        let all = Hierarchy::at(root.to_owned(), None).unwrap();
        let named = root.join("rack1");
        let only = all.clone().limited_to(&named).unwrap();
        // The kernel fills a new group; here it has to be there before.
        let missing = only.ensure_parent().unwrap_err();
        assert!(missing.to_string().contains("rack1"), "{missing}");
        assert!(named.is_dir() && !root.join("concertina").exists());
        fs::write(named.join("cgroup.controllers"), "cpu memory pids").unwrap();
        fs::write(named.join("cgroup.subtree_control"), "").unwrap();
        let handed = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
        assert_eq!(handed, "+cpu +memory +pids");
        assert_eq!(only.ensure_parent().unwrap(), named.join("concertina"));
    }

    #[test]
    fn a_group_that_is_named_has_to_be_in_the_tree() {
        let tree = fake_tree("cpu memory pids");
        let root = tree.path();
        for path in [root.to_owned(), "/elsewhere".into(), root.join("a/../..")] {
            let all = Hierarchy::at(root.to_owned(), None).unwrap();
            let refused = all.limited_to(&path).unwrap_err().to_string();
            assert!(refused.contains("has to be a folder in"), "{refused}");
        }
    }

    #[test]
    fn who_was_put_aside_in_a_delegated_group_uses_that_and_not_the_root() {
        let temp = fake_tree("cpu memory pids");
        let unit = temp.path().join("system.slice/concertina.service");
        fs::create_dir_all(unit.join(AGENT_LEAF)).unwrap();
        fs::write(unit.join("cgroup.controllers"), "cpu memory pids").unwrap();
        let own = Path::new("/system.slice/concertina.service").join(AGENT_LEAF);
        let tree = Hierarchy::at(temp.path().into(), Some(&own)).unwrap();
        assert_eq!(tree.ensure_parent().unwrap(), unit.join("concertina"));
    }

    #[test]
    fn a_delegated_group_serves_where_the_root_lacks_controllers_for_us() {
        let temp = fake_tree("cpu memory pids");
        let own = temp.path().join("user/scope");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "cpu memory pids").unwrap();
        // A folder in the place of the control file makes the root refuse to be written.
        fs::create_dir(temp.path().join("cgroup.subtree_control")).unwrap();
        let tree = Hierarchy::at(temp.path().into(), Some(Path::new("/user/scope"))).unwrap();
        assert_eq!(tree.ensure_parent().unwrap(), own.join("concertina"));
    }
}
