//! The thread that asks the instances how they are: a vmm that hangs must not hold up what is said to
//! the control plane.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Placements, lock_of};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// It, while it runs.
#[derive(Debug, Default)]
pub(super) struct Looker(Mutex<Option<(Sender<()>, JoinHandle<()>)>>);

impl Looker {
    /// Ends it.
    pub fn end(&self) {
        if let Some((sender, thread)) = lock_of(&self.0).take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// Starts it.
pub(super) fn start(placements: &Arc<Placements>) -> io::Result<()> {
    let (sender, ended) = channel();
    let weak = Arc::downgrade(placements);
    let thread = thread::Builder::new()
        .name("looker".into())
        .spawn(move || {
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                match weak.upgrade() {
                    Some(placements) => placements.look(),
                    None => return,
                }
            }
        })?;
    *lock_of(&placements.looker.0) = Some((sender, thread));
    Ok(())
}
