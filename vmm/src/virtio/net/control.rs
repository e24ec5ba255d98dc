//! The control side of a network device: configuration space, counters and rate limits, which other
//! threads read and set while the event loop works.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use concertina_api::net::{MacAddr, NetLink, NetRateChange, NetRates, NetStatus, NetTraffic};

use crate::virtio::DeviceConfig;
use crate::virtio::rate::Throttle;

/// `VIRTIO_NET_S_LINK_UP`.
const STATUS_LINK_UP: u16 = 1;

/// Counters and limit of one direction.
pub(super) struct Direction {
    bytes: AtomicU64,
    frames: AtomicU64,
    drops: AtomicU64,
    /// The limit.
    pub throttle: Throttle,
}

impl Direction {
    fn new(throttle: Throttle) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            drops: AtomicU64::new(0),
            throttle,
        }
    }

    /// A frame of so many bytes has passed.
    pub fn passed(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame was lost.
    pub fn dropped(&self) {
        self.drops.fetch_add(1, Ordering::Relaxed);
    }

    fn traffic(&self) -> NetTraffic {
        NetTraffic {
            bytes: self.bytes.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
            drops: self.drops.load(Ordering::Relaxed),
            throttled: self.throttle.waits(),
        }
    }
}

/// What the device's threads share.
pub(super) struct Shared {
    link: NetLink,
    tap: Option<String>,
    mac: MacAddr,
    mtu: Option<u16>,
    link_up: AtomicBool,
    driver_ready: AtomicBool,
    generation: AtomicU8,
    bad_requests: AtomicU64,
    /// To the guest.
    pub rx: Direction,
    /// From the guest.
    pub tx: Direction,
}

/// What a device is made with.
pub struct Settings {
    /// What stands behind it.
    pub link: NetLink,
    /// Name of the tap interface.
    pub tap: Option<String>,
    /// Its address.
    pub mac: MacAddr,
    /// MTU that the driver is told.
    pub mtu: Option<u16>,
    /// Limits at the start.
    pub rates: NetRates,
}

impl Shared {
    pub fn new(settings: Settings) -> io::Result<Self> {
        let direction = |rate| Throttle::new(rate).map(Direction::new);
        Ok(Self {
            rx: direction(settings.rates.rx)?,
            tx: direction(settings.rates.tx)?,
            link: settings.link,
            tap: settings.tap,
            mac: settings.mac,
            mtu: settings.mtu,
            link_up: AtomicBool::new(true),
            driver_ready: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            bad_requests: AtomicU64::new(0),
        })
    }

    /// MTU that the driver is told.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// The driver has sent nonsense.
    pub fn bad_request(&self) {
        self.bad_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A driver came, or went.
    pub fn set_driver_ready(&self, ready: bool) {
        self.driver_ready.store(ready, Ordering::Relaxed);
    }

    /// The host's side has ended.
    pub fn link_down(&self) {
        self.link_up.store(false, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

impl DeviceConfig for Shared {
    /// `struct virtio_net_config` (§5.1.4) up to `mtu`.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [a, b, c, d, e, f] = self.mac.octets();
        let up = self.link_up.load(Ordering::Relaxed);
        let [s0, s1] = (if up { STATUS_LINK_UP } else { 0 }).to_le_bytes();
        let [m0, m1] = self.mtu.unwrap_or(0).to_le_bytes();
        let space = [a, b, c, d, e, f, s0, s1, 1, 0, m0, m1];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let known = space.get(from..).unwrap_or_default();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = known.get(at).copied().unwrap_or(0);
        }
    }

    /// A modern driver may write nothing here.
    fn write(&self, _offset: u64, _data: &[u8]) {}

    fn generation(&self) -> u8 {
        self.generation.load(Ordering::Relaxed)
    }
}

/// Handle of a network device for other threads.
#[derive(Clone)]
pub struct NetController(pub(super) Arc<Shared>);

impl NetController {
    /// The interface as it is.
    pub fn status(&self) -> NetStatus {
        let shared = &self.0;
        NetStatus {
            link: shared.link,
            tap: shared.tap.clone(),
            mac: shared.mac,
            link_up: shared.link_up.load(Ordering::Relaxed),
            driver_ready: shared.driver_ready.load(Ordering::Relaxed),
            rx: shared.rx.traffic(),
            tx: shared.tx.traffic(),
            bad_requests: shared.bad_requests.load(Ordering::Relaxed),
            rates: NetRates {
                rx: shared.rx.throttle.rate(),
                tx: shared.tx.throttle.rate(),
            },
        }
    }

    /// Sets the limits that a change names, at once.
    pub fn change_rates(&self, change: &NetRateChange) {
        if let Some(rate) = change.rx {
            self.0.rx.throttle.set(rate);
        }
        if let Some(rate) = change.tx {
            self.0.tx.throttle.set(rate);
        }
    }
}

/// Whether such a change is possible for a VM with so many interfaces.
///
/// # Errors
/// A sentence that names the interface.
pub fn check_change(change: &NetRateChange, interfaces: usize) -> Result<(), String> {
    let Some(last) = interfaces.checked_sub(1) else {
        return Err("A network rate is not possible: this VM has no network interface".into());
    };
    let index = change.index.and_then(|index| usize::try_from(index).ok());
    match index.filter(|index| *index > last) {
        None => Ok(()),
        Some(index) => Err(format!(
            "Network interface {index} is not there: this VM has 0 to {last}"
        )),
    }
}

/// Sets the limits that a change names, of the interface that it names or of all.
pub fn change_rates(nets: &[NetController], change: &NetRateChange) {
    let wanted = change.index.and_then(|index| usize::try_from(index).ok());
    for (index, net) in nets.iter().enumerate() {
        if wanted.is_none_or(|wanted| wanted == index) {
            net.change_rates(change);
        }
    }
}

/// The limits in force in the parts that a change names; of all interfaces, the first one's.
pub fn rates_in_force(nets: &[NetController], change: &NetRateChange) -> Option<NetRateChange> {
    let index = change.index.unwrap_or(0);
    let rates = nets.get(usize::try_from(index).ok()?)?.status().rates;
    Some(NetRateChange {
        index: change.index,
        rx: change.rx.map(|_| rates.rx),
        tx: change.tx.map(|_| rates.tx),
    })
}
