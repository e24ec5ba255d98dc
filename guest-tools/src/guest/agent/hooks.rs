//! Hooks: executables of the guest's owner that run before a shrink and after a growth.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use concertina_guest::channel::{Answer, AnswerOutcome, Change, ChangeAxis, Hooks, Moment};

use crate::guest::sys;
use crate::guest::sys::inotify::Inotify;

const FOLDER: &str = "/etc/concertina/hooks";
/// Longest time for all hooks of a change, whatever the host says.
const LONGEST: Duration = Duration::from_secs(60);
/// How often a running hook is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most bytes of what a hook prints that become its reason.
const REASON_BYTES: usize = 200;

/// Tells which hooks there are when that changes. The folders need not be there.
pub struct HookWatch {
    inotify: Inotify,
    folder: PathBuf,
    said: Option<Hooks>,
}

impl HookWatch {
    /// `None`: the kernel does not tell, and so the host is not told either.
    pub fn open() -> Option<Self> {
        Self::over(Path::new(FOLDER))
    }

    fn over(folder: &Path) -> Option<Self> {
        let inotify = Inotify::new().ok()?;
        Some(Self {
            inotify,
            folder: folder.to_owned(),
            said: None,
        })
    }

    /// A host that has just connected was told nothing.
    pub fn forget(&mut self) {
        self.said = None;
    }

    /// Which hooks there are, when that is not what was said last. To be called at first, and each time
    /// that the descriptor is readable.
    pub fn news(&mut self) -> Option<Hooks> {
        self.inotify.clear();
        // Each folder on the way there may come, and be another one than before. They are looked into after
        // they are watched, so that nothing is missed in between.
        let folders =
            [Moment::BeforeShrink, Moment::AfterGrow].map(|at| folder_of(&self.folder, at));
        for folder in folders.iter().flatten() {
            let mut up: Vec<&Path> = folder.ancestors().filter(|path| path.exists()).collect();
            // The root is always there.
            up.pop();
            for path in up {
                let _ = self.inotify.watch(path);
            }
        }
        let there = |moment| !hooks(&self.folder, moment).is_empty();
        let hooks = Hooks {
            before_shrink: there(Moment::BeforeShrink),
            after_grow: there(Moment::AfterGrow),
        };
        (self.said.replace(hooks) != Some(hooks)).then_some(hooks)
    }
}

impl AsRawFd for HookWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

/// Whether there is none to run for a change.
pub fn none_for(change: &Change) -> bool {
    hooks(Path::new(FOLDER), change.moment).is_empty()
}

/// Runs the hooks of a change; says how they took it.
pub fn run(change: &Change) -> Answer {
    run_in(Path::new(FOLDER), change)
}

fn run_in(folder: &Path, change: &Change) -> Answer {
    let until = Instant::now() + Duration::from_millis(change.deadline_ms).min(LONGEST);
    let answer = |outcome, reason| Answer {
        id: change.id,
        outcome,
        reason,
    };
    let may_refuse = change.moment == Moment::BeforeShrink;
    for hook in hooks(folder, change.moment) {
        let name = hook.file_name().unwrap_or_default().to_string_lossy();
        match run_one(&hook, change, until) {
            Ended::Well => {}
            Ended::Late => {
                let reason = format!("Hook {name} did not end in time");
                return answer(AnswerOutcome::TimedOut, Some(reason));
            }
            Ended::Badly(how) if may_refuse => {
                return answer(AnswerOutcome::Vetoed, Some(format!("Hook {name}: {how}")));
            }
            Ended::Badly(how) => eprintln!("concertina-guest: Hook {name}: {how}"),
        }
    }
    answer(AnswerOutcome::Done, None)
}

/// Where the hooks of a moment are.
fn folder_of(folder: &Path, moment: Moment) -> Option<PathBuf> {
    match moment {
        Moment::BeforeShrink => Some(folder.join("before-shrink.d")),
        Moment::AfterGrow => Some(folder.join("after-grow.d")),
        Moment::Unknown => None,
    }
}

/// The executables for a moment, by name.
fn hooks(folder: &Path, moment: Moment) -> Vec<PathBuf> {
    let Some(folder) = folder_of(folder, moment) else {
        return Vec::new();
    };
    let is_executable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut hooks: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_executable)
        .collect();
    hooks.sort();
    hooks
}

enum Ended {
    Well,
    Badly(String),
    Late,
}

/// The size as a hook reads it: CPUs, or bytes.
fn size(axis: ChangeAxis, value: u64) -> String {
    match axis {
        ChangeAxis::Cpu => format!("{}", value as f64 / 1000.0),
        ChangeAxis::Memory | ChangeAxis::Unknown => value.to_string(),
    }
}

