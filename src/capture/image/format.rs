//! What the index of a memory image looks like, as bytes and checks; no files here.
//!
//! Its header is the last page of the file: the first byte of the file is guest address 0.

use std::ops::Range;

use crate::id::Id;
use crate::layout::PAGE_SIZE;

use super::frame::{self, Frame};
use super::pages::{CHUNK, GROUP, GROUP_WORDS, RANGES_MAX, Ram};

const MAGIC: [u8; 8] = *b"PITONmem";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = PAGE_SIZE as usize;
/// Chunks may lie compressed, and the index has a part that tells which do.
const FLAG_FRAMES: u32 = 1;
const RANGES_AT: usize = 88;
const CRC_AT: usize = HEADER - 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it does not end like a memory image: it was truncated, or is a different file")]
    Magic,
    #[error("this version of piton does not read its format version {0}, only {VERSION}")]
    Version(u32),
    #[error("it has unknown flags {0:#x}")]
    Flags(u32),
    #[error("the checksum of its last page is wrong")]
    Checksum,
    #[error("its last page has an invalid value: {0}")]
    Impossible(&'static str),
}

/// What a page that the file does not hold is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Zeros.
    Full,
    /// As in the image of this checkpoint.
    Delta(Id),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub id: Id,
    pub kind: Kind,
    /// Chunks may lie compressed.
    pub frames: bool,
    pub ram: Ram,
    /// Pages that the file holds.
    pub present: u64,
    /// Those of them that are not zeros, and so take space.
    pub stored: u64,
    /// Of the table of groups before the header.
    pub table_crc: u32,
}

/// Bytes that a group takes in each part of the index.
pub(super) const CRCS: u64 = GROUP * 4;
pub(super) const BITMAP: u64 = GROUP / 8;
pub(super) const FRAMES: u64 = (GROUP_WORDS * frame::ENTRY) as u64;
pub(super) const ENTRY: u64 = 8;

/// Where the parts of the index lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// Of each page; by group, and a hole where a group has none.
    pub crcs: u64,
    pub bitmap: u64,
    /// Takes no room where no chunk may lie compressed.
    pub frames: u64,
    /// Of all groups; with it and the header an image is open.
    pub table: u64,
    pub header: u64,
}

impl Places {
    pub fn new(ram: &Ram, has_frames: bool) -> Self {
        let groups = ram.groups();
        let crcs = ram.end();
        let bitmap = crcs + groups * CRCS;
        let frames = bitmap + (groups * BITMAP).next_multiple_of(PAGE_SIZE);
        let room = if has_frames { groups * FRAMES } else { 0 };
        let table = frames + room.next_multiple_of(PAGE_SIZE);
        Self { crcs, bitmap, frames, table, header: table + (groups * ENTRY).next_multiple_of(PAGE_SIZE) }
    }

    pub fn file_len(&self) -> u64 {
        self.header + HEADER as u64
    }
}

/// What the table says of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of its bitmap, its checksums and then its frames; 0 if it has no page.
    pub crc: u32,
    /// Pages of it that the file holds.
    pub present: u32,
}

impl Entry {
    pub fn encode(self) -> [u8; ENTRY as usize] {
        (u64::from(self.crc) | u64::from(self.present) << 32).to_le_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Self {
        Self { crc: u32_at(bytes, 0), present: u32_at(bytes, 4) }
    }
}

/// Which pages of a group the file holds, their checksums, and which chunks lie compressed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::capture) struct Group {
    pub bitmap: [u64; GROUP_WORDS],
    /// 0 where there is no page.
    pub crcs: [u32; GROUP as usize],
    pub frames: [Frame; GROUP_WORDS],
}

impl Group {
    pub(super) fn entry(bitmap: &[u8], crcs: &[u8], frames: &[u8], present: u32) -> Entry {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(bitmap);
        hasher.update(crcs);
        hasher.update(frames);
        Entry { crc: hasher.finalize(), present }
    }

    /// Without `frames` no chunk lies compressed.
    pub(super) fn decode(bitmap: &[u8], crcs: &[u8], frames: &[u8]) -> Box<Self> {
        let mut group = Box::new(Self {
            bitmap: [0; GROUP_WORDS],
            crcs: [0; GROUP as usize],
            frames: [Frame::default(); GROUP_WORDS],
        });
        for (word, bytes) in group.bitmap.iter_mut().zip(bitmap.chunks_exact(8)) {
            *word = u64_at(bytes, 0);
        }
        for (crc, bytes) in group.crcs.iter_mut().zip(crcs.chunks_exact(4)) {
            *crc = u32_at(bytes, 0);
        }
        for (frame, bytes) in group.frames.iter_mut().zip(frames.chunks_exact(frame::ENTRY)) {
            *frame = Frame::decode(u64_at(bytes, 0));
        }
        group
    }

