//! vCPUs come and go: the ACPI CPU hotplug registers, and one state machine per vCPU.
//!
//! ```text
//!  Parked ──announce──► Inserting ─status─► Present ──SIPI──► Online
//!    ▲                      │      is read     │ _OST refuses  │
//!    │◄─────────────────────┘                  │           request removal
//!    │                                         │               ▼
//!    └────────────── eject ◄───────────────────┴─────────── Removing ──_OST refuses──► Online
//! ```
//! Registers as in QEMU's `docs/specs/acpi_cpu_hotplug.rst` (the modern interface), `_OST` included.
//! "Notified" is kept apart from "asked for removal": the acknowledgement of the notice must not take
//! away the permission to eject, which comes later and asynchronously.
//!
//! A guest that boots finds its CPUs by their status, long before it listens to notices, and starts them.
//! So it is the status, once it was read, after which a vCPU is no longer taken back without asking; and a
//! notice that nobody has acknowledged is repeated, since the interrupt of the first one may have come
//! before there was a driver.
//!
//! The registers are accessed on vCPU threads: they take the table's lock for a few instructions and
//! never wait. Threads that wait for the guest wait on a condition, without the lock.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::vm::VcpuState;

use super::thread::Vcpu;
use crate::devices::BusDevice;
use crate::devices::ged::{EVENT_CPU, EventDevice};

/// Offset of the CPU selector, dword.
pub const REG_SELECTOR: u64 = 0;
/// Offset of status (read) and control (write), byte.
pub const REG_FLAGS: u64 = 4;
/// Offset of the command, byte.
pub const REG_COMMAND: u64 = 5;
/// Offset of the command's data, dword.
pub const REG_DATA: u64 = 8;
/// Bytes of registers.
pub const REG_LEN: u64 = 12;

/// Status: in the machine.
pub const FLAG_ENABLED: u8 = 1 << 0;
/// Status: device check wanted; written: acknowledged.
pub const FLAG_INSERTING: u8 = 1 << 1;
/// Status: eject request wanted; written: acknowledged.
pub const FLAG_REMOVING: u8 = 1 << 2;
/// Written: eject it.
pub const FLAG_EJECT: u8 = 1 << 3;

/// Command: select the next CPU with a pending notice; data reads its number.
pub const CMD_NEXT_PENDING: u8 = 0;
/// Command: data is the `_OST` event.
pub const CMD_OST_EVENT: u8 = 1;
/// Command: data is the `_OST` status.
pub const CMD_OST_STATUS: u8 = 2;

/// `_OST` source events (ACPI 6.5 table 6.18, and notification values of §5.6.6).
const OST_EVENT_DEVICE_CHECK: u32 = 1;
const OST_EVENT_EJECT_REQUEST: u32 = 3;
const OST_EVENT_EJECTION: u32 = 0x103;
/// `_OST` status codes of an ejection that is only under way.
const OST_EJECT_IN_PROGRESS: u32 = 0x84;

/// How soon a vCPU that the guest is just starting is looked at, and the longest pause when it takes
/// its time: KVM tells us of INIT, but handles the SIPI behind it by itself.
const START_POLL: Duration = Duration::from_millis(1);
const START_POLL_MAX: Duration = Duration::from_millis(50);
/// How often a guest that has not acknowledged a notice is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

struct Slot {
    vcpu: Arc<Vcpu>,
    state: VcpuState,
    /// A notice that the guest has not acknowledged.
    notice: u8,
    /// The guest has it: it booted with it, found it by itself, or has said that a device check went well. A
    /// failure of a further check refuses nothing then: Linux 6.1 means "already enumerated" by it.
    known: bool,
    ost_event: u32,
    /// The last `_OST` status that refused something, until the next request.
    refused: Option<u32>,
}

struct Table {
    slots: Vec<Slot>,
    selector: u32,
    /// The selector stands where the search for notices has put it.
    scanning: bool,
    command: u8,
    target: u32,
}

/// What a wait for the guest ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// vCPUs in the machine.
    pub present: u32,
    /// vCPUs started by the guest.
    pub online: u32,
    /// Status by which the guest refused, if it did.
    pub refused: Option<u32>,
}

/// The registers and the state machines behind them.
pub struct CpuHotplug {
    table: Mutex<Table>,
    changed: Condvar,
    event_device: Arc<EventDevice>,
}

