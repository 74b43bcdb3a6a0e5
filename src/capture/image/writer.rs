use std::ops::Range;
use std::path::Path;

use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::storage::{File, Storage};

use super::format::{
    BITMAP, CRCS, ENTRY, Entry, FRAMES, Group, Header, Kind, Places, bitmap_bytes, crc_bytes, crc_of,
};
use super::frame::{Frame, Packer};
use super::pages::{CHUNK, GROUP, Ram, group_of, is_zero};
use super::{ImageError, Result};
use crate::pages::PageSet;
use crate::progress::Progress;

const PAGE: usize = PAGE_SIZE as usize;

/// What to record of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Pages in the file, zeros left out.
    pub stored_bytes: u64,
    /// What pages take of the file, if chunks of them were compressed.
    pub compressed_bytes: Option<u64>,
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
    /// By chunk; empty if none may be compressed.
    frames: Vec<Frame>,
    packer: Packer,
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
            frames: Vec::new(),
            packer: Packer::default(),
            failed: false,
        })
    }

    /// What is written goes to the disk soon and leaves the page cache: not for one whose pages are
    /// to be compressed, which reads them again.
    pub fn streamed(self) -> Self {
        Self { file: self.file.streamed(), ..self }
    }

    /// Whole pages of one range. The bytes have to hold still: a copy, not memory of a guest that
    /// runs.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let numbers = self.ram.numbers(gpa, len).ok_or(ImageError::NotRam { gpa, len })?;
        let chunks = (numbers.start / CHUNK) as usize..numbers.end.div_ceil(CHUNK) as usize;
        if self.frames.get(chunks).is_some_and(|frames| frames.iter().any(|frame| !frame.is_none())) {
            return Err(ImageError::Packed { path: self.file.path().to_owned(), gpa });
        }
        let done = self.write_runs(numbers.start, gpa, bytes);
        self.failed |= done.is_err();
        done
    }

    fn write_runs(&mut self, first: u64, gpa: u64, bytes: &[u8]) -> Result<()> {
        let page = |at: usize| &bytes[at * PAGE..(at + 1) * PAGE];
        let pages = bytes.len() / PAGE;
        let mut at = 0;
        let mut zero = pages > 0 && is_zero(page(0));
        while at < pages {
            let start = at;
            let was = zero;
            // Each page is looked at once.
            while at < pages && zero == was {
                at += 1;
                zero = at < pages && is_zero(page(at));
            }
            let numbers = first + start as u64..first + at as u64;
            let run_gpa = gpa + (start * PAGE) as u64;
            if was {
                self.put_zeros(numbers, run_gpa)?;
            } else {
                self.put(numbers, run_gpa, &bytes[start * PAGE..at * PAGE])?;
            }
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
        let is_delta = self.kind != Kind::Full;
        for number in numbers {
            self.stored.put(number, false);
            self.present.put(number, is_delta);
            self.crcs[number as usize] = if is_delta { self.zero_crc } else { 0 };
        }
        Ok(())
    }

    /// Compresses every chunk of pages that gets smaller by that. Nothing may be written any more.
    pub fn compress_all(&mut self, progress: &Progress) -> Result<()> {
        progress.phase("compression", self.stored.count() * PAGE_SIZE);
        for chunk in 0..self.chunks() {
            progress.check()?;
            progress.add(self.compress(chunk)?);
        }
        Ok(())
    }

    /// [`Self::compress_all`] of one. Returns how many bytes it held.
    pub(super) fn compress(&mut self, chunk: u64) -> Result<u64> {
        let done = self.pack(chunk);
        self.failed |= done.is_err();
        done
    }

    fn chunks(&self) -> u64 {
        self.ram.pages().div_ceil(CHUNK)
    }

    /// From here on chunks may be compressed.
    fn allow_frames(&mut self) {
        self.frames.resize(self.chunks() as usize, Frame::default());
    }

    fn pack(&mut self, chunk: u64) -> Result<u64> {
        self.allow_frames();
        let first = chunk * CHUNK;
        let stored = u64::from(self.stored.words()[chunk as usize].count_ones()) * PAGE_SIZE;
        let place = self.ram.chunk(first).filter(|_| stored > 0 && self.frames[chunk as usize].is_none());
        let Some((place, len)) = place else { return Ok(stored) };
        let mut pages = Vec::with_capacity(len as usize);
        for run in self.present.runs(first..first + len / PAGE_SIZE, true) {
            let from = pages.len();
            pages.resize(from + (run.end - run.start) as usize * PAGE, 0);
            // The others are zeros, perhaps after the end of the file.
            for stored in self.stored.runs(run.clone(), true) {
                let part = stored.start - run.start..stored.end - run.start;
                let part = from + part.start as usize * PAGE..from + part.end as usize * PAGE;
                self.file.read_at(&mut pages[part], place + (stored.start - first) * PAGE_SIZE)?;
            }
        }
        let packed = self.packer.pack(&pages);
        let mut packed =
            packed.map_err(|source| ImageError::Pack { path: self.file.path().to_owned(), source })?;
        let frame = Frame::of(&packed);
        if frame.room() < stored {
            packed.resize(frame.room() as usize, 0);
            self.file.write_at(&packed, place)?;
            self.file.punch_hole(place + frame.room(), len - frame.room())?;
            self.frames[chunk as usize] = frame;
        }
        Ok(stored)
    }

    /// A chunk as another image has it, compressed, with the checksums of the pages of `word`.
    pub(super) fn adopt_frame(
        &mut self,
        first: u64,
        frame: Frame,
        (word, crcs): (u64, &[u32]),
        source: &File,
    ) -> Result<()> {
        self.allow_frames();
        let copied = match self.ram.chunk(first) {
            Some((place, _)) => self.file.copy_from(source, place, frame.room()).map_err(ImageError::from),
            None => Err(ImageError::Incomplete { path: self.file.path().to_owned() }),
        };
        self.failed |= copied.is_err();
        for (number, crc) in (first..).zip(crcs).filter(|(number, _)| word >> (number - first) & 1 == 1) {
            self.present.put(number, true);
            self.stored.put(number, *crc != self.zero_crc);
            self.crcs[number as usize] = *crc;
        }
        self.frames[(first / CHUNK) as usize] = frame;
        copied
    }

    /// Pages as another image has them, with their checksums.
    pub(super) fn adopt(&mut self, numbers: Range<u64>, gpa: u64, crcs: &[u32], source: &File) -> Result<()> {
        let done = self.copy(numbers, gpa, crcs, source);
        self.failed |= done.is_err();
        done
    }

    fn copy(&mut self, numbers: Range<u64>, gpa: u64, crcs: &[u32], source: &File) -> Result<()> {
        let end = gpa + (numbers.end - numbers.start) * PAGE_SIZE;
        let mut at = gpa;
        while at < end {
            let data = source.next_data(at)?.filter(|data| data.start < end).unwrap_or(end..end);
            // Whole pages, whatever the file system counts in.
            let start = (data.start / PAGE_SIZE * PAGE_SIZE).max(at);
            let upto = data.end.next_multiple_of(PAGE_SIZE).clamp(start, end);
            self.file.copy_from(source, start, upto - start)?;
            for page in (at..upto).step_by(PAGE) {
                let offset = (page - gpa) / PAGE_SIZE;
                let (number, crc) = (numbers.start + offset, crcs[offset as usize]);
                // A hole that should not be one keeps the checksum that tells.
                let is_zero = page < start && crc == self.zero_crc;
                let present = !is_zero || self.kind != Kind::Full;
                self.present.put(number, present);
                self.stored.put(number, page >= start);
                self.crcs[number as usize] = if present { crc } else { 0 };
            }
            at = upto;
        }
        Ok(())
    }

    /// Completes the file and makes its contents durable; its name is for the caller.
    pub fn finish(self) -> Result<ImageInfo> {
        if self.failed {
            return Err(ImageError::Incomplete { path: self.file.path().to_owned() });
        }
        let places = Places::new(&self.ram, !self.frames.is_empty());
        let groups = self.ram.groups() as usize;
        let mut bitmap = Vec::with_capacity((places.frames - places.bitmap) as usize);
        let mut frames: Vec<u8> = self.frames.iter().flat_map(|frame| frame.encode().to_le_bytes()).collect();
        frames.resize(if frames.is_empty() { 0 } else { groups * FRAMES as usize }, 0);
        let mut frames_of = frames.chunks_exact(FRAMES as usize);
        let mut table = Vec::with_capacity((places.header - places.table) as usize);
        let mut present = 0;
        for index in 0..groups {
            let words = group_of(&self.present, index);
            let count: u32 = words.iter().map(|word| word.count_ones()).sum();
            let frames = frames_of.next().unwrap_or_default();
            bitmap.extend(bitmap_bytes(&words));
            let mut entry = Entry::default();
            if count > 0 {
                let first = index * GROUP as usize;
                let mut crcs = crc_bytes(&self.crcs[first..self.crcs.len().min(first + GROUP as usize)]);
                crcs.resize(CRCS as usize, 0);
                self.file.write_at(&crcs, places.crcs + index as u64 * CRCS)?;
                entry = Group::entry(&bitmap[bitmap.len() - BITMAP as usize..], &crcs, frames, count);
            }
            table.extend(entry.encode());
            present += u64::from(count);
        }
        if present > 0 {
            self.file.write_at(&bitmap, places.bitmap)?;
            self.file.write_at(&frames, places.frames)?;
        }
        debug_assert_eq!(table.len(), groups * ENTRY as usize);
        table.resize((places.header - places.table) as usize, 0);
        self.file.write_at(&table, places.table)?;
        let header = Header {
            id: self.id,
            kind: self.kind,
            frames: !self.frames.is_empty(),
            ram: self.ram.clone(),
            present,
            stored: self.stored.count(),
            table_crc: crc32fast::hash(&table),
        };
        let page = header.encode();
        self.file.write_at(&page, places.header)?;
        self.file.sync_data()?;
        Ok(ImageInfo {
            stored_bytes: header.stored * PAGE_SIZE,
            compressed_bytes: header.frames.then(|| self.room()),
            guest_bytes: self.ram.bytes(),
            crc: crc_of(&page),
        })
    }

    /// What pages take of the file.
    fn room(&self) -> u64 {
        let stored = self.stored.words().iter().map(|word| u64::from(word.count_ones()) * PAGE_SIZE);
        let rooms = stored.zip(&self.frames);
        rooms.map(|(raw, frame)| if frame.is_none() { raw } else { frame.room() }).sum()
    }
}
