//! What this guest has: vCPUs, memory, uptime, kernel modules; as text or as one JSON object.

use std::fs;

use concertina_api::Bytes;

use super::sys;

/// What the kernel says; absent where it says nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Status {
    release: String,
    uptime_ms: u128,
    cpus_online: String,
    cpus_present: String,
    memory_total: Option<u64>,
    memory_available: Option<u64>,
    modules: Vec<String>,
}

impl Status {
    /// Asks the kernel.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let meminfo = text("/proc/meminfo");
        Self {
            release: sys::kernel_release(),
            uptime_ms: sys::uptime().as_millis(),
            cpus_online: text("/sys/devices/system/cpu/online").trim().to_owned(),
            cpus_present: text("/sys/devices/system/cpu/present").trim().to_owned(),
            memory_total: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available: meminfo_bytes(&meminfo, "MemAvailable"),
            modules: module_names(&text("/proc/modules")),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let bytes = |n: Option<u64>| n.map_or("unknown".to_owned(), |n| Bytes(n).to_string());
        format!(
            "kernel     {}\nuptime     {}.{:03} s\ncpus       {} online ({}), {} present ({})\n\
             memory     {} total, {} available\nmodules    {}",
            self.release,
            self.uptime_ms / 1000,
            self.uptime_ms % 1000,
            count(&self.cpus_online),
            self.cpus_online,
            count(&self.cpus_present),
            self.cpus_present,
            bytes(self.memory_total),
            bytes(self.memory_available),
            self.modules.join(" "),
        )
    }

    /// For programs. Every text in it is a number list or a kernel name, which need no escapes; what
    /// would need one is left out.
    pub fn to_json(&self) -> String {
        let plain =
            |text: &str| text.replace(|c: char| c == '"' || c == '\\' || c.is_control(), "");
        let bytes = |n: Option<u64>| n.map_or("null".to_owned(), |n| n.to_string());
        let modules: Vec<String> = self
            .modules
            .iter()
            .map(|name| format!("\"{}\"", plain(name)))
            .collect();
        format!(
            "{{\"kernel\":\"{}\",\"uptime_ms\":{},\
             \"cpus\":{{\"online\":{},\"online_list\":\"{}\",\"present\":{}}},\
             \"memory\":{{\"total\":{},\"available\":{}}},\"modules\":[{}]}}",
            plain(&self.release),
            self.uptime_ms,
            count(&self.cpus_online),
            plain(&self.cpus_online),
            count(&self.cpus_present),
            bytes(self.memory_total),
            bytes(self.memory_available),
            modules.join(","),
        )
    }
}

/// Memory that can be had without swapping, in bytes; `None` when the kernel does not say.
pub fn available_memory() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// One field of `/proc/meminfo`, in bytes.
pub fn meminfo_bytes(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn module_names(modules: &str) -> Vec<String> {
    let mut names: Vec<String> = modules
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

/// How many numbers a kernel list like `0-3,8` holds.
pub fn count(list: &str) -> u64 {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_counted() {
        for (list, want) in [
            ("0", 1),
            ("0-3", 4),
            ("0-1,4,6-7", 5),
            ("", 0),
            ("x,3-1", 0),
        ] {
            assert_eq!(count(list), want, "{list}");
        }
    }

    #[test]
    fn memory_is_in_bytes_and_unknown_is_not_zero() {
        let meminfo = "MemTotal:         245760 kB\nMemFree:  1 kB\nMemAvailable: 2 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemTotal"), Some(245_760 << 10));
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable"), Some(2048));
        assert_eq!(meminfo_bytes(meminfo, "Mem"), None);
        assert_eq!(meminfo_bytes("MemTotal: many kB", "MemTotal"), None);
    }

    #[test]
    fn json_has_numbers_for_what_is_known_and_null_for_what_is_not() {
        let status = Status {
            release: "6.12\"".into(),
            cpus_online: "0-1".into(),
            memory_total: Some(5),
            modules: module_names("virtio_mem 1 0 - Live\nbutton 2 0\n"),
            ..Status::default()
        };
        assert_eq!(
            status.to_json(),
            "{\"kernel\":\"6.12\",\"uptime_ms\":0,\"cpus\":{\"online\":2,\"online_list\":\"0-1\",\
             \"present\":0},\"memory\":{\"total\":5,\"available\":null},\
             \"modules\":[\"button\",\"virtio_mem\"]}"
        );
    }
}
