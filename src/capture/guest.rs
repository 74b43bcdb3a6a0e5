//! Copies guest memory into an image and back. The guest stands still meanwhile.
//!
//! Memory that the guest never touched is neither read nor written: reading it would make the
//! kernel find pages for it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::chain::MemoryChain;
use super::image::{ImageError, ImageWriter};
use crate::layout::PAGE_SIZE;
use crate::memory::GuestMemory;

/// Bytes copied at a time.
const STEP: u64 = 1 << 20;
/// Bits of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is
/// in memory, or in swap.
const IN_MEMORY_OR_SWAP: u64 = 1 << 63 | 1 << 62;
/// Entries read at a time.
const ENTRIES: usize = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("guest memory cannot be accessed: {0}")]
    Memory(#[from] GuestMemoryError),
    #[error("/proc/self/pagemap cannot be read: {0}")]
    Pagemap(std::io::Error),
    #[error("guest memory cannot be watched: {0}")]
    Watch(std::io::Error),
    #[error("a thread to fill memory cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the image holds memory at {image:x?}, the VM has it at {vm:x?} (start, length)")]
    OtherMemory { image: Vec<(u64, u64)>, vm: Vec<(u64, u64)> },
}

/// Start and length of every piece of guest memory.
pub fn ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
    memory.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect()
}

/// Writes all of guest memory that was ever touched.
pub fn save(memory: &GuestMemory, image: &mut ImageWriter) -> Result<(), CaptureError> {
    let pagemap = File::open("/proc/self/pagemap").map_err(CaptureError::Pagemap)?;
    let mut buffer = vec![0; STEP as usize];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        for run in touched(&pagemap, region.as_ptr() as u64, region.len())? {
            for at in run.clone().step_by(STEP as usize) {
                let part = &mut buffer[..(run.end - at).min(STEP) as usize];
                memory.read_slice(part, GuestAddress(start + at))?;
                image.write(start + at, part)?;
            }
        }
    }
    Ok(())
}

/// Fills fresh guest memory with what the chain holds, each page checked.
pub fn load(chain: &MemoryChain, memory: &GuestMemory) -> Result<(), CaptureError> {
    check_ranges(chain, memory)?;
    let mut buffer = vec![0; STEP as usize];
    for &(start, len) in chain.ranges() {
        for at in (start..start + len).step_by(STEP as usize) {
            let pieces = chain.pieces(at, STEP.min(start + len - at))?;
            for piece in pieces.iter().filter(|piece| piece.image.is_some()) {
                let part = &mut buffer[..(piece.at.end - piece.at.start) as usize];
                chain.read_piece(piece, part)?;
                memory.write_slice(part, GuestAddress(piece.at.start))?;
            }
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

/// Writes what guest memory that is being filled from `chain` still lacks, for an image that is
/// full. To come before [`save`]: what is filled in meanwhile is then written by both, and not by
/// neither.
pub fn save_absent(
    memory: &GuestMemory,
    chain: &MemoryChain,
    image: &mut ImageWriter,
) -> Result<(), CaptureError> {
    let pagemap = File::open("/proc/self/pagemap").map_err(CaptureError::Pagemap)?;
    let mut buffer = vec![0; STEP as usize];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let mut at = 0;
        let touched = touched(&pagemap, region.as_ptr() as u64, region.len())?;
        for run in touched.into_iter().chain([region.len()..region.len()]) {
            for from in (at..run.start).step_by(STEP as usize) {
                let pieces = chain.pieces(start + from, STEP.min(run.start - from))?;
                for piece in pieces.iter().filter(|piece| piece.image.is_some()) {
                    let part = &mut buffer[..(piece.at.end - piece.at.start) as usize];
                    chain.read_piece(piece, part)?;
                    image.write(piece.at.start, part)?;
                }
            }
            at = run.end;
        }
    }
    Ok(())
}

/// The parts of a mapping that have pages behind them, as offsets into it.
fn touched(pagemap: &File, mapping: u64, len: u64) -> Result<Vec<Range<u64>>, CaptureError> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut bytes = vec![0; ENTRIES * 8];
    let pages = len / PAGE_SIZE;
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(ENTRIES as u64);
        let part = &mut bytes[..count as usize * 8];
        pagemap.read_exact_at(part, (mapping / PAGE_SIZE + page) * 8).map_err(CaptureError::Pagemap)?;
        for (index, entry) in (page..).zip(part.chunks_exact(8)) {
            let entry = entry.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            if entry & IN_MEMORY_OR_SWAP == 0 {
                continue;
            }
            let (start, end) = (index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        page += count;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::chain::ImageSpec;
    use crate::id::Id;
    use crate::storage::Storage;

    #[test]
    fn memory_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let size = 5 << 30;
        let memory = crate::memory::allocate(size).unwrap();
        for (at, byte) in [(0u64, 1u8), (0x5000, 2), ((3 << 30) - 4096, 3), (4 << 30, 4), ((6 << 30) - 1, 5)]
        {
            memory.write_obj(byte, GuestAddress(at)).unwrap();
        }
        let id = Id::random().unwrap();
        let mut writer = ImageWriter::create(&Storage::os(), &path, id, &ranges(&memory)).unwrap();
        save(&memory, &mut writer).unwrap();
        let info = writer.finish().unwrap();
        assert_eq!((info.guest_bytes, info.stored_bytes), (size, 5 * PAGE_SIZE));
        let chain = MemoryChain::open(&Storage::os(), &[ImageSpec { path, id, crc: info.crc }]).unwrap();
        let copy = crate::memory::allocate(size).unwrap();
        load(&chain, &copy).unwrap();
        for (at, byte) in [(0u64, 1u8), (0x5000, 2), ((3 << 30) - 4096, 3), (4 << 30, 4), ((6 << 30) - 1, 5)]
        {
            assert_eq!(copy.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
        }
        let other = crate::memory::allocate(16 << 20).unwrap();
        assert!(matches!(load(&chain, &other), Err(CaptureError::OtherMemory { .. })));
    }
}
