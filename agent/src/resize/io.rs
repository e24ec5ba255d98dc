//! Limits on I/O. They need nothing of the guest and take effect at once.
//!
//! Somebody's wish may name a device, rules and bounds never do: where limits have bounds, all devices
//! of a kind have the same one. What was set last is kept here, and given to each new life of the vmm.

use std::collections::BTreeMap;

use concertina_api::IoRate;
use concertina_api::disk::DiskRate;
use concertina_api::net::{NetRateChange, NetRates};
use concertina_api::policy::{Device, IoBounds, Resource};
use concertina_api::vm::{Outcome, VmDescription, VmResize, VmSize};

use super::report::{AxisReport, Timeline};
use super::{Cause, Commit, Order};
use crate::sentence;
use crate::vmm::VmmClient;

/// The limits of an instance's devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoRates {
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<IoRate>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetRates>,
}

impl IoRates {
    /// Those that a vmm at work has.
    pub fn seen(vm: &VmDescription) -> Self {
        Self {
            disks: vm.disks.iter().map(|disk| disk.rate).collect(),
            nets: vm.nets.iter().map(|net| net.rates).collect(),
        }
    }

    /// The limit of the first device of a kind, in the direction to the guest: where limits have
    /// bounds it is that of all.
    pub fn of(&self, device: Device) -> Option<IoRate> {
        match device {
            Device::Disk => self.disks.first().copied(),
            Device::Net => self.nets.first().map(|rates| rates.rx),
        }
    }

    /// Limits that have bounds, in their smallest unit.
    pub fn bounded(&self, bounds: &IoBounds) -> BTreeMap<Resource, u64> {
        let limit = |resource: Resource| {
            let device = resource.device()?;
            resource.of_rate(&bounds.of(device)?.min())?;
            Some((resource, resource.of_rate(&self.of(device)?)?))
        };
        Resource::IO.into_iter().filter_map(limit).collect()
    }

    /// The limit in the place of which a wish shall come.
    pub fn disk_before(&self, wish: DiskRate) -> Option<DiskRate> {
        let (disk, rate) = (wish.disk, *self.disks.get(wish.disk.unwrap_or(0))?);
        Some(DiskRate { disk, rate })
    }

    /// The same for network interfaces.
    pub fn net_before(&self, wish: NetRateChange) -> Option<NetRateChange> {
        let number = usize::try_from(wish.index.unwrap_or(0)).ok()?;
        let rates = self.nets.get(number)?;
        Some(NetRateChange {
            index: wish.index,
            rx: wish.rx.map(|_| rates.rx),
            tx: wish.tx.map(|_| rates.tx),
        })
    }

    fn adopt_disk(&mut self, got: DiskRate) {
        for (number, rate) in self.disks.iter_mut().enumerate() {
            if got.disk.is_none_or(|disk| disk == number) {
                *rate = got.rate;
            }
        }
    }

    fn adopt_net(&mut self, got: NetRateChange) {
        let named = got.index.and_then(|index| usize::try_from(index).ok());
        for (number, rates) in self.nets.iter_mut().enumerate() {
            if got.index.is_none() || named == Some(number) {
                rates.rx = got.rx.unwrap_or(rates.rx);
                rates.tx = got.tx.unwrap_or(rates.tx);
            }
        }
    }
}

/// What an order means for the limits: whole rates, inside their bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct IoWish {
    pub disk: Option<DiskRate>,
    pub net: Option<NetRateChange>,
}

impl IoWish {
    /// # Errors
    /// A sentence: the order is outside the bounds, or names one device where all have the same limit.
    pub fn of(order: &Order, bounds: &IoBounds, rates: &IoRates) -> Result<Self, String> {
        let mut wish = Self {
            disk: order.disk_rate,
            net: order.net_rate,
        };
        if let Some((resource, size)) = order.io {
            wish.step(resource, size, bounds, rates)?;
        }
        if let Some((asked, bounds)) = wish.disk.as_mut().zip(bounds.disk) {
            if asked.disk.is_some() {
                return Err(one_for_all("Disk", "disks", "--disk-rate 50M"));
            }
            let present = rates.of(Device::Disk).unwrap_or_default();
            asked.rate = bounds.settle("Disk rate", asked.rate, present)?;
        }
        if let Some((asked, bounds)) = wish.net.as_mut().zip(bounds.net) {
            let rate = asked
                .rx
                .filter(|_| asked.rx == asked.tx && asked.index.is_none());
            let Some(rate) = rate else {
                let (what, all) = ("Network", "network interfaces and directions");
                return Err(one_for_all(what, all, "--net-rate 400mbit"));
            };
            let present = rates.of(Device::Net).unwrap_or_default();
            let settled = bounds.settle("Network rate", rate, present)?;
            (asked.rx, asked.tx) = (Some(settled), Some(settled));
        }
        Ok(wish)
    }

