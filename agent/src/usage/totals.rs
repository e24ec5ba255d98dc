//! Sums over records.

use std::time::SystemTime;

use serde::Serialize;

use super::UsageRecord;

const KIB_MS_PER_GIB_S: f64 = 1_048_576.0 * 1000.0;

/// What an instance held over a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// How long it was there, in milliseconds.
    pub span_ms: u128,
    /// CPU by quota, in millionths of a CPU-second.
    pub vcpu_us: u128,
    /// Memory by promised size, in KiB-milliseconds.
    pub promised_kib_ms: u128,
    /// Memory resident on the host, in KiB-milliseconds.
    pub resident_kib_ms: u128,
}

impl Totals {
    /// How long, in seconds.
    pub fn seconds(&self) -> f64 {
        self.span_ms as f64 / 1000.0
    }

    /// CPU-seconds by quota.
    pub fn vcpu_seconds(&self) -> f64 {
        self.vcpu_us as f64 / 1_000_000.0
    }

    /// GiB-seconds by promised size.
    pub fn promised_gib_seconds(&self) -> f64 {
        self.promised_kib_ms as f64 / KIB_MS_PER_GIB_S
    }

    /// GiB-seconds by what was resident on the host.
    pub fn resident_gib_seconds(&self) -> f64 {
        self.resident_kib_ms as f64 / KIB_MS_PER_GIB_S
    }
}

/// Adds up what was held since a time (absent: ever). Of a record that begins before it, the part
/// counts that lies after it: its length is measured, and its end is where its label says.
pub fn total(records: &[UsageRecord], since: Option<SystemTime>) -> Totals {
    let mut totals = Totals::default();
    for record in records {
        let span_ms = u128::from(record.to_ms.saturating_sub(record.from_ms));
        let counted = since.map_or(span_ms, |since| span_ms.min(after(record, since)));
        let part = |value: u64| match span_ms {
            0 => 0,
            _ => u128::from(value) * counted / span_ms,
        };
        totals.span_ms += counted;
        totals.vcpu_us += part(record.vcpu_us);
        totals.promised_kib_ms += part(record.promised_kib_ms);
        totals.resident_kib_ms += part(record.resident_kib_ms);
    }
    totals
}

/// Milliseconds from `since` to the end of a record; 0 when that is earlier. A label that is no time
/// is taken as being after it.
fn after(record: &UsageRecord, since: SystemTime) -> u128 {
    match humantime::parse_rfc3339(&record.time) {
        Ok(end) => end
            .duration_since(since)
            .map_or(0, |after| after.as_millis()),
        Err(_) => u128::MAX,
    }
}
