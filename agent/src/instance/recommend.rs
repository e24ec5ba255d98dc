//! What the rules want of an instance whose policy only recommends. A decision is made each period
//! and wants the same again and again; an event says when it begins to want something else.

use std::collections::BTreeMap;

use concertina_api::disk::DiskRate;
use concertina_api::event::EventKind;
use concertina_api::instance::InstanceSize;
use concertina_api::net::NetRateChange;
use concertina_api::policy::{Axis, Device, Resource};
use concertina_api::{Bytes, Cpus, IoRate};

use crate::policy::{Decision, Size, Wish};
use crate::resize::io::IoRates;

/// What was said last, by axis.
#[derive(Debug, Default)]
pub(super) struct Recommendations {
    said: BTreeMap<Resource, Said>,
    size: InstanceSize,
}

/// A recommendation: another size or another cause makes another one. Its notes tell of times that
/// pass, and do not.
#[derive(Debug, PartialEq)]
struct Said {
    causes: Vec<String>,
    present: u64,
    recommended: u64,
}

impl Recommendations {
    /// The events of one decision about an instance of this size, with these limits of its devices.
    pub(super) fn of(
        &mut self,
        decision: &Decision,
        size: &Size,
        rates: &IoRates,
    ) -> Vec<EventKind> {
        let cpus = decision.cpus.as_ref().map(|wish| {
            let wish = wish.clone().with_target(|cpus| cpus.milli().into());
            (Resource::Cpus, size.of(Axis::Cpus), wish)
        });
        let memory = decision.memory.as_ref().map(|wish| {
            let wish = wish.clone().with_target(Bytes::get);
            (Resource::Memory, size.of(Axis::Memory), wish)
        });
        let io = decision.io.iter().filter_map(|(resource, wish)| {
            let present = resource.of_rate(&rates.of(resource.device()?)?)?;
            Some((*resource, present, wish.clone()))
        });
        let wishes: Vec<_> = cpus.into_iter().chain(memory).chain(io).collect();
        self.said
            .retain(|resource, _| wishes.iter().any(|(of, ..)| of == resource));
        self.size = InstanceSize::default();
        let mut events = Vec::new();
        for (resource, present, wish) in wishes {
            put(&mut self.size, resource, wish.target, rates);
            events.extend(self.news(resource, present, &wish, rates));
        }
        events
    }

    /// The size that is wanted at this moment; absent: the present one.
    pub(super) fn size(&self) -> Option<InstanceSize> {
        (self.size != InstanceSize::default()).then_some(self.size)
    }

    fn news(
        &mut self,
        resource: Resource,
        present: u64,
        wish: &Wish<u64>,
        rates: &IoRates,
    ) -> Option<EventKind> {
        let says = Said {
            causes: wish.causes.clone(),
            present,
            recommended: wish.target,
        };
        if self.said.get(&resource) == Some(&says) {
            return None;
        }
        self.said.insert(resource, says);
        let size = |value| {
            let mut size = InstanceSize::default();
            put(&mut size, resource, value, rates);
            size
        };
        Some(EventKind::Recommended {
            cause: wish.causes.join("; "),
            note: (!wish.notes.is_empty()).then(|| wish.notes.join("; ")),
            present: size(present),
            recommended: size(wish.target),
        })
    }
}

/// Puts one number into a size; limits of which it is a part begin as they are.
fn put(size: &mut InstanceSize, resource: Resource, value: u64, rates: &IoRates) {
    let limit = |device: Device, so_far: Option<IoRate>| {
        let rate = so_far.or_else(|| rates.of(device)).unwrap_or_default();
        resource.in_rate(rate, value)
    };
    match resource.device() {
        None if resource == Resource::Cpus => {
            size.cpus = Some(Cpus(u32::try_from(value).unwrap_or(u32::MAX)));
        }
        None => size.memory = Some(Bytes(value)),
        Some(device @ Device::Disk) => {
            let rate = limit(device, size.disk_rate.map(|wish| wish.rate));
            size.disk_rate = Some(DiskRate { disk: None, rate });
        }
        Some(device @ Device::Net) => {
            let rate = Some(limit(device, size.net_rate.and_then(|change| change.rx)));
            size.net_rate = Some(NetRateChange {
                index: None,
                rx: rate,
                tx: rate,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use concertina_api::policy::Direction;

    use super::*;
    use crate::policy::Urgency;

    fn decision(cpus: Option<u32>) -> Decision {
        let wish = |cpus| Wish {
            target: Cpus(cpus),
            direction: Direction::Grow,
            causes: vec!["a rule".into()],
            urgency: Urgency::Prompt,
            // Another one each time, as notes with a time in them are.
            notes: vec![format!("{:?}", std::time::Instant::now())],
        };
        Decision {
            cpus: cpus.map(wish),
            ..Decision::default()
        }
    }

    #[test]
    fn a_recommendation_is_said_once_until_it_is_another_one() {
        let size = Size {
            cpus: Cpus(1000),
            memory: Bytes::mib(256),
        };
        let mut recommendations = Recommendations::default();
        let mut said = Vec::new();
        for wanted in [None, Some(2000), Some(2000), Some(3000), None, Some(3000)] {
            said.push({
                let rates = IoRates::default();
                recommendations.of(&decision(wanted), &size, &rates).len()
            });
            let size = recommendations.size().and_then(|size| size.cpus);
            assert_eq!(size, wanted.map(Cpus));
        }
        assert_eq!(said, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn both_numbers_of_a_limit_make_one_recommended_limit() {
        let wish = |target| Wish {
            target,
            direction: Direction::Grow,
            causes: vec!["a rule".into()],
            urgency: Urgency::Prompt,
            notes: Vec::new(),
        };
        let wanted = Decision {
            io: [
                (Resource::DiskBytes, wish(50 << 20)),
                (Resource::DiskOps, wish(900)),
            ]
            .into(),
            ..decision(None)
        };
        let size = Size {
            cpus: Cpus(1000),
            memory: Bytes::mib(256),
        };
        let rates = IoRates {
            disks: vec!["10M,500iops".parse().unwrap()],
            nets: Vec::new(),
        };
        let mut recommendations = Recommendations::default();
        let events = recommendations.of(&wanted, &size, &rates);
        let recommended = |event: &EventKind| match event {
            EventKind::Recommended { recommended, .. } => recommended.disk_rate.unwrap().rate,
            other => panic!("{other:?}"),
        };
        let rates_said: Vec<_> = events
            .iter()
            .map(|event| recommended(event).to_string())
            .collect();
        assert_eq!(rates_said, ["50M,500iops", "10M,900iops"]);
        let both = recommendations.size().unwrap().disk_rate.unwrap().rate;
        assert_eq!(both, "50M,900iops".parse().unwrap());
        assert!(recommendations.of(&wanted, &size, &rates).is_empty());
    }
}