    /// One number of the present limit becomes another one.
    fn step(
        &mut self,
        resource: Resource,
        size: u64,
        bounds: &IoBounds,
        rates: &IoRates,
    ) -> Result<(), String> {
        let present = resource.device().and_then(|device| {
            bounds.of(device)?;
            Some((device, rates.of(device)?))
        });
        match present {
            Some((Device::Disk, present)) => {
                let rate = resource.in_rate(present, size);
                self.disk = Some(DiskRate { disk: None, rate });
            }
            Some((Device::Net, present)) => {
                let rate = Some(resource.in_rate(present, size));
                self.net = Some(NetRateChange {
                    index: None,
                    rx: rate,
                    tx: rate,
                });
            }
            None => {
                let name = resource.as_str();
                return Err(format!("Limit {name} of this instance has no bounds"));
            }
        }
        Ok(())
    }
}

fn one_for_all(what: &str, all: &str, example: &str) -> String {
    format!(
        "{what} rates of this instance have bounds, and all its {all} have the same: name none, as in \
         {example}"
    )
}

/// How the limits of an order ended.
#[derive(Debug, Default)]
pub(super) struct IoReports {
    pub disk: Option<AxisReport<Option<DiskRate>>>,
    pub net: Option<AxisReport<Option<NetRateChange>>>,
}

/// Sets what is wished, and keeps what the vmm has read back.
pub(super) fn change(
    vmm: &VmmClient,
    wish: IoWish,
    rates: &mut IoRates,
    timeline: &Timeline,
) -> IoReports {
    let disk = wish.disk.map(|rate| {
        let asked = VmResize {
            disk_rate: Some(rate),
            ..VmResize::default()
        };
        set(
            vmm,
            &asked,
            rate,
            "Disk rate",
            |got| got.disk_rate,
            timeline.clone(),
        )
    });
    let net = wish.net.map(|change| {
        let asked = VmResize {
            net_rate: Some(change),
            ..VmResize::default()
        };
        let got = |got: VmSize| got.net_rate;
        set(vmm, &asked, change, "Network rate", got, timeline.clone())
    });
    if let Some(got) = disk.as_ref().and_then(|report| report.got) {
        rates.adopt_disk(got);
    }
    if let Some(got) = net.as_ref().and_then(|report| report.got) {
        rates.adopt_net(got);
    }
    IoReports { disk, net }
}

/// What whoever decides has to know of a change: one commit for each limit that has bounds and was
/// meant.
pub(super) fn commits(
    order: &Order,
    wish: &IoWish,
    bounds: &IoBounds,
    (before, after): (&IoRates, &IoRates),
) -> Vec<Commit> {
    let (before, after) = (before.bounded(bounds), after.bounded(bounds));
    let commit = |resource: Resource| {
        let asked = match resource.device()? {
            Device::Disk => wish.disk?.rate,
            Device::Net => wish.net?.rx?,
        };
        let meant = match &order.cause {
            Cause::Manual => true,
            // The host has no ledger for limits, and wants nothing of them.
            Cause::Host(_) => false,
            Cause::Rules(_) => order.io.is_some_and(|(of, _)| of == resource),
        };
        meant.then_some(())?;
        Some(Commit {
            axis: resource,
            cause: order.cause.clone(),
            before: *before.get(&resource)?,
            asked: resource.of_rate(&asked)?,
            after: *after.get(&resource)?,
            intent: None,
        })
    };
    Resource::IO.into_iter().filter_map(commit).collect()
}

