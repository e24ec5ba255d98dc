//! One replay: from happening to happening (the demand changes, a step of a resize is reached, the
//! scaler looks), with nothing changing between two of them.

use concertina_api::policy::{Axis, PolicyBounds};

use super::actuation::Actuation;
use super::demand::Demand;
use super::instance::Instance;
use super::scaler::{Ended, Scaler};
use super::score::{Score, Tally};
use super::timeline::Timeline;

/// What a scaler is put into.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The load.
    pub demand: &'a Demand,
    /// Bounds of the instance.
    pub bounds: PolicyBounds,
    /// How long changes take.
    pub actuation: Actuation,
    /// How long vCPUs that are not needed stay online, in milliseconds.
    pub hold_ms: u64,
}

/// Replays the demand from its beginning to its end.
pub fn run(scene: &Scene<'_>, scaler: &mut dyn Scaler) -> (Score, Timeline) {
    let first = scaler.first(&scene.bounds);
    let mut replay = Replay {
        scene,
        instance: Instance::new(scene.bounds, first, scene.actuation, scene.hold_ms),
        cpus: Tally::default(),
        memory: Tally::default(),
        timeline: Timeline::new(scene.demand.end_ms()),
    };
    replay.run(scaler);
    let known = |axis| scene.demand.values(axis).next().is_some();
    let score = Score {
        cpu: known(Axis::Cpus).then(|| replay.cpus.score(Axis::Cpus)),
        memory: known(Axis::Memory).then(|| replay.memory.score(Axis::Memory)),
    };
    (score, replay.timeline)
}

struct Replay<'a> {
    scene: &'a Scene<'a>,
    instance: Instance,
    cpus: Tally,
    memory: Tally,
    timeline: Timeline,
}

impl Replay<'_> {
    fn run(&mut self, scaler: &mut dyn Scaler) {
        let end_ms = self.scene.demand.end_ms();
        let mut now_ms = 0;
        let mut look_ms = scaler.next_look_ms(0);
        while now_ms < end_ms {
            let next_ms = look_ms
                .min(self.instance.next_ms().unwrap_or(u64::MAX))
                .min(end_ms);
            self.pass(now_ms, next_ms);
            now_ms = next_ms;
            let mut ended = self.instance.step(now_ms);
            let mut look_again = self.tell(&ended, scaler, now_ms);
            if now_ms == look_ms {
                look_ms = scaler.next_look_ms(now_ms).max(now_ms + 1);
                look_again = true;
            }
            if look_again {
                ended = self.look(scaler, now_ms);
                self.tell(&ended, scaler, now_ms);
            }
        }
    }

    /// Lets the load run, through its own changes.
    fn pass(&mut self, from_ms: u64, until_ms: u64) {
        let mut at_ms = from_ms;
        while at_ms < until_ms {
            let (wanted, changes_ms) = self.scene.demand.at(at_ms);
            let end_ms = changes_ms.min(until_ms);
            let passed_ms = end_ms - at_ms;
            let had = self.instance.in_force();
            for (axis, tally) in [
                (Axis::Cpus, &mut self.cpus),
                (Axis::Memory, &mut self.memory),
            ] {
                let most = self.scene.bounds.of(axis).max;
                tally.pass(wanted.of(axis), had.of(axis), most, passed_ms);
            }
            self.timeline.pass(wanted, &had, at_ms, end_ms);
            self.instance.pass(wanted, passed_ms);
            at_ms = end_ms;
        }
    }

    fn look(&mut self, scaler: &mut dyn Scaler, now_ms: u64) -> Vec<Ended> {
        let seen = self.instance.look();
        let order = scaler.look(&seen, &self.instance.size(), now_ms);
        if let Some(cpus) = order.cpus {
            self.instance.set_cpus(cpus, now_ms);
        }
        match order.memory {
            Some(memory) => self.instance.set_memory(memory, order.careful, now_ms),
            None => Vec::new(),
        }
    }

    /// Tells what has ended; says whether the scaler wants to look at once.
    fn tell(&mut self, ended: &[Ended], scaler: &mut dyn Scaler, now_ms: u64) -> bool {
        let mut look_again = false;
        for ended in ended {
            match ended.axis {
                Axis::Cpus => self.cpus.changed(ended),
                Axis::Memory => self.memory.changed(ended),
            }
            look_again |= scaler.ended(ended, now_ms);
        }
        look_again
    }
}
