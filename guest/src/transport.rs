//! The virtio-mmio transport, version 2: finding a device and bringing it up.

use crate::cpu::Mmio;
use crate::ring::{Ring, SIZE};

const MAGIC: u32 = 0x7472_6976;
const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const FAILED: u32 = 0x80;
const F_VERSION_1: u64 = 1 << 32;

/// What kind of device it is.
pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;
pub const CONSOLE: u32 = 3;
pub const VSOCK: u32 = 19;

#[derive(Clone, Copy)]
pub struct Transport {
    regs: Mmio,
}

impl Transport {
    /// The device at `addr`, if it is one of this kind.
    pub fn find(addr: u64, kind: u32) -> Option<Self> {
        if !(0x1000..=0xffff_f000).contains(&addr) || addr & 3 != 0 {
            return None;
        }
        // SAFETY: firmware or command line names a virtio-mmio device here; below 4 GiB all is
        // mapped. 512 bytes are the least that a VMM sets aside.
        let regs = unsafe { Mmio::new(addr, 0x200) };
        let found = regs.read(MAGIC_VALUE) == MAGIC
            && regs.read(VERSION) == 2
            && regs.read(DEVICE_ID) == kind;
        found.then_some(Self { regs })
    }

    /// Resets the device and agrees on features: those of `wanted` that it has.
    pub fn negotiate(&self, wanted: u64) -> Option<u64> {
        let regs = self.regs;
        regs.write(STATUS, 0);
        for _ in 0..1000 {
            if regs.read(STATUS) == 0 {
                break;
            }
        }
        regs.write(STATUS, ACKNOWLEDGE);
        regs.write(STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            regs.write(DEVICE_FEATURES_SEL, half);
            offered |= u64::from(regs.read(DEVICE_FEATURES)) << (32 * half);
        }
        let agreed = offered & (wanted | F_VERSION_1);
        for half in 0..2 {
            regs.write(DRIVER_FEATURES_SEL, half);
            regs.write(DRIVER_FEATURES, (agreed >> (32 * half)) as u32);
        }
        regs.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if agreed & F_VERSION_1 == 0 || regs.read(STATUS) & FEATURES_OK == 0 {
            self.give_up();
            return None;
        }
        Some(agreed)
    }

    /// How many descriptors a queue gets, of at most so many: a power of two.
    pub fn queue_size(&self, queue: u32, most: u16) -> Option<u16> {
        self.regs.write(QUEUE_SEL, queue);
        let max = self.regs.read(QUEUE_NUM_MAX).min(u32::from(most));
        if max < 4 {
            self.give_up();
            return None;
        }
        Some(1 << max.ilog2())
    }

    /// Tells the device where a queue lies: its descriptors, available and used ring.
    pub fn place(&self, queue: u32, size: u16, addresses: [u64; 3]) {
        let regs = self.regs;
        regs.write(QUEUE_SEL, queue);
        regs.write(QUEUE_NUM, u32::from(size));
        for (register, addr) in QUEUE_ADDRESSES.into_iter().zip(addresses) {
            regs.write(register, addr as u32);
            regs.write(register + 4, (addr >> 32) as u32);
        }
        regs.write(QUEUE_READY, 1);
    }

    /// Connects a fresh ring to a queue; false if the device has none of that number.
    pub fn connect(&self, queue: u32, ring: &mut Ring) -> bool {
        let Some(size) = self.queue_size(queue, SIZE) else { return false };
        ring.reset(size);
        self.place(queue, size, ring.addresses());
        true
    }

    pub fn start(&self) {
        self.regs.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn give_up(&self) {
        self.regs.write(STATUS, FAILED);
    }

    pub fn notify(&self, queue: u32) {
        self.regs.write(QUEUE_NOTIFY, queue);
    }

    pub fn acknowledge(&self) {
        self.regs.write(INTERRUPT_ACK, 3);
    }

    pub fn config8(&self, offset: u64) -> u8 {
        self.regs.read8(CONFIG + offset)
    }

    pub fn config16(&self, offset: u64) -> u16 {
        self.regs.read16(CONFIG + offset)
    }

    pub fn config32(&self, offset: u64) -> u32 {
        self.regs.read(CONFIG + offset)
    }
}
