//! RAM beyond the image: what is kept for device buffers, and the rest as one
//! run of numbered MiB for `fill` and `dirty`.

use crate::pvh::Region;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

pub const MIB: u64 = 1 << 20;
const MAX_TABLES: usize = 252;
/// RAM beyond this is left alone: page directories for more are not set aside.
const LIMIT: u64 = (4 + MAX_TABLES as u64) << 30;

unsafe extern "C" {
    static image_end: u8;
    static mut pdpt: [u64; 512];
}

struct Segment {
    base: AtomicU64,
    mibs: AtomicU64,
}

static SEGMENTS: [Segment; 32] =
    [const { Segment { base: AtomicU64::new(0), mibs: AtomicU64::new(0) } }; 32];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A buffer that devices may read and write. Identity-mapped, contiguous.
pub struct Dma {
    addr: u64,
    len: usize,
}

/// A part of a [`Dma`] on its way to a device.
#[derive(Clone, Copy)]
pub struct DmaPart {
    pub addr: u64,
    pub len: usize,
}

impl Dma {
    pub const fn empty() -> Self {
        Self { addr: 8, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn part(&self, at: usize, len: usize) -> DmaPart {
        assert!(at + len <= self.len);
        DmaPart { addr: self.addr + at as u64, len }
    }

    pub fn words(&mut self, at: usize, len: usize) -> &mut [u64] {
        assert!(at.is_multiple_of(8) && len.is_multiple_of(8) && at + len <= self.len);
        // SAFETY: this buffer's own memory; the driver waits for requests to end
        // before their parts are looked at again.
        unsafe { core::slice::from_raw_parts_mut((self.addr + at as u64) as *mut u64, len / 8) }
    }

    pub fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.len);
        // SAFETY: as in `words`.
        unsafe { core::slice::from_raw_parts_mut((self.addr + at as u64) as *mut u8, len) }
    }

    /// Makes an array of it, which is there for good.
    pub fn into_array<T>(mut self, make: impl Fn() -> T) -> &'static mut [T] {
        let start = self.addr as *mut T;
        assert!(start.is_aligned());
        let count = core::mem::take(&mut self.len) / size_of::<T>();
        for n in 0..count {
            // SAFETY: this buffer's own memory, of which `count` values fit and nobody has another
            // view once the buffer is gone.
            unsafe { start.add(n).write(make()) };
        }
        // SAFETY: as above, and each value has just been written.
        unsafe { core::slice::from_raw_parts_mut(start, count) }
    }

    /// Cuts a piece off the front.
    pub fn split(&mut self, len: usize) -> Self {
        assert!(len <= self.len);
        let front = Self { addr: self.addr, len };
        self.addr += len as u64;
        self.len -= len;
        front
    }
}

/// Takes stock of the RAM and sets `dma_mibs` of it aside.
pub fn init(ram: &[Region], dma_mibs: u64) -> Dma {
    let first = (&raw const image_end as u64).next_multiple_of(MIB);
    let mut dma = Dma::empty();
    for region in ram {
        let mut start = region.base.max(first).next_multiple_of(MIB);
        let end = region.base.saturating_add(region.len).min(LIMIT) / MIB * MIB;
        if dma.len() == 0 && start + dma_mibs * MIB <= end {
            dma = Dma { addr: start, len: (dma_mibs * MIB) as usize };
            start += dma_mibs * MIB;
        }
        if start < end {
            map(start, end);
            let n = COUNT.fetch_add(1, Relaxed);
            if let Some(s) = SEGMENTS.get(n) {
                s.base.store(start, Relaxed);
                s.mibs.store((end - start) / MIB, Relaxed);
            }
        }
    }
    dma
}

/// Maps what lies above 4 GiB by 2 MiB pages; below, the stub has mapped it all.
fn map(start: u64, end: u64) {
    for gib in (start >> 30).max(4)..end.div_ceil(1 << 30) {
        // SAFETY: only the boot vCPU runs yet, and nothing else changes this table.
        let slot = unsafe { (&raw mut pdpt).cast::<u64>().add(gib as usize) };
        // SAFETY: as above; gib < 512 because of LIMIT.
        if unsafe { slot.read() } != 0 {
            continue;
        }
        let directory = tables::take();
        for (i, entry) in directory.iter_mut().enumerate() {
            *entry = (gib << 30) + ((i as u64) << 21) + 0xe7;
        }
        // SAFETY: the entry was not present, so no stale translation can exist.
        unsafe { slot.write_volatile(directory.as_ptr() as u64 + 0x27) };
    }
}

mod tables {
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[repr(C, align(4096))]
    struct Tables(UnsafeCell<[[u64; 512]; super::MAX_TABLES]>);
    // SAFETY: `take` gives each table out once.
    unsafe impl Sync for Tables {}

    static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; super::MAX_TABLES]));
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    pub fn take() -> &'static mut [u64; 512] {
        let n = NEXT.fetch_add(1, Relaxed);
        assert!(n < super::MAX_TABLES, "more memory than page tables");
        // SAFETY: each index is given out once, and is inside the array.
        unsafe { &mut *TABLES.0.get().cast::<[u64; 512]>().add(n) }
    }
}

/// MiB that `fill` and `dirty` may use.
pub fn mibs() -> u64 {
    SEGMENTS.iter().map(|s| s.mibs.load(Relaxed)).sum()
}

/// The words of the n-th MiB, for as long as `use_it` runs.
pub fn with_mib<R>(n: u64, use_it: impl FnOnce(&mut [u64]) -> R) -> Option<R> {
    let mut left = n;
    for s in &SEGMENTS {
        let mibs = s.mibs.load(Relaxed);
        if left < mibs {
            let addr = s.base.load(Relaxed) + left * MIB;
            // SAFETY: RAM that nothing else uses. `fill` and `dirty` keep to ranges
            // that do not meet, so no MiB is used on two vCPUs at a time.
            let words =
                unsafe { core::slice::from_raw_parts_mut(addr as *mut u64, MIB as usize / 8) };
            return Some(use_it(words));
        }
        left -= mibs;
    }
    None
}

/// The next `len` bytes of it, for good.
pub fn bytes(memory: &mut Dma, len: usize) -> &'static mut [u8] {
    memory.split(len).into_array(|| 0)
}

/// The next `count` values, for good.
pub fn array<T>(memory: &mut Dma, count: usize, make: impl Fn() -> T) -> &'static mut [T] {
    memory.split((count * size_of::<T>()).next_multiple_of(64)).into_array(make)
}
