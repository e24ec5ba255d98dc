//! Starts a vmm process, or takes one over, and waits for its end.
//!
//! The child enters its cgroup by itself before it runs a single instruction of the vmm. With
//! [`Bond::DiesWithUs`] it dies with the thread that started it: whoever calls [`VmmProcess::spawn`]
//! must then be a thread that lives as long as the instance (`PR_SET_PDEATHSIG` watches the parent
//! *thread*). With [`Bond::OutlivesUs`] it goes on when we die, in a session of its own, and an agent
//! that comes later takes it over by [`VmmProcess::adopt`]: not being its parent, that one learns from
//! the vmm's own exit record how it ended.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use concertina_api::vm::{VmExitRecord, exit};

use crate::poll::wait_readable;
use crate::state_dir::ProcessId;

/// Most bytes of the vmm's log that are read to find its last words.
const LAST_WORDS_BYTES: u64 = 4096;
/// How long a killed process that is not our child may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Gone without a word, and not our child: killed, by whatever signal.
    Vanished,
}

/// What becomes of a vmm when the process that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// It is killed.
    DiesWithUs,
    /// It goes on.
    OutlivesUs,
}

impl VmmExit {
    /// Reads the status of a process that was waited for.
    pub fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::from_code(code),
            (None, Some(signal)) => Self::Signal(signal),
            // Waited for with neither code nor signal: not a state that Linux reports.
            (None, None) => Self::Other(1),
        }
    }

    /// Reads an exit status.
    pub fn from_code(code: i32) -> Self {
        match code {
            exit::POWER_OFF => Self::PoweredOff,
            exit::SETUP_FAILED => Self::SetupFailed,
            exit::RESET => Self::Reset,
            exit::TRIPLE_FAULT => Self::TripleFault,
            exit::KVM_ERROR => Self::KvmError,
            code => Self::Other(code),
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
            Self::Signal(_) | Self::Vanished => None,
        }
    }
}

/// What a vmm is started from.
#[derive(Debug)]
pub struct VmmStart<'a> {
    /// Program and first arguments; the path of the specification is added as the last one.
    pub command: &'a [OsString],
    /// The specification.
    pub spec: &'a Path,
    /// `cgroup.procs` of the group that it shall live in.
    pub procs: File,
    /// What it prints is appended there.
    pub log: &'a Path,
    /// Where it leaves word of its end.
    pub exit_file: &'a Path,
    /// Descriptors that it gets, with the same numbers.
    pub inherited: &'a [BorrowedFd<'a>],
    /// What becomes of it when we end.
    pub bond: Bond,
}

/// A running vmm. When this is dropped, one that is bound to us is killed and waited for, and any other
/// goes on.
#[derive(Debug)]
pub struct VmmProcess {
    /// Absent: it was taken over, and somebody else reaps it.
    child: Option<Child>,
    /// Becomes readable when the process ends.
    pidfd: OwnedFd,
    id: ProcessId,
    exit_file: PathBuf,
    bond: Bond,
}

