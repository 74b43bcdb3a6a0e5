//! A split virtqueue, as a driver sees it. Each buffer is one descriptor or a few in a row, and the
//! number of the first one is the buffer's name; who owns which numbers is the caller's matter.

use crate::memory::{Dma, DmaPart};
use core::sync::atomic::{Ordering::SeqCst, fence};

/// Most descriptors of one queue.
pub const SIZE: u16 = 256;
/// Memory that a ring needs.
pub const BYTES: usize = size_of::<Layout>();

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(4))]
struct Half<T> {
    flags: u16,
    idx: u16,
    ring: [T; SIZE as usize],
}

#[repr(C, align(4096))]
struct Layout {
    desc: [Desc; SIZE as usize],
    avail: Half<u16>,
    used: Half<[u32; 2]>,
}

/// A part of a buffer, and whether the device is to write to it.
pub type Part = (DmaPart, bool);

pub struct Ring {
    at: *mut Layout,
    size: u16,
    /// Buffers given so far, and those of them that the device has been told of.
    given: u16,
    told: u16,
    /// Buffers taken back so far.
    taken: u16,
}

impl Ring {
    /// In memory of at least [`BYTES`], which is the ring's from now on.
    pub fn new(memory: &Dma) -> Self {
        let at = memory.part(0, BYTES).addr as *mut Layout;
        Self { at, size: 0, given: 0, told: 0, taken: 0 }
    }

    /// Starts afresh with so many descriptors, a power of two, while the device does not look.
    pub fn reset(&mut self, size: u16) {
        assert!(size.is_power_of_two() && size <= SIZE);
        *self = Self { at: self.at, size, given: 0, told: 0, taken: 0 };
        // SAFETY: this ring's own memory; for all of its fields zero is a value.
        unsafe { self.at.write_bytes(0, 1) };
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// The addresses of descriptors, available ring, and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        // SAFETY: only addresses are taken.
        unsafe {
            [
                &raw const (*self.at).desc as u64,
                &raw const (*self.at).avail as u64,
                &raw const (*self.at).used as u64,
            ]
        }
    }

    /// Gives a buffer to the device, in descriptors from `first` on; [`Ring::tell`] says so to it.
    pub fn give(&mut self, first: u16, parts: &[Part]) {
        assert!(!parts.is_empty() && usize::from(first) + parts.len() <= usize::from(self.size));
        for (id, (n, (part, writable))) in (first..).zip(parts.iter().enumerate()) {
            let last = n + 1 == parts.len();
            let flags = if last { 0 } else { NEXT } | if *writable { WRITABLE } else { 0 };
            let desc = Desc { addr: part.addr, len: part.len as u32, flags, next: id + 1 };
            // SAFETY: this ring's own memory, `id` is less than its size, and the caller gives no
            // number that the device still has.
            unsafe { (&raw mut (*self.at).desc[usize::from(id)]).write_volatile(desc) };
        }
        let at = usize::from(self.given % self.size);
        // SAFETY: this ring's own memory, and `at` is less than its size.
        unsafe { (&raw mut (*self.at).avail.ring[at]).write_volatile(first) };
        self.given = self.given.wrapping_add(1);
    }

    /// Makes visible what was given; whether the device has to be notified of it.
    pub fn tell(&mut self) -> bool {
        if self.told == self.given {
            return false;
        }
        self.told = self.given;
        fence(SeqCst);
        // SAFETY: this ring's own memory.
        unsafe { (&raw mut (*self.at).avail.idx).write_volatile(self.given) };
        fence(SeqCst);
        // SAFETY: this ring's own memory.
        unsafe { (&raw const (*self.at).used.flags).read_volatile() & 1 == 0 }
    }

    /// How many buffers the device has given back that were not taken.
    pub fn ready(&self) -> u16 {
        // SAFETY: this ring's own memory.
        let idx = unsafe { (&raw const (*self.at).used.idx).read_volatile() };
        fence(SeqCst);
        idx.wrapping_sub(self.taken)
    }

    /// Takes a buffer back: its number, and how many bytes the device wrote.
    pub fn take(&mut self) -> Option<(u16, usize)> {
        let ready = self.ready();
        // More than there are would be a device gone mad.
        if ready == 0 || ready > self.size {
            return None;
        }
        let at = usize::from(self.taken % self.size);
        // SAFETY: this ring's own memory, and `at` is less than its size.
        let [id, len] = unsafe { (&raw const (*self.at).used.ring[at]).read_volatile() };
        self.taken = self.taken.wrapping_add(1);
        Some((u16::try_from(id).ok().filter(|&id| id < self.size)?, len as usize))
    }

    /// Asks for interrupts, or (while the ring is polled) for none.
    pub fn want_interrupts(&self, on: bool) {
        // SAFETY: this ring's own memory.
        unsafe { (&raw mut (*self.at).avail.flags).write_volatile(u16::from(!on)) };
        fence(SeqCst);
    }
}
