//! Configuration space of one function: 256 bytes with a mask of what the guest may write.

/// What the function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

/// A 64-bit memory BAR.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    /// Address at start.
    pub address: u64,
    /// Bytes, a power of two of at least 16.
    pub bytes: u64,
}

/// A capability without its two header bytes.
#[derive(Debug, Clone)]
pub struct Capability {
    /// Capability id.
    pub id: u8,
    /// What follows id and next pointer.
    pub body: Vec<u8>,
}

const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAP_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAP: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
/// Memory space, bus master, interrupt disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// 64-bit, not prefetchable.
const BAR_FLAGS: u64 = 0b100;

/// 256 bytes and what may be written.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    next_cap: usize,
    last_cap_pointer: usize,
    bar_bytes: u64,
}

impl ConfigSpace {
    /// A type 0 header.
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next_cap: FIRST_CAP,
            last_cap_pointer: CAP_POINTER,
            bar_bytes: 0,
        };
        let [class, subclass, interface] = identity.class;
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.put(8, &[identity.revision, interface, subclass, class]);
        config.put(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(target) = self.bytes.get_mut(at..at + data.len()) {
            target.copy_from_slice(data);
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        if let Some(target) = self.writable.get_mut(at..at + mask.len()) {
            target.copy_from_slice(mask);
        }
    }

    /// Makes BARs 0 and 1 one 64-bit memory BAR, already in place.
    pub fn set_bar(&mut self, bar: Bar) {
        self.put(BAR0, &(bar.address | BAR_FLAGS).to_le_bytes());
        // The address bits below the size read as zero: that is how a guest learns the size.
        self.allow(BAR0, &(!(bar.bytes - 1) & !0xf).to_le_bytes());
        self.bar_bytes = bar.bytes;
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    /// Adds a capability; says where it is. Its bytes are read-only but for `writable`, offsets into
    /// the whole capability with their masks.
    pub fn add_capability(&mut self, cap: &Capability, writable: &[(usize, u8)]) -> usize {
        let at = self.next_cap;
        let pointer = self.last_cap_pointer;
        self.put(pointer, &[at as u8]);
        self.put(at, &[cap.id, 0]);
        self.put(at + 2, &cap.body);
        for (offset, mask) in writable {
            self.allow(at + offset, &[*mask]);
        }
        self.last_cap_pointer = at + 1;
        self.next_cap = (at + 2 + cap.body.len()).next_multiple_of(4);
        let status = STATUS_CAPABILITIES.to_le_bytes();
        self.put(STATUS, &status);
        at
    }

    /// Reads; beyond the end is zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
            *byte = at.and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            let Some(at) = usize::try_from(offset).ok().and_then(|o| o.checked_add(i)) else {
                return;
            };
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    fn u16_at(&self, at: usize) -> u16 {
        match self.bytes.get(at..at + 2) {
            Some(&[a, b]) => u16::from_le_bytes([a, b]),
            _ => 0,
        }
    }

    /// Where the BAR is decoded at the moment, if it is.
    pub fn bar_address(&self) -> Option<u64> {
        if self.bar_bytes == 0 || self.u16_at(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let bytes = self.bytes.get(BAR0..BAR0 + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes) & !0xf)
    }

    /// Size of the BAR.
    pub fn bar_bytes(&self) -> u64 {
        self.bar_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: [0xff, 0, 0],
            subsystem: (0x1af4, 4),
        });
        config.set_bar(Bar {
            address: 0x40_0000_0000,
            bytes: 0x4000,
        });
        config
    }

    #[test]
    fn a_bar_tells_its_size_and_moves() {
        let mut config = config();
        assert_eq!(config.bar_address(), Some(0x40_0000_0000));
        config.write(0x10, &[0xff; 8]);
        let mut size = [0; 8];
        config.read(0x10, &mut size);
        assert_eq!(!(u64::from_le_bytes(size) & !0xf) + 1, 0x4000);
        config.write(0x10, &0x50_0000_0000u64.to_le_bytes());
        assert_eq!(config.bar_address(), Some(0x50_0000_0000));
        config.write(4, &0u16.to_le_bytes());
        assert_eq!(config.bar_address(), None);
    }

    #[test]
    fn capabilities_are_chained_and_read_only() {
        let mut config = config();
        let first = config.add_capability(
            &Capability {
                id: 9,
                body: vec![1, 2, 3],
            },
            &[],
        );
        let second = config.add_capability(
            &Capability {
                id: 0x11,
                body: vec![4; 10],
            },
            &[(3, 0xc0)],
        );
        let byte = |config: &ConfigSpace, at| {
            let mut data = [0];
            config.read(at, &mut data);
            data[0]
        };
        assert_eq!(byte(&config, 0x34) as usize, first);
        assert_eq!(byte(&config, first as u64 + 1) as usize, second);
        assert_eq!(byte(&config, second as u64 + 1), 0);
        config.write(second as u64 + 2, &[0xff, 0xff]);
        assert_eq!(byte(&config, second as u64 + 2), 4);
        assert_eq!(byte(&config, second as u64 + 3), 0xc4);
        config.write(u64::MAX, &[1, 2]);
    }
}