fn set<T: PartialEq>(
    vmm: &VmmClient,
    asked: &VmResize,
    wish: T,
    what: &str,
    got: impl FnOnce(VmSize) -> Option<T>,
    mut timeline: Timeline,
) -> AxisReport<Option<T>> {
    let sent_ms = timeline.elapsed_ms();
    let (outcome, got, reason) = match vmm.resize(asked) {
        Ok(answer) => {
            timeline.adopt(sent_ms, &answer.timeline_ms);
            let got = got(answer.got);
            // The devices' word counts, not that they were told.
            if answer.outcome == Outcome::Applied && got.as_ref() != Some(&wish) {
                let reason = format!("{what} was set, and the device has another one");
                (Outcome::Partial, got, Some(reason))
            } else {
                (answer.outcome, got, answer.reason)
            }
        }
        Err(error) => {
            let reason = format!("{what} was not set: {}", sentence(&error));
            (Outcome::TimedOut, None, Some(reason))
        }
    };
    AxisReport {
        outcome,
        got,
        reason,
        ost: None,
        timeline,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rate(text: &str) -> IoRate {
        text.parse().unwrap()
    }

    fn rates(disk: &str, net: &str) -> IoRates {
        let net = NetRates {
            rx: rate(net),
            tx: rate(net),
        };
        IoRates {
            disks: vec![rate(disk); 2],
            nets: vec![net],
        }
    }

    fn bounds(disk: Option<&str>, net: Option<&str>) -> IoBounds {
        IoBounds {
            disk: disk.map(|text| text.parse().unwrap()),
            net: net.map(|text| text.parse().unwrap()),
        }
    }

    fn order(io: Option<(Resource, u64)>, disk: Option<&str>, net: Option<&str>) -> Order {
        Order {
            io,
            ..Order::manual(None, None, Duration::ZERO)
        }
        .with_disk_rate(disk.map(|text| text.parse().unwrap()))
        .with_net_rate(net.map(|text| text.parse().unwrap()))
    }

    #[test]
    fn a_rule_changes_one_number_of_the_limit_of_all_devices() {
        let bounds = bounds(Some("10M,100iops..100M,500iops"), Some("80mbit..800mbit"));
        let rates = rates("20M,burst=5M,200iops", "100mbit");
        let wish = |io| IoWish::of(&order(Some(io), None, None), &bounds, &rates).unwrap();
        let disk = wish((Resource::DiskOps, 300)).disk.unwrap();
        assert_eq!((disk.disk, disk.rate), (None, rate("20M,burst=5M,300iops")));
        let net = wish((Resource::NetBytes, 50_000_000)).net.unwrap();
        assert_eq!(
            (net.index, net.rx, net.tx),
            (None, Some(rate("400mbit")), net.rx)
        );
        // Limits are looked at in the same parts.
        let seen = rates.bounded(&bounds);
        assert_eq!(seen.get(&Resource::DiskBytes), Some(&(20 << 20)));
        assert_eq!(seen.get(&Resource::NetBytes), Some(&12_500_000));
        assert_eq!(seen.get(&Resource::NetOps), None, "packets have no bounds");
    }

    #[test]
    fn by_hand_the_bounds_hold_and_all_devices_are_meant() {
        let bounds = bounds(Some("10M..100M"), Some("80mbit..800mbit"));
        let rates = rates("20M", "100mbit");
        let refused = |disk, net| IoWish::of(&order(None, disk, net), &bounds, &rates).unwrap_err();
        assert!(refused(Some("200M"), None).contains("10M to 100M"));
        assert!(refused(Some("max"), None).contains("outside the bounds"));
        assert!(refused(Some("1=50M"), None).contains("all its disks"));
        for one in ["rx=100mbit", "0=100mbit", "0.tx=100mbit"] {
            assert!(refused(None, Some(one)).contains("directions"), "{one}");
        }
        let wish = IoWish::of(&order(None, Some("50M"), Some("90mbit")), &bounds, &rates).unwrap();
        assert_eq!(wish.disk.unwrap().rate, rate("50M"));
        assert_eq!(wish.net.unwrap().tx, Some(rate("90mbit")));
        // Without bounds anything goes.
        let free = IoWish::of(
            &order(None, Some("1=max"), None),
            &IoBounds::default(),
            &rates,
        );
        assert_eq!(free.unwrap().disk.unwrap().disk, Some(1));
    }

    #[test]
    fn what_is_read_back_is_kept_for_the_devices_that_it_is_of() {
        let mut kept = rates("20M", "100mbit");
        kept.adopt_disk("1=50M".parse().unwrap());
        kept.adopt_net("tx=5mbit".parse().unwrap());
        assert_eq!(kept.disks, [rate("20M"), rate("50M")]);
        assert_eq!(
            (kept.nets[0].rx, kept.nets[0].tx),
            (rate("100mbit"), rate("5mbit"))
        );
        kept.adopt_net("7=1mbit".parse().unwrap());
        assert_eq!(kept.nets[0].tx, rate("5mbit"));
    }
}
