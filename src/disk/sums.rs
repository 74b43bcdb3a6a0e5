//! Checksums of a frozen layer's data, in a file beside it.
//!
//! A chunk is 32 blocks. Its entry says which of them the layer holds and has
//! a checksum over their contents, so a reader checks what it touches and no
//! more. Which blocks the layer holds is what the entries say: a bit that is
//! missing in its bitmap is damage, one too many is what an unfinished merge
//! left. The file is written whole and never changed; whoever vouches for the
//! layer records [`Seal::crc`], which covers every byte of it and is in its
//! name, so that old and new ones are there together while the record changes.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::delta_format::{BLOCK, LayerId};
use super::{DiskError, Result};
use crate::storage::{Storage, StorageError};

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

/// The checksums of a layer that have this checksum themselves.
pub fn path_of(layer: &Path, crc: u32) -> PathBuf {
    let mut name = layer.as_os_str().to_owned();
    name.push(format!(".{crc:08x}.sums"));
    name.into()
}

/// As they were named while a layer had one such file at a time.
fn former_path_of(layer: &Path) -> PathBuf {
    let mut name = layer.as_os_str().to_owned();
    name.push(".sums");
    name.into()
}

/// Where the checksums are that were recorded, whatever their name.
pub fn locate(storage: &Storage, layer: &Path, crc: u32) -> std::result::Result<PathBuf, StorageError> {
    let path = path_of(layer, crc);
    let former = former_path_of(layer);
    Ok(if !storage.exists(&path)? && storage.exists(&former)? { former } else { path })
}

/// The layer that a file of this name has the checksums of, and their own one if the name tells.
pub fn layer_of(sums: &Path) -> Option<(PathBuf, Option<u32>)> {
    let name = sums.file_name()?.to_str()?.strip_suffix(".sums")?;
    let (layer, crc) = match name.rsplit_once('.') {
        Some((layer, crc)) if crc.len() == 8 => match u32::from_str_radix(crc, 16) {
            Ok(crc) => (layer, Some(crc)),
            Err(_) => (name, None),
        },
        _ => (name, None),
    };
    Some((sums.with_file_name(layer), crc))
}

/// All files with checksums of a layer.
pub fn files_of(storage: &Storage, layer: &Path) -> std::result::Result<Vec<PathBuf>, StorageError> {
    let Some(dir) = layer.parent() else { return Ok(Vec::new()) };
    let paths = storage.list_dir(dir)?.into_iter().map(|name| dir.join(name));
    Ok(paths.filter(|path| layer_of(path).is_some_and(|(of, _)| of == layer)).collect())
}

/// Checksums that are being taken, chunk by chunk.
pub(super) struct Taking {
    bytes: Vec<u8>,
    covered: u64,
}

impl Taking {
    pub fn new(id: LayerId, size: u64) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(id.as_bytes());
        bytes[32..40].copy_from_slice(&size.to_le_bytes());
        Self { bytes, covered: 0 }
    }

    /// In the order of the chunks.
    pub fn add(&mut self, chunk: u32, mask: u32, crc: u32) {
        if mask == 0 {
            return;
        }
        for word in [chunk, mask, crc] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.covered += u64::from(mask.count_ones()) * BLOCK;
    }

    /// Publishes them beside the layer, durably.
    pub fn write(self, storage: &Storage, layer: &Path) -> Result<Seal> {
        let Self { mut bytes, covered } = self;
        let count = ((bytes.len() - HEADER) / ENTRY) as u64;
        bytes[40..48].copy_from_slice(&count.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        let path = path_of(layer, crc);
        storage.replace(&path, &bytes)?;
        Ok(Seal { path, crc, bytes: covered })
    }
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
    let mut taking = Taking::new(id, size);
    let mut chunk_of = Chunk::new(size);
    for (chunk, mask) in masks(runs) {
        chunk_of.read(chunk, mask, read)?;
        taking.add(chunk, mask, chunk_of.crc(mask));
    }
    taking.write(storage, layer)
}

