//! virtio-mem (virtio 1.2 §5.15): memory that the guest plugs and unplugs in blocks, towards a size
//! that the host asks for.
//!
//! The host only wishes ([`MemController::set_requested`]); blocks come and go by requests of the
//! driver. Unplugged blocks are not mapped into the guest, so a driver that does not promise to leave
//! them alone is refused. A device reset keeps the blocks, as the specification says; a system reset
//! is a restart of the process.
//!
//! ```text
//! request ─► frame, parse (request.rs) ─► decide (state.rs, pure) ─► host memory ─► sizes ─► answer
//! ```

mod control;
mod request;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::memory::{ElasticMemory, GuestRam};
use control::{Noted, Shared};
use request::{Answer, AnswerPlace};
use state::{Sizes, Step, Verdict};

pub use control::{MemController, MemStatus};
pub use state::{MemError, SLACK_BYTES};

/// Device id of a memory device (§5.15.1).
pub const DEVICE_TYPE: u32 = 24;
/// The configuration space names the NUMA node of the region: there is an SRAT.
pub const F_ACPI_PXM: u64 = 1 << 0;
/// The driver never touches unplugged blocks.
pub const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Longest time that one turn of the event loop serves requests, but for the last one of the turn.
pub const TURN: Duration = Duration::from_millis(5);

const QUEUE_SIZES: [u16; 1] = [64];

/// An UNPLUG_ALL on its way: it may have to give back many GiB, so it takes several turns.
struct UnplugAll {
    next_block: u64,
    head: u16,
    place: AnswerPlace,
}

struct Active {
    ram: Arc<GuestRam>,
    queue: Queue,
    interrupt: Arc<dyn DeviceInterrupt>,
    unplug_all: Option<UnplugAll>,
}

/// The memory device. It owns the host's side of the elastic region.
pub struct Mem {
    elastic: ElasticMemory,
    shared: Arc<Shared>,
    active: Option<Active>,
    wakeup: EventFd,
}

enum Turn {
    Done,
    MoreToDo,
}

impl Mem {
    /// A device without a driver, for a region with nothing plugged.
    ///
    /// # Errors
    /// The host has no event descriptors left.
    pub fn new(elastic: ElasticMemory) -> io::Result<Self> {
        let sizes = Sizes::new(elastic.start(), elastic.len());
        let wakeup = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self {
            elastic,
            shared: Arc::new(Shared::new(sizes)),
            active: None,
            wakeup,
        })
    }

    /// The handle by which other threads size it.
    pub fn controller(&self) -> MemController {
        MemController(self.shared.clone())
    }

    fn serve(&mut self) {
        // Out of `self` while it is served, as serving needs the elastic memory too.
        let Some(mut active) = self.active.take() else {
            return;
        };
        match self.turn(&mut active) {
            Ok(Turn::Done) => self.active = Some(active),
            Ok(Turn::MoreToDo) => {
                self.active = Some(active);
                // A full event counter means that the wakeup is pending already.
                let _ = self.wakeup.write(1);
            }
            Err(_) => {
                self.shared.driver_gone();
                active.interrupt.needs_reset();
            }
        }
    }

    fn turn(&mut self, active: &mut Active) -> Result<Turn, QueueError> {
        let start = Instant::now();
        let mut used_any = false;
        let turn = loop {
            if let Some(mut job) = active.unplug_all.take() {
                let Some(answer) = self.unplug_all_step(&mut job) else {
                    active.unplug_all = Some(job);
                    if start.elapsed() >= TURN {
                        break Turn::MoreToDo;
                    }
                    continue;
                };
                active.answer(job.head, &job.place, answer)?;
                used_any = true;
            }
            if start.elapsed() >= TURN {
                break Turn::MoreToDo;
            }
            let Some(chain) = active.queue.iter(&*active.ram)?.next() else {
                break Turn::Done;
            };
            let head = chain.head_index();
            let Ok((bytes, place)) = request::frame(chain) else {
                self.shared.note(Noted::Bad);
                active.queue.add_used(&*active.ram, head, 0)?;
                used_any = true;
                continue;
            };
            let request = request::parse(&bytes);
            let verdict = request.map(|r| self.shared.sizes().decide(r, self.elastic.blocks()));
            match verdict.unwrap_or(Verdict::Step(Step::Answer(Answer::Error))) {
                Verdict::UnplugAll => {
                    active.unplug_all = Some(UnplugAll {
                        next_block: 0,
                        head,
                        place,
                    });
                }
                Verdict::Step(step) => {
                    let answer = self.execute(step);
                    active.answer(head, &place, answer)?;
                    used_any = true;
                }
            }
        };
        if used_any {
            active.interrupt.queue(0);
        }
        Ok(turn)
    }

    fn execute(&mut self, step: Step) -> Answer {
        let (range, plug) = match step {
            Step::Plug(range) => (range, true),
            Step::Unplug(range) => (range, false),
            Step::Answer(answer) => {
                match answer {
                    Answer::Error => self.shared.note(Noted::Bad),
                    Answer::Nack => self.shared.note(Noted::Nacked),
                    Answer::Ack | Answer::State(_) | Answer::Busy => {}
                }
                return answer;
            }
        };
        let done = if plug {
            self.elastic.plug(range.first, range.count)
        } else {
            self.elastic.unplug(range.first, range.count)
        };
        if done.is_err() {
            self.shared.note(Noted::HostFailure);
            return Answer::Busy;
        }
        self.shared.plugged_changed(range.bytes(), plug);
        Answer::Ack
    }

    /// Gives back one run of blocks; an answer when there is no more, or the host refuses.
    fn unplug_all_step(&mut self, job: &mut UnplugAll) -> Option<Answer> {
        let Some(run) = state::next_plugged_run(self.elastic.blocks(), job.next_block) else {
            self.shared.all_unplugged();
            return Some(Answer::Ack);
        };
        if self.elastic.unplug(run.first, run.count).is_err() {
            self.shared.note(Noted::HostFailure);
            return Some(Answer::Busy);
        }
        self.shared.plugged_changed(run.bytes(), false);
        job.next_block = run.first + run.count;
        None
    }
}

impl Active {
    fn answer(&mut self, head: u16, place: &AnswerPlace, answer: Answer) -> Result<(), QueueError> {
        let written = place.write(&self.ram, answer);
        self.queue.add_used(&*self.ram, head, written)
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_ACPI_PXM | F_UNPLUGGED_INACCESSIBLE
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
        let queue = queues.into_iter().next().filter(QueueT::ready);
        let Some(queue) = queue else { return };
        // Without this promise the driver may read unplugged blocks, of which there is nothing.
        if acked_features & F_UNPLUGGED_INACCESSIBLE == 0 {
            interrupt.needs_reset();
            return;
        }
        self.shared.driver_ready(interrupt.clone());
        self.active = Some(Active {
            ram,
            queue,
            interrupt,
            unplug_all: None,
        });
        self.serve();
    }

    fn queue_notified(&mut self, _index: u16) {
        self.serve();
    }

    fn reset(&mut self) {
        self.active = None;
        self.shared.driver_gone();
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.wakeup.as_raw_fd())
    }

    fn host_event(&mut self) {
        // Nothing to read means that another turn has already taken the wakeup.
        let _ = self.wakeup.read();
        self.serve();
    }
}
