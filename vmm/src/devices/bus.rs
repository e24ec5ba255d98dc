//! Finds the device behind an address. Accesses come from vCPU threads.

use std::sync::Arc;

/// Registers of a device. Called on vCPU threads: takes short locks only, never waits.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, which is all ones before, from `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices want the same address.
#[derive(Debug, thiserror::Error)]
#[error("Registers at {base:#x} ({len} bytes) overlap others")]
pub struct BusError {
    base: u64,
    len: u64,
}

struct Range {
    base: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space of registers: ports or memory.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Adds a device.
    ///
    /// # Errors
    /// The range overlaps one that is there.
    pub fn add(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let at = self.ranges.partition_point(|r| r.base < base);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i));
        let overlaps = before.is_some_and(|r| r.base + r.len > base)
            || self.ranges.get(at).is_some_and(|r| base + len > r.base);
        if overlaps || len == 0 {
            return Err(BusError { base, len });
        }
        self.ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    fn find(&self, addr: u64, count: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self
            .ranges
            .partition_point(|r| r.base <= addr)
            .checked_sub(1)?;
        let range = self.ranges.get(at)?;
        let offset = addr - range.base;
        let end = offset.checked_add(count as u64)?;
        (end <= range.len).then_some((&*range.device, offset))
    }

    /// Reads; nothing there reads as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; nothing there swallows it.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);
    impl BusDevice for Fixed {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_holds_all_of_it() {
        let mut bus = Bus::default();
        bus.add(0x100, 8, Arc::new(Fixed(10))).unwrap();
        bus.add(0x108, 8, Arc::new(Fixed(50))).unwrap();
        assert!(bus.add(0x104, 2, Arc::new(Fixed(0))).is_err());
        assert!(bus.add(0xff, 2, Arc::new(Fixed(0))).is_err());
        let read = |addr, len| {
            let mut data = [0; 8];
            bus.read(addr, &mut data[..len]);
            data[0]
        };
        assert_eq!(read(0x101, 1), 11);
        assert_eq!(read(0x108, 1), 50);
        assert_eq!(read(0x106, 4), 0xff, "spans two devices");
        assert_eq!(read(0xf0, 1), 0xff);
        assert_eq!(read(u64::MAX, 8), 0xff);
    }
}