impl Sums {
    /// Only the file that was recorded, for this layer, and only if the
    /// layer's bitmap has all that it had then.
    pub fn load(
        storage: &Storage,
        layer: &Path,
        id: LayerId,
        size: u64,
        crc: u32,
        runs: &[Range<u64>],
    ) -> Result<Self> {
        let path = locate(storage, layer, crc)?;
        let bytes = storage.read(&path)?;
        let corrupt =
            |offset: usize, what| DiskError::Corrupt { path: path.clone(), offset: offset as u64, what };
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err(corrupt(0, "an invalid header of a checksum file"));
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err(corrupt(8, "an unknown format version"));
        }
        if crc32fast::hash(&bytes) != crc {
            return Err(corrupt(0, "a checksum other than the recorded one"));
        }
        if bytes[16..32] != *id.as_bytes() || bytes[32..40] != size.to_le_bytes() {
            return Err(corrupt(16, "the id or size of another layer"));
        }
        let word = |at: &[u8]| at.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        let entries: Vec<Entry> = bytes[HEADER..]
            .chunks_exact(ENTRY)
            .map(|at| Entry { chunk: word(&at[..4]), mask: word(&at[4..8]), crc: word(&at[8..]) })
            .collect();
        if !entries.is_sorted_by(|a, b| a.chunk < b.chunk) {
            return Err(corrupt(HEADER, "entries that are not in order"));
        }
        let mut held = masks(runs).peekable();
        let lost = entries.iter().any(|entry| {
            while held.next_if(|(chunk, _)| *chunk < entry.chunk).is_some() {}
            let there = held.next_if(|(chunk, _)| *chunk == entry.chunk).map_or(0, |(_, mask)| mask);
            entry.mask & !there != 0
        });
        if lost {
            return Err(DiskError::Corrupt {
                path: layer.to_owned(),
                offset: 0,
                what: "a bitmap without blocks that were sealed",
            });
        }
        let mut checked = Vec::new();
        checked.resize_with(entries.len().div_ceil(64), AtomicU64::default);
        Ok(Self { entries, checked })
    }

    /// The blocks that they are of.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for Entry { chunk, mask, .. } in &self.entries {
            for bit in (0..CHUNK as u32).filter(|bit| mask >> bit & 1 != 0) {
                let block = u64::from(*chunk) * CHUNK + u64::from(bit);
                match runs.last_mut() {
                    Some(last) if last.end == block => last.end += 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        runs
    }

    /// Chunk by chunk: number, mask and checksum.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        self.entries.iter().map(|entry| (entry.chunk, entry.mask, entry.crc))
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
            let mut chunk = Chunk::new(size);
            chunk.read(entry.chunk, entry.mask, read)?;
            if chunk.crc(entry.mask) != entry.crc {
                return Ok(Some(start_of(entry.chunk)));
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

/// Where a chunk begins on the disk.
pub(super) fn start_of(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK * BLOCK
}

/// The contents of blocks of one chunk.
pub(super) struct Chunk {
    size: u64,
    number: u32,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Of a disk of this size.
    pub fn new(size: u64) -> Self {
        Self { size, number: 0, bytes: vec![0; (CHUNK * BLOCK) as usize] }
    }

    /// Where blocks `bit..bit + count` lie in `bytes`. What lies past the end of the disk in its
    /// last block is nobody's.
    fn place(&self, bit: u32, count: u32) -> Range<usize> {
        let end = self.size.saturating_sub(start_of(self.number)).min(u64::from(bit + count) * BLOCK);
        (u64::from(bit) * BLOCK) as usize..end.max(u64::from(bit) * BLOCK) as usize
    }

    /// Reads the blocks of `mask` of a chunk.
    pub fn read(&mut self, number: u32, mask: u32, read: Read<'_>) -> Result<()> {
        self.number = number;
        for (bit, count) in bits(mask) {
            let place = self.place(bit, count);
            let at = start_of(number) + place.start as u64;
            if let Some(part) = self.bytes.get_mut(place) {
                read(part, at)?;
            }
        }
        Ok(())
    }

    /// Takes over the blocks of `mask` of the chunk of this number; of a smaller disk, with zeros past
    /// its end.
    pub fn overlay(&mut self, upper: &Self, number: u32, mask: u32) {
        self.number = number;
        for (bit, count) in bits(mask) {
            let (place, theirs) = (self.place(bit, count), upper.place(bit, count));
            let (part, zeros) = self.bytes[place].split_at_mut(theirs.len());
            part.copy_from_slice(&upper.bytes[theirs]);
            zeros.fill(0);
        }
    }

    /// The checksum of the blocks of `mask`.
    pub fn crc(&self, mask: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&mask.to_le_bytes());
        for (bit, count) in bits(mask) {
            hasher.update(&self.bytes[self.place(bit, count)]);
        }
        hasher.finalize()
    }
}

/// Runs of set bits: the first one, and how many.
fn bits(mask: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut bit = 0;
    std::iter::from_fn(move || {
        let rest = mask.checked_shr(bit).filter(|rest| *rest != 0)?;
        let first = bit + rest.trailing_zeros();
        let count = (mask >> first).trailing_ones();
        bit = first + count;
        Some((first, count))
    })
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

    #[test]
    fn runs_of_bits() {
        assert_eq!(bits(0).count(), 0);
        assert_eq!(bits(u32::MAX).collect::<Vec<_>>(), [(0, 32)]);
        assert_eq!(bits(1 << 31 | 0b110).collect::<Vec<_>>(), [(1, 2), (31, 1)]);
    }

    #[test]
    fn names_tell_of_layer_and_checksum() {
        let layer = Path::new("/d/root-1f0c2a9b.delta");
        let path = path_of(layer, 0xab);
        assert_eq!(path, Path::new("/d/root-1f0c2a9b.delta.000000ab.sums"));
        assert_eq!(layer_of(&path), Some((layer.to_owned(), Some(0xab))));
        assert_eq!(layer_of(&former_path_of(layer)), Some((layer.to_owned(), None)));
        assert_eq!(layer_of(layer), None);
    }
}
