//! One instance as `top` knows it: what it said last, when, and what it was before.

use std::collections::VecDeque;
use std::time::Duration;

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{InstanceResize, InstanceState, InstanceStatus};
use concertina_api::{Bytes, Cpus};

use crate::commands::status::{cpus_in_force, state_word};

/// Most events that are kept of one instance.
const EVENTS_KEPT: usize = 500;
/// Most points that are kept of one instance: an hour at one a second.
const POINTS_KEPT: usize = 3600;

/// An instance as the state folder has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its supervisor lives.
    pub alive: bool,
    /// Where it is in its life, as recorded.
    pub state: InstanceState,
    /// Its supervisor's process: another one is another life.
    pub agent_pid: i32,
    /// Why it ended, when it said so.
    pub ending: Option<String>,
}

/// What an instance was at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// When, on the model's clock.
    pub at: Duration,
    /// Use of its CPUs in percent; absent: unknown.
    pub load: Option<f64>,
    /// CPUs that it had.
    pub cpus: Cpus,
    /// Memory that it held.
    pub memory: Bytes,
}

/// How far what is known of an instance can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has said how it is a moment ago.
    Answers,
    /// It was asked for the first time, and has not answered yet.
    Asked,
    /// It lives, and does not answer.
    Silent,
    /// It has ended.
    Ended,
}

/// What waits most, and how much of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// `c` for CPU, `m` for memory, `i` for I/O.
    pub of: char,
    /// Percent.
    pub percent: f64,
}

/// An instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// As the state folder has it.
    pub listed: Listed,
    since: Duration,
    /// What it said last.
    pub status: Option<InstanceStatus>,
    answered: Option<Duration>,
    failed: bool,
    /// What happened to it, oldest first.
    pub events: VecDeque<Event>,
    /// What it was, oldest first.
    pub history: VecDeque<Point>,
    /// A resize that is under way, and since when.
    pub resizing: Option<(InstanceResize, Duration)>,
}

impl Instance {
    /// An instance that was found at `now`.
    pub fn new(listed: Listed, now: Duration) -> Self {
        Self {
            listed,
            since: now,
            status: None,
            answered: None,
            failed: false,
            events: VecDeque::new(),
            history: VecDeque::new(),
            resizing: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.listed.name
    }

    /// It was found again.
    pub fn list(&mut self, listed: Listed, now: Duration) {
        let again = listed.alive && !self.listed.alive;
        if again || listed.agent_pid != self.listed.agent_pid {
            *self = Self::new(listed, now);
        } else {
            self.listed = listed;
        }
    }

    /// It has answered, or could not be asked.
    pub fn answer(&mut self, answer: Option<InstanceStatus>, now: Duration) {
        let Some(status) = answer else {
            self.failed = true;
            return;
        };
        let before = self.status.as_ref().map_or(0, |before| before.uptime_ms);
        if status.uptime_ms < before {
            // Launched again by the same supervisor, between two looks at the folder.
            self.history.clear();
        }
        self.failed = false;
        self.answered = Some(now);
        self.status = Some(status);
        if let (Some(cpus), Some(memory)) = (self.cpus(), self.memory()) {
            if self.history.len() >= POINTS_KEPT {
                self.history.pop_front();
            }
            self.history.push_back(Point {
                at: now,
                load: self.load(),
                cpus,
                memory,
            });
        }
    }

    /// Something happened to it.
    pub fn happened(&mut self, events: Vec<Event>) {
        for event in events {
            let last = self.events.back().map_or(0, |last| last.uptime_ms);
            if matches!(event.kind, EventKind::Started { .. }) && event.uptime_ms < last {
                // The first of another life, whose time begins anew.
                self.events.clear();
            }
            self.events.push_back(event);
        }
        let surplus = self.events.len().saturating_sub(EVENTS_KEPT);
        self.events.drain(..surplus);
    }

    /// How far it can be relied on, when an answer may take `patience`.
    pub fn standing(&self, now: Duration, patience: Duration) -> Standing {
        if !self.listed.alive {
            return Standing::Ended;
        }
        let late = now.saturating_sub(self.answered.unwrap_or(self.since)) > patience;
        match (self.failed || late, self.answered) {
            (true, _) => Standing::Silent,
            (false, Some(_)) => Standing::Answers,
            (false, None) => Standing::Asked,
        }
    }

    /// Its state in a word.
    pub fn word(&self, standing: Standing) -> &'static str {
        match (standing, &self.status) {
            (Standing::Silent, _) => "no answer",
            (Standing::Asked, _) => "asked",
            (Standing::Answers, Some(status)) => state_word(status.state),
            _ => state_word(self.listed.state),
        }
    }

