//! The wish to end an instance: set by the API or by a signal of the supervisor, seen by the keeper.
//! A wish can become more urgent, never less.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::poll::{self, Wakeup};

/// How long a guest may take to power off when nobody says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// How urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopWish {
    /// Press the power button and wait so long.
    Ask(Duration),
    /// End the VM now.
    Force,
    /// Go away and let the VM run on.
    Leave,
}

/// Where the wish is put.
#[derive(Debug)]
pub(crate) struct StopSignal {
    wish: Mutex<Option<StopWish>>,
    pub(super) wakeup: Wakeup,
}

impl StopSignal {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wish: Mutex::new(None),
            wakeup: Wakeup::new()?,
        })
    }

    /// Asks the guest to power off. A second wish of this kind changes nothing.
    pub(super) fn ask(&self, grace: Duration) {
        self.set(|wish| wish.get_or_insert(StopWish::Ask(grace)).to_owned());
    }

    /// Ends the VM without asking.
    pub(super) fn force(&self) {
        self.set(|_| StopWish::Force);
    }

    /// Lets go of a VM that shall run on, unless it shall end.
    pub(super) fn leave(&self) {
        self.set(|wish| wish.get_or_insert(StopWish::Leave).to_owned());
    }

    /// The wish, if there is one; it stays.
    pub(super) fn wish(&self) -> Option<StopWish> {
        *self
            .wish
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits; a wish that is there, or comes, ends it.
    pub(super) fn sleep(&self, time: Duration) -> Option<StopWish> {
        let until = Instant::now() + time;
        loop {
            self.wakeup.clear();
            let left = until.saturating_duration_since(Instant::now());
            match self.wish() {
                None if left.is_zero() => return None,
                None => {}
                wish => return wish,
            }
            if poll::wait_readable(&[self.wakeup.as_raw_fd()], Some(left)).is_err() {
                std::thread::sleep(left);
            }
        }
    }

    fn set(&self, next: impl FnOnce(&mut Option<StopWish>) -> StopWish) {
        let mut wish = self
            .wish
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *wish = Some(next(&mut wish));
        drop(wish);
        self.wakeup.set();
    }
}

/// A handle by which an instance can be ended from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<StopSignal>);

impl Stopper {
    pub(super) fn new(signal: Arc<StopSignal>) -> Self {
        Self(signal)
    }

    /// Asks the guest to power off; after 30 s the VM is ended.
    pub fn request_stop(&self) {
        self.0.ask(DEFAULT_GRACE);
    }

    /// Ends the VM now.
    pub fn force(&self) {
        self.0.force();
    }
}
