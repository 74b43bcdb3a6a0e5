//! Guest memory: where RAM lies and the mapping of it into this process.

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::layout::{MMIO_HOLE_END, MMIO_HOLE_START};

/// Guest memory with a bitmap of the pages that piton itself wrote (KVM logs only the guest's
/// own writes).
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("this host cannot map {mib} MiB of guest memory ({cause}); give the VM less with --memory")]
    Map { mib: u64, cause: String },
}

/// The address ranges that hold `size` bytes of RAM: below the hole for devices, and above it.
pub fn ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(MMIO_HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(MMIO_HOLE_END), size - low));
    }
    ranges
}

/// Maps `size` bytes of fresh, zero, untouched guest memory.
pub fn allocate(size: u64) -> Result<GuestMemory, MemoryError> {
    let failed = |cause: String| MemoryError::Map { mib: size >> 20, cause };
    let ranges: Vec<(GuestAddress, usize)> = ranges(size)
        .into_iter()
        .map(|(start, len)| usize::try_from(len).map(|len| (start, len)))
        .collect::<Result<_, _>>()
        .map_err(|e| failed(e.to_string()))?;
    GuestMemory::from_ranges(&ranges).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ranges(1 << 30), [(GuestAddress(0), 1 << 30)]);
        assert_eq!(ranges(MMIO_HOLE_START), [(GuestAddress(0), MMIO_HOLE_START)]);
        assert_eq!(ranges(6 << 30), [(GuestAddress(0), MMIO_HOLE_START), (GuestAddress(1 << 32), 3 << 30)]);
    }
}