fn run_one(hook: &Path, change: &Change, until: Instant) -> Ended {
    let axis = match change.axis {
        ChangeAxis::Cpu => "cpu",
        ChangeAxis::Memory => "memory",
        ChangeAxis::Unknown => "unknown",
    };
    let left = until.saturating_duration_since(Instant::now());
    let started = Command::new(hook)
        .env("CONCERTINA_AXIS", axis)
        .env("CONCERTINA_FROM", size(change.axis, change.from))
        .env("CONCERTINA_TO", size(change.axis, change.to))
        .env("CONCERTINA_DEADLINE_MS", left.as_millis().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return Ended::Badly(format!("cannot be started: {error}")),
    };
    let mut output = child.stdout.take();
    let mut said = Vec::new();
    loop {
        // What it prints is taken off the pipe, lest it waits; only the beginning is kept.
        let fd = output.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        if sys::wait_readable(&[fd], Some(LOOK)).first() == Some(&true)
            && !take(output.as_mut(), &mut said)
        {
            output = None;
        }
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ended::Well,
            Ok(Some(status)) => {
                let fd = output.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                if sys::wait_readable(&[fd], Some(Duration::ZERO)).first() == Some(&true) {
                    take(output.as_mut(), &mut said);
                }
                return Ended::Badly(reason(&said, status));
            }
            Ok(None) if Instant::now() < until => {}
            Ok(None) | Err(_) => {
                let group = i32::try_from(child.id()).unwrap_or(0);
                if group > 0 {
                    let _ = sys::kill(-group, libc::SIGKILL);
                }
                let _ = child.wait();
                return Ended::Late;
            }
        }
    }
}

/// Reads once; false at the end.
fn take(output: Option<&mut impl Read>, said: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 512];
    let got = output.map_or(0, |output| output.read(&mut chunk).unwrap_or(0));
    let room = REASON_BYTES.saturating_sub(said.len());
    said.extend(chunk.iter().take(got.min(room)));
    got > 0
}

fn reason(said: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().find(|line| !line.trim().is_empty());
    match line {
        Some(line) => format!("{} ({status})", line.trim()),
        None => format!("said no ({status})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hooks(tempfile::TempDir);

    impl Hooks {
        fn new(scripts: &[(&str, &str)]) -> Self {
            let temp = tempfile::tempdir().unwrap();
            for (path, script) in scripts {
                let path = temp.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self(temp)
        }

        fn run(&self, moment: Moment, deadline_ms: u64) -> Answer {
            let change = Change {
                id: 9,
                moment,
                axis: ChangeAxis::Cpu,
                from: 2000,
                to: 1500,
                deadline_ms,
            };
            run_in(self.0.path(), &change)
        }
    }

    #[test]
    fn what_hooks_there_are_is_said_when_it_changes() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("concertina/hooks");
        let mut watch = HookWatch::over(&folder).unwrap();
        assert_eq!(watch.news(), Some(super::Hooks::default()));
        assert_eq!(watch.news(), None);
        let mut told = || {
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until {
                sys::wait_readable(&[watch.as_raw_fd()], Some(Duration::from_millis(100)));
                if let Some(hooks) = watch.news() {
                    return Some((hooks.before_shrink, hooks.after_grow));
                }
            }
            None
        };
        let write = |name: &str, mode| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("before-shrink.d/10", 0o755);
        assert_eq!(told(), Some((true, false)));
        write("after-grow.d/10", 0o644);
        fs::remove_file(folder.join("before-shrink.d/10")).unwrap();
        assert_eq!(told(), Some((false, false)));
        write("after-grow.d/10", 0o755);
        assert_eq!(told(), Some((false, true)));
        fs::rename(
            folder.join("after-grow.d"),
            folder.join("before-shrink.d/..x"),
        )
        .unwrap();
        assert_eq!(told(), Some((false, false)));
        watch.forget();
        assert_eq!(watch.news(), Some(super::Hooks::default()));
    }

    #[test]
    fn hooks_run_in_order_and_know_the_change() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        let say = |what: &str| format!("echo {what} >>{}", log.display());
        let hooks = Hooks::new(&[
            (
                "before-shrink.d/2",
                &say("$CONCERTINA_AXIS $CONCERTINA_FROM $CONCERTINA_TO"),
            ),
            ("before-shrink.d/1", &say("first")),
            ("after-grow.d/1", "exit 7"),
        ]);
        let answer = hooks.run(Moment::BeforeShrink, 10_000);
        assert_eq!(
            (answer.id, answer.outcome),
            (9, AnswerOutcome::Done),
            "{answer:?}"
        );
        assert_eq!(fs::read_to_string(&log).unwrap(), "first\ncpu 2 1.5\n");
        // After a growth there is nothing to refuse, and a moment of a later version runs nothing.
        assert_eq!(
            hooks.run(Moment::AfterGrow, 10_000).outcome,
            AnswerOutcome::Done
        );
        assert_eq!(
            hooks.run(Moment::Unknown, 10_000).outcome,
            AnswerOutcome::Done
        );
    }

    #[test]
    fn the_first_that_says_no_ends_it_with_its_reason() {
        let hooks = Hooks::new(&[
            ("before-shrink.d/1", "echo compaction is running; exit 3"),
            ("before-shrink.d/2", "exit 0"),
        ]);
        let answer = hooks.run(Moment::BeforeShrink, 10_000);
        assert_eq!(answer.outcome, AnswerOutcome::Vetoed);
        let reason = answer.reason.unwrap();
        assert!(reason.contains("Hook 1: compaction is running"), "{reason}");
    }

    #[test]
    fn one_that_does_not_end_is_ended_with_all_that_it_started() {
        let hooks = Hooks::new(&[("before-shrink.d/slow", "sleep 60 & wait")]);
        let began = Instant::now();
        let answer = hooks.run(Moment::BeforeShrink, 200);
        assert_eq!(answer.outcome, AnswerOutcome::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn one_that_prints_a_lot_does_not_wait_for_a_reader() {
        let hooks = Hooks::new(&[("before-shrink.d/loud", "head -c 300000 /dev/zero; exit 1")]);
        assert_eq!(
            hooks.run(Moment::BeforeShrink, 20_000).outcome,
            AnswerOutcome::Vetoed
        );
    }
}
