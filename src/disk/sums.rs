//! Checksums of a frozen layer's data, in a file beside it.
//!
//! A chunk is 32 blocks. Its entry says which of them the layer holds and has
//! a checksum over their contents, so a reader checks what it touches and no
//! more, and a bit that rotted in the layer's bitmap is noticed too. The file
//! is written whole by replacement; whoever publishes the layer records
//! [`Seal::crc`], which covers every byte of it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::delta_format::{BLOCK, LayerId};
use super::{DiskError, Result};
use crate::storage::Storage;

const MAGIC: [u8; 8] = *b"PITONsum";
const VERSION: u32 = 1;
const HEADER: usize = 48;
const ENTRY: usize = 12;
/// Blocks of a chunk: as many as a mask has bits.
const CHUNK: u64 = 32;

/// What to record so that a layer's checksums can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    pub path: PathBuf,
    pub crc: u32,
    /// Data that it covers.
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Sums {
    entries: Vec<Entry>,
    /// One bit per entry: it was checked, and nobody writes here.
    checked: Vec<AtomicU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    chunk: u32,
    mask: u32,
    crc: u32,
}

/// Reads of a layer's data by offset of the disk.
pub(super) type Read<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

pub fn path_of(layer: &Path) -> PathBuf {
    let mut name = layer.as_os_str().to_owned();
    name.push(".sums");
    name.into()
}

/// The layer that a file of this name has the checksums of.
pub fn layer_of(sums: &Path) -> Option<PathBuf> {
    let name = sums.file_name()?.to_str()?.strip_suffix(".sums")?;
    Some(sums.with_file_name(name))
}

/// Reads all of `runs` and publishes their checksums.
pub(super) fn seal(
    storage: &Storage,
    layer: &Path,
    id: LayerId,
    size: u64,
    runs: &[Range<u64>],
    read: Read<'_>,
) -> Result<Seal> {
    let mut bytes = vec![0; HEADER];
    let mut covered = 0;
    for (chunk, mask) in masks(runs) {
        let crc = chunk_crc(chunk, mask, size, read)?;
        covered += u64::from(mask.count_ones()) * BLOCK;
        for word in [chunk, mask, crc] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    let count = ((bytes.len() - HEADER) / ENTRY) as u64;
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(id.as_bytes());
    bytes[32..40].copy_from_slice(&size.to_le_bytes());
    bytes[40..48].copy_from_slice(&count.to_le_bytes());
    let path = path_of(layer);
    storage.replace(&path, &bytes)?;
    Ok(Seal { crc: crc32fast::hash(&bytes), path, bytes: covered })
}

impl Sums {
    /// Only the file that was recorded, for this layer, and only if the
    /// layer's bitmap says what it said then.
    pub fn load(
        storage: &Storage,
        layer: &Path,
        id: LayerId,
        size: u64,
        crc: u32,
        runs: &[Range<u64>],
    ) -> Result<Self> {
        let path = path_of(layer);
        let bytes = storage.read(&path)?;
        let corrupt =
            |offset: usize, what| DiskError::Corrupt { path: path.clone(), offset: offset as u64, what };
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err(corrupt(0, "no header of a checksum file"));
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err(corrupt(8, "an unknown format version"));
        }
        if crc32fast::hash(&bytes) != crc {
            return Err(corrupt(0, "another checksum than was recorded"));
        }
        if bytes[16..32] != *id.as_bytes() || bytes[32..40] != size.to_le_bytes() {
            return Err(corrupt(16, "the id or size of another layer"));
        }
        let word = |at: &[u8]| at.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        let entries: Vec<Entry> = bytes[HEADER..]
            .chunks_exact(ENTRY)
            .map(|at| Entry { chunk: word(&at[..4]), mask: word(&at[4..8]), crc: word(&at[8..]) })
            .collect();
        let mut recorded = entries.iter().map(|e| (e.chunk, e.mask));
        if !masks(runs).eq(recorded.by_ref()) {
            return Err(DiskError::Corrupt {
                path: layer.to_owned(),
                offset: 0,
                what: "a bitmap that is not the one that was sealed",
            });
        }
        let mut checked = Vec::new();
        checked.resize_with(entries.len().div_ceil(64), AtomicU64::default);
        Ok(Self { entries, checked })
    }

    /// Checks the chunks of a range that were not checked yet. An error names
    /// the offset in the disk that the layer is of; see the caller.
    pub fn check(&self, range: Range<u64>, size: u64, read: Read<'_>) -> Result<Option<u64>> {
        let bytes = CHUNK * BLOCK;
        let first = self.entries.partition_point(|e| (u64::from(e.chunk) + 1) * bytes <= range.start);
        for (index, entry) in self.entries.iter().enumerate().skip(first) {
            if u64::from(entry.chunk) * bytes >= range.end {
                break;
            }
            let (word, bit) = (&self.checked[index / 64], 1 << (index % 64));
            if word.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            if chunk_crc(entry.chunk, entry.mask, size, read)? != entry.crc {
                return Ok(Some(u64::from(entry.chunk) * bytes));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(None)
    }

    /// Forgets what was checked, for a check of everything again.
    pub fn forget(&self) {
        self.checked.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// Chunks that hold any of the runs, and which of their blocks.
fn masks(runs: &[Range<u64>]) -> impl Iterator<Item = (u32, u32)> {
    let mut runs = runs.iter().cloned();
    let mut run = runs.next();
    std::iter::from_fn(move || {
        let chunk = run.as_ref()?.start / CHUNK;
        let mut mask = 0u32;
        while let Some(part) = &mut run
            && part.start / CHUNK == chunk
        {
            let end = part.end.min((chunk + 1) * CHUNK);
            for block in part.start..end {
                mask |= 1 << (block % CHUNK);
            }
            part.start = end;
            if part.is_empty() {
                run = runs.next();
            }
        }
        // The largest disk has fewer than 2^32 chunks.
        Some((chunk as u32, mask))
    })
}

fn chunk_crc(chunk: u32, mask: u32, size: u64, read: Read<'_>) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&mask.to_le_bytes());
    let mut buf = Vec::new();
    let mut bit = 0;
    while bit < CHUNK as u32 {
        let from = mask.checked_shr(bit).unwrap_or(0);
        if from & 1 == 0 {
            bit += 1;
            continue;
        }
        let count = from.trailing_ones();
        let start = (u64::from(chunk) * CHUNK + u64::from(bit)) * BLOCK;
        // What lies past the end of the disk in its last block is nobody's.
        let end = (start + u64::from(count) * BLOCK).min(size);
        buf.resize((end - start) as usize, 0);
        read(&mut buf, start)?;
        hasher.update(&buf);
        bit += count;
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cut_runs_at_chunks() {
        let runs = [0..1, 2..3, 30..66, 200..201];
        let found: Vec<_> = masks(&runs).collect();
        assert_eq!(found, [(0, 0b101 | 3 << 30), (1, u32::MAX), (2, 0b11), (6, 1 << 8)]);
        assert_eq!(masks(&[]).count(), 0);
    }
}
