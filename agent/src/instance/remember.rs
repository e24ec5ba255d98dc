//! What the decision of an instance remembers of resizes that have ended, also of those that an earlier
//! agent has seen: cooldowns, back-off, the reversal budget.

use concertina_api::policy::{Axis, Direction, Policy};
use concertina_api::{Bytes, Cpus};

use crate::clock::Moment;
use crate::policy::PolicyState;
use crate::resize::books::Books;
use crate::resize::{Cause, Commit};

/// What the decision of an instance remembers that an earlier agent has left, with what had ended when
/// that one died and was not remembered yet: cooldowns count from there.
pub(super) fn remembered(books: &dyn Books, launched: &Moment, policy: &Policy) -> PolicyState {
    let (mark, ended) = books.remembered();
    let mut state = mark.map(|mark| mark.state).unwrap_or_default();
    for resize in ended {
        let at_ms = resize.at.since(launched).unwrap_or(0);
        let milli = |cpus: Option<Cpus>| cpus.map(|cpus| u64::from(cpus.milli()));
        let bytes = |memory: Option<Bytes>| memory.map(Bytes::get);
        let (from, to, got) = (resize.before, resize.target, resize.after);
        let axes = [
            (
                Axis::Cpus,
                milli(from.cpus),
                milli(to.cpus),
                milli(got.cpus),
            ),
            (
                Axis::Memory,
                bytes(from.memory),
                bytes(to.memory),
                bytes(got.memory),
            ),
        ];
        for (axis, from, to, got) in axes {
            if let (Some(before), Some(asked), Some(after)) = (from, to, got) {
                let commit = Commit {
                    axis: axis.into(),
                    cause: Cause::from_text(&resize.cause),
                    before,
                    asked,
                    after,
                    intent: None,
                };
                remember(&mut state, policy, &commit, at_ms);
            }
        }
    }
    state
}

/// Tells the decision how a resize has ended.
pub(super) fn remember(state: &mut PolicyState, policy: &Policy, commit: &Commit, now_ms: u64) {
    let direction = match commit.asked.cmp(&commit.before) {
        std::cmp::Ordering::Less => Direction::Shrink,
        _ => Direction::Grow,
    };
    let axis = commit.axis;
    let changed = commit.after != commit.before;
    match &commit.cause {
        Cause::Manual => state.resized_by_hand(policy, axis, commit.after, now_ms),
        Cause::Rules(causes) if changed => {
            state.committed(policy, axis, direction, causes, now_ms);
        }
        Cause::Rules(_) => state.not_reached(axis, direction, now_ms),
        Cause::Host(_) if changed => state.committed(policy, axis, direction, &[], now_ms),
        Cause::Host(_) => {}
    }
}
