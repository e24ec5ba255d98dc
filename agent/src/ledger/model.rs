//! A host on which anything happens in any order: launches, growth, shrinks, refusals, guests that
//! stop half-way, deaths, and the death of the agent between any two of its steps. What is promised
//! never passes the limit, what VMs really have is never more than the book says, and when
//! everything has come to its end, nothing is reserved for nobody.

use std::collections::BTreeMap;

use concertina_api::instance::InstanceSize;
use concertina_api::vm::Outcome;
use proptest::prelude::*;

use super::*;
use crate::clock::Moment;
use crate::journal::crashes::MemoryDisk;
use crate::journal::{Action, Conclusion, Durability, Intent, IntentId, Journal, Record};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Launch {
        who: usize,
        floor: u64,
        weight: u32,
    },
    Launched {
        who: usize,
        well: bool,
    },
    Resize {
        who: usize,
        axis: Axis,
        parts: u64,
    },
    /// The guest goes this far towards what is asked, in percent.
    Guest {
        who: usize,
        axis: Axis,
        percent: u64,
    },
    Finish {
        who: usize,
        axis: Axis,
    },
    Stuck {
        who: usize,
        axis: Axis,
        stuck: bool,
    },
    Death {
        who: usize,
    },
    /// The agent dies at so many points from here; VMs may die before it is back.
    AgentDies {
        after: u32,
        with_it: Option<usize>,
    },
}

fn axis() -> impl Strategy<Value = Axis> {
    prop_oneof![Just(Axis::Cpus), Just(Axis::Memory)]
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..NAMES.len();
    prop_oneof![
        2 => (who(), 1..5u64, 1..4u32)
            .prop_map(|(who, floor, weight)| Step::Launch { who, floor, weight }),
        3 => (who(), prop::bool::weighted(0.9))
            .prop_map(|(who, well)| Step::Launched { who, well }),
        8 => (who(), axis(), 0..17u64)
            .prop_map(|(who, axis, parts)| Step::Resize { who, axis, parts }),
        6 => (who(), axis(), 0..=100u64)
            .prop_map(|(who, axis, percent)| Step::Guest { who, axis, percent }),
        6 => (who(), axis()).prop_map(|(who, axis)| Step::Finish { who, axis }),
        1 => (who(), axis(), any::<bool>())
            .prop_map(|(who, axis, stuck)| Step::Stuck { who, axis, stuck }),
        1 => who().prop_map(|who| Step::Death { who }),
        2 => (0..6u32, prop::option::of(who()))
            .prop_map(|(after, with_it)| Step::AgentDies { after, with_it }),
    ]
}

/// The agent has died; what it was doing ends here.
struct Dead;

