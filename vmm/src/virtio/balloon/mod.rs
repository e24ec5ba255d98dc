//! virtio-balloon (virtio 1.2 §5.5): the guest gives memory back, and says how it is doing.
//!
//! Three things in one device: inflation to a target that the host sets, free page reporting (the
//! guest names memory that is free anyway; always on), and statistics on request. All of it runs on
//! the event loop thread, with a budget a turn; what is left over is done in the next one.
//!
//! ```text
//! chains ─► parse (request.rs) ─► join into ranges (ranges.rs) ─► discard in portions ─► return chains
//! ```

mod control;
mod queues;
mod ranges;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Error as QueueError, QueueT};

use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::memory::GuestRam;
use control::Shared;
use queues::{Budget, Lane, Role};

pub use control::{BalloonController, BalloonError, BalloonReading};
pub use queues::{TURN_BYTES, TURN_CHAINS};

/// Device id of a traditional memory balloon (§5.5.1).
pub const DEVICE_TYPE: u32 = 5;
/// There is a statistics queue.
pub const F_STATS_VQ: u64 = 1 << 1;
/// The driver takes pages back before the guest kills a process for want of memory.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver says what it fills free pages with. Linux reports free pages only with it when it
/// clears them (`init_on_free`) or poisons them.
pub const F_PAGE_POISON: u64 = 1 << 4;
/// There is a queue by which free pages are reported.
pub const F_REPORTING: u64 = 1 << 5;

/// Every queue is large enough for free page reporting, which may become any of the last two.
const QUEUE_SIZES: [u16; 4] = [128; 4];

struct Active {
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn DeviceInterrupt>,
    lanes: Vec<Lane>,
}

/// The balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl Balloon {
    /// A device without a driver, for a guest that never has more than `max_bytes` of memory.
    ///
    /// # Errors
    /// The host has no event descriptors left.
    pub fn new(max_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(max_bytes)?),
            active: None,
        })
    }

    /// The handle by which other threads drive it.
    pub fn controller(&self) -> BalloonController {
        BalloonController(self.shared.clone())
    }

    /// Serves the queues for which `wanted` holds, as far as one turn's budget goes.
    fn serve(&mut self, wanted: impl Fn(usize) -> bool) {
        let Some(active) = &mut self.active else {
            return;
        };
        let mut budget = Budget::of_a_turn();
        match active.serve(&self.shared, &mut budget, wanted) {
            Ok(()) if budget.is_spent() => self.shared.wake(),
            Ok(()) => {}
            Err(_) => {
                active.interrupt.needs_reset();
                self.active = None;
                self.shared.driver_gone();
            }
        }
    }
}

impl Active {
    fn serve(
        &mut self,
        shared: &Shared,
        budget: &mut Budget,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<(), QueueError> {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if wanted(index) && lane.serve(&self.ram, shared, budget)? {
                self.interrupt.queue(index as u16);
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.shared.clone()
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            acked_features,
            ram,
            queues,
            interrupt,
        } = activation;
        let lanes: Vec<Lane> = Role::of_queues(acked_features)
            .zip(queues)
            .take_while(|(_, queue)| queue.ready())
            .map(|(role, queue)| Lane::new(role, queue))
            .collect();
        let statistics = lanes.iter().any(|lane| lane.role() == Role::Statistics);
        self.shared.driver_ready(interrupt.clone(), statistics);
        self.active = Some(Active {
            ram,
            interrupt,
            lanes,
        });
        self.serve(|_| true);
    }

    fn queue_notified(&mut self, index: u16) {
        self.serve(|lane| lane == usize::from(index));
    }

    fn reset(&mut self) {
        self.active = None;
        self.shared.driver_gone();
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.shared.wakeup.as_raw_fd())
    }

    fn host_event(&mut self) {
        // Nothing to read means that another turn has already taken the wakeup.
        let _ = self.shared.wakeup.read();
        self.serve(|_| true);
    }
}