    /// CPUs that it has.
    pub fn cpus(&self) -> Option<Cpus> {
        self.status
            .as_ref()
            .map(|status| cpus_in_force(&status.cpus))
    }

    /// Memory that it holds.
    pub fn memory(&self) -> Option<Bytes> {
        let memory = &self.status.as_ref()?.memory;
        Some(Bytes(
            memory.plugged.get().saturating_sub(memory.balloon.get()),
        ))
    }

    /// Use of its CPUs, percent.
    pub fn load(&self) -> Option<f64> {
        self.observed("cpu")
    }

    /// CPUs' worth of time that it takes.
    pub fn cpus_used(&self) -> Option<f64> {
        Some(self.load()? / 100.0 * self.cpus()?.as_f64())
    }

    /// What it waits for most.
    pub fn pressure(&self) -> Option<Pressure> {
        let kinds = [
            ('c', "cpu.pressure"),
            ('m', "memory.pressure"),
            ('i', "io.pressure"),
        ];
        let known = kinds
            .into_iter()
            .filter_map(|(of, name)| self.observed(name).map(|percent| Pressure { of, percent }));
        known.reduce(|most, next| {
            if next.percent > most.percent {
                next
            } else {
                most
            }
        })
    }

    fn observed(&self, metric: &str) -> Option<f64> {
        self.status.as_ref()?.observed.get(metric).copied()
    }

    /// How long it has run, at `now`.
    pub fn uptime(&self, now: Duration) -> Option<Duration> {
        let (status, answered) = (self.status.as_ref()?, self.answered?);
        Some(Duration::from_millis(status.uptime_ms) + now.saturating_sub(answered))
    }

    /// How long ago an event of it was.
    pub fn age(&self, event: &Event, now: Duration) -> Option<Duration> {
        let at = Duration::from_millis(event.uptime_ms);
        self.uptime(now).map(|uptime| uptime.saturating_sub(at))
    }

    /// What `value` was in `columns` equal parts of the time `span` before `now`: the largest in each.
    /// A point counts until the next one, for `hold` at most.
    pub fn past(
        &self,
        now: Duration,
        span: Duration,
        columns: usize,
        hold: Duration,
        value: impl Fn(&Point) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let width = span.as_secs_f64() / columns.max(1) as f64;
        let begin = now.as_secs_f64() - span.as_secs_f64();
        let mut past = vec![None; columns];
        let mut points = self.history.iter().peekable();
        while let Some(point) = points.next() {
            let Some(value) = value(point) else { continue };
            let from = point.at.as_secs_f64();
            let next = points.peek().map_or(now, |next| next.at).as_secs_f64();
            let until = next.min(from + hold.as_secs_f64());
            // Casts saturate: what was before the span begins in column 0, and may end before it.
            let (first, last) = ((from - begin) / width, (until - begin) / width);
            if last < 0.0 {
                continue;
            }
            let columns = past.iter_mut().skip(first as usize);
            for column in columns.take(last as usize - first as usize + 1) {
                *column = Some(column.map_or(value, |most: f64| most.max(value)));
            }
        }
        past
    }
}

