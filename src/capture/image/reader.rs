use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::storage::{Access, File, Storage};

use super::format::{BITMAP, CRCS, ENTRY, Entry, FRAMES, Group, HEADER, Header, Kind, Places, crc_of};
use super::frame::{Frame, unpack};
use super::pages::{CHUNK, GROUP, is_zero};
use super::{FormatError, ImageError, Result};
use crate::pages::runs;
use crate::progress::Cancelled;

const PAGE: usize = PAGE_SIZE as usize;
/// What a check of everything reads at once.
const STEP: u64 = 1 << 20;

/// A finished memory image. Reads may come from several threads.
///
/// Opening reads the last page and the table before it, a byte for every 512 KiB of guest memory;
/// what says more of a group of pages is read, and checked, when one of them is first asked for.
#[derive(Debug)]
pub struct Image {
    file: File,
    crc: u32,
    header: Header,
    places: Places,
    table: Vec<Entry>,
    groups: Vec<OnceLock<Box<Group>>>,
    /// The pages of the frame that was read last, and the number of its chunk's first page: whoever
    /// reads some of them mostly wants the others next.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Image {
    /// The image of checkpoint `id` whose [`super::ImageInfo::crc`] was recorded as `crc`.
    pub fn open(storage: &Storage, path: &Path, id: Id, crc: u32) -> Result<Self> {
        let file = storage.open(path, Access::ReadOnly)?;
        let wrong = |source| ImageError::Format { path: path.to_owned(), source };
        let len = file.len()?;
        let at = len.checked_sub(HEADER as u64).ok_or_else(|| wrong(FormatError::Magic))?;
        let mut page = [0; HEADER];
        file.read_at(&mut page, at)?;
        let header = Header::decode(&page).map_err(wrong)?;
        let places = Places::new(&header.ram, header.frames);
        if places.file_len() != len {
            return Err(ImageError::Length {
                path: path.to_owned(),
                found: len,
                expected: places.file_len(),
            });
        }
        if header.id != id {
            return Err(ImageError::WrongImage { path: path.to_owned(), found: header.id, expected: id });
        }
        if crc_of(&page) != crc {
            return Err(ImageError::WrongIndex {
                path: path.to_owned(),
                found: crc_of(&page),
                expected: crc,
            });
        }
        let corrupt = |what| ImageError::Corrupt { path: path.to_owned(), offset: places.table, what };
        let mut bytes = vec![0; (places.header - places.table) as usize];
        file.read_at(&mut bytes, places.table)?;
        if crc32fast::hash(&bytes) != header.table_crc {
            return Err(corrupt("a wrong checksum of the table of groups"));
        }
        let groups = header.ram.groups() as usize;
        let table: Vec<Entry> = bytes.chunks_exact(ENTRY as usize).take(groups).map(Entry::decode).collect();
        if table.iter().map(|entry| u64::from(entry.present)).sum::<u64>() != header.present {
            return Err(corrupt("an invalid table of groups"));
        }
        let groups = table.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { file, crc, header, places, table, groups, unpacked: Mutex::default() })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub fn id(&self) -> Id {
        self.header.id
    }

    pub fn kind(&self) -> Kind {
        self.header.kind
    }

    /// Where memory lies: start and length.
    pub fn ranges(&self) -> &[(u64, u64)] {
        self.header.ram.ranges()
    }

    pub fn guest_bytes(&self) -> u64 {
        self.header.ram.bytes()
    }

    /// What a check of all of it reads.
    pub fn present_bytes(&self) -> u64 {
        self.header.present * PAGE_SIZE
    }

    pub fn stored_bytes(&self) -> u64 {
        self.header.stored * PAGE_SIZE
    }

    pub fn is_compressed(&self) -> bool {
        self.header.frames
    }

    /// Its file can be mapped as it is.
    pub fn is_flat(&self) -> bool {
        self.header.kind == Kind::Full && !self.header.frames
    }

