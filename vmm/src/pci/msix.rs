//! MSI-X (PCI 3.0 §6.8.2): the table, the pending bits, and one irqfd per vector in use.
//!
//! Each vector owns a GSI. When its message changes while it is unmasked, the VM's routing table is
//! set again; a masked vector collects its interrupt in the pending bits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::layout::FIRST_MSI_GSI;

/// Bytes of a table entry.
pub const ENTRY_BYTES: u64 = 16;
const CONTROL_MASKED: u32 = 1;

/// A message: address and data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Message {
    address: u64,
    data: u32,
}

/// All interrupt routes of the VM: the I/O APIC's pins, and a message per GSI behind them.
pub struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Option<Message>>>,
}

impl Routes {
    /// Only the I/O APIC at first, as KVM has it.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            messages: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A GSI of one's own, for messages. Only while the VM is built.
    pub fn allocate(&self) -> u32 {
        let mut messages = self.lock();
        messages.push(None);
        FIRST_MSI_GSI + messages.len() as u32 - 1
    }

    /// Lets `gsi` send `message`. Unchanged messages cost nothing.
    fn set(&self, gsi: u32, message: Message) -> bool {
        let mut messages = self.lock();
        let Some(slot) = messages.get_mut((gsi - FIRST_MSI_GSI) as usize) else {
            return false;
        };
        if *slot == Some(message) {
            return true;
        }
        *slot = Some(message);
        let entries: Vec<_> = (0..FIRST_MSI_GSI)
            .map(ioapic_route)
            .chain(
                (FIRST_MSI_GSI..)
                    .zip(messages.iter())
                    .filter_map(|(g, m)| Some(msi_route(g, (*m)?))),
            )
            .collect();
        let Ok(table) = KvmIrqRouting::from_entries(&entries) else {
            return false;
        };
        self.vm.set_gsi_routing(&table).is_ok()
    }
}

fn ioapic_route(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

#[derive(Default)]
struct Entry {
    message: Message,
    masked: bool,
    pending: bool,
    gsi: u32,
    irqfd: Option<EventFd>,
}

struct State {
    entries: Vec<Entry>,
    enabled: bool,
    function_masked: bool,
}

/// MSI-X of one function.
pub struct Msix {
    routes: Arc<Routes>,
    state: Mutex<State>,
}

impl Msix {
    /// So many vectors, all masked, as after a reset.
    pub fn new(routes: Arc<Routes>, vectors: u16) -> Self {
        let entry = |_| Entry {
            masked: true,
            gsi: routes.allocate(),
            ..Entry::default()
        };
        let entries = (0..vectors).map(entry).collect();
        let state = State {
            entries,
            enabled: false,
            function_masked: false,
        };
        Self {
            routes,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.lock().entries.len() as u16
    }

    /// Message control was written: bit 15 enables, bit 14 masks all.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.enabled = control & 1 << 15 != 0;
        state.function_masked = control & 1 << 14 != 0;
        if state.enabled && !state.function_masked {
            for index in 0..state.entries.len() {
                self.deliver_pending(&mut state, index);
            }
        }
    }

    /// Interrupts with vector `index`; a masked one is kept pending.
    pub fn trigger(&self, index: u16) {
        let mut state = self.lock();
        let open = state.enabled && !state.function_masked;
        let Some(entry) = state.entries.get_mut(usize::from(index)) else {
            return;
        };
        if !open || entry.masked {
            entry.pending = true;
            return;
        }
        if let Some(irqfd) = self.connected(entry) {
            let _ = irqfd.write(1);
        }
    }

    /// The irqfd, routed to the entry's present message.
    fn connected<'a>(&self, entry: &'a mut Entry) -> Option<&'a EventFd> {
        if !self.routes.set(entry.gsi, entry.message) {
            return None;
        }
        if entry.irqfd.is_none() {
            let fd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).ok()?;
            self.routes.vm.register_irqfd(&fd, entry.gsi).ok()?;
            entry.irqfd = Some(fd);
        }
        entry.irqfd.as_ref()
    }

    fn deliver_pending(&self, state: &mut State, index: usize) {
        if let Some(entry) = state.entries.get_mut(index)
            && entry.pending
            && !entry.masked
        {
            entry.pending = false;
            if let Some(irqfd) = self.connected(entry) {
                let _ = irqfd.write(1);
            }
        }
    }

    /// Reads the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let bytes = state
            .entries
            .get((offset / ENTRY_BYTES) as usize)
            .map(|entry| {
                let control = if entry.masked { CONTROL_MASKED } else { 0 };
                let mut bytes = [0u8; ENTRY_BYTES as usize];
                let words = [
                    entry.message.address as u32,
                    (entry.message.address >> 32) as u32,
                    entry.message.data,
                    control,
                ];
                for (target, word) in bytes.chunks_exact_mut(4).zip(words) {
                    target.copy_from_slice(&word.to_le_bytes());
                }
                bytes
            });
        let inside = (offset % ENTRY_BYTES) as usize;
        let source = bytes
            .as_ref()
            .and_then(|b| b.get(inside..inside + data.len()));
        match source {
            Some(source) => data.copy_from_slice(source),
            None => data.fill(0),
        }
    }

    /// Writes the table, in aligned dwords or qwords.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let index = (offset / ENTRY_BYTES) as usize;
        let Some(entry) = state.entries.get_mut(index) else {
            return;
        };
        let words = data
            .chunks_exact(4)
            .filter_map(|w| w.try_into().ok().map(u32::from_le_bytes));
        for (word, value) in (offset % ENTRY_BYTES / 4..).zip(words) {
            let address = entry.message.address;
            match word {
                0 => entry.message.address = address & !0xffff_ffff | u64::from(value),
                1 => entry.message.address = address & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.message.data = value,
                3 => entry.masked = value & CONTROL_MASKED != 0,
                _ => {}
            }
        }
        if state.enabled && !state.function_masked {
            self.deliver_pending(&mut state, index);
        }
    }

    /// Reads the pending bits.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = (at as usize).saturating_mul(8);
            *byte = (0..8).fold(0, |bits, i| {
                let pending = state.entries.get(first + i).is_some_and(|e| e.pending);
                bits | u8::from(pending) << i
            });
        }
    }
}
