//! The system calls that the standard library has no name for, each as a safe function.
//!
//! Everything unsafe of the guest program is in this file and below it, apart from `pre_exec` in
//! `console`.

pub mod inotify;
pub mod vsock;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_ulong, pid_t};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Writes a line to standard output and forgets errors: a console that went away must not end
/// process 1.
pub fn say(line: &str) {
    use std::io::Write;
    let mut text = String::with_capacity(line.len().saturating_add(1));
    text.push_str(line);
    text.push('\n');
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Time since boot, suspended time included.
pub fn uptime() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

/// CPU time that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time that all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    if unsafe { libc::clock_gettime(id, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// Release of the running kernel, like `6.12.9-cloud-amd64`.
pub fn kernel_release() -> String {
    // SAFETY: utsname is plain bytes, for which zero is a valid value.
    let mut name: libc::utsname = unsafe { mem::zeroed() };
    // SAFETY: `name` is a valid utsname for the duration of the call.
    if unsafe { libc::uname(&mut name) } != 0 {
        return String::new();
    }
    let bytes: Vec<u8> = name
        .release
        .iter()
        .map(|c| c.cast_unsigned())
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Mounts a file system that has no device.
pub fn mount(kind: &CStr, target: &CStr, flags: c_ulong, options: &CStr) -> io::Result<()> {
    // SAFETY: all four strings end with NUL and outlive the call.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    check(result).map(drop)
}

/// Loads a kernel module from an open, uncompressed file.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open and the parameter string ends with NUL.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How the machine shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Power off.
    PowerOff,
    /// Start again.
    Reboot,
}

/// Ends the machine at once; comes back only when the kernel refuses.
pub fn end_machine(how: Ending) -> io::Error {
    let command = match how {
        Ending::PowerOff => libc::RB_POWER_OFF,
        Ending::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: neither call takes a pointer; losing every process is what the caller asked for.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    io::Error::last_os_error()
}

/// Sends a signal; `pid` -1 means every process but the caller and process 1.
pub fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A child that has ended, in the shell's terms: its exit status, or 128 + the signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Process id.
    pub pid: pid_t,
    /// Exit status.
    pub status: i32,
}

/// What `reap` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A child that has ended.
    Child(Ended),
    /// There are children, all of them alive.
    AllAlive,
    /// There are no children.
    NoChildren,
}

/// Takes one ended child, without waiting.
pub fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: `status` is valid for the duration of the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    match pid {
        0 => Reaped::AllAlive,
        pid if pid > 0 => {
            let status = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128i32.saturating_add(libc::WTERMSIG(status))
            };
            Reaped::Child(Ended { pid, status })
        }
        _ => Reaped::NoChildren,
    }
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data; sigemptyset initialises it and sigaddset checks its number.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Signals as a file that can be polled; they no longer interrupt the process.
pub struct SignalFile(OwnedFd);

impl SignalFile {
    /// Blocks the signals and opens the file.
    pub fn open(signals: &[c_int]) -> io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: `set` is initialised; the old mask is not asked for.
        check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) })?;
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd =
            check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
        // SAFETY: the descriptor is open and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Option<c_int> {
        let mut info = [0u8; mem::size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer is valid for its whole length.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
        let number = info
            .first_chunk::<4>()
            .filter(|_| got.cast_unsigned() == info.len())?;
        Some(c_int::from_ne_bytes(*number))
    }
}

impl AsRawFd for SignalFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of the files can be read or the time is over; says which can. `None` waits for
/// ever.
pub fn wait_readable(files: &[RawFd], timeout: Option<Duration>) -> Vec<bool> {
    let files: Vec<_> = files.iter().map(|fd| (*fd, libc::POLLIN)).collect();
    wait_for(&files, timeout)
}

/// The same for any event of each file.
pub fn wait_for(files: &[(RawFd, libc::c_short)], timeout: Option<Duration>) -> Vec<bool> {
    let mut polled: Vec<libc::pollfd> = files
        .iter()
        .map(|(fd, events)| libc::pollfd {
            fd: *fd,
            events: *events,
            revents: 0,
        })
        .collect();
    // Rounded up: a wait that ends a little early would be followed by a busy one.
    let millis = timeout.map_or(-1, |t| {
        c_int::try_from(t.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
    });
    let count = polled.len() as libc::nfds_t;
    // SAFETY: `polled` is a valid array of `count` entries for the duration of the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, millis) };
    polled.iter().map(|p| ready > 0 && p.revents != 0).collect()
}

/// Size of the file system that holds a path, and what programs without privileges can still write to
/// it, in bytes.
pub fn file_system(path: &CStr) -> Option<(u64, u64)> {
    // SAFETY: statvfs is plain data, for which zero is valid.
    let mut info: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: the path ends with NUL, and `info` is a valid statvfs for the duration of the call.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut info) }).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(info.f_frsize);
    Some((bytes(info.f_blocks), bytes(info.f_bavail)))
}

