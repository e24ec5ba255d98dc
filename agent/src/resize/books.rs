//! The host's books as one instance sees them: asked before an axis changes, told what came of it.
//!
//! A process of one instance has [`HostMemory`](super::capacity::HostMemory), which only looks at
//! what is free; the agent of a host has a ledger and a journal behind this trait
//! ([`crate::host`]).

use std::fmt::Debug;

use concertina_api::policy::Axis;
use concertina_api::vm::Outcome;

use super::Order;
use crate::journal::{Answer, EndedResize, IntentId, PolicyMark, UsageMark};
use crate::ledger::Need;
use crate::policy::{PolicyState, Size};

/// One axis that is about to change. Sizes are in thousandths of a CPU, or bytes.
#[derive(Debug)]
pub struct Step<'a> {
    /// Which axis.
    pub axis: Axis,
    /// What it has.
    pub before: u64,
    /// What it shall have.
    pub target: u64,
    /// Who wants it.
    pub order: &'a Order,
}

/// How the change of an axis ended.
#[derive(Debug)]
pub struct Done<'a> {
    /// Which axis.
    pub axis: Axis,
    /// What was asked for.
    pub target: u64,
    /// What it had.
    pub before: u64,
    /// What it has, as it was seen.
    pub after: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it is not `applied`.
    pub reason: Option<&'a str>,
}

/// The host's books, of one instance.
///
/// [`Books::begin`] is called before anything is done on the host, with the axis locked, and each one
/// that is granted is followed by exactly one [`Books::end`] in the same process.
pub trait Books: Debug + Send + Sync {
    /// Asks for a change: growth has to be reserved, and the intent written down. Gives its number,
    /// where there is a journal.
    ///
    /// # Errors
    /// A sentence that says why it must not be.
    fn begin(&self, step: &Step<'_>) -> Result<Option<IntentId>, String>;

    /// The change has ended.
    fn end(&self, _intent: Option<IntentId>, _done: &Done<'_>) {}

    /// The instance has another size than the last change left, and nobody asked for it.
    fn seen(&self, _size: Size) {}

    /// What the decision remembers, for the agent after this one.
    fn remember(&self, _version: u64, _state: &PolicyState) {}

    /// What it remembered when the agent before this one ended, and the resizes that ended after that
    /// was written down.
    fn remembered(&self) -> (Option<PolicyMark>, Vec<EndedResize>) {
        (None, Vec::new())
    }

    /// The size as the books have it.
    fn size(&self) -> Option<Size> {
        None
    }

    /// How far the usage file has come: whoever cuts its end contradicts this.
    fn used(&self, _mark: UsageMark) {}

    /// How far the usage file had come when the agent before this one ended.
    fn usage(&self) -> Option<UsageMark> {
        None
    }

    /// How the request with this key ended, one answer an axis; none when it has not, or is forgotten.
    fn answers(&self, _key: &str) -> Vec<Answer> {
        Vec::new()
    }

    /// What the instance needs of each axis; `None`: unknown.
    fn need(&self, _needs: [(Axis, Option<Need>); 2]) {}

    /// Its rules do not want an axis to grow at this moment.
    fn content(&self, _axis: Axis) {}

    /// The size of an axis that it waits for.
    fn awaited(&self, _axis: Axis) -> Option<u64> {
        None
    }
}
