//! Starts a vmm process and waits for its end.
//!
//! The child enters its cgroup by itself before it runs a single instruction of the vmm, and dies
//! with the thread that started it: whoever calls [`VmmProcess::spawn`] must be a thread that lives
//! as long as the instance (`PR_SET_PDEATHSIG` watches the parent *thread*).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use concertina_api::vm::exit;

use crate::poll::wait_readable;
use crate::state_dir::ProcessId;

/// Most bytes of the vmm's log that are read to find its last words.
const LAST_WORDS_BYTES: u64 = 4096;

/// How a vmm ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmExit {
    /// The guest powered off, or the VM was stopped on request.
    PoweredOff,
    /// The VM could not be built.
    SetupFailed,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU shut down by triple fault.
    TripleFault,
    /// KVM could not go on.
    KvmError,
    /// A status that the vmm's contract does not know.
    Other(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl VmmExit {
    /// Reads the status of a process that was waited for.
    pub fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(exit::POWER_OFF), _) => Self::PoweredOff,
            (Some(exit::SETUP_FAILED), _) => Self::SetupFailed,
            (Some(exit::RESET), _) => Self::Reset,
            (Some(exit::TRIPLE_FAULT), _) => Self::TripleFault,
            (Some(exit::KVM_ERROR), _) => Self::KvmError,
            (Some(code), _) => Self::Other(code),
            (None, Some(signal)) => Self::Signal(signal),
            // Waited for with neither code nor signal: not a state that Linux reports.
            (None, None) => Self::Other(1),
        }
    }

    /// Exit status of the vmm; `None` when a signal ended it.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::PoweredOff => Some(exit::POWER_OFF),
            Self::SetupFailed => Some(exit::SETUP_FAILED),
            Self::Reset => Some(exit::RESET),
            Self::TripleFault => Some(exit::TRIPLE_FAULT),
            Self::KvmError => Some(exit::KVM_ERROR),
            Self::Other(code) => Some(code),
            Self::Signal(_) => None,
        }
    }
}

/// A running vmm. It is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct VmmProcess {
    child: Child,
    /// Becomes readable when the process ends.
    pidfd: OwnedFd,
    id: ProcessId,
}

