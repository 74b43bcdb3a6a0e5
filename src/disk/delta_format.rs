//! What a delta layer looks like on disk, as bytes and checks; no files here.
//!
//! docs/format.md draws it. Everything that is written in place has two slots
//! that are written in turn, each with a generation and a checksum: a write
//! torn by a power cut spoils one slot, and the other still says what the last
//! completed flush left.

use std::fmt;

use thiserror::Error;

pub use crate::id::Id as LayerId;

pub const MAGIC: [u8; 8] = *b"PITONdlt";
pub const VERSION: u32 = 1;
pub const BLOCK: u64 = 4096;
/// Headers and bitmap pages.
pub const PAGE: usize = 4096;

const PAGE_MAGIC: [u8; 4] = *b"PBMP";
const PAGE_HEADER: usize = 32;
/// Words of bits in a bitmap page.
pub const PAGE_WORDS: usize = (PAGE - PAGE_HEADER) / 8;
/// Blocks that one bitmap page speaks of.
pub const PAGE_BLOCKS: u64 = PAGE_WORDS as u64 * 64;

const BITMAP_OFFSET: u64 = 2 * PAGE as u64;
/// The data area starts on a boundary that suits file systems; the gap is a hole.
const DATA_ALIGN: u64 = 1 << 20;
/// Keeps every offset far from the end of what a file can hold.
pub const MAX_SIZE: u64 = 1 << 46;
const HEADER_CRC: usize = PAGE - 4;
/// The header says how large the disk below is: smaller than this one.
const GROWN: u32 = 1;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    #[error("this is not a delta layer")]
    Magic,
    #[error("format version {0} is newer than this version of piton supports ({VERSION})")]
    Version(u32),
    #[error("unknown flags {0:#x}")]
    Flags(u32),
    #[error("the checksum of the header is wrong")]
    Checksum,
    #[error("invalid disk size {0}")]
    Size(u64),
    #[error("a disk of {size} bytes over one of {below}, which is not smaller")]
    Below { size: u64, below: u64 },
    #[error("invalid block size {0}")]
    BlockSize(u32),
    #[error("unknown kind of parent {0}")]
    ParentKind(u32),
    #[error("the header places the data at {found}, but for this size it must be at {expected}")]
    DataOffset { found: u64, expected: u64 },
}

/// What lies below a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The image that the user brought; it has no id.
    Base,
    Delta(LayerId),
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("a base image"),
            Self::Delta(id) => write!(f, "layer {id}"),
        }
    }
}

/// Where things are in the file; follows from the size of the disk alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub size: u64,
    pub blocks: u64,
    pub pages: usize,
    pub data_offset: u64,
    pub file_len: u64,
}

impl Geometry {
    pub fn new(size: u64) -> Result<Self, FormatError> {
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) {
            return Err(FormatError::Size(size));
        }
        let blocks = size.div_ceil(BLOCK);
        let pages = blocks.div_ceil(PAGE_BLOCKS);
        let data_offset = (BITMAP_OFFSET + 2 * pages * PAGE as u64).next_multiple_of(DATA_ALIGN);
        Ok(Self { size, blocks, pages: pages as usize, data_offset, file_len: data_offset + blocks * BLOCK })
    }

    pub fn page_offset(&self, page: usize, slot: usize) -> u64 {
        BITMAP_OFFSET + (2 * page + slot) as u64 * PAGE as u64
    }

    /// Blocks that page `page` speaks of.
    pub fn page_blocks(&self, page: usize) -> u64 {
        (self.blocks - page as u64 * PAGE_BLOCKS).min(PAGE_BLOCKS)
    }
}

pub fn header_offset(slot: usize) -> u64 {
    (slot * PAGE) as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub generation: u64,
    pub size: u64,
    /// Size of the disk that this is over; past that all is zeros below.
    pub below: u64,
    pub id: LayerId,
    pub parent: Parent,
}

