//! Hosts that do not let us: no permission on `/dev/kvm`, no cgroup of one's own, cgroup v1 only; and
//! the one that lets an ordinary user do it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::support::{
    Finished, STEP_LIMIT, Series, alone, concertina, concertina_as, guest, require_host, until,
};

/// An ordinary user, who need not be known by name.
const USER: u32 = 12_345;
const KVM: &str = "/dev/kvm";

/// A cgroup with what an instance needs, given to the user where `delegated`.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, delegated: bool) -> Self {
        let folder = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir(&folder).unwrap();
        if delegated {
            for file in [
                "",
                "cgroup.procs",
                "cgroup.subtree_control",
                "cgroup.threads",
            ] {
                chown(folder.join(file), Some(USER), Some(USER)).unwrap();
            }
        }
        Self(folder)
    }

    /// Names of the groups in it, at any depth.
    fn inside(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.0.clone()];
        while let Some(folder) = open.pop() {
            let inner = fs::read_dir(folder).into_iter().flatten().flatten();
            let inner: Vec<PathBuf> = inner.map(|e| e.path()).filter(|p| p.is_dir()).collect();
            found.extend(inner.clone());
            open.extend(inner);
        }
        found
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in self.inside().iter().rev() {
            let _ = fs::remove_dir(folder);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// `/dev/kvm` with another mode, for as long as this lives.
struct KvmMode(fs::Permissions);

impl KvmMode {
    fn set(mode: u32) -> Self {
        let before = fs::metadata(KVM).unwrap().permissions();
        fs::set_permissions(KVM, fs::Permissions::from_mode(mode)).unwrap();
        Self(before)
    }
}

impl Drop for KvmMode {
    fn drop(&mut self) {
        let _ = fs::set_permissions(KVM, self.0.clone());
    }
}

/// A folder of the user's own.
fn state_of_user() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(USER), Some(USER)).unwrap();
    folder
}

fn launch(state: &Path) -> Vec<String> {
    let files = guest(Series::V6_12);
    let words = [
        "run --name plain --cpus 1 --memory 256M --detach --kernel",
        files.bzimage.to_str().unwrap(),
        "--initrd",
        files.initramfs.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let words = words.iter().flat_map(|word| word.split(' '));
    words.map(str::to_owned).collect()
}

fn try_as_user(group: &Group, state: &Path) -> Finished {
    let line = launch(state);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    concertina_as(USER, &group.0, &line)
}

#[track_caller]
fn assert_refused(finished: &Finished, words: &[&str], state: &Path) {
    assert_eq!(finished.status, 1, "{finished:#?}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "No '{word}' in {finished:#?}"
        );
    }
    assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
    let left: Vec<_> = fs::read_dir(state).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?} left behind by {finished:#?}");
}

#[test]
fn without_permission_on_dev_kvm_a_sentence_names_it_and_nothing_is_left() {
    require_host();
    let _alone = alone();
    let _mode = KvmMode::set(0o600);
    let (group, state) = (Group::new("e2e-no-kvm", true), state_of_user());
    let finished = try_as_user(&group, state.path());
    assert_refused(&finished, &["/dev/kvm", "permission"], state.path());
    let left = group.inside();
    assert!(!left.iter().any(|g| g.ends_with("plain")), "{left:?}");
}

#[test]
fn without_a_cgroup_of_ones_own_a_sentence_says_how_to_get_one() {
    require_host();
    let _alone = alone();
    let _mode = KvmMode::set(0o666);
    let (group, state) = (Group::new("e2e-no-cgroup", false), state_of_user());
    let finished = try_as_user(&group, state.path());
    assert_refused(&finished, &["cgroup", "Delegate=yes"], state.path());
}

#[test]
fn an_ordinary_user_with_a_delegated_cgroup_runs_an_instance() {
    require_host();
    let _alone = alone();
    let _mode = KvmMode::set(0o666);
    let (group, state) = (Group::new("e2e-delegated", true), state_of_user());
    try_as_user(&group, state.path()).expect_success();
    let path = state.path().to_str().unwrap();
    let log = state.path().join("plain/console.log");
    until("the guest's init", 2 * STEP_LIMIT, || {
        fs::read_to_string(&log)
            .ok()?
            .contains("init at")
            .then_some(())
    });
    let groups = group.inside();
    assert!(groups.iter().any(|g| g.ends_with("vcpu")), "{groups:?}");
    // The processes of the group were moved aside, into a group that can hold some.
    let aside = group.0.join("concertina-agent");
    let resized = concertina_as(
        USER,
        &aside,
        &["resize", "plain", "--cpus", "1", "--state-dir", path],
    );
    resized.expect_success();
    concertina_as(
        USER,
        &aside,
        &["stop", "plain", "--force", "--state-dir", path],
    )
    .expect_success();
    until("the end of its groups", STEP_LIMIT, || {
        let left = group.inside();
        (!left.iter().any(|g| g.ends_with("vcpu"))).then_some(())
    });
}

#[test]
fn a_host_with_cgroup_v1_only_is_told_what_mends_it() {
    require_host();
    let _alone = alone();
    let state = tempfile::tempdir().unwrap();
    let line = launch(state.path()).join(" ");
    // A mount namespace of its own, in which there is no version 2 tree.
    let script = format!("umount -l /sys/fs/cgroup && exec concertina {line}");
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .expect("unshare starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cgroup v1 only"), "{stderr}");
    assert!(
        stderr.contains("systemd.unified_cgroup_hierarchy=1"),
        "{stderr}"
    );
    assert!(fs::read_dir(state.path()).unwrap().next().is_none());
    // And nothing is wrong with the host itself.
    concertina(&["doctor"]).expect_success();
}
