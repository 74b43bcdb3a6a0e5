//! What of guest memory was touched, and filling it from an image.
//!
//! Memory that the guest never touched is neither read nor written: reading it would make the
//! kernel find pages for it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::chain::MemoryChain;
use super::image::ImageError;
use crate::layout::PAGE_SIZE;
use crate::memory::GuestMemory;
use crate::pages::PageSet;
use crate::progress::Progress;
use crate::vm::VmError;

/// Bytes copied at a time.
pub(super) const STEP: u64 = 256 << 10;
/// Highest bits of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is
/// in memory, or in swap; it is a page of a file that is mapped.
const IN_MEMORY_OR_SWAP: u8 = 1 << 7 | 1 << 6;
const OF_A_FILE: u8 = 1 << 5;
/// Entries read at a time.
const ENTRIES: usize = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot access guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("it was cancelled")]
    Cancelled,
    #[error(
        "the guest writes memory faster than it can be copied: it would have to be paused for {needed:?}, \
         but only {allowed:?} is allowed; increase --max-pause, or use --mode stop"
    )]
    TooFast { needed: Duration, allowed: Duration },
    #[error("more memory changed than there is space for")]
    NoRoom,
    #[error("cannot read /proc/self/pagemap: {0}")]
    Pagemap(std::io::Error),
    #[error("cannot watch guest memory: {0}")]
    Watch(std::io::Error),
    #[error("cannot map memory image {}: {error}", path.display())]
    Map { path: std::path::PathBuf, error: std::io::Error },
    #[error("cannot start a thread to fill memory: {0}")]
    Thread(std::io::Error),
    #[error("the image has memory at {image:x?}, but the VM has it at {vm:x?} (start, length)")]
    OtherMemory { image: Vec<(u64, u64)>, vm: Vec<(u64, u64)> },
}

/// Start and length of every piece of guest memory.
pub fn ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
    memory.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect()
}

/// Fills fresh guest memory with what the chain holds, each page checked.
pub fn load(chain: &MemoryChain, memory: &GuestMemory, progress: &Progress) -> Result<(), CaptureError> {
    check_ranges(chain, memory)?;
    progress.phase("memory", chain.ranges().iter().map(|(_, len)| len).sum());
    let mut buffer = vec![0; STEP as usize];
    for &(start, len) in chain.ranges() {
        for at in (start..start + len).step_by(STEP as usize) {
            progress.check().map_err(|_| CaptureError::Cancelled)?;
            let pieces = chain.pieces(at, STEP.min(start + len - at))?;
            for piece in pieces.iter().filter(|piece| piece.image.is_some()) {
                let part = &mut buffer[..(piece.at.end - piece.at.start) as usize];
                chain.read_piece(piece, part)?;
                memory.write_slice(part, GuestAddress(piece.at.start))?;
            }
            progress.add(STEP.min(start + len - at));
        }
    }
    Ok(())
}

/// Whether an image is of memory that lies as the VM's does.
pub fn check_ranges(chain: &MemoryChain, memory: &GuestMemory) -> Result<(), CaptureError> {
    let vm = ranges(memory);
    if chain.ranges() == vm {
        return Ok(());
    }
    Err(CaptureError::OtherMemory { image: chain.ranges().to_vec(), vm })
}

/// Tells which pages of this process have memory of their own behind them.
pub struct Touched(File);

impl Touched {
    pub fn open() -> Result<Self, CaptureError> {
        File::open("/proc/self/pagemap").map(Self).map_err(CaptureError::Pagemap)
    }

    /// Adds those of the pages `numbers` that were touched; `mapping` is where the first lies. Where
    /// a file is mapped privately, only what was written is the machine's own.
    pub fn find(&self, mapping: u64, numbers: Range<u64>, set: &mut PageSet) -> Result<(), CaptureError> {
        let mut bytes = vec![0; ENTRIES.min((numbers.end - numbers.start) as usize) * 8];
        let mut at = numbers.start;
        while at < numbers.end {
            let count = (numbers.end - at).min(ENTRIES as u64);
            let part = &mut bytes[..count as usize * 8];
            let entry = mapping / PAGE_SIZE + (at - numbers.start);
            self.0.read_exact_at(part, entry * 8).map_err(CaptureError::Pagemap)?;
            for (page, entry) in (at..).zip(part.chunks_exact(8)) {
                // The flags are in the highest byte.
                if entry[7] & IN_MEMORY_OR_SWAP != 0 && entry[7] & OF_A_FILE == 0 {
                    set.insert(page);
                }
            }
            at += count;
        }
        Ok(())
    }
}
