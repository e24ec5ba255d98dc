//! The rule that customers of hosting panels know: so much more after some minutes above a trigger,
//! so much less after more minutes below another one, and only so often a day. The panel looks once
//! a minute.

use std::collections::VecDeque;

use concertina_api::Bytes;
use concertina_api::policy::{Axis, Direction};

use super::super::scaler::{Order, Scaler, Seen};
use super::next_tick;
use crate::policy::Size;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// When an axis goes one step.
#[derive(Debug, Clone, Copy)]
struct Rule {
    grow_percent: f64,
    grow_minutes: u32,
    shrink_percent: f64,
    shrink_minutes: u32,
    /// In the axis's smallest unit.
    step: u64,
    /// Most steps in 24 hours.
    steps_a_day: usize,
}

/// Above 80 % for 5 minutes, below 40 % for 10; an hour between two steps on the average.
const RULE: Rule = Rule {
    grow_percent: 80.0,
    grow_minutes: 5,
    shrink_percent: 40.0,
    shrink_minutes: 10,
    step: 0,
    steps_a_day: 24,
};
const CPUS: Rule = Rule { step: 1000, ..RULE };
const MEMORY: Rule = Rule {
    step: 256 * Bytes::MIB,
    ..RULE
};

/// One axis.
#[derive(Debug)]
struct Panel {
    rule: Rule,
    minutes_above: u32,
    minutes_below: u32,
    /// Times of the steps in the last 24 hours.
    steps_ms: VecDeque<u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hoster {
    cpus: Panel,
    memory: Panel,
}

impl Hoster {
    pub(super) fn new() -> Self {
        Self {
            cpus: Panel::new(CPUS),
            memory: Panel::new(MEMORY),
        }
    }
}

impl Panel {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            minutes_above: 0,
            minutes_below: 0,
            steps_ms: VecDeque::new(),
        }
    }

    /// A minute has passed; what is unknown breaks the row.
    fn minute(&mut self, percent: Option<f64>, now_ms: u64) -> Option<Direction> {
        let rule = self.rule;
        let count = |minutes: u32, breached: bool| if breached { minutes + 1 } else { 0 };
        let above = percent.is_some_and(|percent| percent > rule.grow_percent);
        let below = percent.is_some_and(|percent| percent < rule.shrink_percent);
        self.minutes_above = count(self.minutes_above, above);
        self.minutes_below = count(self.minutes_below, below);
        let direction = if self.minutes_above >= rule.grow_minutes {
            Direction::Grow
        } else if self.minutes_below >= rule.shrink_minutes {
            Direction::Shrink
        } else {
            return None;
        };
        let old = |at: u64| now_ms.saturating_sub(at) >= DAY_MS;
        while self.steps_ms.front().is_some_and(|at| old(*at)) {
            self.steps_ms.pop_front();
        }
        (self.steps_ms.len() < rule.steps_a_day).then_some(direction)
    }

    /// Another size, if there is one.
    fn next(&mut self, percent: Option<f64>, size: u64, now_ms: u64) -> Option<u64> {
        let direction = self.minute(percent, now_ms)?;
        Some(match direction {
            Direction::Grow => size.saturating_add(self.rule.step),
            Direction::Shrink => size.saturating_sub(self.rule.step),
        })
    }
}

impl Scaler for Hoster {
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        next_tick(now_ms, MINUTE_MS)
    }

    fn look(&mut self, seen: &Seen, size: &Size, now_ms: u64) -> Order {
        let next =
            |panel: &mut Panel, axis| panel.next(seen.percent(axis, size), size.of(axis), now_ms);
        Order {
            cpus: next(&mut self.cpus, Axis::Cpus),
            memory: next(&mut self.memory, Axis::Memory),
            careful: false,
        }
    }

    fn ended(&mut self, ended: &super::super::scaler::Ended, now_ms: u64) -> bool {
        let panel = match ended.axis {
            Axis::Cpus => &mut self.cpus,
            Axis::Memory => &mut self.memory,
        };
        if ended.after != ended.before {
            panel.steps_ms.push_back(now_ms);
        }
        (panel.minutes_above, panel.minutes_below) = (0, 0);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scaler;

    const M: u64 = Bytes::MIB;

    /// Sizes after each minute of a steady use, between 1024 and 4096 MiB.
    fn sizes(used_mib: u64, first_mib: u64, minutes: u64) -> Vec<u64> {
        let mut hoster = Hoster::new();
        let mut size = first_mib * M;
        let minute = |minute: u64| {
            let now_ms = minute * MINUTE_MS;
            let seen = Seen {
                memory_used: Some((used_mib * M).min(size)),
                ..Seen::default()
            };
            let order = hoster.look(&seen, &scaler::size(1000, size), now_ms);
            if let Some(asked) = order.memory {
                let before = size;
                size = asked.clamp(1024 * M, 4096 * M);
                hoster.ended(
                    &scaler::Ended {
                        axis: Axis::Memory,
                        before,
                        asked,
                        after: size,
                    },
                    now_ms,
                );
            }
            size / M
        };
        (1..=minutes).map(minute).collect()
    }

    #[test]
    fn the_golden_example_of_the_panels() {
        let sizes = sizes(700, 2048, 120);
        assert_eq!(sizes[..9], [2048; 9]);
        assert_eq!(sizes[9..19], [1792; 10]);
        // 700 MiB are 46 % of 1536: it stops there.
        assert_eq!(sizes[19..], [1536; 101]);
    }

    #[test]
    fn it_grows_a_step_each_five_minutes_up_to_the_bound_and_goes_down_to_the_other() {
        let grown = sizes(5000, 2048, 60);
        assert_eq!((grown[3], grown[4], grown[9]), (2048, 2304, 2560));
        assert_eq!(grown[59], 4096);
        assert_eq!(sizes(10, 2048, 120)[119], 1024);
    }

    #[test]
    fn steps_a_day_are_limited() {
        let mut panel = Panel::new(Rule {
            steps_a_day: 2,
            grow_minutes: 1,
            ..MEMORY
        });
        let mut grown_at = Vec::new();
        for minute in 0..3000 {
            if panel.next(Some(90.0), 0, minute * MINUTE_MS).is_some() {
                panel.steps_ms.push_back(minute * MINUTE_MS);
                grown_at.push(minute);
            }
        }
        assert_eq!(grown_at, [0, 1, 1440, 1441, 2880, 2881]);
    }
}
