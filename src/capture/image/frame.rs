//! Pages that lie compressed: what an image holds of a chunk of pages, one after the other, is one
//! Zstandard frame (RFC 8878). No files here.

use std::io;

use crate::layout::PAGE_SIZE;

/// The fastest of the ordinary levels: the guest runs beside it.
const LEVEL: i32 = 1;

/// Where a chunk lies compressed, this many bytes are at the place of its first page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::capture) struct Frame {
    /// 0: its pages lie as they are, each at its own place.
    pub len: u32,
    pub crc: u32,
}

pub(super) const ENTRY: usize = 8;

impl Frame {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { len: u32::try_from(bytes.len()).unwrap_or(u32::MAX), crc: crc32fast::hash(bytes) }
    }

    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What it takes of the file.
    pub(super) fn room(self) -> u64 {
        u64::from(self.len).next_multiple_of(PAGE_SIZE)
    }

    pub(super) fn encode(self) -> u64 {
        u64::from(self.len) | u64::from(self.crc) << 32
    }

    pub(super) fn decode(entry: u64) -> Self {
        Self { len: entry as u32, crc: (entry >> 32) as u32 }
    }
}

/// Makes frames. What that takes is only there once the first was made.
#[derive(Default)]
pub(super) struct Packer(Option<zstd::bulk::Compressor<'static>>);

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub fn pack(&mut self, pages: &[u8]) -> io::Result<Vec<u8>> {
        let compressor = match self.0.take() {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(LEVEL)?,
        };
        self.0.insert(compressor).compress(pages)
    }
}

/// The pages of a frame; `None`: it does not hold `len` bytes.
pub(super) fn unpack(frame: &[u8], len: usize) -> Option<Vec<u8>> {
    zstd::bulk::decompress(frame, len).ok().filter(|pages| pages.len() == len)
}
