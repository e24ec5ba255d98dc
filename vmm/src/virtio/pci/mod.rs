//! Virtio over PCI, modern only (virtio 1.2 §4.1): registers, queue set-up, notifications.
//!
//! ```text
//!  vCPU threads                               event loop
//!  registers, device configuration  ──kick──► activate, reset, queues   ([`VirtioRunner`])
//!  queue notification = ioeventfd  ─────────►
//! ```
//! A driver's `DRIVER_OK` or reset is carried out on the event loop; until a reset is done, the status
//! register does not read as zero, which is what drivers wait for.

mod registers;
mod runner;

pub use runner::{Source, VirtioRunner};

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use self::registers::{CommonConfig, Effect};
use super::{DeviceConfig, DeviceInterrupt, F_VERSION_1, VirtioDevice};
use crate::error::VmmError;
use crate::pci::msix::{Msix, Routes};
use crate::pci::{Bar, Capability, ConfigSpace, Identity, PciFunction};

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// Places in the BAR, one page each.
mod bar {
    pub const COMMON: u64 = 0x0000;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;
    pub const MSIX_TABLE: u64 = 0x4000;
    pub const MSIX_PENDING: u64 = 0x5000;
    pub const BYTES: u64 = 0x8000;
    pub const PAGE: u64 = 0x1000;
}
/// Bytes between the notification registers of two queues.
const NOTIFY_STEP: u64 = 4;

/// Size of a virtio function's BAR; its address must be a multiple.
pub const BAR_BYTES: u64 = bar::BYTES;

/// Interrupt status bits (§4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// "No vector".
const NO_VECTOR: u16 = 0xffff;

/// What registers and event loop share.
struct Shared {
    common: Mutex<CommonConfig>,
    msix: Msix,
    isr: AtomicU8,
    active: AtomicBool,
    /// Wakes the event loop to activate or reset.
    control: EventFd,
    queue_events: Vec<EventFd>,
    config: Arc<dyn DeviceConfig>,
}

impl Shared {
    fn common(&self) -> MutexGuard<'_, CommonConfig> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interrupts as devices see them.
struct PciInterrupt(Arc<Shared>);

impl DeviceInterrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        let vector = self.0.common().queue_vector(index);
        self.0.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        if vector != NO_VECTOR {
            self.0.msix.trigger(vector);
        }
    }

    fn config(&self) {
        let vector = self.0.common().config_vector();
        self.0.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        if vector != NO_VECTOR {
            self.0.msix.trigger(vector);
        }
    }

    fn needs_reset(&self) {
        self.0.common().set_needs_reset();
        self.config();
    }
}

/// Configuration space and where the BAR is mapped for notifications.
struct Function {
    config: ConfigSpace,
    msix_at: usize,
    window_at: usize,
    /// Where the ioeventfds are, while the device is active.
    notifying: Option<u64>,
}

/// The PCI function of a virtio device.
pub struct VirtioPci {
    shared: Arc<Shared>,
    function: Mutex<Function>,
    vm: Arc<VmFd>,
}

impl VirtioPci {
    /// Puts `device` on the bus with its BAR at `bar_address`, and gives the part that belongs on the
    /// event loop.
    ///
    /// # Errors
    /// No event descriptors to be had.
    pub fn new(
        device: &dyn VirtioDevice,
        vm: Arc<VmFd>,
        routes: Arc<Routes>,
        bar_address: u64,
    ) -> Result<Arc<Self>, VmmError> {
        let sizes = device.queue_sizes();
        let event = || {
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmmError::host(
                "Event descriptor of a virtio device cannot be made",
            ))
        };
        let vectors = sizes.len() as u16 + 1;
        let shared = Arc::new(Shared {
            common: Mutex::new(CommonConfig::new(device.features() | F_VERSION_1, sizes)),
            msix: Msix::new(routes, vectors),
            isr: AtomicU8::new(0),
            active: AtomicBool::new(false),
            control: event()?,
            queue_events: sizes.iter().map(|_| event()).collect::<Result<_, _>>()?,
            config: device.config(),
        });
        let function = Function::new(device.device_type(), vectors, sizes.len(), bar_address);
        Ok(Arc::new(Self {
            shared,
            function: Mutex::new(function),
            vm,
        }))
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interrupts of this device.
    pub fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::new(PciInterrupt(self.shared.clone()))
    }

    /// Moves the notification registers in KVM to where the BAR is, or takes them away.
    fn place_notifications(&self, function: &mut Function) {
        let active = self.shared.active.load(Ordering::Acquire);
        let wanted = function.config.bar_address().filter(|_| active);
        if wanted == function.notifying {
            return;
        }
        for (index, event) in (0u64..).zip(&self.shared.queue_events) {
            let at = |base: u64| {
                kvm_ioctls::IoEventAddress::Mmio(base + bar::NOTIFY + index * NOTIFY_STEP)
            };
            if let Some(base) = function.notifying {
                let _ = self
                    .vm
                    .unregister_ioevent(event, &at(base), kvm_ioctls::NoDatamatch);
            }
            // Where KVM refuses, the access reaches `bar_write` and is passed on there.
            let used = self
                .shared
                .common()
                .queue(index as u16)
                .is_some_and(|q| q.enabled);
            if let Some(base) = wanted.filter(|_| used) {
                let _ = self
                    .vm
                    .register_ioevent(event, &at(base), kvm_ioctls::NoDatamatch);
            }
        }
        function.notifying = wanted;
    }

    fn notify(&self, queue: u64) {
        if let Some(event) = usize::try_from(queue)
            .ok()
            .and_then(|q| self.shared.queue_events.get(q))
        {
            let _ = event.write(1);
        }
    }

    fn common_write(&self, offset: u64, data: &[u8]) {
        let mut common = self.shared.common();
        let effect = common.write(offset, data);
        // Decided under the lock, as the event loop marks the device active under it: a reset is
        // either done here, before any activation, or there, after it.
        let active = self.shared.active.load(Ordering::Acquire);
        if effect == Effect::Reset && !active {
            common.reset_done();
        } else if effect != Effect::None {
            let _ = self.shared.control.write(1);
        }
    }

    /// The window (§4.1.4.9) through which configuration cycles reach the BAR: offset and length of
    /// the access that it stands for.
    fn window(&self, function: &Function) -> Option<(u64, usize)> {
        let mut bytes = [0u8; 20];
        function.config.read(function.window_at as u64, &mut bytes);
        let [.., o0, o1, o2, o3, l0, l1, l2, l3, _, _, _, _] = bytes;
        let offset = u64::from(u32::from_le_bytes([o0, o1, o2, o3]));
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        (bytes[4] == 0 && matches!(len, 1 | 2 | 4) && offset < bar::BYTES).then_some((offset, len))
    }
}