impl VmmProcess {
    /// Starts `command` with the spec's path as last argument, inside the group whose
    /// `cgroup.procs` is given, its output appended to `log`. It inherits some descriptors, which
    /// have the same numbers there.
    pub fn spawn(
        command: &[OsString],
        spec: &Path,
        procs: File,
        log: &Path,
        inherited: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(log)?;
        let mut prepared = Command::new(program);
        prepared
            .args(arguments)
            .arg(spec)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C in the terminal is for the supervisor, which then asks the guest.
            .process_group(0);
        // SAFETY: getpid(2) has no preconditions.
        let parent = unsafe { libc::getpid() };
        let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let enter = move || {
            enter_group(&procs, parent)?;
            numbers.iter().try_for_each(|fd| inherit(*fd))
        };
        // SAFETY: between fork and exec only system calls are made that are async-signal-safe, and
        // nothing is allocated.
        unsafe { prepared.pre_exec(enter) };
        let mut child = prepared.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        match open_pidfd(pid) {
            Ok(pidfd) => {
                let unread = ProcessId {
                    pid,
                    start_ticks: 0,
                };
                Ok(Self {
                    child,
                    pidfd,
                    id: ProcessId::of(pid).unwrap_or(unread),
                })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until it ends, `wake` becomes readable, or the time is over, whichever is first.
    /// `None`: it still runs.
    pub fn wait(
        &mut self,
        wake: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<Option<VmmExit>> {
        let pidfd = self.pidfd.as_raw_fd();
        let wake_fd = wake.map_or(-1, |fd| fd.as_raw_fd());
        wait_readable(&[pidfd, wake_fd], timeout)?;
        Ok(self.child.try_wait()?.map(VmmExit::from_status))
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> io::Result<VmmExit> {
        // Only fails when it has ended, and then the wait says how.
        let _ = self.child.kill();
        self.child.wait().map(VmmExit::from_status)
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// In the child before exec: die with the parent, and enter the group.
fn enter_group(procs: &File, parent: libc::pid_t) -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes an integer and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the line above took effect.
    // SAFETY: getppid(2) has no preconditions.
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    enter(procs)
}

/// In a child before exec: enters the group whose `cgroup.procs` is given.
pub(crate) fn enter(procs: &File) -> io::Result<()> {
    let zero = b"0";
    // SAFETY: the buffer is valid for its length, and `procs` keeps the descriptor open.
    if unsafe { libc::write(procs.as_raw_fd(), zero.as_ptr().cast(), zero.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// In a child before exec: keeps a descriptor open that is closed on exec elsewhere.
pub(crate) fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFD takes and gives integers.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and returns a descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave this descriptor to us alone just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The last line that a vmm wrote to its log, which says why it gave up. `None`: it said nothing.
pub fn last_words(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_WORDS_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let line: String = line.trim().chars().filter(|c| !c.is_control()).collect();
    // The program signs its sentences; inside another sentence that would read twice.
    Some(line.trim_start_matches("concertina: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn shell(temp: &Path, script: &str) -> VmmProcess {
        let command: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
        let procs = File::create(temp.join("procs")).unwrap();
        let log = temp.join("log");
        VmmProcess::spawn(&command, Path::new("spec"), procs, &log, &[]).unwrap()
    }

    fn ended(process: &mut VmmProcess) -> VmmExit {
        process
            .wait(None, Some(Duration::from_secs(10)))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn each_exit_status_has_its_meaning() {
        let temp = tempfile::tempdir().unwrap();
        for (script, want) in [
            ("exit 0", VmmExit::PoweredOff),
            ("exit 1", VmmExit::SetupFailed),
            ("exit 64", VmmExit::Reset),
            ("exit 65", VmmExit::TripleFault),
            ("exit 66", VmmExit::KvmError),
            ("exit 9", VmmExit::Other(9)),
            ("kill -9 $$", VmmExit::Signal(9)),
        ] {
            assert_eq!(ended(&mut shell(temp.path(), script)), want, "{script}");
        }
    }

    #[test]
    fn the_child_writes_itself_into_the_group_and_its_last_words_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut process = shell(
            temp.path(),
            "echo first; echo 'concertina: Kernel is bad' >&2; echo",
        );
        assert_eq!(ended(&mut process), VmmExit::PoweredOff);
        assert_eq!(fs::read_to_string(temp.path().join("procs")).unwrap(), "0");
        assert_eq!(
            last_words(&temp.path().join("log")).as_deref(),
            Some("Kernel is bad")
        );
        assert_eq!(last_words(&temp.path().join("none")), None);
    }

    #[test]
    fn a_process_that_goes_on_is_no_exit_and_is_killed_when_dropped() {
        let temp = tempfile::tempdir().unwrap();
        let mut process = shell(temp.path(), "exec sleep 60");
        assert_eq!(
            process.wait(None, Some(Duration::from_millis(20))).unwrap(),
            None
        );
        let id = process.id();
        assert!(id.is_alive());
        drop(process);
        assert!(!id.is_alive());
    }

    #[test]
    fn what_is_inherited_has_the_same_number_in_the_child_and_nothing_else_is() {
        use std::os::fd::AsFd;
        let temp = tempfile::tempdir().unwrap();
        let given = File::create(temp.path().join("given")).unwrap();
        let other = File::create(temp.path().join("other")).unwrap();
        let script = format!(
            "echo word >/proc/$$/fd/{} && ! test -e /proc/$$/fd/{}",
            given.as_raw_fd(),
            other.as_raw_fd()
        );
        let command: Vec<OsString> = ["sh", "-c", &script].map(OsString::from).into();
        let procs = File::create(temp.path().join("procs")).unwrap();
        let log = temp.path().join("log");
        let inherited = [given.as_fd()];
        let mut process =
            VmmProcess::spawn(&command, Path::new("spec"), procs, &log, &inherited).unwrap();
        assert_eq!(ended(&mut process), VmmExit::PoweredOff);
        let word = fs::read_to_string(temp.path().join("given")).unwrap();
        assert_eq!(word, "word\n");
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let procs = File::create(temp.path().join("procs")).unwrap();
        let command = [OsString::from("/nonexistent/vmm")];
        let log = temp.path().join("log");
        assert!(VmmProcess::spawn(&command, Path::new("x"), procs, &log, &[]).is_err());
        let procs = File::create(temp.path().join("procs")).unwrap();
        assert!(VmmProcess::spawn(&[], Path::new("x"), procs, &log, &[]).is_err());
    }
}
