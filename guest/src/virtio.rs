//! One split queue of block requests.

use crate::cpu::tsc;
use crate::memory::DmaPart;
use crate::transport::{BLOCK, Transport};
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering::SeqCst, fence};

pub const MAX_SLOTS: usize = 32;
pub const MAX_DISKS: usize = 8;
const QUEUE_MAX: usize = 128;

pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;
const WANTED: u64 = F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

#[repr(C)]
#[derive(Clone, Copy)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[repr(C, align(4096))]
struct Ring {
    desc: [Desc; QUEUE_MAX],
    avail: Avail,
    used: Used,
    headers: [Header; MAX_SLOTS],
    status: [u8; MAX_SLOTS],
}

#[repr(C, align(4))]
struct Avail {
    flags: u16,
    idx: u16,
    ring: [u16; QUEUE_MAX],
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    idx: u16,
    ring: [[u32; 2]; QUEUE_MAX],
}

struct Rings(UnsafeCell<[Ring; MAX_DISKS]>);
// SAFETY: each ring is reached only through the one Queue that has its index.
unsafe impl Sync for Rings {}
// SAFETY: all fields are integers, for which zero is a value.
static RINGS: Rings = Rings(UnsafeCell::new(unsafe { core::mem::zeroed() }));

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    Free,
    Busy { since: u64 },
    Done { status: u8, since: u64, at: u64 },
}

pub struct Queue {
    transport: Transport,
    ring: *mut Ring,
    size: u16,
    avail: u16,
    used: u16,
    pub slots: [Slot; MAX_SLOTS],
    pub features: u64,
}

impl Queue {
    /// Brings up the block device at `addr`, if there is a usable one.
    pub fn open(addr: u64, index: usize) -> Option<Self> {
        if index >= MAX_DISKS {
            return None;
        }
        let transport = Transport::find(addr, BLOCK)?;
        let ring = RINGS.0.get().cast::<Ring>().wrapping_add(index);
        let mut queue = Self {
            transport,
            ring,
            size: 0,
            avail: 0,
            used: 0,
            slots: [Slot::Free; MAX_SLOTS],
            features: 0,
        };
        queue.start().then_some(queue)
    }

    /// Resets the device and starts anew; what was in flight is forgotten.
    pub fn start(&mut self) -> bool {
        let Some(features) = self.transport.negotiate(WANTED) else { return false };
        let Some(size) = self.transport.queue_size(0, QUEUE_MAX as u16) else { return false };
        self.features = features;
        self.size = size;
        self.avail = 0;
        self.used = 0;
        self.slots = [Slot::Free; MAX_SLOTS];
        // SAFETY: this queue's own ring; the device has just been reset.
        unsafe {
            (&raw mut (*self.ring).avail.flags).write_volatile(1);
            (&raw mut (*self.ring).avail.idx).write_volatile(0);
            (&raw mut (*self.ring).used.idx).write_volatile(0);
        }
        // SAFETY: only addresses are taken.
        let parts = unsafe {
            [
                &raw const (*self.ring).desc as u64,
                &raw const (*self.ring).avail as u64,
                &raw const (*self.ring).used as u64,
            ]
        };
        self.transport.place(0, size, parts);
        self.transport.start();
        true
    }

    pub fn depth(&self) -> usize {
        (usize::from(self.size) / 3).clamp(1, MAX_SLOTS)
    }

    pub fn capacity_sectors(&self) -> u64 {
        u64::from(self.config(0)) | u64::from(self.config(4)) << 32
    }

    pub fn config(&self, offset: u64) -> u32 {
        self.transport.config32(offset)
    }

    /// Puts a request in the ring; [`Queue::kick`] tells the device. Slot n owns
    /// descriptors 3n to 3n+2 for good, so there is no list of free ones.
    pub fn submit(&mut self, kind: u32, sector: u64, data: Option<DmaPart>) -> Option<usize> {
        let slot = self.slots[..self.depth()].iter().position(|s| *s == Slot::Free)?;
        let device_writes = !matches!(kind, 1 | 4 | 11 | 13);
        let head = slot * 3;
        // SAFETY: this queue's own ring; the slot is free, so the device does not
        // look at its descriptors, header or status.
        unsafe {
            let ring = self.ring;
            let header = &raw mut (*ring).headers[slot];
            header.write_volatile(Header { kind, reserved: 0, sector });
            let status = &raw mut (*ring).status[slot];
            status.write_volatile(0xff);
            let desc = (&raw mut (*ring).desc).cast::<Desc>();
            let after = if data.is_some() { head + 1 } else { head + 2 };
            desc.add(head).write_volatile(Desc {
                addr: header as u64,
                len: 16,
                flags: 1,
                next: after as u16,
            });
            if let Some(part) = data {
                desc.add(head + 1).write_volatile(Desc {
                    addr: part.addr,
                    len: part.len as u32,
                    flags: 1 | if device_writes { 2 } else { 0 },
                    next: head as u16 + 2,
                });
            }
            desc.add(head + 2).write_volatile(Desc {
                addr: status as u64,
                len: 1,
                flags: 2,
                next: 0,
            });
            let at = usize::from(self.avail % self.size);
            (&raw mut (*ring).avail.ring[at]).write_volatile(head as u16);
            self.avail = self.avail.wrapping_add(1);
            fence(SeqCst);
            (&raw mut (*ring).avail.idx).write_volatile(self.avail);
        }
        self.slots[slot] = Slot::Busy { since: tsc() };
        Some(slot)
    }

    pub fn kick(&self) {
        fence(SeqCst);
        self.transport.notify(0);
    }

    pub fn acknowledge(&self) {
        self.transport.acknowledge();
    }

    /// Asks for interrupts, or (while the ring is polled) for none.
    pub fn want_interrupts(&self, on: bool) {
        // SAFETY: this queue's own ring.
        unsafe { (&raw mut (*self.ring).avail.flags).write_volatile(u16::from(!on)) };
        fence(SeqCst);
    }

    /// Takes completions off the ring.
    pub fn drain(&mut self) {
        loop {
            // SAFETY: this queue's own ring.
            let idx = unsafe { (&raw const (*self.ring).used.idx).read_volatile() };
            if idx == self.used {
                return;
            }
            fence(SeqCst);
            let at = usize::from(self.used % self.size);
            // SAFETY: this queue's own ring, and `at` is less than its size.
            let [id, _] = unsafe { (&raw const (*self.ring).used.ring[at]).read_volatile() };
            self.used = self.used.wrapping_add(1);
            let slot = id as usize / 3;
            if let Some(&Slot::Busy { since }) = self.slots.get(slot) {
                // SAFETY: `slot` was checked against the slots, of which there are as many.
                let status = unsafe { (&raw const (*self.ring).status[slot]).read_volatile() };
                self.slots[slot] = Slot::Done { status, since, at: tsc() };
            }
        }
    }
}