impl Header {
    pub fn encode(&self, data_offset: u64) -> [u8; PAGE] {
        let (kind, parent) = match self.parent {
            Parent::Base => (1u32, [0; 16]),
            Parent::Delta(id) => (2, *id.as_bytes()),
        };
        let mut page = [0; PAGE];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, &VERSION.to_le_bytes());
        put(&mut page, 16, &self.generation.to_le_bytes());
        put(&mut page, 24, &self.size.to_le_bytes());
        put(&mut page, 32, &(BLOCK as u32).to_le_bytes());
        put(&mut page, 36, &kind.to_le_bytes());
        put(&mut page, 40, self.id.as_bytes());
        put(&mut page, 56, &parent);
        put(&mut page, 72, &data_offset.to_le_bytes());
        if self.below != self.size {
            put(&mut page, 12, &GROWN.to_le_bytes());
            put(&mut page, 80, &self.below.to_le_bytes());
        }
        let crc = crc32fast::hash(&page[..HEADER_CRC]);
        put(&mut page, HEADER_CRC, &crc.to_le_bytes());
        page
    }

    /// The version comes before everything else, the checksum before any
    /// value is believed.
    pub fn decode(page: &[u8; PAGE]) -> Result<Self, FormatError> {
        if page[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = get_u32(page, 8);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if crc32fast::hash(&page[..HEADER_CRC]) != get_u32(page, HEADER_CRC) {
            return Err(FormatError::Checksum);
        }
        let flags = get_u32(page, 12);
        if flags & !GROWN != 0 {
            return Err(FormatError::Flags(flags));
        }
        let block = get_u32(page, 32);
        if u64::from(block) != BLOCK {
            return Err(FormatError::BlockSize(block));
        }
        let parent = match get_u32(page, 36) {
            1 => Parent::Base,
            2 => Parent::Delta(LayerId::from_bytes(get(page, 56))),
            kind => return Err(FormatError::ParentKind(kind)),
        };
        let size = get_u64(page, 24);
        let expected = Geometry::new(size)?.data_offset;
        let found = get_u64(page, 72);
        if found != expected {
            return Err(FormatError::DataOffset { found, expected });
        }
        let below = if flags & GROWN == 0 { size } else { get_u64(page, 80) };
        Geometry::new(below)?;
        if flags & GROWN != 0 && below >= size {
            return Err(FormatError::Below { size, below });
        }
        let id = LayerId::from_bytes(get(page, 40));
        Ok(Self { generation: get_u64(page, 16), size, below, id, parent })
    }

    /// The newer of the two slots that is whole, and which it is.
    pub fn newest(slots: [&[u8; PAGE]; 2]) -> Result<(Self, usize), FormatError> {
        match slots.map(Self::decode) {
            [Ok(a), Ok(b)] if b.generation > a.generation => Ok((b, 1)),
            [Ok(a), _] => Ok((a, 0)),
            // The first slot is the one that a layer is made with; what is
            // wrong with it says most, unless it was never written.
            [Err(_), Ok(b)] => Ok((b, 1)),
            [Err(FormatError::Magic), Err(e)] | [Err(e), Err(_)] => Err(e),
        }
    }
}

/// One slot of a bitmap page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Never written: all zeros.
    Empty,
    Valid {
        generation: u64,
        words: Box<[u64; PAGE_WORDS]>,
    },
    /// Torn, rotten, or of another page or layer.
    Damaged,
}

pub fn encode_page(id: LayerId, page: usize, generation: u64, words: &[u64; PAGE_WORDS]) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    put(&mut bytes, 4, &PAGE_MAGIC);
    put(&mut bytes, 8, &generation.to_le_bytes());
    put(&mut bytes, 16, &(page as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&id.as_bytes()[..8]);
    for (at, word) in bytes[PAGE_HEADER..].chunks_exact_mut(8).zip(words) {
        at.copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[4..]);
    put(&mut bytes, 0, &crc.to_le_bytes());
    bytes
}

pub fn decode_page(bytes: &[u8; PAGE], id: LayerId, page: usize, geometry: &Geometry) -> Slot {
    if bytes.iter().all(|b| *b == 0) {
        return Slot::Empty;
    }
    let ours = crc32fast::hash(&bytes[4..]) == get_u32(bytes, 0)
        && bytes[4..8] == PAGE_MAGIC
        && get_u64(bytes, 16) == page as u64
        && bytes[24..32] == id.as_bytes()[..8];
    if !ours {
        return Slot::Damaged;
    }
    let mut words = Box::new([0; PAGE_WORDS]);
    for (word, at) in words.iter_mut().zip(bytes[PAGE_HEADER..].chunks_exact(8)) {
        *word = u64::from_le_bytes(get(at, 0));
    }
    let blocks = geometry.page_blocks(page);
    let beyond = |at: usize, word: u64| {
        let valid = blocks.saturating_sub(at as u64 * 64).min(64);
        valid < 64 && word >> valid != 0
    };
    if words.iter().enumerate().any(|(at, word)| beyond(at, *word)) {
        return Slot::Damaged;
    }
    Slot::Valid { generation: get_u64(bytes, 8), words }
}

fn put<const N: usize>(page: &mut [u8; PAGE], at: usize, bytes: &[u8; N]) {
    page[at..at + N].copy_from_slice(bytes);
}

/// Offsets are constants of this file, within every buffer that it is used on.
fn get<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&page[at..at + N]);
    bytes
}

fn get_u32(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(page, at))
}

