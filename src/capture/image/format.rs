//! What the index of a memory image looks like, as bytes and checks; no files here.
//!
//! Its header is the last page of the file: the first byte of the file is guest address 0.

use crate::id::Id;
use crate::layout::PAGE_SIZE;

use super::pages::{RANGES_MAX, Ram};

const MAGIC: [u8; 8] = *b"PITONmem";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = PAGE_SIZE as usize;
const RANGES_AT: usize = 88;
const CRC_AT: usize = HEADER - 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it does not end as a memory image does: it was cut short, or is another file")]
    Magic,
    #[error("its format version {0} is newer than this piton knows ({VERSION})")]
    Version(u32),
    #[error("it has unknown flags {0:#x}")]
    Flags(u32),
    #[error("the checksum of its last page is wrong")]
    Checksum,
    #[error("its last page says what cannot be: {0}")]
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
    pub ram: Ram,
    /// Pages that the file holds.
    pub present: u64,
    /// Those of them that are not zeros, and so take space.
    pub stored: u64,
    /// Of the bitmap and the checksums before the header.
    pub index_crc: u32,
}

/// Where the parts of the index lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub bitmap: u64,
    pub crcs: u64,
    pub header: u64,
}

impl Places {
    pub fn new(ram: &Ram, present: u64) -> Self {
        let bitmap = ram.end();
        let crcs = bitmap + ram.pages().div_ceil(8).next_multiple_of(PAGE_SIZE);
        Self { bitmap, crcs, header: crcs + (present * 4).next_multiple_of(PAGE_SIZE) }
    }

    pub fn file_len(&self) -> u64 {
        self.header + HEADER as u64
    }
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
        put(16, self.id.as_bytes());
        put(32, &parent);
        put(48, &kind.to_le_bytes());
        put(52, &(PAGE_SIZE as u32).to_le_bytes());
        put(56, &self.ram.pages().to_le_bytes());
        put(64, &self.present.to_le_bytes());
        put(72, &self.stored.to_le_bytes());
        put(80, &(self.ram.ranges().len() as u32).to_le_bytes());
        put(84, &self.index_crc.to_le_bytes());
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
        if flags != 0 {
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
        let ram = Ram::new(&ranges).ok_or(FormatError::Impossible("where memory lies"))?;
        let (present, stored) = (u64_at(page, 64), u64_at(page, 72));
        if u64_at(page, 56) != ram.pages() || present > ram.pages() || stored > present {
            return Err(FormatError::Impossible("the number of pages"));
        }
        Ok(Self { id: id_at(page, 16), kind, ram, present, stored, index_crc: u32_at(page, 84) })
    }
}

/// The checksum that a header carries; it covers the index, whose checksum the header holds.
pub(super) fn crc_of(page: &[u8; HEADER]) -> u32 {
    u32_at(page, CRC_AT)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn id_at(bytes: &[u8], at: usize) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Id::from_bytes(id)
}
