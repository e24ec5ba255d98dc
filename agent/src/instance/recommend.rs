//! What the rules want of an instance whose policy only recommends. A decision is made each period
//! and wants the same again and again; an event says when it begins to want something else.

use concertina_api::event::EventKind;
use concertina_api::instance::InstanceSize;

use crate::policy::{Decision, Size, Wish};

/// What was said last, by axis.
#[derive(Debug, Default)]
pub(super) struct Recommendations {
    cpus: Option<Said>,
    memory: Option<Said>,
    size: InstanceSize,
}

/// A recommendation: another size or another cause makes another one. Its notes tell of times that
/// pass, and do not.
#[derive(Debug, PartialEq)]
struct Said {
    causes: Vec<String>,
    present: InstanceSize,
    recommended: InstanceSize,
}

impl Recommendations {
    /// The events of one decision about an instance of this size.
    pub(super) fn of(&mut self, decision: &Decision, size: &Size) -> Vec<EventKind> {
        let cpus = |cpus| InstanceSize {
            cpus: Some(cpus),
            memory: None,
            disk_rate: None,
            net_rate: None,
        };
        let memory = |memory| InstanceSize {
            cpus: None,
            memory: Some(memory),
            disk_rate: None,
            net_rate: None,
        };
        self.size = InstanceSize {
            cpus: decision.cpus.as_ref().map(|wish| wish.target),
            memory: decision.memory.as_ref().map(|wish| wish.target),
            disk_rate: None,
            net_rate: None,
        };
        let events = [
            news(&mut self.cpus, decision.cpus.as_ref(), size.cpus, cpus),
            news(
                &mut self.memory,
                decision.memory.as_ref(),
                size.memory,
                memory,
            ),
        ];
        events.into_iter().flatten().collect()
    }

    /// The size that is wanted at this moment; absent: the present one.
    pub(super) fn size(&self) -> Option<InstanceSize> {
        (self.size != InstanceSize::default()).then_some(self.size)
    }
}

fn news<T: Copy>(
    said: &mut Option<Said>,
    wish: Option<&Wish<T>>,
    present: T,
    size: impl Fn(T) -> InstanceSize,
) -> Option<EventKind> {
    let says = wish.map(|wish| Said {
        causes: wish.causes.clone(),
        present: size(present),
        recommended: size(wish.target),
    });
    if *said == says {
        return None;
    }
    *said = says;
    wish.map(|wish| EventKind::Recommended {
        cause: wish.causes.join("; "),
        note: (!wish.notes.is_empty()).then(|| wish.notes.join("; ")),
        present: size(present),
        recommended: size(wish.target),
    })
}

#[cfg(test)]
mod tests {
    use concertina_api::policy::Direction;
    use concertina_api::{Bytes, Cpus};

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
            said.push(recommendations.of(&decision(wanted), &size).len());
            let size = recommendations.size().and_then(|size| size.cpus);
            assert_eq!(size, wanted.map(Cpus));
        }
        assert_eq!(said, [0, 1, 0, 1, 0, 1]);
    }
}