struct World {
    limits: Limits,
    disk: MemoryDisk,
    journal: Journal,
    ledger: Ledger,
    /// What VMs really have: they outlive the agent.
    vms: BTreeMap<String, Size>,
    dies_in: Option<u32>,
    dies_with_it: Option<usize>,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            overhead: Bytes::mib(10),
            ..Limits::exact(Size {
                cpus: Cpus::whole(5),
                memory: Bytes::mib(2500),
            })
        };
        let disk = MemoryDisk::default();
        Self {
            limits,
            journal: disk.journal(),
            disk,
            ledger: Ledger::new(limits),
            vms: BTreeMap::new(),
            dies_in: None,
            dies_with_it: None,
        }
    }

    /// A point at which the agent may die.
    fn point(&mut self) -> Result<(), Dead> {
        match &mut self.dies_in {
            Some(0) => Err(Dead),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn begin(&mut self, name: &str, action: Action) -> Option<IntentId> {
        let intent = Intent {
            id: IntentId::NEXT,
            instance: name.into(),
            action,
            key: None,
            at: Moment::now(),
        };
        self.journal.begin(intent).ok()
    }

    fn write(&mut self, records: &[Record]) {
        for result in self.journal.append_batch(records, Durability::Synced) {
            result.unwrap();
        }
    }

    fn open(&self, name: &str, axis: Axis) -> Option<Intent> {
        let mut open = self.journal.book().open_of(name);
        open.find(|intent| intent.changes(axis)).cloned()
    }

    fn take(&mut self, step: &Step) -> Result<(), Dead> {
        match *step {
            Step::Launch { who, floor, weight } => self.launch(NAMES[who], floor, weight),
            Step::Launched { who, well } => self.launched(NAMES[who], well),
            Step::Resize { who, axis, parts } => self.resize(NAMES[who], axis, parts),
            Step::Guest { who, axis, percent } => {
                self.guest(NAMES[who], axis, percent);
                Ok(())
            }
            Step::Finish { who, axis } => self.finish(NAMES[who], axis),
            Step::Stuck { who, axis, stuck } => {
                let _ = self.ledger.set_stuck(NAMES[who], axis, stuck);
                Ok(())
            }
            Step::Death { who } => self.death(NAMES[who]),
            Step::AgentDies { after, with_it } => {
                self.dies_in = Some(after);
                self.dies_with_it = with_it;
                Ok(())
            }
        }
    }

    fn launch(&mut self, name: &str, floor: u64, weight: u32) -> Result<(), Dead> {
        let claim = Claim {
            bounds: PolicyBounds {
                cpus: "0.5..4".parse().unwrap(),
                memory: format!("{}M..2G", floor * 128).parse().unwrap(),
            },
            weight,
        };
        if self.ledger.admit(name, claim).is_err() {
            return Ok(());
        }
        self.point()?;
        assert!(self.begin(name, Action::Launch { claim }).is_some());
        self.point()
    }

    fn launched(&mut self, name: &str, well: bool) -> Result<(), Dead> {
        let is_launch = |intent: &&Intent| matches!(intent.action, Action::Launch { .. });
        let book = self.journal.book();
        let Some(intent) = book.open_of(name).find(is_launch).cloned() else {
            return Ok(());
        };
        let size = book.instances()[name].size;
        if !well {
            return self.death(name);
        }
        self.vms.insert(name.into(), size);
        self.point()?;
        self.write(&[Record::Outcome(Conclusion {
            id: intent.id,
            outcome: Outcome::Applied,
            after: InstanceSize::default(),
            reason: None,
            at: Moment::now(),
        })]);
        self.point()?;
        for axis in Axis::ALL {
            self.ledger.commit(name, axis, size.of(axis)).unwrap();
        }
        Ok(())
    }

    /// To so many sixteenths of the upper bound, up or down.
    fn resize(&mut self, name: &str, axis: Axis, parts: u64) -> Result<(), Dead> {
        let Some(book) = self.journal.book().instances().get(name) else {
            return Ok(());
        };
        if !book.running || self.open(name, axis).is_some() {
            return Ok(());
        }
        let bounds = book.claim.bounds.of(axis);
        let target = bounds.clamp(bounds.max / 16 * parts);
        let held = self.ledger.held(name, axis);
        if target < held {
            self.ledger.begin_shrink(name, axis, target).unwrap();
        } else if let Err(why) = self.ledger.reserve(name, axis, target) {
            let _ = self.ledger.wait_for(name, axis, target, 0, &why);
            return Ok(());
        }
        self.point()?;
        self.intend(name, axis, target);
        self.point()
    }

    fn intend(&mut self, name: &str, axis: Axis, target: u64) {
        let before = self.journal.book().instances()[name].size.of(axis);
        let action = Action::Resize {
            before: one_axis(axis, before),
            target: one_axis(axis, target),
            cause: "manual".into(),
            policy_version: 1,
        };
        assert!(self.begin(name, action).is_some());
    }

    /// The guest acts on what it is asked for, also while the agent is not looking.
    fn guest(&mut self, name: &str, axis: Axis, percent: u64) {
        let Some(Intent {
            action: Action::Resize { target, .. },
            ..
        }) = self.open(name, axis)
        else {
            return;
        };
        let target = of_axis(target, axis).unwrap();
        if let Some(vm) = self.vms.get_mut(name) {
            let (now, far) = (vm.of(axis) as i64, target as i64);
            let after = now + (far - now) / 100 * percent as i64;
            match axis {
                Axis::Cpus => vm.cpus = Cpus(after as u32),
                Axis::Memory => vm.memory = Bytes(after as u64),
            }
        }
    }

    fn finish(&mut self, name: &str, axis: Axis) -> Result<(), Dead> {
        let Some(Intent {
            id,
            action: Action::Resize { target, .. },
            ..
        }) = self.open(name, axis)
        else {
            return Ok(());
        };
        let Some(vm) = self.vms.get(name) else {
            return self.death(name);
        };
        let seen = vm.of(axis);
        let reached = of_axis(target, axis) == Some(seen);
        self.write(&[Record::Outcome(Conclusion {
            id,
            outcome: if reached {
                Outcome::Applied
            } else {
                Outcome::Partial
            },
            after: one_axis(axis, seen),
            reason: None,
            at: Moment::now(),
        })]);
        self.point()?;
        self.ledger.commit(name, axis, seen).unwrap();
        self.serve()
    }

    fn serve(&mut self) -> Result<(), Dead> {
        for served in self.ledger.serve() {
            let (name, axis) = (served.wait.instance, served.wait.axis);
            self.point()?;
            if self.open(&name, axis).is_some() {
                self.ledger.abort(&name, axis).unwrap();
            } else {
                self.intend(&name, axis, served.granted);
            }
        }
        self.point()
    }

    fn death(&mut self, name: &str) -> Result<(), Dead> {
        self.vms.remove(name);
        self.point()?;
        let records = self
            .journal
            .book()
            .records_of_end(name, "gone", &Moment::now());
        self.write(&records);
        self.point()?;
        self.ledger.forget(name);
        self.serve()
    }

    /// Another agent starts, with what the journal says and what it finds.
    fn restart(&mut self) {
        if let Some(who) = self.dies_with_it.take() {
            self.vms.remove(NAMES[who]);
        }
        self.dies_in = None;
        self.journal = self.disk.journal();
        self.ledger = Ledger::rebuild(self.limits, self.journal.book().holdings());
        for name in NAMES {
            if !self.vms.contains_key(name) {
                assert!(self.death(name).is_ok());
                continue;
            }
            let launching = !self.journal.book().instances()[name].running;
            if launching {
                assert!(self.launched(name, true).is_ok());
            }
        }
    }

    fn check(&self) {
        for axis in Axis::ALL {
            let limit = self.limits.of(axis);
            let overhead = self.limits.overhead(axis);
            let holds = |h: &Holding| h.actual.of(axis).max(h.reserved.of(axis)) + overhead;
            let held: u64 = self.ledger.holdings().map(|h| holds(&h)).sum();
            assert!(held <= limit, "{axis:?}: {held} is promised of {limit}");
            let account = self.ledger.account(axis);
            assert_eq!((account.held, account.overdrawn()), (held, 0));
            for holding in self.ledger.holdings() {
                assert!(holding.reserved.of(axis) >= holding.claim.bounds.of(axis).min);
            }
            for (name, vm) in &self.vms {
                let held = self.ledger.held(name, axis);
                assert!(vm.of(axis) <= held, "{name} has {vm:?} and holds {held}");
            }
        }
    }

    /// Everything comes to its end: nothing is reserved but what is there.
    fn settle(&mut self) {
        self.dies_in = None;
        for name in NAMES {
            for axis in Axis::ALL {
                self.ledger.withdraw(name, axis);
            }
        }
        for name in NAMES {
            assert!(self.launched(name, true).is_ok());
            for axis in Axis::ALL {
                assert!(self.finish(name, axis).is_ok());
            }
        }
        assert_eq!(self.journal.book().open().count(), 0);
        for holding in self.ledger.holdings() {
            let vm = self.vms[&holding.name];
            for axis in Axis::ALL {
                let floor = holding.claim.bounds.of(axis).min;
                assert_eq!(
                    self.ledger.held(&holding.name, axis),
                    vm.of(axis).max(floor)
                );
            }
        }
        let book = Ledger::rebuild(self.limits, self.journal.book().holdings());
        assert!(
            book.holdings()
                .eq(self.ledger.holdings().map(|holding| Holding {
                    stuck: StuckAxes::default(),
                    ..holding
                }))
        );
        for name in NAMES {
            assert!(self.death(name).is_ok());
        }
        for axis in Axis::ALL {
            assert_eq!(self.ledger.account(axis).held, 0);
        }
    }
}

fn one_axis(axis: Axis, value: u64) -> InstanceSize {
    match axis {
        Axis::Cpus => InstanceSize {
            cpus: Some(Cpus(value as u32)),
            memory: None,
            disk_rate: None,
            net_rate: None,
        },
        Axis::Memory => InstanceSize {
            cpus: None,
            memory: Some(Bytes(value)),
            disk_rate: None,
            net_rate: None,
        },
    }
}

fn of_axis(size: InstanceSize, axis: Axis) -> Option<u64> {
    match axis {
        Axis::Cpus => size.cpus.map(|cpus| cpus.milli().into()),
        Axis::Memory => size.memory.map(Bytes::get),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_happens_in_whatever_order_no_more_is_promised_than_there_is(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            if world.take(step).is_err() {
                world.restart();
            }
            world.check();
        }
        world.settle();
    }
}
