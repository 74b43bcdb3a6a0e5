//! Checksums of a base image as its disk reads, in a file of the VM's.
//!
//! One for each chunk of the disk, whatever files it is read through. The file is written whole, by
//! replacement, when all of the base was read; it carries a checksum over itself.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Backing, DiskError, Result};
use crate::storage::Storage;

const MAGIC: [u8; 8] = *b"PITONbas";
const VERSION: u32 = 1;
const HEADER: usize = 32;
/// Bytes that one checksum is over.
pub const CHUNK: u64 = 128 << 10;
/// The largest file: that of a disk of 64 TiB.
const MOST: u64 = 2 << 30;

pub struct BaseSums {
    size: u64,
    sums: Vec<u32>,
    /// One bit a chunk: it was checked, and nobody writes to it.
    checked: Vec<AtomicU64>,
}

/// Reads all of `base` and writes down its checksums, durably. `go_on` is told of each chunk.
pub fn seal(
    storage: &Storage,
    path: &Path,
    base: &dyn Backing,
    go_on: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let size = base.len();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    // The checksum's place.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&CHUNK.to_le_bytes());
    let mut buf = vec![0; CHUNK as usize];
    for start in (0..size).step_by(CHUNK as usize) {
        let part = &mut buf[..(size - start).min(CHUNK) as usize];
        base.read_at(part, start)?;
        bytes.extend_from_slice(&crc32fast::hash(part).to_le_bytes());
        go_on(part.len() as u64)?;
    }
    let crc = crc_of(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(storage.replace(path, &bytes)?)
}

/// Of all but its own place.
fn crc_of(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

impl BaseSums {
    /// The checksums in the file `path`, of a disk of `size` bytes.
    pub fn load(storage: &Storage, path: &Path, size: u64) -> Result<Self> {
        let corrupt = |what| DiskError::BaseSums { path: path.to_owned(), what };
        if storage.metadata(path)?.len > MOST {
            return Err(corrupt("it is too long"));
        }
        let bytes = storage.read(path)?;
        let sums = Self::decode(&bytes).map_err(corrupt)?;
        if sums.size != size {
            return Err(corrupt("it belongs to a disk of another size"));
        }
        Ok(sums)
    }

    /// What a file of checksums says.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err("it has no header");
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err("its format version is unknown");
        }
        let number = |at: Range<usize>| bytes[at].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        if number(12..16) != u64::from(crc_of(bytes)) {
            return Err("it is damaged");
        }
        let size = number(16..24);
        if number(24..32) != CHUNK || (bytes.len() - HEADER) as u64 != size.div_ceil(CHUNK) * 4 {
            return Err("it is inconsistent");
        }
        let sums: Vec<u32> = bytes[HEADER..]
            .chunks_exact(4)
            .map(|sum| sum.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
            .collect();
        let mut checked = Vec::new();
        checked.resize_with(sums.len().div_ceil(64), AtomicU64::default);
        Ok(Self { size, sums, checked })
    }

    /// Checks those chunks of a range that were not checked yet; the offset of one that is damaged.
    pub(super) fn check(&self, range: Range<u64>, base: &dyn Backing) -> Result<Option<u64>> {
        let mut buf = Vec::new();
        for chunk in range.start / CHUNK..range.end.min(self.size).div_ceil(CHUNK) {
            let (word, bit) = (&self.checked[(chunk / 64) as usize], 1 << (chunk % 64));
            if word.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            let start = chunk * CHUNK;
            buf.resize((self.size - start).min(CHUNK) as usize, 0);
            base.read_at(&mut buf, start)?;
            if crc32fast::hash(&buf) != self.sums[chunk as usize] {
                return Ok(Some(start));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(None)
    }

    /// The first whole chunk in a range that reads as zeros now and did not then.
    pub(super) fn lost(&self, zeros: Range<u64>) -> Option<Range<u64>> {
        let chunks = zeros.start / CHUNK..zeros.end.div_ceil(CHUNK);
        let ranges = chunks.map(|chunk| chunk * CHUNK..((chunk + 1) * CHUNK).min(self.size));
        let whole = ranges.filter(|range| range.end <= zeros.end);
        let mut all_zero = (0, 0);
        let mut zeros_of = move |len: u64| {
            if all_zero.0 != len {
                all_zero = (len, crc32fast::hash(&vec![0; len as usize]));
            }
            all_zero.1
        };
        let found = whole.map(|range| range.start.max(zeros.start)..range.end).find(|range| {
            let chunk = range.start / CHUNK;
            let len = (self.size - chunk * CHUNK).min(CHUNK);
            self.sums.get(chunk as usize).is_some_and(|sum| *sum != zeros_of(len))
        });
        found.filter(|range| !range.is_empty())
    }

    /// Forgets what was checked, for a check of everything again.
    pub(super) fn forget(&self) {
        self.checked.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageFormat, open_base};
    use super::*;

    #[test]
    fn what_was_sealed_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let (image, sums) = (dir.path().join("image"), dir.path().join("sums"));
        let size = 3 * CHUNK + 512;
        let bytes: Vec<u8> = (0..size).map(|at| (at / 1000) as u8).collect();
        std::fs::write(&image, &bytes).unwrap();
        let open = || open_base(&storage, &image, ImageFormat::Raw).unwrap();
        let mut told = std::cell::Cell::new(0);
        let count = |bytes| {
            told.set(told.get() + bytes);
            Ok(())
        };
        seal(&storage, &sums, &open(), &count).unwrap();
        assert_eq!(*told.get_mut(), size);
        let attach = |base: &super::super::Base| base.attach_sums(&storage, &sums);
        let base = open();
        attach(&base).unwrap();
        assert!(base.is_sealed());
        let mut found = vec![0; size as usize];
        base.read_at(&mut found, 0).unwrap();
        assert!(found == bytes);
        base.verify(&|_| Ok(())).unwrap();
        for at in [0, CHUNK + 5, size - 1] {
            let mut rotten = bytes.clone();
            rotten[at as usize] ^= 1;
            std::fs::write(&image, &rotten).unwrap();
            let base = open();
            attach(&base).unwrap();
            let start = at / CHUNK * CHUNK;
            let error = base.read_at(&mut [0; 512], at / 512 * 512).unwrap_err().to_string();
            assert!(error.contains(image.to_str().unwrap()) && error.contains(&format!("offset {start}")));
            assert!(base.verify(&|_| Ok(())).is_err());
            let elsewhere = (start + CHUNK) % (2 * CHUNK);
            base.read_at(&mut [0; 512], elsewhere).unwrap();
        }
        // Data that became a hole is not passed over.
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(size).unwrap();
        drop(file);
        let hollow = open();
        attach(&hollow).unwrap();
        let data = hollow.next_data(0).unwrap().unwrap();
        assert_eq!(data, 0..CHUNK);
        assert!(hollow.read_at(&mut [0; 512], data.start).is_err());
        let zeros = dir.path().join("zeros");
        seal(&storage, &zeros, &open(), &|_| Ok(())).unwrap();
        let sparse = open();
        sparse.attach_sums(&storage, &zeros).unwrap();
        assert_eq!(sparse.next_data(0).unwrap(), None);
        // A file of checksums that rotted, or is another disk's, vouches for nothing.
        let good = std::fs::read(&sums).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert!(BaseSums::decode(&bad).is_err(), "{at}");
        }
        assert!(BaseSums::load(&storage, &sums, size + 512).is_err());
        let cancelled = seal(&storage, &sums, &open(), &|_| Err(crate::progress::Cancelled.into()));
        assert!(cancelled.is_err() && std::fs::read(&sums).unwrap() == good);
    }
}
