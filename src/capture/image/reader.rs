use std::ops::{ControlFlow, Range};
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::storage::{Access, File, Storage};

use super::format::{HEADER, Header, Kind, Places, crc_of, u32_at};
use super::pages::{PageSet, Ranked, is_zero};
use super::{FormatError, ImageError, Result};

const PAGE: usize = PAGE_SIZE as usize;
/// What a check of everything reads at once.
const STEP: u64 = 1 << 20;

/// A finished memory image. Reads may come from several threads.
#[derive(Debug)]
pub struct Image {
    file: File,
    header: Header,
    present: Ranked,
    /// Of the present pages, in order.
    crcs: Vec<u32>,
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
        let places = Places::new(&header.ram, header.present);
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
        let corrupt = |what| ImageError::Corrupt { path: path.to_owned(), offset: places.bitmap, what };
        let mut index = vec![0; (places.header - places.bitmap) as usize];
        file.read_at(&mut index, places.bitmap)?;
        if crc32fast::hash(&index) != header.index_crc {
            return Err(corrupt("a wrong checksum of the index"));
        }
        let (bitmap, crcs) = index.split_at((places.crcs - places.bitmap) as usize);
        let set = PageSet::from_bytes(bitmap, header.ram.pages())
            .filter(|set| set.count() == header.present)
            .ok_or_else(|| corrupt("a bitmap that does not fit"))?;
        let crcs = (0..header.present as usize).map(|i| u32_at(crcs, i * 4)).collect();
        Ok(Self { file, header, present: Ranked::new(set), crcs })
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

    pub fn stored_bytes(&self) -> u64 {
        self.header.stored * PAGE_SIZE
    }

    /// To map the pages; what is read that way is for the reader to [`Image::check`].
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }

    /// Guest addresses of the pages that the file holds, run by run.
    pub fn present(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs(true)
    }

    fn runs(&self, present: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        self.header.ram.parts().flat_map(move |(numbers, gpa)| {
            let first = numbers.start;
            let runs = self.present.set().runs(numbers, present);
            runs.map(move |run| gpa + (run.start - first) * PAGE_SIZE..gpa + (run.end - first) * PAGE_SIZE)
        })
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
        let mut at = numbers.start;
        let mut rest = buf;
        let mut take = |upto: u64| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(((upto - at) * PAGE_SIZE) as usize);
            let part_gpa = gpa + (at - numbers.start) * PAGE_SIZE;
            rest = left;
            at = upto;
            (part_gpa, part)
        };
        for run in self.present.set().runs(numbers.clone(), true) {
            let (gap_gpa, gap) = take(run.start);
            if !gap.is_empty() {
                absent(gap_gpa, gap)?;
            }
            let (run_gpa, part) = take(run.end);
            self.file.read_at(part, run_gpa)?;
            self.check_run(run, run_gpa, part)?;
        }
        let (gap_gpa, gap) = take(numbers.end);
        if gap.is_empty() { Ok(()) } else { absent(gap_gpa, gap) }
    }

    /// Whether `bytes` are what the image says of the pages from `gpa`, wherever they were read.
    pub fn check(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let numbers = self.numbers(gpa, bytes.len())?;
        let part = |run: &Range<u64>| {
            let from = ((run.start - numbers.start) * PAGE_SIZE) as usize;
            let len = ((run.end - run.start) * PAGE_SIZE) as usize;
            (gpa + from as u64, &bytes[from..from + len])
        };
        for run in self.present.set().runs(numbers.clone(), true) {
            let (run_gpa, bytes) = part(&run);
            self.check_run(run, run_gpa, bytes)?;
        }
        if self.header.kind == Kind::Full {
            for run in self.present.set().runs(numbers.clone(), false) {
                let (run_gpa, bytes) = part(&run);
                self.check_zeros(run_gpa, bytes)?;
            }
        }
        Ok(())
    }

    fn numbers(&self, gpa: u64, len: usize) -> Result<Range<u64>> {
        let len = len as u64;
        self.header.ram.numbers(gpa, len).ok_or(ImageError::NotRam { gpa, len })
    }

    fn check_run(&self, run: Range<u64>, gpa: u64, bytes: &[u8]) -> Result<()> {
        let crcs = &self.crcs[self.present.rank(run.start)..];
        for ((page, crc), offset) in bytes.chunks_exact(PAGE).zip(crcs).zip((gpa..).step_by(PAGE)) {
            if crc32fast::hash(page) != *crc {
                return Err(self.corrupt(offset, "a wrong checksum of the page"));
            }
        }
        Ok(())
    }

    fn check_zeros(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        match bytes.chunks(PAGE).position(|page| !is_zero(page)) {
            None => Ok(()),
            Some(page) => {
                Err(self.corrupt(gpa + (page * PAGE) as u64, "bytes that are not zero in a page that is"))
            }
        }
    }

    fn corrupt(&self, offset: u64, what: &'static str) -> ImageError {
        ImageError::Corrupt { path: self.path().to_owned(), offset, what }
    }

    /// Reads and checks all of it. `progress` is told bytes done and in all, and may stop it.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let total = self.header.present * PAGE_SIZE;
        let mut done = 0;
        let mut told = |more: u64| {
            done += more;
            match progress(done, total) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ImageError::Cancelled { path: self.path().to_owned() }),
            }
        };
        let mut buf = Vec::new();
        told(0)?;
        for run in self.runs(true) {
            for at in run.clone().step_by(STEP as usize) {
                let len = (run.end - at).min(STEP);
                buf.resize(len as usize, 0);
                self.read(at, &mut buf)?;
                told(len)?;
            }
        }
        // Whoever maps the file sees these pages too. Of a delta nobody does.
        if self.header.kind == Kind::Full {
            for run in self.runs(false) {
                self.verify_hole(run, &mut buf, &mut told)?;
            }
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
            self.check_zeros(start, buf)?;
            told(0)?;
            at = end;
        }
        Ok(())
    }
}
