//! Guest memory: where RAM lies and the mapping of it into this process.

use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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

/// Puts a file in place of all that memory holds, privately: address a reads as byte a of the file
/// until it is written. The mappings stay where they are, so that KVM's slots do.
pub fn map_file(memory: &GuestMemory, file: BorrowedFd) -> std::io::Result<()> {
    for region in memory.iter() {
        let offset = libc::off_t::try_from(region.start_addr().raw_value());
        let offset = offset.map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        // SAFETY: the range is a mapping that `memory` owns as a whole, so nothing else is replaced,
        // and it is unmapped with it as before; the mapping holds the file by itself. Guest memory is
        // accessed as volatile bytes that may change at any time, never through references.
        let mapped = unsafe {
            libc::mmap(
                region.as_ptr().cast(),
                region.len() as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
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
