use std::ops::Range;
use std::path::Path;

use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::storage::{File, Storage};

use super::format::{Header, Kind, Places, crc_of};
use super::pages::{PageSet, Ram, is_zero};
use super::{ImageError, Result};

const PAGE: usize = PAGE_SIZE as usize;

/// What to record of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Pages in the file, zeros left out.
    pub stored_bytes: u64,
    pub guest_bytes: u64,
    /// The image is opened with it; every byte that is read hangs on it.
    pub crc: u32,
}

/// A memory image while it is written. Without [`ImageWriter::finish`] the file is none.
///
/// Pages come in any order and more than once; the last counts. Their checksums are kept here
/// until the end, so nothing that was written is read again.
#[derive(Debug)]
pub struct ImageWriter {
    file: File,
    id: Id,
    kind: Kind,
    ram: Ram,
    present: PageSet,
    /// Those with bytes in the file; of a full image, the present ones.
    stored: PageSet,
    crcs: Vec<u32>,
    zero_crc: u32,
    failed: bool,
}

impl ImageWriter {
    /// A full image: a page that is never written is zeros. `ranges` are start and length.
    pub fn create(storage: &Storage, path: &Path, id: Id, ranges: &[(u64, u64)]) -> Result<Self> {
        Self::with_kind(storage, path, id, Kind::Full, ranges)
    }

    /// A page that is never written is as in the image of `parent`.
    pub fn create_delta(
        storage: &Storage,
        path: &Path,
        id: Id,
        parent: Id,
        ranges: &[(u64, u64)],
    ) -> Result<Self> {
        Self::with_kind(storage, path, id, Kind::Delta(parent), ranges)
    }

    fn with_kind(storage: &Storage, path: &Path, id: Id, kind: Kind, ranges: &[(u64, u64)]) -> Result<Self> {
        let ram = Ram::new(ranges).ok_or_else(|| ImageError::Ranges(ranges.to_vec()))?;
        Ok(Self {
            file: storage.create_new(path)?,
            id,
            kind,
            present: PageSet::new(ram.pages()),
            stored: PageSet::new(ram.pages()),
            crcs: vec![0; ram.pages() as usize],
            zero_crc: crc32fast::hash(&[0; PAGE]),
            ram,
            failed: false,
        })
    }

    /// Whole pages of one range. The bytes have to hold still: a copy, not memory of a guest that
    /// runs.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let numbers = self.ram.numbers(gpa, len).ok_or(ImageError::NotRam { gpa, len })?;
        let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE).collect();
        let mut at = 0;
        for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let first = numbers.start + at as u64;
            let run_numbers = first..first + run.len() as u64;
            let part = &bytes[at * PAGE..(at + run.len()) * PAGE];
            let run_gpa = gpa + (at * PAGE) as u64;
            let done = if is_zero(run[0]) {
                self.put_zeros(run_numbers, run_gpa)
            } else {
                self.put(run_numbers, run_gpa, part)
            };
            if done.is_err() {
                self.failed = true;
                return done;
            }
            at += run.len();
        }
        Ok(())
    }

    fn put(&mut self, numbers: Range<u64>, gpa: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(bytes, gpa)?;
        for (number, page) in numbers.zip(bytes.chunks_exact(PAGE)) {
            self.crcs[number as usize] = crc32fast::hash(page);
            self.present.put(number, true);
            self.stored.put(number, true);
        }
        Ok(())
    }

    fn put_zeros(&mut self, numbers: Range<u64>, gpa: u64) -> Result<()> {
        // A page that was not zeros in an earlier round.
        for run in self.stored.runs(numbers.clone(), true) {
            let at = gpa + (run.start - numbers.start) * PAGE_SIZE;
            self.file.punch_hole(at, (run.end - run.start) * PAGE_SIZE)?;
        }
        for number in numbers {
            self.stored.put(number, false);
            self.present.put(number, self.kind != Kind::Full);
            self.crcs[number as usize] = self.zero_crc;
        }
        Ok(())
    }

    /// Completes the file and makes its contents durable; its name is for the caller.
    pub fn finish(self) -> Result<ImageInfo> {
        if self.failed {
            return Err(ImageError::Incomplete { path: self.file.path().to_owned() });
        }
        let (present, stored) = (self.present.count(), self.stored.count());
        let places = Places::new(&self.ram, present);
        let mut index = Vec::with_capacity((places.header - places.bitmap) as usize);
        index.extend(self.present.to_bytes());
        index.resize((places.crcs - places.bitmap) as usize, 0);
        for run in self.present.runs(0..self.ram.pages(), true) {
            let crcs = &self.crcs[run.start as usize..run.end as usize];
            index.extend(crcs.iter().flat_map(|crc| crc.to_le_bytes()));
        }
        index.resize((places.header - places.bitmap) as usize, 0);
        self.file.write_at(&index, places.bitmap)?;
        let guest_bytes = self.ram.bytes();
        let index_crc = crc32fast::hash(&index);
        let header =
            Header { id: self.id, kind: self.kind, ram: self.ram, present, stored, index_crc }.encode();
        self.file.write_at(&header, places.header)?;
        self.file.sync_data()?;
        Ok(ImageInfo { stored_bytes: stored * PAGE_SIZE, guest_bytes, crc: crc_of(&header) })
    }
}
