//! A plan: how a level changes over time. Pure; the grammar is in `load --help`.

use std::time::Duration;

/// Steps in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
struct Step {
    from: f64,
    to: f64,
    /// `None` (last step only): to the end.
    length: Option<Duration>,
}

impl Plan {
    /// Parses a plan whose levels `level` understands.
    pub fn parse(text: &str, level: fn(&str) -> Result<f64, String>) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let last = parts.len().saturating_sub(1);
        let mut steps = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let step = Step::parse(part, level)?;
            if step.length.is_none() && index != last {
                return Err(format!(
                    "Step '{part}' has no time and is not the last: write {part}:5s or the like"
                ));
            }
            steps.push(step);
        }
        Ok(Self { steps })
    }

    /// How long the plan lasts; `None` when its last level is held for ever.
    pub fn length(&self) -> Option<Duration> {
        self.steps.iter().try_fold(Duration::ZERO, |sum, step| {
            Some(sum.saturating_add(step.length?))
        })
    }

    /// The highest level of all.
    pub fn peak(&self) -> f64 {
        self.steps
            .iter()
            .map(|step| step.from.max(step.to))
            .fold(0.0, f64::max)
    }

    /// The level so long after the start; 0 after the end.
    pub fn level_at(&self, time: Duration) -> f64 {
        let mut left = time;
        for step in &self.steps {
            match step.length {
                None => return step.to,
                Some(length) if left < length => {
                    let share = left.as_secs_f64() / length.as_secs_f64();
                    return step.from + (step.to - step.from) * share;
                }
                Some(length) => left = left.saturating_sub(length),
            }
        }
        0.0
    }
}

impl Step {
    fn parse(text: &str, level: fn(&str) -> Result<f64, String>) -> Result<Self, String> {
        let (levels, time) = match text.split_once(['/', ':']) {
            Some((levels, time)) => (levels, Some(duration(time)?)),
            None => (text, None),
        };
        match levels.split_once("..") {
            Some(_) if time.is_none() => Err(format!(
                "Ramp '{text}' has no time: write {text}/10s or the like"
            )),
            Some((from, to)) => Ok(Self {
                from: level(from)?,
                to: level(to)?,
                length: time,
            }),
            None => {
                let level = level(levels)?;
                Ok(Self {
                    from: level,
                    to: level,
                    length: time,
                })
            }
        }
    }
}

/// A time like `500ms`, `5s`, `2m`; not zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text.trim()) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!(
            "Time '{text}' is not a time: write 500ms, 5s, 2m or the like"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Result<f64, String> {
        text.parse::<f64>().map_err(|e| e.to_string())
    }

    fn at(plan: &Plan, seconds: f64) -> f64 {
        plan.level_at(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn steps_hold_their_level_and_then_fall_to_zero() {
        let plan = Plan::parse("1:5s, 3:10s,0.5:5s", number).expect("valid");
        let levels = [
            (0.0, 1.0),
            (4.99, 1.0),
            (5.0, 3.0),
            (14.9, 3.0),
            (19.9, 0.5),
            (20.0, 0.0),
        ];
        for (time, level) in levels {
            assert_eq!(at(&plan, time), level, "at {time}");
        }
        assert_eq!(plan.length(), Some(Duration::from_secs(20)));
        assert_eq!(plan.peak(), 3.0);
    }

    #[test]
    fn ramps_move_evenly_both_ways() {
        let plan = Plan::parse("100..600/10s,600..0:5s", number).expect("valid");
        for (time, level) in [
            (0.0, 100.0),
            (5.0, 350.0),
            (10.0, 600.0),
            (12.5, 300.0),
            (15.0, 0.0),
        ] {
            assert!((at(&plan, time) - level).abs() < 1e-6, "at {time}");
        }
    }

    #[test]
    fn an_open_last_step_is_held() {
        let plan = Plan::parse("0..4/1s,4", number).expect("valid");
        assert_eq!(at(&plan, 1e6), 4.0);
        assert_eq!(plan.length(), None);
    }

    #[test]
    fn plans_that_mean_nothing_are_refused_with_the_step() {
        for (text, must_hold) in [
            ("1,2:5s", "'1'"),
            ("1..2", "'1..2'"),
            ("1:0s", "'0s'"),
            ("1:5", "'5'"),
            ("1:5s:6s", "5s:6s"),
        ] {
            let error = Plan::parse(text, number).expect_err(text);
            assert!(error.contains(must_hold), "{text}: {error}");
        }
        for text in ["", ",", "1:5s,", "..:1s", "x:1s"] {
            assert!(Plan::parse(text, number).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_level_is_never_outside_of_what_was_written(
            steps in prop::collection::vec((0u32..100, 0u32..100, 1u32..5000), 1..6),
            time_ms in 0u64..40_000,
        ) {
            let words: Vec<String> =
                steps.iter().map(|(from, to, ms)| format!("{from}..{to}/{ms}ms")).collect();
            let plan = Plan::parse(&words.join(","), number).expect("valid");
            let level = plan.level_at(Duration::from_millis(time_ms));
            prop_assert!(level >= 0.0 && level <= plan.peak());
        }

        #[test]
        fn no_text_makes_the_parser_fail_badly(text in "[0-9a-z.:/,µ ]{0,40}") {
            let _ = Plan::parse(&text, number);
        }
    }
}
