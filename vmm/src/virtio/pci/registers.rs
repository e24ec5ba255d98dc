//! The common configuration structure (§4.1.4.3) and the device status protocol (§2.1), as plain
//! state: no descriptors, no threads.

use virtio_queue::{Queue, QueueT};

/// Bytes of the structure.
pub const COMMON_BYTES: u64 = 56;

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
const STATUS_FAILED: u8 = 128;

const NO_VECTOR: u16 = super::NO_VECTOR;

/// What a write asks the rest of the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver is ready.
    Activate,
    /// The driver wants a reset.
    Reset,
}

/// One queue as the driver has set it up.
#[derive(Debug, Clone, Copy)]
pub struct QueueSetup {
    max_size: u16,
    size: u16,
    vector: u16,
    /// The driver has switched it on.
    pub enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        let (size, vector) = (max_size, NO_VECTOR);
        Self {
            max_size,
            size,
            vector,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// The queue to work with; absent where its size or addresses are not even well formed.
    pub fn build(&self) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        if !self.enabled {
            return Some(queue);
        }
        queue.try_set_size(self.size).ok()?;
        queue
            .try_set_desc_table_address(vm_memory::GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(vm_memory::GuestAddress(self.available))
            .ok()?;
        queue
            .try_set_used_ring_address(vm_memory::GuestAddress(self.used))
            .ok()?;
        queue.set_ready(true);
        Some(queue)
    }
}

/// The structure.
#[derive(Debug)]
pub struct CommonConfig {
    offered: u64,
    acked: u64,
    device_select: u32,
    driver_select: u32,
    config_vector: u16,
    status: u8,
    resetting: bool,
    activating: bool,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

/// What the event loop has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// Activate with the features acked.
    Activate,
    /// Reset.
    Reset,
}

impl CommonConfig {
    /// As after a reset.
    pub fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered,
            acked: 0,
            device_select: 0,
            driver_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            resetting: false,
            activating: false,
            queue_select: 0,
            queues: queue_sizes.iter().map(|s| QueueSetup::new(*s)).collect(),
        }
    }

    /// Features that the driver has accepted.
    pub fn acked(&self) -> u64 {
        self.acked
    }
    /// Queue `index`.
    pub fn queue(&self, index: u16) -> Option<&QueueSetup> {
        self.queues.get(usize::from(index))
    }
    /// All queues.
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }
    /// Interrupt vector of queue `index`.
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.queue(index).map_or(NO_VECTOR, |q| q.vector)
    }
    /// Interrupt vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }
    /// The device cannot go on.
    pub fn set_needs_reset(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
    }

    /// What waits to be done. An activation is handed out once.
    pub fn take_pending(&mut self) -> Pending {
        if self.resetting {
            Pending::Reset
        } else if std::mem::take(&mut self.activating) {
            Pending::Activate
        } else {
            Pending::Nothing
        }
    }

    /// The reset was carried out.
    pub fn reset_done(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|q| q.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    fn selected(&mut self) -> Option<&mut QueueSetup> {
        let index = usize::from(self.queue_select);
        // Frozen from the moment that the driver is ready: the event loop works with a copy.
        let frozen = self.status & STATUS_DRIVER_OK != 0;
        self.queues.get_mut(index).filter(|_| !frozen)
    }

    /// Reads.
    pub fn read(&self, offset: u64, data: &mut [u8], generation: u8) {
        let queue = self.queue(self.queue_select);
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let field = |f: fn(&QueueSetup) -> u64| queue.map_or(0, f);
        let vector = queue.map_or(NO_VECTOR, |q| q.vector);
        let value: u64 = match offset {
            0x00 => u64::from(self.device_select),
            0x04 => u64::from(half(self.offered, self.device_select)),
            0x08 => u64::from(self.driver_select),
            0x0c => u64::from(half(self.acked, self.driver_select)),
            0x10 => u64::from(self.config_vector),
            0x12 => self.queues.len() as u64,
            0x14 => u64::from(self.status),
            0x15 => u64::from(generation),
            0x16 => u64::from(self.queue_select),
            0x18 => field(|q| u64::from(q.size)),
            0x1a => u64::from(vector),
            0x1c => field(|q| u64::from(q.enabled)),
            0x1e => u64::from(self.queue_select),
            0x20 => field(|q| q.descriptors),
            0x24 => field(|q| q.descriptors >> 32),
            0x28 => field(|q| q.available),
            0x2c => field(|q| q.available >> 32),
            0x30 => field(|q| q.used),
            0x34 => field(|q| q.used >> 32),
            _ => 0,
        };
        for (target, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *target = byte;
        }
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut bytes = [0u8; 8];
        for (target, byte) in bytes.iter_mut().zip(data) {
            *target = *byte;
        }
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) => self.accept_features(value),
            (0x10, 2) => self.config_vector = value as u16,
            (0x14, 1) => return self.set_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            _ => self.write_queue(offset, data.len(), value),
        }
        Effect::None
    }

    fn accept_features(&mut self, value: u64) {
        if self.status & STATUS_FEATURES_OK == 0 && self.driver_select < 2 {
            let shift = self.driver_select * 32;
            self.acked = self.acked & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
        }
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        let Some(queue) = self.selected() else { return };
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        match (offset, len) {
            (0x18, 2) => queue.size = value as u16,
            (0x1a, 2) => queue.vector = value as u16,
            (0x1c, 2) => queue.enabled = value == 1,
            (0x20, 8) => queue.descriptors = value,
            (0x20, 4) => queue.descriptors = low(queue.descriptors),
            (0x24, 4) => queue.descriptors = high(queue.descriptors),
            (0x28, 8) => queue.available = value,
            (0x28, 4) => queue.available = low(queue.available),
            (0x2c, 4) => queue.available = high(queue.available),
            (0x30, 8) => queue.used = value,
            (0x30, 4) => queue.used = low(queue.used),
            (0x34, 4) => queue.used = high(queue.used),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.resetting = true;
            return Effect::Reset;
        }
        let needed = [
            (STATUS_DRIVER, STATUS_ACKNOWLEDGE),
            (STATUS_FEATURES_OK, STATUS_ACKNOWLEDGE | STATUS_DRIVER),
            (
                STATUS_DRIVER_OK,
                STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK,
            ),
        ];
        let before = self.status;
        let mut value = value & !STATUS_NEEDS_RESET | before & STATUS_NEEDS_RESET;
        // Unknown features, or no VERSION_1: FEATURES_OK does not stick, and the driver sees that.
        if self.acked & !self.offered != 0 || self.acked & crate::virtio::F_VERSION_1 == 0 {
            value &= !STATUS_FEATURES_OK;
        }
        for (bit, prerequisites) in needed {
            if value & bit != 0 && value & prerequisites != prerequisites {
                value &= !bit;
            }
        }
        self.status = value | before & !STATUS_FAILED;
        let newly_ok = self.status & !before & STATUS_DRIVER_OK != 0;
        if newly_ok && self.status & STATUS_NEEDS_RESET == 0 && !self.resetting {
            self.activating = true;
            return Effect::Activate;
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(config: &CommonConfig, offset: u64) -> u8 {
        let mut data = [0];
        config.read(offset, &mut data, 0);
        data[0]
    }

    fn negotiate(config: &mut CommonConfig, features: u64) {
        config.write(0x14, &[1]);
        config.write(0x14, &[3]);
        for half in 0..2u32 {
            config.write(0x08, &half.to_le_bytes());
            config.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        config.write(0x14, &[0xb]);
    }

    #[test]
    fn features_stick_only_when_all_of_them_were_offered() {
        let mut config = CommonConfig::new(1 << 32 | 2, &[64]);
        negotiate(&mut config, 1 << 32 | 4);
        assert_eq!(byte(&config, 0x14) & STATUS_FEATURES_OK, 0);
        let mut config = CommonConfig::new(1 << 32 | 2, &[64]);
        negotiate(&mut config, 2);
        assert_eq!(byte(&config, 0x14) & STATUS_FEATURES_OK, 0, "legacy driver");
        let mut config = CommonConfig::new(1 << 32 | 2, &[64]);
        negotiate(&mut config, 1 << 32 | 2);
        assert_ne!(byte(&config, 0x14) & STATUS_FEATURES_OK, 0);
        assert_eq!(config.write(0x14, &[0xf]), Effect::Activate);
        assert_eq!(config.take_pending(), Pending::Activate);
        assert_eq!(config.take_pending(), Pending::Nothing);
    }

    #[test]
    fn driver_ok_without_negotiation_does_not_activate() {
        let mut config = CommonConfig::new(1 << 32, &[64]);
        assert_eq!(config.write(0x14, &[4]), Effect::None);
        assert_eq!(config.take_pending(), Pending::Nothing);
    }

    #[test]
    fn status_reads_as_zero_only_after_the_reset_was_done() {
        let mut config = CommonConfig::new(1 << 32, &[64]);
        negotiate(&mut config, 1 << 32);
        config.write(0x14, &[0xf]);
        assert_eq!(config.write(0x14, &[0]), Effect::Reset);
        assert_ne!(byte(&config, 0x14), 0);
        assert_eq!(config.take_pending(), Pending::Reset);
        config.reset_done();
        assert_eq!(byte(&config, 0x14), 0);
    }

    #[test]
    fn absurd_queues_are_not_built() {
        let mut config = CommonConfig::new(1 << 32, &[64]);
        for size in [0u16, 3, 128, 65535] {
            config.write(0x18, &size.to_le_bytes());
            config.write(0x1c, &1u16.to_le_bytes());
            assert!(config.queues()[0].build().is_none(), "{size}");
        }
        config.write(0x18, &64u16.to_le_bytes());
        config.write(0x20, &1u32.to_le_bytes());
        assert!(config.queues()[0].build().is_none(), "unaligned");
        config.write(0x16, &9u16.to_le_bytes());
        config.write(0x18, &64u16.to_le_bytes());
        assert_eq!(byte(&config, 0x18), 0, "no such queue");
    }
}
