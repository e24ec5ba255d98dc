//! What was seen while the demo ran: one sample a second, and the events.

use std::time::Duration;

use concertina_api::event::Event;
use concertina_api::instance::InstanceStatus;
use concertina_api::units::Quota;

use crate::guest::Demand;

/// One moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Since the load began.
    pub at: Duration,
    /// The instance as it says it is.
    pub status: InstanceStatus,
    /// What its guest wants.
    pub demand: Demand,
}

impl Sample {
    /// CPUs that the guest may use.
    pub fn cpus(&self) -> f64 {
        usable_cpus(&self.status)
    }

    /// Last value of the first threshold on a metric, in that metric's unit.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let thresholds = &self.status.thresholds;
        let of_metric = |rule: &str| rule.split_whitespace().next() == Some(name);
        thresholds.iter().find(|t| of_metric(&t.rule))?.last_value
    }
}

/// The vCPUs online, less what the quota withholds.
fn usable_cpus(status: &InstanceStatus) -> f64 {
    let online = f64::from(status.cpus.online);
    match status.cpus.quota {
        Quota::Max => online,
        Quota::Limited(cpus) => cpus.as_f64().min(online),
    }
}

/// Is the instance at its lower bounds?
pub fn is_small(status: &InstanceStatus) -> bool {
    usable_cpus(status) <= status.cpus.min.as_f64() && status.memory.plugged <= status.memory.min
}

/// An event, and when the demo saw it on its own clock.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Since the load began.
    pub at: Duration,
    /// The event.
    pub event: Event,
}

/// All of it.
#[derive(Debug)]
pub struct Recording {
    /// By time.
    pub samples: Vec<Sample>,
    /// By time, those after the load began.
    pub events: Vec<Seen>,
    known: usize,
}

impl Recording {
    /// Nothing yet; events that have been are not news.
    pub fn new(before: Vec<Event>) -> Self {
        Self {
            samples: Vec::new(),
            events: Vec::new(),
            known: before.len(),
        }
    }

    /// Adds a sample, and gives it back.
    pub fn take(&mut self, at: Duration, status: InstanceStatus, demand: Demand) -> Sample {
        let sample = Sample { at, status, demand };
        self.samples.push(sample.clone());
        sample
    }

    /// Adds what is new among all events so far, and gives that. An event is dated by its own clock.
    pub fn news(&mut self, all: Vec<Event>, now: Duration) -> Vec<Event> {
        let uptime = self
            .samples
            .last()
            .map_or(0, |sample| sample.status.uptime_ms);
        let fresh: Vec<Event> = all.into_iter().skip(self.known).collect();
        self.known += fresh.len();
        for event in &fresh {
            let age = Duration::from_millis(uptime.saturating_sub(event.uptime_ms));
            self.events.push(Seen {
                at: now.saturating_sub(age),
                event: event.clone(),
            });
        }
        fresh
    }

    /// Is the instance at its lower bounds?
    pub fn is_back(&self) -> bool {
        self.samples
            .last()
            .is_some_and(|sample| is_small(&sample.status))
    }

    /// Largest of a number over all samples.
    pub fn most(&self, number: impl Fn(&Sample) -> f64) -> f64 {
        self.samples.iter().map(number).fold(0.0, f64::max)
    }
}