    /// The checksum that it was opened with.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(in crate::capture) fn file(&self) -> &File {
        &self.file
    }

    /// What the index says of a group; `None` if the file holds no page of it.
    pub(in crate::capture) fn group(&self, index: usize) -> Result<Option<&Group>> {
        if self.table[index].present == 0 {
            return Ok(None);
        }
        if let Some(group) = self.groups[index].get() {
            return Ok(Some(group));
        }
        let group = self.load(index)?;
        // Another thread may have been quicker; it read the same.
        Ok(Some(self.groups[index].get_or_init(|| group)))
    }

    fn load(&self, index: usize) -> Result<Box<Group>> {
        let at = |start: u64, each: u64| start + index as u64 * each;
        let (bitmap_at, crcs_at) = (at(self.places.bitmap, BITMAP), at(self.places.crcs, CRCS));
        let (mut bitmap, mut crcs) = ([0; BITMAP as usize], [0; CRCS as usize]);
        self.file.read_at(&mut bitmap, bitmap_at)?;
        self.file.read_at(&mut crcs, crcs_at)?;
        let frames_at = at(self.places.frames, FRAMES);
        let mut frames = vec![0; if self.header.frames { FRAMES as usize } else { 0 }];
        self.file.read_at(&mut frames, frames_at)?;
        let entry = self.table[index];
        if Group::entry(&bitmap, &crcs, &frames, entry.present) != entry {
            return Err(self.corrupt(crcs_at, "a wrong checksum of the index of a group"));
        }
        let group = Group::decode(&bitmap, &crcs, &frames);
        let pages = (self.header.ram.pages() - index as u64 * GROUP).min(GROUP);
        if group.present() != entry.present || runs(&group.bitmap, pages..GROUP, true).next().is_some() {
            return Err(self.corrupt(bitmap_at, "an invalid bitmap"));
        }
        for (chunk, (frame, word)) in (0..).zip(group.frames.iter().zip(&group.bitmap)) {
            let place = self.header.ram.chunk(index as u64 * GROUP + chunk * CHUNK);
            let fits = place.is_some_and(|(_, len)| *word != 0 && (1..=len).contains(&frame.len.into()));
            if !frame.is_none() && !fits {
                return Err(self.corrupt(frames_at, "an invalid compressed frame"));
            }
        }
        Ok(group)
    }

    /// Tells `each` the runs of pages in order, none over the end of a group: their numbers, and
    /// their group if the file holds them.
    fn each_run(
        &self,
        numbers: Range<u64>,
        mut each: impl FnMut(Range<u64>, Option<&Group>) -> Result<()>,
    ) -> Result<()> {
        let mut at = numbers.start;
        while at < numbers.end {
            let index = at / GROUP;
            let first = index * GROUP;
            let end = numbers.end.min(first + GROUP);
            let Some(group) = self.group(index as usize)? else {
                each(at..end, None)?;
                at = end;
                continue;
            };
            let mut upto = at;
            for run in runs(&group.bitmap, at - first..end - first, true) {
                if upto < first + run.start {
                    each(upto..first + run.start, None)?;
                }
                upto = first + run.end;
                each(first + run.start..upto, Some(group))?;
            }
            if upto < end {
                each(upto..end, None)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Guest addresses of the pages that the file holds, run by run.
    pub fn present(&self) -> Result<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (numbers, gpa) in self.header.ram.parts() {
            let first = numbers.start;
            self.each_run(numbers, |run, group| {
                let run = gpa + (run.start - first) * PAGE_SIZE..gpa + (run.end - first) * PAGE_SIZE;
                match runs.last_mut() {
                    _ if group.is_none() => {}
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => runs.push(run),
                }
                Ok(())
            })?;
        }
        Ok(runs)
    }

    /// Whole pages of one range, each checked. A delta has to hold all of them.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<()> {
        self.read_with(gpa, buf, |gpa, part| match self.header.kind {
            Kind::Full => {
                part.fill(0);
                Ok(())
            }
            Kind::Delta(_) => Err(ImageError::InParent { path: self.path().to_owned(), gpa }),
        })
    }

    /// [`Image::read`], with `absent` to fill in the runs of pages that the file does not hold.
    pub fn read_with(
        &self,
        gpa: u64,
        buf: &mut [u8],
        mut absent: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let numbers = self.numbers(gpa, buf.len())?;
        self.each_run(numbers.clone(), |run, group| {
            let from = ((run.start - numbers.start) * PAGE_SIZE) as usize;
            let part = &mut buf[from..from + ((run.end - run.start) * PAGE_SIZE) as usize];
            let part_gpa = gpa + from as u64;
            match group {
                None => absent(part_gpa, part),
                Some(group) => self.read_run(group, run, part_gpa, part),
            }
        })
    }

    pub(in crate::capture) fn numbers(&self, gpa: u64, len: usize) -> Result<Range<u64>> {
        let len = len as u64;
        self.header.ram.numbers(gpa, len).ok_or(ImageError::NotRam { gpa, len })
    }

    /// A run of pages that one group has all of, each checked.
    pub(in crate::capture) fn read_present(
        &self,
        numbers: Range<u64>,
        gpa: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        match self.group((numbers.start / GROUP) as usize)? {
            Some(group) if numbers.end - numbers.start / GROUP * GROUP <= GROUP => {
                self.read_run(group, numbers, gpa, buf)
            }
            _ => Err(ImageError::InParent { path: self.path().to_owned(), gpa }),
        }
    }

    fn read_run(&self, group: &Group, numbers: Range<u64>, gpa: u64, mut buf: &mut [u8]) -> Result<()> {
        let first = numbers.start / GROUP * GROUP;
        let mut gpa = gpa;
        for run in group.stretches(numbers.start - first..numbers.end - first) {
            let len = (run.end - run.start) * PAGE_SIZE;
            let (part, rest) = buf.split_at_mut(len as usize);
            let chunk = run.start / CHUNK;
            let frame = group.frames[chunk as usize];
            let place = if frame.is_none() {
                self.file.read_at(part, gpa)?;
                None
            } else {
                let before = (1 << (run.start % CHUNK)) - 1;
                let word = group.bitmap[chunk as usize];
                let count = |word: u64| word.count_ones() as usize * PAGE;
                Some(self.read_frame(
                    first + chunk * CHUNK,
                    frame,
                    count(word),
                    count(word & before),
                    part,
                )?)
            };
            let crcs = &group.crcs[run.start as usize..run.end as usize];
            for ((page, crc), offset) in part.chunks_exact(PAGE).zip(crcs).zip((gpa..).step_by(PAGE)) {
                if crc32fast::hash(page) != *crc {
                    let offset = place.unwrap_or(offset);
                    return Err(self.corrupt(offset, "a wrong checksum of the page"));
                }
            }
            (buf, gpa) = (rest, gpa + len);
        }
        Ok(())
    }

    /// Fills `buf` with what a frame of `len` bytes of pages has from `from` on. Returns where the
    /// frame is.
    fn read_frame(&self, first: u64, frame: Frame, len: usize, from: usize, buf: &mut [u8]) -> Result<u64> {
        let Some((place, _)) = self.header.ram.chunk(first) else {
            return Err(self.corrupt(self.places.frames, "an invalid compressed frame"));
        };
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if unpacked.as_ref().is_none_or(|(number, _)| *number != first) {
            let mut bytes = vec![0; frame.len as usize];
            self.file.read_at(&mut bytes, place)?;
            if Frame::of(&bytes) != frame {
                return Err(self.corrupt(place, "a wrong checksum of compressed pages"));
            }
            let pages = unpack(&bytes, len);
            let pages = pages.ok_or_else(|| self.corrupt(place, "a compressed frame of other pages"))?;
            *unpacked = Some((first, pages));
        }
        if let Some((_, pages)) = &*unpacked {
            buf.copy_from_slice(&pages[from..from + buf.len()]);
        }
        Ok(place)
    }

    fn corrupt(&self, offset: u64, what: &'static str) -> ImageError {
        ImageError::Corrupt { path: self.path().to_owned(), offset, what }
    }

    /// Reads and checks all of it. `progress` is told bytes done and in all, and may stop it.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let total = self.present_bytes();
        let mut done = 0;
        let mut told = |more: u64| {
            done += more;
            match progress(done, total) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Cancelled.into()),
            }
        };
        let mut buf = Vec::new();
        told(0)?;
        for (numbers, gpa) in self.header.ram.parts() {
            let first = numbers.start;
            self.each_run(numbers, |run, group| {
                let address = |number| gpa + (number - first) * PAGE_SIZE;
                match group {
                    Some(group) => {
                        for at in run.clone().step_by((STEP / PAGE_SIZE) as usize) {
                            let numbers = at..run.end.min(at + STEP / PAGE_SIZE);
                            buf.resize(((numbers.end - at) * PAGE_SIZE) as usize, 0);
                            self.read_run(group, numbers, address(at), &mut buf)?;
                            told(buf.len() as u64)?;
                        }
                        Ok(())
                    }
                    // Whoever maps the file sees these pages too. Of others nobody does.
                    None if self.is_flat() => {
                        self.verify_hole(address(run.start)..address(run.end), &mut buf, &mut told)
                    }
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    fn verify_hole(
        &self,
        hole: Range<u64>,
        buf: &mut Vec<u8>,
        told: &mut impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = hole.start;
        while let Some(data) = self.file.next_data(at)?.filter(|data| data.start < hole.end) {
            // Whole pages, whatever the file system counts in.
            let start = data.start / PAGE_SIZE * PAGE_SIZE;
            let end = data.end.next_multiple_of(PAGE_SIZE).min(hole.end).min(start + STEP);
            buf.resize((end - start) as usize, 0);
            self.file.read_at(buf, start)?;
            if let Some(page) = buf.chunks(PAGE).position(|page| !is_zero(page)) {
                let offset = start + (page * PAGE) as u64;
                return Err(self.corrupt(offset, "nonzero bytes in a page recorded as zero"));
            }
            told(0)?;
            at = end;
        }
        Ok(())
    }
}
