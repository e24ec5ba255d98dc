//! The guest's part in a change of size: it may refuse to shrink, and hears that it has grown.

use std::sync::Arc;
use std::time::Duration;

use concertina_api::policy::Axis;

use super::Resizer;
use super::report::Timeline;

/// Whom a change of size concerns in the guest. Sizes are in thousandths of a CPU, or bytes.
pub trait GuestHooks: std::fmt::Debug + Send + Sync {
    /// Before a shrink: gives the reason if the guest refuses it. Takes some seconds and `left` at
    /// most; a guest that does not answer has no objection.
    fn before_shrink(&self, axis: Axis, from: u64, to: u64, left: Duration) -> Option<String>;
    /// After a growth; does not wait.
    fn after_grow(&self, axis: Axis, from: u64, to: u64);
}

impl Resizer {
    /// Lets the guest's hooks take part.
    pub fn with_hooks(mut self, hooks: Arc<dyn GuestHooks>) -> Self {
        self.hooks = Some(hooks);
        self
    }

    /// Before a change: says why it must not be. No axis is locked meanwhile, so that growth never
    /// waits for the hooks of a shrink; a shrink that was overtaken by another change is not made.
    pub(super) fn objection(
        &self,
        axis: Axis,
        to: u64,
        left: Duration,
        timeline: &mut Timeline,
    ) -> Option<String> {
        let from = self.size().of(axis);
        let hooks = self.hooks.as_ref().filter(|_| to < from)?;
        let refusal = hooks.before_shrink(axis, from, to, left);
        timeline.note("hooks");
        let overtaken = || {
            let now = self.size().of(axis);
            // One that came to the same size has left nothing to do, and is no objection.
            (now != from && now != to)
                .then(|| "Another change came first, while the guest's hooks ran".to_owned())
        };
        refusal.or_else(overtaken)
    }

    /// After a change.
    pub(super) fn tell_guest(&self, axis: Axis, from: u64, to: u64) {
        if let Some(hooks) = self.hooks.as_ref().filter(|_| to > from) {
            hooks.after_grow(axis, from, to);
        }
    }
}