    /// Splits a run of its pages, counted from its first, into those that lie as they are and those
    /// of a frame each.
    pub(super) fn stretches(&self, run: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = run.start;
        std::iter::from_fn(move || {
            let start = at;
            let is_raw = |at: u64| self.frames[(at / CHUNK) as usize].is_none();
            while at < run.end && (at == start || (is_raw(start) && is_raw(at))) {
                at = run.end.min((at / CHUNK + 1) * CHUNK);
            }
            (start < at).then_some(start..at)
        })
    }

    pub(super) fn present(&self) -> u32 {
        self.bitmap.iter().map(|word| word.count_ones()).sum()
    }
}

/// As they lie in the file.
pub(super) fn crc_bytes(crcs: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; crcs.len() * 4];
    for (to, crc) in bytes.chunks_exact_mut(4).zip(crcs) {
        to.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

pub(super) fn bitmap_bytes(words: &[u64; GROUP_WORDS]) -> [u8; BITMAP as usize] {
    let mut bytes = [0; BITMAP as usize];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut page = [0; HEADER];
        let (kind, parent) = match self.kind {
            Kind::Full => (1u32, [0; 16]),
            Kind::Delta(parent) => (2, *parent.as_bytes()),
        };
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(if self.frames { FLAG_FRAMES } else { 0 }).to_le_bytes());
        put(16, self.id.as_bytes());
        put(32, &parent);
        put(48, &kind.to_le_bytes());
        put(52, &(PAGE_SIZE as u32).to_le_bytes());
        put(56, &self.ram.pages().to_le_bytes());
        put(64, &self.present.to_le_bytes());
        put(72, &self.stored.to_le_bytes());
        put(80, &(self.ram.ranges().len() as u32).to_le_bytes());
        put(84, &self.table_crc.to_le_bytes());
        for (i, (start, len)) in self.ram.ranges().iter().enumerate() {
            put(RANGES_AT + i * 16, &start.to_le_bytes());
            put(RANGES_AT + i * 16 + 8, &len.to_le_bytes());
        }
        let crc = crc32fast::hash(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    pub fn decode(page: &[u8; HEADER]) -> Result<Self, FormatError> {
        if page[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        // A newer version may have its checksum elsewhere.
        let version = u32_at(page, 8);
        if version > VERSION || version == 0 {
            return Err(FormatError::Version(version));
        }
        if crc_of(page) != crc32fast::hash(&page[..CRC_AT]) {
            return Err(FormatError::Checksum);
        }
        let flags = u32_at(page, 12);
        if flags & !FLAG_FRAMES != 0 {
            return Err(FormatError::Flags(flags));
        }
        let parent = id_at(page, 32);
        let kind = match u32_at(page, 48) {
            1 => Kind::Full,
            2 => Kind::Delta(parent),
            _ => return Err(FormatError::Impossible("the kind")),
        };
        if u64::from(u32_at(page, 52)) != PAGE_SIZE {
            return Err(FormatError::Impossible("the page size"));
        }
        let count = u32_at(page, 80) as usize;
        let ranges: Vec<_> = (0..count.min(RANGES_MAX + 1))
            .map(|i| RANGES_AT + i * 16)
            .map(|at| (u64_at(page, at), u64_at(page, at + 8)))
            .collect();
        let ram = Ram::new(&ranges).ok_or(FormatError::Impossible("the location of memory"))?;
        let (present, stored) = (u64_at(page, 64), u64_at(page, 72));
        if u64_at(page, 56) != ram.pages() || present > ram.pages() || stored > present {
            return Err(FormatError::Impossible("the number of pages"));
        }
        let (id, frames, table_crc) = (id_at(page, 16), flags & FLAG_FRAMES != 0, u32_at(page, 84));
        Ok(Self { id, kind, frames, ram, present, stored, table_crc })
    }
}

/// The checksum that a header carries; it covers the table, whose checksum the header holds, and
/// that covers all of the index.
pub(super) fn crc_of(page: &[u8; HEADER]) -> u32 {
    u32_at(page, CRC_AT)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn id_at(bytes: &[u8], at: usize) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Id::from_bytes(id)
}