impl CpuHotplug {
    /// The first `boot` of `vcpus` are in the machine from the start.
    pub fn new(vcpus: Vec<Arc<Vcpu>>, boot: u32, event_device: Arc<EventDevice>) -> Self {
        let slots = vcpus
            .into_iter()
            .map(|vcpu| {
                let present = vcpu.id() < boot;
                let state = if present {
                    VcpuState::Present
                } else {
                    VcpuState::Parked
                };
                Slot {
                    vcpu,
                    state,
                    notice: 0,
                    known: present,
                    ost_event: 0,
                    refused: None,
                }
            })
            .collect();
        let table = Table {
            slots,
            selector: 0,
            scanning: false,
            command: 0,
            target: boot,
        };
        Self {
            table: Mutex::new(table),
            changed: Condvar::new(),
            event_device,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by vCPU threads when one was started or parked.
    pub fn vcpu_changed(&self) {
        self.lock().note_started();
        self.changed.notify_all();
    }

    /// Number, thread and state of all of them.
    pub fn states(&self) -> Vec<(Arc<Vcpu>, VcpuState)> {
        let mut table = self.lock();
        table.note_started();
        table
            .slots
            .iter()
            .map(|s| (s.vcpu.clone(), s.state))
            .collect()
    }

    /// How many were asked for last.
    pub fn target(&self) -> u32 {
        self.lock().target
    }

    /// Present, online and refusals now.
    pub fn progress(&self) -> Progress {
        let mut table = self.lock();
        table.note_started();
        table.progress()
    }

    /// Asks the guest for exactly `target` vCPUs (1 to all): announces the missing ones, lowest first,
    /// or asks for the highest ones back. An older wish that is not fulfilled yet is taken back where
    /// that can be done without the guest. vCPU 0 is never asked for. Returns at once.
    pub fn request(&self, target: u32) {
        {
            let mut table = self.lock();
            table.note_started();
            table.request(target);
        }
        self.event_device.raise(EVENT_CPU);
        self.changed.notify_all();
    }

    /// Takes back what the guest has not begun: vCPUs that it did not learn of, removals that it did not
    /// carry out. The guest may still eject a vCPU whose removal was taken back after its notice; then it is
    /// refused and stays.
    pub fn withdraw(&self) {
        {
            let mut table = self.lock();
            table.note_started();
            table.withdraw();
        }
        self.changed.notify_all();
    }

    /// Waits until `done`, or a refusal, or `deadline`. `observe` is called at each change.
    pub fn wait(
        &self,
        deadline: Instant,
        mut done: impl FnMut(&Progress) -> bool,
    ) -> (Progress, bool) {
        let mut table = self.lock();
        let mut poll = START_POLL;
        let mut told = Instant::now();
        loop {
            table.note_started();
            let progress = table.progress();
            let now = Instant::now();
            if done(&progress) || progress.refused.is_some() {
                return (progress, false);
            }
            if now >= deadline {
                return (progress, true);
            }
            if now.duration_since(told) >= TELL_AGAIN {
                told = now;
                if table.has_notice() {
                    self.event_device.raise(EVENT_CPU);
                }
            }
            let starting: Vec<_> = table.starting().collect();
            let mut pause = TELL_AGAIN.min(deadline - now);
            if !starting.is_empty() {
                pause = pause.min(poll);
                poll = (poll * 2).min(START_POLL_MAX);
            }
            let waited = self.changed.wait_timeout(table, pause);
            let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
            table = guard;
            if result.timed_out() {
                starting.iter().for_each(|vcpu| vcpu.kick());
            } else {
                poll = START_POLL;
            }
        }
    }
}

impl Table {
    fn note_started(&mut self) {
        for slot in &mut self.slots {
            if slot.state == VcpuState::Present && slot.vcpu.is_started() {
                slot.state = VcpuState::Online;
            }
        }
    }

    fn progress(&self) -> Progress {
        let count = |wanted: fn(VcpuState) -> bool| {
            self.slots.iter().filter(|s| wanted(s.state)).count() as u32
        };
        Progress {
            present: count(is_present),
            online: count(|s| matches!(s, VcpuState::Online | VcpuState::Removing)),
            refused: self.slots.iter().find_map(|s| s.refused),
        }
    }

    fn has_notice(&self) -> bool {
        self.slots.iter().any(|slot| slot.notice != 0)
    }

    fn starting(&self) -> impl Iterator<Item = Arc<Vcpu>> + '_ {
        let waiting = |s: &&Slot| s.state == VcpuState::Present && s.vcpu.is_starting();
        self.slots.iter().filter(waiting).map(|s| s.vcpu.clone())
    }

    fn request(&mut self, target: u32) {
        self.target = target;
        for slot in &mut self.slots {
            slot.refused = None;
            let wanted = slot.vcpu.id() < target;
            match (slot.state, wanted) {
                (VcpuState::Parked, true) => {
                    // In KVM before the guest hears of it, so that its INIT-SIPI finds somebody.
                    slot.vcpu.unpark();
                    slot.state = VcpuState::Inserting;
                    slot.notice = FLAG_INSERTING;
                }
                (VcpuState::Inserting, true) => slot.notice = FLAG_INSERTING,
                // The guest has not looked yet, so it does not know of it.
                (VcpuState::Inserting, false) if slot.notice == FLAG_INSERTING => slot.park(),
                (VcpuState::Removing, true) => slot.keep(),
                (VcpuState::Inserting, false) => slot.remove(),
                (VcpuState::Present | VcpuState::Online | VcpuState::Removing, false) => {
                    slot.remove();
                }
                // Present but never started: ask the guest again, it may have missed the first notice.
                (VcpuState::Present, true) if slot.vcpu.id() > 0 && !slot.vcpu.is_started() => {
                    slot.notice = FLAG_INSERTING;
                }
                _ => {}
            }
        }
    }

    fn withdraw(&mut self) {
        for slot in &mut self.slots {
            match slot.state {
                VcpuState::Inserting if slot.notice == FLAG_INSERTING => slot.park(),
                VcpuState::Removing => slot.keep(),
                _ => {}
            }
        }
        self.target = self.progress().present;
    }

    fn selected(&mut self) -> Option<&mut Slot> {
        let index = usize::try_from(self.selector).ok()?;
        self.slots.get_mut(index)
    }

    /// Selects the next CPU with a notice, from the selected one on, and leaves it where there is none.
    fn select_pending(&mut self) {
        let count = self.slots.len() as u32;
        let pending = |table: &Self, i: u32| {
            table
                .slots
                .get(i as usize)
                .is_some_and(|slot| slot.notice != 0)
        };
        let from = self.selector.min(count);
        if let Some(next) = (from..count).chain(0..from).find(|i| pending(self, *i)) {
            self.selector = next;
            self.scanning = true;
        }
    }

    fn write_flags(&mut self, flags: u8) {
        let Some(slot) = self.selected() else { return };
        if flags & FLAG_INSERTING != 0 && slot.notice == FLAG_INSERTING {
            slot.notice = 0;
            if slot.state == VcpuState::Inserting {
                slot.state = VcpuState::Present;
            }
        }
        if flags & FLAG_REMOVING != 0 && slot.notice == FLAG_REMOVING {
            slot.notice = 0;
        }
        // Only what we asked for may go: the guest cannot take its own machine apart, nor vCPU 0.
        if flags & FLAG_EJECT != 0 && slot.state == VcpuState::Removing && slot.vcpu.id() > 0 {
            // At once, not when its thread has parked: the guest reads the status straight after this.
            slot.park();
        }
    }

    fn write_data(&mut self, value: u32) {
        let command = self.command;
        let Some(slot) = self.selected() else { return };
        match command {
            CMD_OST_EVENT => slot.ost_event = value,
            CMD_OST_STATUS => slot.on_ost(value),
            _ => {}
        }
    }
}

fn is_present(state: VcpuState) -> bool {
    matches!(
        state,
        VcpuState::Present | VcpuState::Online | VcpuState::Removing
    )
}

impl Slot {
    fn park(&mut self) {
        self.vcpu.park();
        self.state = VcpuState::Parked;
        self.notice = 0;
        self.known = false;
    }

