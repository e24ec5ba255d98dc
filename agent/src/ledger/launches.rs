//! Launches that found no room for their lower bounds and wait for some. Donors are asked for them, as
//! for growth within a fair share; and what they need is left to them by growth beyond one.

use concertina_api::policy::Axis;

use super::limits::amount;
use super::{Claim, Ledger, LedgerError};

impl Ledger {
    /// A launch waits for room until it is withdrawn, admitted or not; the same name again takes the place of the launch before.
    ///
    /// # Errors
    /// It would not fit even if everybody were at its lower bound: it does not wait.
    pub fn await_launch(&mut self, name: &str, claim: Claim) -> Result<(), LedgerError> {
        for axis in Axis::ALL {
            let account = self.account(axis);
            let overhead = self.limits.overhead(axis);
            let most = account.limit.saturating_sub(account.guaranteed);
            let target = claim.bounds.of(axis).min;
            if target.saturating_add(overhead) > most {
                return Err(LedgerError::Never {
                    instance: name.to_owned(),
                    axis: axis.as_str(),
                    target: amount(axis, target),
                    most: amount(axis, most.saturating_sub(overhead)),
                });
            }
        }
        self.launches.insert(name.to_owned(), claim);
        Ok(())
    }

    /// A launch waits no longer. One that does not wait is fine.
    pub fn withdraw_launch(&mut self, name: &str) {
        self.launches.remove(name);
    }

    /// Names of the launches that wait.
    pub fn launches(&self) -> impl Iterator<Item = &str> {
        self.launches.keys().map(String::as_str)
    }

    /// What the launches that wait need of an axis, overhead included.
    pub(super) fn launching(&self, axis: Axis) -> u64 {
        let overhead = self.limits.overhead(axis);
        let needs = self.launches.values();
        let needs = needs.map(|claim| claim.bounds.of(axis).min.saturating_add(overhead));
        needs.fold(0, u64::saturating_add)
    }

    /// Growth beyond the fair share leaves to launches what they need.
    pub(super) fn check_launches(
        &self,
        (name, axis): (&str, Axis),
        (target, growth): (u64, u64),
        share: impl FnOnce() -> u64,
    ) -> Result<(), LedgerError> {
        let Some(waiting) = self.launches().next() else {
            return Ok(());
        };
        let left = self.account(axis).free().saturating_sub(growth);
        if left >= self.launching(axis) {
            return Ok(());
        }
        let share = share();
        if target <= share {
            return Ok(());
        }
        Err(LedgerError::Unfair {
            instance: name.to_owned(),
            axis: axis.as_str(),
            share: amount(axis, share),
            waiting: format!("the launch of {waiting}"),
        })
    }
}
