//! The port and MMIO buses: address ranges and the devices behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers accesses of the guest. Called on vCPU threads: it must neither block
/// nor panic, whatever the guest writes.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` bytes into the device.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset` bytes into the device.
    fn write(&self, offset: u64, data: &[u8]);
}

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("the bus range at {start:#x} ({len} bytes) overlaps another device's")]
    Overlap { start: u64, len: u64 },
}

/// Devices by address. Immutable once the machine runs, so vCPU threads share it without a lock.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = start.saturating_add(len);
        let before = self.devices.range(..last).next_back();
        if before.is_some_and(|(&other, &(other_len, _))| other.saturating_add(other_len) > start) {
            return Err(BusError::Overlap { start, len });
        }
        self.devices.insert(start, (len, device));
        Ok(())
    }

    fn find(&self, address: u64, size: usize) -> Option<(u64, &dyn BusDevice)> {
        let (&start, (len, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - start;
        (offset.checked_add(size as u64)? <= *len).then_some((offset, device.as_ref()))
    }

    /// Reads; where no device is, the bus floats high, as on hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; where no device is, the write is lost, as on hardware.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn accesses_reach_their_device_or_float() {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Echo(1))).unwrap();
        bus.insert(0x14, 4, Arc::new(Echo(100))).unwrap();
        let read = |address, size| {
            let mut data = vec![0; size];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x12, 2), [3, 3]);
        assert_eq!(read(0x14, 4), [100; 4]);
        assert_eq!(read(0x12, 4), [0xff; 4], "an access across two devices belongs to neither");
        assert_eq!(read(0x18, 1), [0xff]);
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(u64::MAX, &[0; 8]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Echo(1))).unwrap();
        assert!(bus.insert(0x13, 1, Arc::new(Echo(2))).is_err());
        assert!(bus.insert(0x0e, 3, Arc::new(Echo(2))).is_err());
        assert!(bus.insert(0x0e, 20, Arc::new(Echo(2))).is_err());
        bus.insert(0x0e, 2, Arc::new(Echo(2))).unwrap();
    }
}
