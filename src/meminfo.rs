//! The host's `/proc/meminfo`.

use concertina_api::Bytes;

/// A field of it; `None` where it is not there, or not in kB.
pub fn field(meminfo: &str, name: &str) -> Option<Bytes> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name_and_in_bytes() {
        let text = "MemTotal: 9 kB\nMemAvailable:  2048 kB\nHugePages_Total: 3\n";
        assert_eq!(field(text, "MemAvailable"), Some(Bytes::mib(2)));
        for name in ["Mem", "HugePages_Total", "MemFree"] {
            assert_eq!(field(text, name), None, "{name}");
        }
    }
}
