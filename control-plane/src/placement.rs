//! Which host gets an instance: a pure function of what hosts can promise and have promised.
//!
//! Filter: ready, named by the hints, room for the lower bounds. Score: most room left on the scarcer
//! axis, least of the same spread group, fewest instances of the same account; then the id, so that the
//! same input has the same answer. When nothing fits, the refusal says what was needed and what each
//! reason kept away.

use std::cmp::Ordering;

use concertina_api::link::HostCapacity;
use concertina_api::{Bytes, Cpus};

use crate::model::{HostState, Promised};

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: HostState,
    /// What it can promise.
    pub capacity: HostCapacity,
    /// What it has promised.
    pub promised: Promised,
    /// Instances on it of the same account and spread group.
    pub same_group: u32,
}

/// What is to be placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Lower bound of CPUs.
    pub cpus: Cpus,
    /// Lower bound of memory.
    pub memory: Bytes,
    /// Only on the host of this name.
    pub only: Option<String>,
    /// Only on the host of this id, where its disk is.
    pub pinned: Option<String>,
    /// Not on the host of this id.
    pub not: Option<String>,
}

/// Nothing fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoRoom {
    /// What was asked for.
    pub cpus: Cpus,
    /// See `cpus`.
    pub memory: Bytes,
    /// Hosts that there are.
    pub hosts: usize,
    /// Of them not ready.
    pub not_ready: usize,
    /// Of the rest kept away by hints.
    pub excluded: usize,
    /// Of the rest short of CPUs or memory.
    pub full: usize,
    /// The most CPUs that a ready host can still promise.
    pub most_cpus: Cpus,
    /// The most memory that a ready host can still promise.
    pub most_memory: Bytes,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "No host has room for {} CPUs and {} of memory: of {} hosts {} are not ready, {} are \
             excluded and {} are too full; the most that one of the ready ones can still promise is \
             {} CPUs and {} of memory",
            self.cpus,
            self.memory,
            self.hosts,
            self.not_ready,
            self.excluded,
            self.full,
            self.most_cpus,
            self.most_memory
        )
    }
}

impl Candidate {
    /// What it can still promise.
    pub fn room(&self) -> (Cpus, Bytes) {
        let HostCapacity {
            cpus,
            memory,
            own_cpus,
            own_memory,
            ..
        } = self.capacity;
        let held = own_cpus.0.saturating_add(self.promised.cpus.0);
        let held_memory = own_memory.0.saturating_add(self.promised.memory.0);
        (
            Cpus(cpus.0.saturating_sub(held)),
            Bytes(memory.0.saturating_sub(held_memory)),
        )
    }

    /// Share of it that is left after a launch, on the scarcer axis.
    fn left(&self, wish: &Wish) -> f64 {
        let (cpus, memory) = self.room();
        let share = |room: u64, wished: u64, all: u64| {
            room.saturating_sub(wished) as f64 / all.max(1) as f64
        };
        let cpus = share(
            cpus.0.into(),
            wish.cpus.0.into(),
            self.capacity.cpus.0.into(),
        );
        let memory = share(memory.0, wish.memory.0, self.capacity.memory.0);
        cpus.min(memory)
    }
}