impl Function {
    fn new(device_type: u32, vectors: u16, queues: usize, bar_address: u64) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + device_type as u16,
            revision: 1,
            class: [0xff, 0, 0],
            subsystem: (VENDOR, DEVICE_BASE + device_type as u16),
        });
        config.set_bar(Bar {
            address: bar_address,
            bytes: bar::BYTES,
        });
        let notify_len = queues as u64 * NOTIFY_STEP;
        let parts = [
            (1u8, bar::COMMON, registers::COMMON_BYTES, vec![]),
            (
                2,
                bar::NOTIFY,
                notify_len,
                (NOTIFY_STEP as u32).to_le_bytes().to_vec(),
            ),
            (3, bar::ISR, 1, vec![]),
            (4, bar::DEVICE, bar::PAGE, vec![]),
        ];
        for (kind, offset, len, extra) in parts {
            config.add_capability(&vendor_capability(kind, offset, len, &extra), &[]);
        }
        // BAR number, offset, length and data of the window are the guest's.
        let writable: Vec<_> = [4].into_iter().chain(8..20).map(|at| (at, 0xff)).collect();
        let window_at = config.add_capability(&vendor_capability(5, 0, 0, &[0; 4]), &writable);

        let mut msix = (vectors - 1).to_le_bytes().to_vec();
        msix.extend((bar::MSIX_TABLE as u32).to_le_bytes());
        msix.extend((bar::MSIX_PENDING as u32).to_le_bytes());
        let msix_at = config.add_capability(
            &Capability {
                id: CAP_MSIX,
                body: msix,
            },
            &[(3, 0xc0)],
        );
        Self {
            config,
            msix_at,
            window_at,
            notifying: None,
        }
    }
}

/// `struct virtio_pci_cap` (§4.1.4), in BAR 0.
fn vendor_capability(kind: u8, offset: u64, len: u64, extra: &[u8]) -> Capability {
    let total = 16 + extra.len() as u8;
    let mut body = vec![total, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    Capability {
        id: CAP_VENDOR,
        body,
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let function = self.function();
        function.config.read(offset, data);
        let data_at = function.window_at as u64 + 16;
        if offset == data_at
            && let Some((at, len)) = self.window(&function)
            && let Some(data) = data.get_mut(..len)
        {
            drop(function);
            self.bar_read(at, data);
        }
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let mut function = self.function();
        function.config.write(offset, data);
        self.place_notifications(&mut function);
        let control_at = function.msix_at as u64 + 2;
        if (offset..offset.saturating_add(data.len() as u64)).contains(&(control_at + 1)) {
            let mut control = [0; 2];
            function.config.read(control_at, &mut control);
            drop(function);
            self.shared.msix.set_control(u16::from_le_bytes(control));
        } else if offset == function.window_at as u64 + 16
            && let Some((at, len)) = self.window(&function)
            && let Some(data) = data.get(..len)
        {
            drop(function);
            self.bar_write(at, data);
        }
    }

    fn bar(&self) -> Option<(u64, u64)> {
        let function = self.function();
        Some((function.config.bar_address()?, function.config.bar_bytes()))
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        let inside = offset % bar::PAGE;
        match offset - inside {
            bar::COMMON => {
                let generation = self.shared.config.generation();
                self.shared.common().read(inside, data, generation);
            }
            bar::ISR => {
                data.fill(0);
                if let (0, Some(first)) = (inside, data.first_mut()) {
                    *first = self.shared.isr.swap(0, Ordering::SeqCst);
                }
            }
            bar::DEVICE => self.shared.config.read(inside, data),
            bar::MSIX_TABLE => self.shared.msix.table_read(inside, data),
            bar::MSIX_PENDING => self.shared.msix.pending_read(inside, data),
            _ => data.fill(0),
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        let inside = offset % bar::PAGE;
        match offset - inside {
            bar::COMMON => self.common_write(inside, data),
            bar::DEVICE => self.shared.config.write(inside, data),
            bar::NOTIFY => self.notify(inside / NOTIFY_STEP),
            bar::MSIX_TABLE => self.shared.msix.table_write(inside, data),
            _ => {}
        }
    }
}