/// An event in one short word.
pub fn event_word(kind: &EventKind) -> &str {
    match kind {
        EventKind::Started { .. } => "start",
        EventKind::Threshold { state, .. } => state,
        EventKind::Resized { before, report, .. } => {
            let (cpus, memory) = (
                report.got.cpus.partial_cmp(&before.cpus),
                report.got.memory.partial_cmp(&before.memory),
            );
            use std::cmp::Ordering::{Equal, Greater, Less};
            match (cpus, memory) {
                (Some(Greater), Some(Less)) | (Some(Less), Some(Greater)) => "resized",
                (Some(Greater), _) | (_, Some(Greater)) => "grew",
                (Some(Less), _) | (_, Some(Less)) => "shrank",
                (Some(Equal) | None, _) if report.got.disk_rate.is_some() => "rate",
                _ if report.got.net_rate.is_some() => "rate",
                _ => report.outcome.as_str(),
            }
        }
        EventKind::Held { .. } => "held",
        EventKind::Recommended { .. } => "advised",
        EventKind::GuestMemoryShort { .. } => "short",
        EventKind::DiskError { .. } => "disk",
        EventKind::NetDown { .. } => "net",
        EventKind::PolicyReplaced { .. } => "policy",
        EventKind::Adopted { .. } => "adopted",
        EventKind::Recovered { .. } => "mended",
        EventKind::Restarting { .. } => "restart",
        EventKind::Rebooted => "rebooted",
        EventKind::Ended { .. } => "ended",
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::commands::status::tests::example;

    pub const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    pub fn listed(name: &str) -> Listed {
        Listed {
            name: name.into(),
            alive: true,
            state: InstanceState::Running,
            agent_pid: 70,
            ending: None,
        }
    }

    /// The example of `status` with other numbers.
    pub fn status(name: &str, load: f64, cpus: u32, pressure: f64) -> InstanceStatus {
        let mut status = example();
        status.name = name.into();
        status.cpus.online = cpus;
        status.cpus.target = Cpus::whole(cpus);
        status.cpus.quota = concertina_api::Quota::Max;
        status.observed = [
            ("cpu", load),
            ("cpu.pressure", 1.0),
            ("memory.pressure", pressure),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        status
    }

    #[test]
    fn silence_is_noticed_by_time_and_by_failure() {
        let mut web = Instance::new(listed("web"), secs(10));
        let patience = secs(3);
        assert_eq!(web.standing(secs(11), patience), Standing::Asked);
        assert_eq!(web.standing(secs(14), patience), Standing::Silent);
        web.answer(Some(status("web", 50.0, 2, 0.0)), secs(15));
        assert_eq!(web.standing(secs(16), patience), Standing::Answers);
        // Nobody says that its question failed: its thread may hang in it.
        assert_eq!(web.standing(secs(19), patience), Standing::Silent);
        web.answer(Some(status("web", 50.0, 2, 0.0)), secs(19));
        web.answer(None, secs(20));
        assert_eq!(web.standing(secs(20), patience), Standing::Silent);
        assert_eq!(web.word(Standing::Silent), "no answer");
    }

    #[test]
    fn another_life_of_the_same_name_begins_without_a_past() {
        let mut web = Instance::new(listed("web"), secs(0));
        web.answer(Some(status("web", 50.0, 2, 0.0)), secs(1));
        web.list(listed("web"), secs(2));
        assert_eq!(web.history.len(), 1);
        let again = Listed {
            agent_pid: 71,
            ..listed("web")
        };
        web.list(again.clone(), secs(3));
        assert!(web.history.is_empty() && web.status.is_none());

        // One supervisor may have all of them: then the time since launch tells.
        web.answer(Some(status("web", 50.0, 2, 0.0)), secs(4));
        let mut young = status("web", 50.0, 2, 0.0);
        young.uptime_ms = 100;
        web.answer(Some(young.clone()), secs(5));
        assert_eq!(web.history.len(), 1);
        let ended = Listed {
            alive: false,
            ..again.clone()
        };
        web.list(ended, secs(6));
        web.list(again, secs(7));
        assert!(web.history.is_empty());
    }

    #[test]
    fn events_of_the_life_before_are_forgotten() {
        let event = |ms: u64, kind: &str| -> Event {
            let value = serde_json::json!({"time": "t", "uptime_ms": ms, "event": kind, "vmm_pid": 7,
                "status": 0, "reason": "Power off"});
            serde_json::from_value(value).unwrap()
        };
        let times = |web: &Instance| -> Vec<u64> {
            web.events.iter().map(|event| event.uptime_ms).collect()
        };
        let mut web = Instance::new(listed("web"), secs(0));
        // A guest that restarts starts again in the same life.
        web.happened(vec![
            event(5, "started"),
            event(50, "rebooted"),
            event(60, "started"),
        ]);
        assert_eq!(times(&web), [5, 50, 60]);
        web.happened(vec![
            event(90, "ended"),
            event(4, "started"),
            event(8, "rebooted"),
        ]);
        assert_eq!(times(&web), [4, 8]);
    }

    #[test]
    fn the_past_has_gaps_where_nothing_was_known() {
        let mut web = Instance::new(listed("web"), secs(0));
        for (at, load) in [(11, 10.0), (12, 90.0), (13, 20.0), (17, 40.0)] {
            web.answer(Some(status("web", load, 2, 0.0)), secs(at));
        }
        let past = web.past(secs(18), secs(8), 4, secs(1), |point| point.load);
        assert_eq!(past, [Some(10.0), Some(90.0), Some(20.0), Some(40.0)]);
        let past = web.past(secs(18), secs(4), 4, secs(1), |point| point.load);
        assert_eq!(past, [Some(20.0), None, None, Some(40.0)]);
        assert!(
            web.past(secs(18), secs(4), 0, secs(1), |p| p.load)
                .is_empty()
        );
    }

    #[test]
    fn the_largest_pressure_is_shown() {
        let mut web = Instance::new(listed("web"), secs(0));
        assert_eq!(web.pressure(), None);
        web.answer(Some(status("web", 50.0, 2, 7.0)), secs(1));
        let pressure = web.pressure().unwrap();
        assert_eq!((pressure.of, pressure.percent), ('m', 7.0));
        assert_eq!(web.cpus_used(), Some(1.0));
    }
}
