//! What the kernel says of this process. What it does not say is absent.

use std::fs;

/// Numbers of the agent's own process.
#[derive(Debug, Default)]
pub struct ProcessNumbers {
    /// When it was started, in seconds since 1970.
    pub started_s: Option<f64>,
    /// CPU time in seconds.
    pub cpu_s: Option<f64>,
    /// Resident memory.
    pub resident_bytes: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Open descriptors.
    pub open_fds: Option<f64>,
    /// Most of them.
    pub max_fds: Option<f64>,
}

impl ProcessNumbers {
    /// Reads them.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = text("/proc/self/stat");
        let ticks = ticks_per_second();
        let field = |number| Some(stat_field(&stat, number)? as f64 / ticks);
        let status = text("/proc/self/status");
        Self {
            started_s: boot_time(&text("/proc/stat"))
                .zip(field(22))
                .map(|(boot, since)| boot + since),
            cpu_s: field(14).zip(field(15)).map(|(user, system)| user + system),
            resident_bytes: status_number(&status, "VmRSS:").map(|kib| kib * 1024.0),
            threads: status_number(&status, "Threads:"),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| fds.count() as f64),
            max_fds: soft_limit(&text("/proc/self/limits")),
        }
    }
}

/// A field of a `stat` line, counted from 1 as in proc(5). The second one may hold blanks.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    fields.nth(number.checked_sub(3)?)?.parse().ok()
}

fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .parse()
        .ok()
}

fn soft_limit(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf(3) takes an integer and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // 100 is what Linux has wherever this runs.
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_all_numbers_and_they_make_sense() {
        let numbers = ProcessNumbers::read();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let started_s = numbers.started_s.unwrap();
        let now_s = now.unwrap().as_secs_f64();
        assert!(
            started_s > now_s - 86_400.0 && started_s < now_s + 5.0,
            "{started_s} {now_s}"
        );
        assert!(numbers.cpu_s.is_some());
        assert!(numbers.resident_bytes.unwrap() > 100_000.0);
        assert!(numbers.threads.unwrap() >= 1.0);
        assert!(numbers.open_fds.unwrap() >= 3.0);
        assert!(numbers.max_fds.unwrap() >= numbers.open_fds.unwrap());
    }

    #[test]
    fn a_name_with_blanks_moves_no_field() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 111 222 16 17 18 19 20 21 2222 23";
        assert_eq!(stat_field(stat, 14), Some(111));
        assert_eq!(stat_field(stat, 15), Some(222));
        assert_eq!(stat_field(stat, 22), Some(2222));
    }
}