    /// Its status as the guest reads it, after which the guest knows of it: because of the notice, which it
    /// is about to acknowledge, or without it.
    fn status(&mut self, because_of_notice: bool) -> u8 {
        if self.state == VcpuState::Inserting {
            self.state = VcpuState::Present;
            self.known = !because_of_notice;
        }
        let enabled = is_present(self.state);
        self.notice | if enabled { FLAG_ENABLED } else { 0 }
    }

    fn remove(&mut self) {
        if self.vcpu.id() > 0 {
            self.state = VcpuState::Removing;
            self.notice = FLAG_REMOVING;
        }
    }

    /// Stays in the machine although its removal was asked for.
    fn keep(&mut self) {
        self.state = VcpuState::Present;
        self.notice = 0;
    }

    fn on_ost(&mut self, status: u32) {
        let (removing, inserting) = (self.state == VcpuState::Removing, is_present(self.state));
        match self.ost_event {
            OST_EVENT_EJECT_REQUEST | OST_EVENT_EJECTION
                if removing && status != 0 && status != OST_EJECT_IN_PROGRESS =>
            {
                self.refused = Some(status);
                self.keep();
            }
            OST_EVENT_DEVICE_CHECK if inserting && status == 0 => self.known = true,
            OST_EVENT_DEVICE_CHECK if inserting && !removing && !self.known => {
                self.refused = Some(status);
                // The guest does not have it, whatever our table says.
                if !self.vcpu.is_started() {
                    self.park();
                }
            }
            _ => {}
        }
    }
}

impl BusDevice for CpuHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut table = self.lock();
        data.fill(0);
        match (offset, data.len()) {
            (REG_FLAGS, 1) => {
                let because_of_notice = table.scanning;
                let status = table.selected().map(|slot| slot.status(because_of_notice));
                data.fill(status.unwrap_or(0));
                drop(table);
                self.changed.notify_all();
            }
            (REG_DATA, 4) if table.command == CMD_NEXT_PENDING => {
                data.copy_from_slice(&table.selector.to_le_bytes());
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut table = self.lock();
        match (offset, data) {
            (REG_SELECTOR, &[a, b, c, d]) => {
                table.selector = u32::from_le_bytes([a, b, c, d]);
                table.scanning = false;
            }
            (REG_FLAGS, &[flags]) => table.write_flags(flags),
            (REG_COMMAND, &[command]) => {
                table.command = command;
                if command == CMD_NEXT_PENDING {
                    table.select_pending();
                }
            }
            (REG_DATA, &[a, b, c, d]) => table.write_data(u32::from_le_bytes([a, b, c, d])),
            _ => return,
        }
        drop(table);
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "hotplug_tests.rs"]
mod tests;
