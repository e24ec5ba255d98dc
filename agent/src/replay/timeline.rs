//! A replay in a few hundred columns, for a chart: what was wanted, what was there, what was short.

use super::demand::Wanted;
use crate::policy::Size;
use concertina_api::policy::Axis;

/// Columns of a timeline.
pub const COLUMNS: usize = 600;

/// One axis in one column of time, in the axis's smallest unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Column {
    known_ms: u64,
    passed_ms: u64,
    wanted: u128,
    held: u128,
    short: u128,
}

impl Column {
    /// Mean of what was wanted; absent: unknown.
    pub fn wanted(&self) -> Option<f64> {
        (self.known_ms > 0).then(|| self.wanted as f64 / self.known_ms as f64)
    }

    /// Mean of what was there; absent: the trace had ended.
    pub fn held(&self) -> Option<f64> {
        (self.passed_ms > 0).then(|| self.held as f64 / self.passed_ms as f64)
    }

    /// Mean of what was short.
    pub fn short(&self) -> f64 {
        self.short as f64 / self.known_ms.max(1) as f64
    }

    fn pass(&mut self, wanted: Option<u64>, had: u64, passed_ms: u64) {
        self.passed_ms += passed_ms;
        self.held += u128::from(had) * u128::from(passed_ms);
        if let Some(wanted) = wanted {
            self.known_ms += passed_ms;
            self.wanted += u128::from(wanted) * u128::from(passed_ms);
            self.short += u128::from(wanted.saturating_sub(had)) * u128::from(passed_ms);
        }
    }
}

/// Both axes over the whole time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    column_ms: u64,
    cpus: Vec<Column>,
    memory: Vec<Column>,
}

impl Timeline {
    pub(super) fn new(end_ms: u64) -> Self {
        Self {
            column_ms: end_ms.div_ceil(COLUMNS as u64).max(1),
            cpus: vec![Column::default(); COLUMNS],
            memory: vec![Column::default(); COLUMNS],
        }
    }

    /// The columns of one axis, in the order of time.
    pub fn of(&self, axis: Axis) -> &[Column] {
        match axis {
            Axis::Cpus => &self.cpus,
            Axis::Memory => &self.memory,
        }
    }

    /// The time of one column in milliseconds.
    pub fn column_ms(&self) -> u64 {
        self.column_ms
    }

    pub(super) fn pass(&mut self, wanted: Wanted, had: &Size, from_ms: u64, until_ms: u64) {
        let mut at_ms = from_ms;
        while at_ms < until_ms {
            let index = at_ms / self.column_ms;
            let end_ms = ((index + 1) * self.column_ms).min(until_ms);
            let passed_ms = end_ms - at_ms;
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            if let Some(column) = self.cpus.get_mut(at) {
                column.pass(wanted.cpus, had.of(Axis::Cpus), passed_ms);
            }
            if let Some(column) = self.memory.get_mut(at) {
                column.pass(wanted.memory, had.of(Axis::Memory), passed_ms);
            }
            at_ms = end_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scaler::size;

    #[test]
    fn what_passes_is_spread_over_the_columns() {
        let mut timeline = Timeline::new(COLUMNS as u64 * 1000);
        let wanted = |cpus| Wanted { cpus, memory: None };
        timeline.pass(wanted(Some(3000)), &size(1000, 5), 0, 1500);
        timeline.pass(wanted(None), &size(2000, 5), 1500, 2000);
        let cpus = timeline.of(Axis::Cpus);
        assert_eq!(
            (cpus[0].wanted(), cpus[0].held()),
            (Some(3000.0), Some(1000.0))
        );
        assert_eq!(
            (cpus[1].wanted(), cpus[1].held()),
            (Some(3000.0), Some(1500.0))
        );
        assert_eq!((cpus[1].short(), cpus[2].held()), (2000.0, None));
        assert_eq!(timeline.of(Axis::Memory)[0].wanted(), None);
    }
}
