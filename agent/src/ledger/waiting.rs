//! Those who want to grow and have to wait, in the order in which they came.

use concertina_api::policy::Axis;

/// One that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Name of the instance.
    pub instance: String,
    /// Which axis.
    pub axis: Axis,
    /// The size that it waits for, in thousandths of a CPU or bytes.
    pub target: u64,
    /// Since when, on the caller's monotonic clock.
    pub since_ms: u64,
    /// Why it has to.
    pub why: String,
}

/// One that waited, and for which something is reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// What it waited for.
    pub wait: Wait,
    /// The size that is reserved. Less than it waited for: it waits for the rest.
    pub granted: u64,
}

/// The list. One entry for each instance and axis: the newer wish takes the place of the older one.
#[derive(Debug, Clone, Default)]
pub(super) struct WaitingList(Vec<Wait>);

impl WaitingList {
    /// In order.
    pub fn of(&self, axis: Axis) -> impl Iterator<Item = &Wait> {
        self.0.iter().filter(move |wait| wait.axis == axis)
    }

    /// Everybody, in order.
    pub fn all(&self) -> &[Wait] {
        &self.0
    }

    /// What an instance waits for.
    pub fn find(&self, instance: &str, axis: Axis) -> Option<&Wait> {
        self.of(axis).find(|wait| wait.instance == instance)
    }

    /// Comes to the end of the list, or keeps its place with another wish.
    pub fn put(&mut self, wait: Wait) {
        let same = |other: &&mut Wait| other.instance == wait.instance && other.axis == wait.axis;
        match self.0.iter_mut().find(same) {
            Some(place) => {
                *place = Wait {
                    since_ms: place.since_ms,
                    ..wait
                }
            }
            None => self.0.push(wait),
        }
    }

    /// Waits no longer.
    pub fn remove(&mut self, instance: &str, axis: Axis) -> Option<Wait> {
        let same = |wait: &Wait| wait.instance == instance && wait.axis == axis;
        let index = self.0.iter().position(same)?;
        Some(self.0.remove(index))
    }

    /// Waits for nothing any longer.
    pub fn forget(&mut self, instance: &str) {
        self.0.retain(|wait| wait.instance != instance);
    }
}
