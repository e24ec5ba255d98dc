//! The I/O axis: limits of devices. They need nothing of the guest and take effect at once.

use concertina_api::disk::DiskRate;
use concertina_api::vm::{Outcome, VmResize};

use super::report::{AxisReport, Timeline};
use crate::sentence;
use crate::vmm::VmmClient;

/// Sets a limit of disks.
pub fn set_disk_rate(
    vmm: &VmmClient,
    wish: DiskRate,
    mut timeline: Timeline,
) -> AxisReport<Option<DiskRate>> {
    let sent_ms = timeline.elapsed_ms();
    let asked = VmResize {
        disk_rate: Some(wish),
        ..VmResize::default()
    };
    match vmm.resize(&asked) {
        Ok(answer) => {
            timeline.adopt(sent_ms, &answer.timeline_ms);
            AxisReport {
                outcome: answer.outcome,
                got: answer.got.disk_rate,
                reason: answer.reason,
                ost: None,
                timeline,
            }
        }
        Err(error) => AxisReport {
            outcome: Outcome::TimedOut,
            got: None,
            reason: Some(format!("Disk rate was not set: {}", sentence(&error))),
            ost: None,
            timeline,
        },
    }
}
