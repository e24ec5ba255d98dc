//! The part of a virtio device that lives on the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};

use super::VirtioPci;
use super::registers::Pending;
use crate::memory::GuestRam;
use crate::virtio::{Activation, VirtioDevice};

/// What became readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The driver wants activation or reset.
    Control,
    /// The driver has put buffers into this queue.
    Queue(u16),
    /// The host's side wants the device.
    Host,
}

/// A device and its transport, on the event loop.
pub struct VirtioRunner {
    device: Box<dyn VirtioDevice>,
    transport: Arc<VirtioPci>,
    ram: Arc<GuestRam>,
    /// The device was activated, with queues that are sound.
    ready: bool,
}

impl VirtioRunner {
    /// Takes the device over.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        transport: Arc<VirtioPci>,
        ram: Arc<GuestRam>,
    ) -> Self {
        Self {
            device,
            transport,
            ram,
            ready: false,
        }
    }

    /// Descriptors to poll, with what they mean.
    pub fn sources(&self) -> Vec<(RawFd, Source)> {
        let shared = &self.transport.shared;
        let queues = (0u16..).zip(&shared.queue_events);
        let mut sources: Vec<_> = queues
            .map(|(i, event)| (event.as_raw_fd(), Source::Queue(i)))
            .collect();
        sources.push((shared.control.as_raw_fd(), Source::Control));
        if let Some(wakeup) = self.device.wakeup() {
            sources.push((wakeup, Source::Host));
        }
        sources
    }

    /// Does what `source` stands for.
    pub fn handle(&mut self, source: Source) {
        let shared = self.transport.shared.clone();
        match source {
            Source::Control => {
                let _ = shared.control.read();
                let pending = {
                    let mut common = shared.common();
                    let pending = common.take_pending();
                    if pending == Pending::Activate {
                        shared.active.store(true, Ordering::Release);
                    }
                    pending
                };
                match pending {
                    Pending::Nothing => {}
                    Pending::Activate => self.activate(),
                    Pending::Reset => self.reset(),
                }
            }
            Source::Queue(index) => {
                let _ = shared
                    .queue_events
                    .get(usize::from(index))
                    .map(|event| event.read());
                if self.ready {
                    self.device.queue_notified(index);
                }
            }
            Source::Host => self.device.host_event(),
        }
    }

    fn activate(&mut self) {
        let shared = self.transport.shared.clone();
        let interrupt = self.transport.interrupt();
        let (queues, acked_features) = {
            let common = shared.common();
            let queues: Option<Vec<Queue>> = common.queues().iter().map(|q| q.build()).collect();
            (queues, common.acked())
        };
        let valid = |queues: &Vec<Queue>| {
            queues
                .iter()
                .all(|q| !q.ready() || q.is_valid(self.ram.as_ref()))
        };
        let Some(queues) = queues.filter(valid) else {
            interrupt.needs_reset();
            return;
        };
        let ram = self.ram.clone();
        self.device.activate(Activation {
            acked_features,
            ram,
            queues,
            interrupt,
        });
        self.ready = true;
        self.transport
            .place_notifications(&mut self.transport.function());
        // Notifications that came before: look at every queue once.
        for event in &shared.queue_events {
            let _ = event.write(1);
        }
    }

    fn reset(&mut self) {
        let shared = self.transport.shared.clone();
        if std::mem::take(&mut self.ready) {
            self.device.reset();
        }
        shared.isr.store(0, Ordering::SeqCst);
        let mut common = shared.common();
        shared.active.store(false, Ordering::Release);
        common.reset_done();
        drop(common);
        self.transport
            .place_notifications(&mut self.transport.function());
    }
}