fn get_u64(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(page, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parent() -> impl Strategy<Value = Parent> {
        prop_oneof![
            Just(Parent::Base),
            any::<[u8; 16]>().prop_map(|id| Parent::Delta(LayerId::from_bytes(id)))
        ]
    }

    proptest! {
        #[test]
        fn a_header_survives_its_bytes(
            generation: u64, sectors in 1..MAX_SIZE / 512, fewer: u64, id: [u8; 16], parent in parent()
        ) {
            let (size, below) = (sectors * 512, (1 + fewer % sectors) * 512);
            let header = Header { generation, size, below, id: LayerId::from_bytes(id), parent };
            let geometry = Geometry::new(header.size).unwrap();
            let page = header.encode(geometry.data_offset);
            prop_assert_eq!(Header::decode(&page), Ok(header));
        }

        #[test]
        fn one_changed_bit_is_noticed(at in 0..PAGE, bit in 0..8u8) {
            let (size, id) = (1 << 30, LayerId::from_bytes([7; 16]));
            let header = Header { generation: 3, size, below: size, id, parent: Parent::Base };
            let geometry = Geometry::new(header.size).unwrap();
            let mut page = header.encode(geometry.data_offset);
            page[at] ^= 1 << bit;
            prop_assert!(Header::decode(&page).is_err());
            let mut page = encode_page(header.id, 1, 9, &[0xa5; PAGE_WORDS]);
            page[at] ^= 1 << bit;
            prop_assert_eq!(decode_page(&page, header.id, 1, &geometry), Slot::Damaged);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>, seal: bool) {
            let mut page = [0; PAGE];
            let len = bytes.len().min(PAGE);
            page[..len].copy_from_slice(&bytes[..len]);
            page[..8].copy_from_slice(&MAGIC);
            page[8..12].copy_from_slice(&VERSION.to_le_bytes());
            if seal {
                let crc = crc32fast::hash(&page[..HEADER_CRC]);
                put(&mut page, HEADER_CRC, &crc.to_le_bytes());
            }
            let _ = Header::decode(&page);
            let _ = decode_page(&page, LayerId::from_bytes([0; 16]), 0, &Geometry::new(512).unwrap());
        }

        #[test]
        fn the_parts_of_the_file_do_not_overlap(sectors in 1..MAX_SIZE / 512) {
            let g = Geometry::new(sectors * 512).unwrap();
            prop_assert!(g.page_offset(g.pages - 1, 1) + PAGE as u64 <= g.data_offset);
            prop_assert!(g.blocks * BLOCK >= g.size && (g.blocks - 1) * BLOCK < g.size);
            prop_assert!(g.page_blocks(g.pages - 1) >= 1);
        }
    }

    #[test]
    fn a_bitmap_page_is_bound_to_its_place() {
        let geometry = Geometry::new(200 << 20).unwrap();
        let (id, other) = (LayerId::from_bytes([1; 16]), LayerId::from_bytes([2; 16]));
        let mut words = [0; PAGE_WORDS];
        words[5] = 1 << 63;
        let page = encode_page(id, 0, 4, &words);
        let valid = Slot::Valid { generation: 4, words: Box::new(words) };
        assert_eq!(decode_page(&page, id, 0, &geometry), valid);
        assert_eq!(decode_page(&page, id, 1, &geometry), Slot::Damaged);
        assert_eq!(decode_page(&page, other, 0, &geometry), Slot::Damaged);
        assert_eq!(decode_page(&[0; PAGE], id, 0, &geometry), Slot::Empty);
        // Bits past the end of the disk.
        let page = encode_page(id, 1, 4, &[u64::MAX; PAGE_WORDS]);
        assert_eq!(decode_page(&page, id, 1, &geometry), Slot::Damaged);
    }

    #[test]
    fn the_newer_whole_header_wins() {
        let id = LayerId::from_bytes([1; 16]);
        let header = |generation, parent| Header { generation, size: 4096, below: 4096, id, parent };
        let at = Geometry::new(4096).unwrap().data_offset;
        let (old, new) = (header(1, Parent::Base), header(2, Parent::Delta(LayerId::from_bytes([2; 16]))));
        let (a, b) = (old.encode(at), new.encode(at));
        assert_eq!(Header::newest([&a, &b]), Ok((new, 1)));
        assert_eq!(Header::newest([&b, &a]), Ok((new, 0)));
        let mut torn = b;
        torn[512..].fill(0);
        assert_eq!(Header::newest([&a, &torn]), Ok((old, 0)));
        assert_eq!(Header::newest([&torn, &a]), Ok((old, 1)));
        assert_eq!(Header::newest([&torn, &[0; PAGE]]), Err(FormatError::Checksum));
        assert_eq!(Header::newest([&[0; PAGE], &[0; PAGE]]), Err(FormatError::Magic));
    }
}