/// The host for an instance.
///
/// # Errors
/// None has room.
pub fn place<'a>(wish: &Wish, hosts: &'a [Candidate]) -> Result<&'a Candidate, NoRoom> {
    let mut refusal = NoRoom {
        cpus: wish.cpus,
        memory: wish.memory,
        hosts: hosts.len(),
        ..NoRoom::default()
    };
    let mut fitting = Vec::new();
    for host in hosts {
        let differs =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_some_and(|w| w != is);
        let (cpus, memory) = host.room();
        if host.state != HostState::Ready {
            refusal.not_ready += 1;
        } else if differs(&wish.only, &host.name)
            || differs(&wish.pinned, &host.id)
            || wish.not.as_deref() == Some(host.id.as_str())
        {
            refusal.excluded += 1;
        } else {
            refusal.most_cpus = refusal.most_cpus.max(cpus);
            refusal.most_memory = refusal.most_memory.max(memory);
            if cpus < wish.cpus || memory < wish.memory {
                refusal.full += 1;
            } else {
                fitting.push(host);
            }
        }
    }
    let better = |a: &&Candidate, b: &&Candidate| -> Ordering {
        b.same_group
            .cmp(&a.same_group)
            .then(a.left(wish).total_cmp(&b.left(wish)))
            .then(b.id.cmp(&a.id))
    };
    fitting.into_iter().max_by(better).ok_or(refusal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(id: u32, cpus: u32, memory: u64, promised: (u32, u64), ready: bool) -> Candidate {
        Candidate {
            id: format!("h-{id:02}"),
            name: format!("host{id}"),
            state: if ready {
                HostState::Ready
            } else {
                HostState::Lost
            },
            capacity: HostCapacity {
                cpus: Cpus(cpus),
                memory: Bytes(memory),
                ..HostCapacity::default()
            },
            promised: Promised {
                cpus: Cpus(promised.0),
                memory: Bytes(promised.1),
                instances: 1,
            },
            same_group: 0,
        }
    }

    fn hosts() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (
            0u32..8000,
            0u64..8000,
            0u32..8000,
            0u64..8000,
            any::<bool>(),
        );
        prop::collection::vec(one, 0..12).prop_map(|hosts| {
            let make = |(id, (cpus, memory, used, held, ready)): (u32, _)| {
                host(id, cpus, memory, (used, held), ready)
            };
            (0..).zip(hosts).map(make).collect()
        })
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_is_ready_and_has_room(hosts in hosts(), cpus in 0u32..9000, memory in 0u64..9000) {
            let wish = Wish { cpus: Cpus(cpus), memory: Bytes(memory), ..Wish::default() };
            let fits = |host: &Candidate| {
                let (free, room) = host.room();
                host.state == HostState::Ready && free >= wish.cpus && room >= wish.memory
            };
            match place(&wish, &hosts) {
                Ok(chosen) => {
                    prop_assert!(fits(chosen));
                    let best = hosts.iter().filter(|host| fits(host)).map(|host| host.left(&wish));
                    prop_assert!(best.fold(0.0, f64::max) <= chosen.left(&wish));
                }
                Err(refusal) => {
                    prop_assert!(!hosts.iter().any(fits));
                    prop_assert_eq!(refusal.hosts, refusal.not_ready + refusal.excluded + refusal.full);
                }
            }
        }

        #[test]
        fn the_order_of_hosts_does_not_matter(hosts in hosts(), cpus in 0u32..4000) {
            let wish = Wish { cpus: Cpus(cpus), ..Wish::default() };
            let mut reversed = hosts.clone();
            reversed.reverse();
            let id = |found: Result<&Candidate, NoRoom>| found.map(|host| host.id.clone());
            prop_assert_eq!(id(place(&wish, &hosts)), id(place(&wish, &reversed)));
        }
    }

    #[test]
    fn hints_are_kept_and_a_group_is_spread() {
        let mut hosts = vec![
            host(1, 8000, 8000, (0, 0), true),
            host(2, 8000, 8000, (4000, 0), true),
        ];
        let mut wish = Wish::default();
        assert_eq!(place(&wish, &hosts).unwrap().name, "host1");
        hosts[0].same_group = 1;
        assert_eq!(place(&wish, &hosts).unwrap().name, "host2");
        wish.only = Some("host1".into());
        assert_eq!(place(&wish, &hosts).unwrap().name, "host1");
        wish.not = Some("h-01".into());
        assert_eq!(place(&wish, &hosts).unwrap_err().excluded, 2);
    }

    #[test]
    fn a_refusal_has_numbers() {
        let hosts = [host(1, 2000, Bytes::GIB, (1500, 0), true)];
        let wish = Wish {
            cpus: Cpus::whole(1),
            ..Wish::default()
        };
        let text = place(&wish, &hosts).unwrap_err().to_string();
        assert!(
            text.contains("1 are too full") && text.contains("0.5 CPUs and 1G"),
            "{text}"
        );
    }
}
