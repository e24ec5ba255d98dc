//! The I/O axis: limits of devices. They need nothing of the guest and take effect at once.

use concertina_api::disk::DiskRate;
use concertina_api::net::NetRateChange;
use concertina_api::vm::{Outcome, VmResize, VmSize};

use super::report::{AxisReport, Timeline};
use crate::sentence;
use crate::vmm::VmmClient;

/// Sets a limit of disks.
pub fn set_disk_rate(
    vmm: &VmmClient,
    wish: DiskRate,
    timeline: Timeline,
) -> AxisReport<Option<DiskRate>> {
    let asked = VmResize {
        disk_rate: Some(wish),
        ..VmResize::default()
    };
    set(vmm, &asked, "Disk rate", |got| got.disk_rate, timeline)
}

/// Sets a limit of network interfaces.
pub fn set_net_rate(
    vmm: &VmmClient,
    wish: NetRateChange,
    timeline: Timeline,
) -> AxisReport<Option<NetRateChange>> {
    let asked = VmResize {
        net_rate: Some(wish),
        ..VmResize::default()
    };
    set(vmm, &asked, "Network rate", |got| got.net_rate, timeline)
}

fn set<T>(
    vmm: &VmmClient,
    asked: &VmResize,
    what: &str,
    got: impl FnOnce(VmSize) -> Option<T>,
    mut timeline: Timeline,
) -> AxisReport<Option<T>> {
    let sent_ms = timeline.elapsed_ms();
    match vmm.resize(asked) {
        Ok(answer) => {
            timeline.adopt(sent_ms, &answer.timeline_ms);
            AxisReport {
                outcome: answer.outcome,
                got: got(answer.got),
                reason: answer.reason,
                ost: None,
                timeline,
            }
        }
        Err(error) => AxisReport {
            outcome: Outcome::TimedOut,
            got: None,
            reason: Some(format!("{what} was not set: {}", sentence(&error))),
            ost: None,
            timeline,
        },
    }
}
