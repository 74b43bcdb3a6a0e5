//! Copies guest memory into an image and back. The guest stands still meanwhile.
//!
//! Memory that the guest never touched is neither read nor written: reading it would make the
//! kernel find pages for it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::image::{Image, ImageError, ImageWriter};
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

/// Fills fresh guest memory with what the image holds, each page checked.
pub fn load(image: &Image, memory: &GuestMemory) -> Result<(), CaptureError> {
    let vm = ranges(memory);
    if image.ranges() != vm {
        return Err(CaptureError::OtherMemory { image: image.ranges().to_vec(), vm });
    }
    let mut buffer = vec![0; STEP as usize];
    for run in image.present()? {
        for at in run.clone().step_by(STEP as usize) {
            let part = &mut buffer[..(run.end - at).min(STEP) as usize];
            image.read(at, part)?;
            memory.write_slice(part, GuestAddress(at))?;
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
        let image = Image::open(&Storage::os(), &path, id, info.crc).unwrap();
        let copy = crate::memory::allocate(size).unwrap();
        load(&image, &copy).unwrap();
        for (at, byte) in [(0u64, 1u8), (0x5000, 2), ((3 << 30) - 4096, 3), (4 << 30, 4), ((6 << 30) - 1, 5)]
        {
            assert_eq!(copy.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
        }
        let other = crate::memory::allocate(16 << 20).unwrap();
        assert!(matches!(load(&image, &other), Err(CaptureError::OtherMemory { .. })));
    }
}
