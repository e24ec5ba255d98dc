//! Evidence from the host's own files: threads, run time, resident memory, cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One thread of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Name.
    pub name: String,
}

/// The threads of a process, by id.
#[track_caller]
pub fn threads(pid: i32) -> Vec<Thread> {
    let folder = format!("/proc/{pid}/task");
    let mut threads: Vec<Thread> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{folder} cannot be read: {e}"))
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(|tid| Thread {
            tid,
            name: fs::read_to_string(format!("{folder}/{tid}/comm"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        })
        .collect();
    threads.sort_by_key(|thread| thread.tid);
    threads
}

/// Nanoseconds that a thread has run since it began.
#[track_caller]
pub fn run_time_ns(pid: i32, tid: i32) -> u64 {
    let path = format!("/proc/{pid}/task/{tid}/schedstat");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.split_whitespace()
        .next()
        .and_then(|field| field.parse().ok())
        .unwrap_or_else(|| panic!("{path} has no run time: {text}"))
}

/// Does the process exist? A zombie does not count.
pub fn exists(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next()?.trim().chars().next())
        .is_some_and(|state| state != 'Z')
}

/// Sends a signal; says whether the process was there to get it.
pub fn signal(pid: i32, signal: i32) -> bool {
    // SAFETY: kill(2) takes no pointers; the process is one that a scenario has started.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Resident bytes of a process, from `smaps_rollup`.
#[track_caller]
pub fn resident_bytes(pid: i32) -> u64 {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .unwrap_or_else(|| panic!("{path} has no Rss: {text}"))
        * 1024
}

/// Folder of the cgroup (version 2) that a thread is in.
#[track_caller]
pub fn cgroup_of(pid: i32, tid: i32) -> PathBuf {
    let path = format!("/proc/{pid}/task/{tid}/cgroup");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let inside = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_else(|| panic!("{path} names no version 2 group: {text}"));
    Path::new("/sys/fs/cgroup").join(inside)
}

/// One file of a cgroup, trimmed.
#[track_caller]
pub fn cgroup_file(folder: &Path, file: &str) -> String {
    let path = folder.join(file);
    fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .trim()
        .to_owned()
}

/// Processors' worth of time that all threads of a process take, over a while, those that begin and end
/// meanwhile too. It is counted in clock ticks (10 ms).
#[track_caller]
pub fn cpus_used_by_all(pid: i32, over: Duration) -> f64 {
    // SAFETY: sysconf(3) only reads a number.
    let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let path = format!("/proc/{pid}/stat");
    let ticks = || -> u64 {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        // utime and stime, fields 14 and 15 of proc(5), of which two are before the name's end.
        let fields = text.rsplit(')').next().unwrap_or_default();
        let times = fields.split_whitespace().skip(11).take(2);
        times
            .map(|field| field.parse::<u64>().expect("a number of clock ticks"))
            .sum()
    };
    let started = std::time::Instant::now();
    let before = ticks();
    std::thread::sleep(over);
    (ticks() - before) as f64 / ticks_per_s / started.elapsed().as_secs_f64()
}

/// Processors' worth of time that the given threads of a process take, over a while.
#[track_caller]
pub fn cpus_used(pid: i32, tids: &[i32], over: Duration) -> f64 {
    let sum = || tids.iter().map(|tid| run_time_ns(pid, *tid)).sum::<u64>();
    let started = std::time::Instant::now();
    let before = sum();
    std::thread::sleep(over);
    let after = sum();
    after.saturating_sub(before) as f64 / started.elapsed().as_nanos() as f64
}
