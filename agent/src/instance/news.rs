//! Which of the decision's states are worth an event. A decision is made each period and says the
//! same again and again; an event is written when a rule fires, is satisfied again, or is not
//! followed for another reason than before.

use std::collections::{BTreeMap, BTreeSet};

use concertina_api::event::EventKind;
use concertina_api::instance::ThresholdStatus;
use concertina_api::policy::Resource;

use crate::policy::window::STALE_PERIODS;
use crate::policy::{Decision, Held, HeldReason};

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct News {
    rules: BTreeMap<String, Said>,
    held: BTreeSet<(String, HeldReason)>,
}

#[derive(Debug, Default)]
struct Said {
    class: Option<Class>,
    /// Looks in a row at which the rule was unknown.
    unknown_looks: u64,
}

/// What matters of a rule's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Satisfied,
    Fired,
    Unknown,
}

impl News {
    /// The events of one decision. `is_least` tells whether a resource is at its lower bound.
    pub(super) fn of(
        &mut self,
        decision: &Decision,
        is_least: impl Fn(Resource) -> bool,
    ) -> Vec<EventKind> {
        // An idle instance at its lower bound is not news, though its rules go on wanting less.
        let rests = |held: &Held| held.why == HeldReason::AtBound && is_least(held.axis);
        let resting: BTreeSet<&str> = decision
            .held
            .iter()
            .filter(|held| rests(held))
            .map(|held| held.cause.as_str())
            .collect();
        let mut events: Vec<EventKind> = decision
            .thresholds
            .iter()
            .filter(|status| !resting.contains(status.rule.as_str()))
            .filter_map(|status| self.of_rule(status))
            .collect();
        let held: Vec<&Held> = decision
            .held
            .iter()
            .filter(|held| held.why != HeldReason::Busy && !rests(held))
            .collect();
        for held in &held {
            if !self.held.contains(&(held.cause.clone(), held.why)) {
                events.push(EventKind::Held {
                    cause: held.cause.clone(),
                    why: format!("{}: {}", held.why.as_str(), held.detail),
                });
            }
        }
        self.held = held
            .iter()
            .map(|held| (held.cause.clone(), held.why))
            .collect();
        events
    }

    fn of_rule(&mut self, status: &ThresholdStatus) -> Option<EventKind> {
        if !self.rules.contains_key(&status.rule) {
            self.rules.insert(status.rule.clone(), Said::default());
        }
        let said = self.rules.get_mut(&status.rule)?;
        let class = match &*status.state {
            "fired" | "held" => Class::Fired,
            // After a resize a rule waits for its first datapoint of the new size: that is not news
            // before it has lasted.
            "unknown" => {
                said.unknown_looks += 1;
                if said.unknown_looks <= STALE_PERIODS {
                    return None;
                }
                Class::Unknown
            }
            // A rule cools down after it has fired, whether it still breaches or not; and one that
            // breaches again has not been satisfied, nor has it fired again.
            "cooldown" | "breaching" => {
                said.unknown_looks = 0;
                return None;
            }
            _ => Class::Satisfied,
        };
        if class != Class::Unknown {
            said.unknown_looks = 0;
        }
        let before = said.class.replace(class);
        // A rule that is satisfied from the start has never been anything else.
        let news = match before {
            None => class != Class::Satisfied,
            Some(before) => before != class,
        };
        news.then(|| EventKind::Threshold {
            rule: status.rule.clone(),
            state: status.state.to_string(),
            value: status.last_value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "cpu < 20% for 3s: -1 cpu";

    fn say(news: &mut News, state: &str, why: Option<HeldReason>, cpus: u32) -> Vec<String> {
        let decision = Decision {
            thresholds: vec![ThresholdStatus {
                rule: RULE.into(),
                state: state.to_owned().into(),
                last_value: Some(1.0),
                ..ThresholdStatus::default()
            }],
            held: why
                .map(|why| Held {
                    cause: RULE.into(),
                    axis: Resource::Cpus,
                    why,
                    detail: "detail".into(),
                })
                .into_iter()
                .collect(),
            ..Decision::default()
        };
        news.of(&decision, |_| cpus == 1000)
            .into_iter()
            .map(|event| match event {
                EventKind::Threshold { state, .. } => state,
                EventKind::Held { why, .. } => why,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn firing_and_being_satisfied_again_are_said_once() {
        let mut news = News::default();
        let states = [
            "ok",
            "breaching",
            "fired",
            "fired",
            "cooldown",
            "ok",
            "breaching",
            "ok",
        ];
        let said: Vec<String> = states
            .iter()
            .flat_map(|state| say(&mut news, state, None, 2000))
            .collect();
        assert_eq!(said, ["fired", "ok"]);
    }

    #[test]
    fn unknown_for_a_moment_is_not_news_and_unknown_for_long_is() {
        let mut news = News::default();
        say(&mut news, "fired", None, 2000);
        for _ in 0..STALE_PERIODS {
            assert!(say(&mut news, "unknown", None, 2000).is_empty());
        }
        assert!(say(&mut news, "fired", None, 2000).is_empty());
        let looks = (0..10).flat_map(|_| say(&mut news, "unknown", None, 2000));
        assert_eq!(looks.collect::<Vec<_>>(), ["unknown"]);
    }

    #[test]
    fn why_a_rule_is_not_followed_is_said_when_the_reason_changes() {
        let mut news = News::default();
        let hold = Some(HeldReason::ManualHold);
        assert_eq!(
            say(&mut news, "held", hold, 2000),
            ["held", "manual_hold: detail"]
        );
        assert!(say(&mut news, "held", hold, 2000).is_empty());
        let budget = Some(HeldReason::ReversalBudget);
        assert_eq!(
            say(&mut news, "held", budget, 2000),
            ["reversal_budget: detail"]
        );
        assert!(say(&mut news, "fired", Some(HeldReason::Busy), 2000).is_empty());
    }

    #[test]
    fn resting_at_the_lower_bound_is_not_news_and_wanting_beyond_the_upper_one_is() {
        let mut news = News::default();
        let at_bound = Some(HeldReason::AtBound);
        assert!(say(&mut news, "held", at_bound, 1000).is_empty());
        assert_eq!(
            say(&mut news, "held", at_bound, 4000),
            ["held", "at_bound: detail"]
        );
    }
}
