//! A driver of a device with three queues that knows how to do it right, and can be told to do it
//! wrong.

use piton::devices::virtio::Device;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::Rig;

/// Of each queue: descriptors, available ring, used ring, in this order; and its buffers.
const QUEUES: u64 = 0x1000;
const QUEUE: u64 = 0x1000;
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 0x1000;
const SIZE: u16 = 16;

pub struct Driver<D> {
    pub rig: Rig<D>,
    given: [u16; 3],
}

impl<D: Device> Driver<D> {
    pub fn new(device: D) -> Self {
        Self { rig: Rig::new(device), given: [0; 3] }
    }

    fn place(queue: u16, part: u64) -> u64 {
        QUEUES + u64::from(queue) * QUEUE + part * 0x400
    }

    /// Begins anew, with those of the lower features that are offered.
    pub fn start(&mut self, features: u32) {
        let rig = &self.rig;
        rig.write(0x70, 0);
        rig.memory.write_slice(&[0; 3 * QUEUE as usize], GuestAddress(QUEUES)).unwrap();
        for (register, value) in [(0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)] {
            rig.write(register, value);
        }
        for queue in 0..3_u16 {
            rig.write(0x30, queue.into());
            rig.write(0x38, SIZE.into());
            for (register, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
                rig.write(register, Self::place(queue, part) as u32);
            }
            rig.write(0x44, 1);
        }
        rig.write(0x70, 15);
        self.given = [0; 3];
    }

    pub fn used(&self, queue: u16) -> u16 {
        self.rig.memory.read_obj(GuestAddress(Self::place(queue, 2) + 2)).unwrap()
    }

    /// Gives a chain: pieces by length, all of them written or read by the device.
    pub fn give(&mut self, queue: u16, lengths: &[u32], writable: bool, bytes: &[u8]) {
        let given = self.given[usize::from(queue)];
        let head = given * 2 % SIZE;
        let mut at = BUFFERS + (u64::from(queue) * u64::from(SIZE) + u64::from(head)) * BUFFER;
        self.rig.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        for (n, length) in (0_u16..).zip(lengths) {
            let last = usize::from(n) + 1 == lengths.len();
            let flags = u16::from(!last) | if writable { 2 } else { 0 };
            let desc = GuestAddress(Self::place(queue, 0) + u64::from(head + n) * 16);
            let low = u64::from(*length) | u64::from(flags) << 32 | u64::from(head + n + 1) << 48;
            self.rig.memory.write_obj(at, desc).unwrap();
            self.rig.memory.write_obj(low, GuestAddress(desc.0 + 8)).unwrap();
            at += u64::from(*length);
        }
        let slot = Self::place(queue, 1) + 4 + u64::from(given % SIZE) * 2;
        self.rig.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.given[usize::from(queue)] = given.wrapping_add(1);
        self.rig.memory.write_obj(given.wrapping_add(1), GuestAddress(Self::place(queue, 1) + 2)).unwrap();
        self.rig.write(0x50, queue.into());
    }
}
