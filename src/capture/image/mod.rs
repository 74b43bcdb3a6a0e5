//! The memory image of a checkpoint: a sparse file in which a page of guest memory lies at its
//! guest-physical offset, so that it can be mapped, with an index after the last of them.
//!
//! A chunk of pages may lie compressed instead, at the place of its first.
//!
//! docs/format.md draws it. The index says which pages the file holds and has a checksum of each,
//! so that a restore may read any page by itself and still never hands out a wrong one.

mod checked;
mod format;
mod frame;
mod merge;
mod pages;
mod reader;
mod writer;

use std::path::PathBuf;

use crate::id::Id;
use crate::progress::Cancelled;
use crate::storage::StorageError;

pub use format::{FormatError, Kind};
pub use merge::Merge;
pub(super) use merge::resolve;
pub(super) use pages::GROUP;
pub use reader::Image;
pub use writer::{ImageInfo, ImageWriter};

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("memory image {}: {source}", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error("memory image {} is damaged: {what} at offset {offset}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: &'static str },
    #[error("memory image {} is {found} bytes long, but should be {expected}", path.display())]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{} holds memory image {found}, but {expected} is expected there", path.display())]
    WrongImage { path: PathBuf, found: Id, expected: Id },
    #[error("memory image {} is not the one that the manifest refers to: its index has checksum \
     {found:08x}, not {expected:08x}", path.display())]
    WrongIndex { path: PathBuf, found: u32, expected: u32 },
    #[error("memory image {} has no page at guest address {gpa:#x}; its parent has it", path.display())]
    InParent { path: PathBuf, gpa: u64 },
    #[error("{len} bytes at guest address {gpa:#x} are not whole pages of guest memory")]
    NotRam { gpa: u64, len: u64 },
    #[error("memory image {} {what}: the chain of images is broken", path.display())]
    Chain { path: PathBuf, what: String },
    #[error("guest memory at {0:x?} (start, length) cannot be stored in an image")]
    Ranges(Vec<(u64, u64)>),
    #[error("memory image {} is incomplete: a write to it failed", path.display())]
    Incomplete { path: PathBuf },
    #[error("memory image {} is already compressed at guest address {gpa:#x} and can no longer be written there", path.display())]
    Packed { path: PathBuf, gpa: u64 },
    #[error("cannot compress memory image {}: {source}", path.display())]
    Pack { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ImageError {
    /// Whether another version of piton would understand it.
    pub fn is_version(&self) -> bool {
        matches!(self, Self::Format { source: FormatError::Version(_) | FormatError::Flags(_), .. })
    }
}

pub type Result<T> = std::result::Result<T, ImageError>;

#[cfg(test)]
mod frame_tests;
#[cfg(test)]
mod tests;