/// A netlink socket. Only what the kernel itself has sent is ever returned from it.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket of a netlink protocol, a member of the multicast groups in the bit mask.
    pub fn open(protocol: c_int, groups: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
        // SAFETY: the descriptor is open and owned by nobody else.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: sockaddr_nl is plain data, for which zero is valid.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is valid and `length` is its size.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
        Ok(socket)
    }

    /// Joins one more multicast group, by number.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// Asks for room for so many bytes of waiting messages; no error when the kernel gives less.
    pub fn enlarge_buffer(&self, bytes: u32) {
        let _ = self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
    }

    fn set_option(&self, level: c_int, option: c_int, value: u32) -> io::Result<()> {
        let length = mem::size_of_val(&value) as libc::socklen_t;
        // SAFETY: `value` is valid and `length` is its size.
        let result = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                length,
            )
        };
        check(result).map(drop)
    }

    /// Sends one message to the kernel.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its whole length.
        let sent = unsafe {
            libc::send(
                self.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits for the kernel's next message and returns it. Messages of other processes are dropped.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let got = loop {
            // SAFETY: sockaddr_nl is plain data, for which zero is valid.
            let mut from: libc::sockaddr_nl = unsafe { mem::zeroed() };
            let mut length = mem::size_of_val(&from) as libc::socklen_t;
            // SAFETY: buffer, address and length are valid for the duration of the call.
            let got = unsafe {
                libc::recvfrom(
                    self.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &mut length,
                )
            };
            match usize::try_from(got) {
                Err(_) => return Err(io::Error::last_os_error()),
                Ok(got) if from.nl_pid == 0 => break got,
                Ok(_) => {}
            }
        };
        Ok(buffer.get(..got).unwrap_or_default())
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Makes a terminal the standard input, output and error of the calling process, which becomes the
/// leader of a session of its own. For use between fork and exec: allocates nothing.
pub fn adopt_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let fd = terminal.as_raw_fd();
    // SAFETY: no pointers; the descriptor is open for the life of the borrow. The session may fail
    // to take the terminal when another still has it, which only costs job control.
    unsafe {
        libc::setsid();
        libc::ioctl(fd, libc::TIOCSCTTY, 1);
        for target in 0..3 {
            check(libc::dup2(fd, target))?;
        }
    }
    Ok(())
}

/// Gives a signal its default effect, or ignores it.
pub fn ignore_signal(signal: c_int, ignore: bool) {
    let handler = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither handler is code of ours.
    unsafe { libc::signal(signal, handler) };
}

/// Lets every signal through again. Process 1 blocks some, and a program that it starts would inherit
/// that. For use between fork and exec: allocates nothing.
pub fn unblock_signals() -> io::Result<()> {
    let none = signal_set(&[]);
    // SAFETY: `none` is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) }).map(drop)
}

/// Whether a descriptor of this process is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes descriptor `target` mean the same as `file`.
pub fn duplicate_onto(file: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; replaces only the standard descriptor that the caller names.
    check(unsafe { libc::dup2(file.as_raw_fd(), target) }).map(drop)
}

/// Private anonymous memory that grows and shrinks from its start. Unmapped when dropped.
pub struct Memory {
    mapping: *mut libc::c_void,
    mapped: usize,
    /// The first aligned byte, and how many follow it.
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping has one owner and no thread-local meaning.
unsafe impl Send for Memory {}

impl Memory {
    /// Reserves addresses for so many bytes, aligned to `alignment` (a power of two, whole pages).
    /// Nothing is taken before it is touched.
    pub fn reserve(length: usize, alignment: usize) -> io::Result<Self> {
        let mapped = length
            .checked_add(alignment)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice harms nothing that exists.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = mapping.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(alignment));
        Ok(Self {
            mapping,
            mapped,
            start,
            length,
        })
    }

    /// Writes one word at the start of the page that holds this offset; beyond the end, nothing.
    pub fn touch(&mut self, offset: usize, word: u64) {
        let page = offset & !4095;
        if page < self.length {
            // SAFETY: whole pages of the mapping follow `start`, the page begins inside them and is
            // aligned, and the mapping is ours alone.
            unsafe { self.start.add(page).cast::<u64>().write_volatile(word) };
        }
    }

    /// Gives back everything from this offset (whole pages) on; the addresses stay reserved.
    pub fn give_back_from(&mut self, offset: usize) {
        if let Some(length) = self.length.checked_sub(offset) {
            // SAFETY: the range lies inside the mapping, and nothing refers to its content.
            unsafe { libc::madvise(self.start.add(offset).cast(), length, libc::MADV_DONTNEED) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `reserve` made, and nobody holds a reference into it.
        unsafe { libc::munmap(self.mapping, self.mapped) };
    }
}
