//! The scores: what was short, what was held and not used, how often the size changed, and how long
//! a step of the demand stayed uncovered. Whole numbers add up to the end, so that served and
//! unserved demand are exactly the demand.

use concertina_api::Bytes;
use concertina_api::policy::{Axis, Direction};
use serde::Serialize;

use super::scaler::Ended;

/// What was added up on one axis, in its smallest unit times milliseconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    known_ms: u64,
    wanted: u128,
    unserved: u128,
    slack: u128,
    held: u128,
    least: Option<u64>,
    most: u64,
    changes: u64,
    reversals: u64,
    last_direction: Option<Direction>,
    short: Option<Shortage>,
    /// How long each shortage lasted.
    shortages_ms: Vec<u64>,
    covered: u64,
}

/// A time in which less was there than could have been.
#[derive(Debug, Clone, Copy)]
struct Shortage {
    ms: u64,
    /// The size in it.
    had: u64,
}

impl Tally {
    /// For so long, so much was wanted (unknown is not scored) and so much was there. `most` is the
    /// upper bound.
    pub(super) fn pass(&mut self, wanted: Option<u64>, had: u64, most: u64, passed_ms: u64) {
        if passed_ms == 0 {
            return;
        }
        self.least = Some(self.least.map_or(had, |least| least.min(had)));
        self.most = self.most.max(had);
        let Some(wanted) = wanted else {
            self.end_shortage(had);
            return;
        };
        let time = |amount: u64| u128::from(amount) * u128::from(passed_ms);
        self.known_ms += passed_ms;
        self.wanted += time(wanted);
        self.held += time(had);
        self.unserved += time(wanted.saturating_sub(had));
        self.slack += time(had.saturating_sub(wanted));
        // Beyond the upper bound nobody can cover.
        if wanted.min(most) > had {
            let before = self.short.map_or(0, |short| short.ms);
            self.short = Some(Shortage {
                ms: before + passed_ms,
                had,
            });
        } else {
            self.end_shortage(had);
        }
    }

    fn end_shortage(&mut self, had: u64) {
        if let Some(short) = self.short.take() {
            self.shortages_ms.push(short.ms);
            self.covered += u64::from(had > short.had);
        }
    }

    /// A change has ended.
    pub(super) fn changed(&mut self, ended: &Ended) {
        let direction = match ended.after.cmp(&ended.before) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Less => Direction::Shrink,
            std::cmp::Ordering::Greater => Direction::Grow,
        };
        self.changes += 1;
        let before = self.last_direction.replace(direction);
        self.reversals += u64::from(before.is_some_and(|before| before != direction));
    }

    /// The sum, when the trace is over.
    pub(super) fn score(mut self, axis: Axis) -> AxisScore {
        if let Some(short) = self.short.take() {
            self.shortages_ms.push(short.ms);
        }
        self.shortages_ms.sort_unstable();
        let unit = unit(axis);
        let amount = |sum: u128| sum as f64 / (unit * 1000.0);
        AxisScore {
            known_seconds: self.known_ms as f64 / 1000.0,
            demand: amount(self.wanted),
            served: amount(self.wanted - self.unserved),
            unserved: amount(self.unserved),
            held: amount(self.held),
            slack: amount(self.slack),
            least: self.least.unwrap_or(0) as f64 / unit,
            most: self.most as f64 / unit,
            changes: self.changes,
            reversals: self.reversals,
            steps: self.shortages_ms.len() as u64,
            steps_covered: self.covered,
            cover_median_ms: percentile(&self.shortages_ms, 50),
            cover_p95_ms: percentile(&self.shortages_ms, 95),
            cover_longest_ms: self.shortages_ms.last().copied(),
        }
    }
}

/// How many smallest units are one CPU or one MiB.
fn unit(axis: Axis) -> f64 {
    match axis {
        Axis::Cpus => 1000.0,
        Axis::Memory => Bytes::MIB as f64,
    }
}

/// Nearest rank, of numbers in their order.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// How one axis was scaled: amounts in CPU-seconds or MiB-seconds, sizes in CPUs or MiB.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AxisScore {
    /// Time in which the demand is known; only that is scored.
    pub known_seconds: f64,
    /// What was wanted.
    pub demand: f64,
    /// What of it was there.
    pub served: f64,
    /// What of it was not.
    pub unserved: f64,
    /// What was held for the instance.
    pub held: f64,
    /// What of it was not wanted.
    pub slack: f64,
    /// Smallest size.
    pub least: f64,
    /// Largest size.
    pub most: f64,
    /// Changes of size.
    pub changes: u64,
    /// Changes that undid the direction of the one before.
    pub reversals: u64,
    /// Times at which the demand went beyond the size, or the size below the demand, within the
    /// upper bound.
    pub steps: u64,
    /// Those of them that ended because the size grew, not because the demand fell.
    pub steps_covered: u64,
    /// How long they lasted, those that were never covered included; absent where there are none.
    pub cover_median_ms: Option<u64>,
    /// 95 of 100 were over by then.
    pub cover_p95_ms: Option<u64>,
    /// The longest.
    pub cover_longest_ms: Option<u64>,
}

/// How an instance was scaled; absent: the trace does not tell of that axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// CPUs.
    pub cpu: Option<AxisScore>,
    /// Memory.
    pub memory: Option<AxisScore>,
}

impl Score {
    /// One axis.
    pub fn of(&self, axis: Axis) -> Option<&AxisScore> {
        match axis {
            Axis::Cpus => self.cpu.as_ref(),
            Axis::Memory => self.memory.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_of_time_and_add_up() {
        let mut tally = Tally::default();
        tally.pass(Some(1500), 1000, 4000, 2000);
        tally.pass(Some(1500), 2000, 4000, 4000);
        tally.pass(None, 2000, 4000, 10_000);
        let score = tally.score(Axis::Cpus);
        assert_eq!((score.demand, score.held), (9.0, 10.0));
        assert_eq!((score.served, score.unserved, score.slack), (8.0, 1.0, 2.0));
        assert_eq!(score.known_seconds, 6.0);
        assert_eq!((score.least, score.most), (1.0, 2.0));
    }

    #[test]
    fn a_step_is_covered_by_growth_or_goes_by_itself() {
        let mut tally = Tally::default();
        for (wanted, had, ms) in [
            (Some(2000), 1000, 700),
            (Some(2000), 1500, 300),
            (Some(2000), 2000, 1000),
            (Some(3000), 2000, 5000),
            (Some(1000), 2000, 5000),
            // Beyond the upper bound.
            (Some(9000), 4000, 5000),
            (Some(3000), 2000, 400),
            (None, 2000, 5000),
            (Some(3000), 2000, 100),
        ] {
            tally.pass(wanted, had, 4000, ms);
        }
        let score = tally.score(Axis::Cpus);
        assert_eq!((score.steps, score.steps_covered), (4, 1));
        assert_eq!(score.cover_median_ms, Some(400));
        assert_eq!(score.cover_p95_ms, Some(5000));
        assert_eq!(score.cover_longest_ms, Some(5000));
    }

    #[test]
    fn changes_of_direction_are_counted() {
        let mut tally = Tally::default();
        for (before, after) in [(1, 2), (2, 3), (3, 3), (3, 2), (2, 1), (1, 2)] {
            tally.changed(&Ended {
                axis: Axis::Cpus,
                before,
                asked: after,
                after,
            });
        }
        let score = tally.score(Axis::Cpus);
        assert_eq!((score.changes, score.reversals), (5, 2));
        assert_eq!(score.cover_median_ms, None);
    }
}