impl VmmProcess {
    /// Starts one.
    pub fn spawn(start: VmmStart<'_>) -> io::Result<Self> {
        let (program, arguments) = start
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
        // The word of an earlier life is not that of this one.
        let _ = std::fs::remove_file(start.exit_file);
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(start.log)?;
        let mut prepared = Command::new(program);
        prepared
            .args(arguments)
            .arg(start.spec)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if start.bond == Bond::DiesWithUs {
            // Ctrl-C in the terminal is for the supervisor, which then asks the guest.
            prepared.process_group(0);
        }
        // SAFETY: getpid(2) has no preconditions.
        let parent = unsafe { libc::getpid() };
        let numbers: Vec<RawFd> = start.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let (procs, bond) = (start.procs, start.bond);
        let enter = move || {
            match bond {
                Bond::DiesWithUs => die_with(parent)?,
                Bond::OutlivesUs => own_session()?,
            }
            enter(&procs)?;
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
                    child: Some(child),
                    pidfd,
                    id: ProcessId::of(pid).unwrap_or(unread),
                    exit_file: start.exit_file.to_owned(),
                    bond,
                })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Takes over a vmm that another process has started; `None` when that very process has ended.
    ///
    /// # Errors
    /// The process cannot be watched.
    pub fn adopt(id: ProcessId, exit_file: &Path) -> io::Result<Option<Self>> {
        let pidfd = match open_pidfd(id.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            opened => opened?,
        };
        // Only now does the number stay the same process: looked at before, it might be another by now.
        Ok(id.is_alive().then(|| Self {
            child: None,
            pidfd,
            id,
            exit_file: exit_file.to_owned(),
            bond: Bond::OutlivesUs,
        }))
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// A descriptor by which it can be watched.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
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
        let ready = wait_readable(&[pidfd, wake_fd], timeout)?;
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.map(VmmExit::from_status)),
            None if ready.first() == Some(&true) => Ok(Some(self.last_word())),
            None => Ok(None),
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> io::Result<VmmExit> {
        if let Some(child) = &mut self.child {
            // Only fails when it has ended, and then the wait says how.
            let _ = child.kill();
            return child.wait().map(VmmExit::from_status);
        }
        // SAFETY: pidfd_send_signal(2) takes integers and a null pointer for "as kill(2) does it"; the
        // descriptor is open. It only fails when the process has ended.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let ready = wait_readable(&[self.pidfd.as_raw_fd()], Some(KILL_TIMEOUT))?;
        match ready.first() {
            Some(true) => Ok(self.last_word()),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What a process that was not our child says of its end.
    fn last_word(&self) -> VmmExit {
        exit_record(&self.exit_file, self.id.pid).map_or(VmmExit::Vanished, |record| {
            VmmExit::from_code(record.status)
        })
    }
}

/// The exit record of a vmm, when that very process has left one.
pub fn exit_record(file: &Path, pid: i32) -> Option<VmExitRecord> {
    let bytes = std::fs::read(file).ok()?;
    let record: VmExitRecord = serde_json::from_slice(&bytes).ok()?;
    (record.pid == pid).then_some(record)
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.bond == Bond::DiesWithUs {
            let _ = self.kill();
        }
    }
}

/// In the child before exec: a session of its own, which no terminal and no group's signal reaches.
fn own_session() -> io::Result<()> {
    // SAFETY: setsid(2) takes nothing; a child that was forked just now leads no group.
    match unsafe { libc::setsid() } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In the child before exec: die with the parent.
fn die_with(parent: libc::pid_t) -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes an integer and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the line above took effect.
    // SAFETY: getppid(2) has no preconditions.
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
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
        spawn(temp, &command, &[], Bond::DiesWithUs).unwrap()
    }

    fn spawn(
        temp: &Path,
        command: &[OsString],
        inherited: &[BorrowedFd<'_>],
        bond: Bond,
    ) -> io::Result<VmmProcess> {
        VmmProcess::spawn(VmmStart {
            command,
            spec: Path::new("spec"),
            procs: File::create(temp.join("procs")).unwrap(),
            log: &temp.join("log"),
            exit_file: &temp.join("exit.json"),
            inherited,
            bond,
        })
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
        let inherited = [given.as_fd()];
        let mut process = spawn(temp.path(), &command, &inherited, Bond::DiesWithUs).unwrap();
        assert_eq!(ended(&mut process), VmmExit::PoweredOff);
        let word = fs::read_to_string(temp.path().join("given")).unwrap();
        assert_eq!(word, "word\n");
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let command = [OsString::from("/nonexistent/vmm")];
        assert!(spawn(temp.path(), &command, &[], Bond::DiesWithUs).is_err());
        assert!(spawn(temp.path(), &[], &[], Bond::DiesWithUs).is_err());
    }

    fn sleeper(temp: &Path, script: &str) -> VmmProcess {
        let command: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
        spawn(temp, &command, &[], Bond::OutlivesUs).unwrap()
    }

    #[test]
    fn one_that_outlives_us_leads_a_session_and_goes_on_when_it_is_left() {
        let temp = tempfile::tempdir().unwrap();
        let process = sleeper(temp.path(), "exec sleep 60");
        let id = process.id();
        // SAFETY: getsid(2) takes and gives integers.
        assert_eq!(unsafe { libc::getsid(id.pid) }, id.pid);
        drop(process);
        assert!(id.is_alive());
        let exit = temp.path().join("exit.json");
        let mut adopted = VmmProcess::adopt(id, &exit).unwrap().unwrap();
        assert_eq!(
            adopted.wait(None, Some(Duration::from_millis(10))).unwrap(),
            None
        );
        assert_eq!(adopted.kill().unwrap(), VmmExit::Vanished);
        let other = ProcessId {
            start_ticks: id.start_ticks + 1,
            pid: std::process::id() as i32,
        };
        assert!(VmmProcess::adopt(other, &exit).unwrap().is_none());
    }

    #[test]
    fn what_an_adopted_process_said_last_is_its_exit() {
        let temp = tempfile::tempdir().unwrap();
        let exit = temp.path().join("exit.json");
        let script = format!(
            "sleep 0.2; echo '{{\"pid\":'$$',\"status\":65,\"reason\":\"x\"}}' >{}; exit 65",
            exit.display()
        );
        let process = sleeper(temp.path(), &script);
        let id = process.id();
        let mut adopted = VmmProcess::adopt(id, &exit).unwrap().unwrap();
        assert_eq!(ended(&mut adopted), VmmExit::TripleFault);
        // The word of another process is not taken for it.
        assert!(exit_record(&exit, id.pid + 1).is_none());
        drop(process);
    }
}
