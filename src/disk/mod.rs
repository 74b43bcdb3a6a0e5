//! The host side of disks: images, and chains of them.
//!
//! What is frozen is a [`Backing`] and can only be read; what a guest writes
//! to is a [`Disk`]. A layer below another is held as a `Backing`, so a write
//! to it does not compile.

pub mod backing;
mod base;
pub mod base_sums;
mod bitmap;
mod block_map;
pub mod chain;
pub mod delta;
mod delta_file;
pub mod delta_format;
mod delta_header;
mod error;
pub mod flat;
pub mod foreign;
pub mod frozen;
pub mod layer;
mod limits;
pub mod live;
pub mod merge;
pub mod outlook;
mod plan;
mod probe;
pub mod qcow2;
pub mod qcow2_header;
pub mod qcow2_write;
pub mod raw;
pub mod sums;
pub mod suspects;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use crate::config::DiskFormat as ImageFormat;
use crate::storage::{FileKind, Metadata, Storage};

pub use base::{Base, files_of, open_base};
pub use error::{DiskError, Result};
pub use limits::{MAX_LAYERS, SECTOR};
pub use probe::probe;

/// Something that can be read and that nobody changes.
pub trait Backing: Send + Sync {
    /// Bytes; a multiple of [`SECTOR`], never 0.
    fn len(&self) -> u64;

    /// A disk is never empty; here for the lint, and true to it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The first range at or after `offset` that may hold anything but zeros;
    /// what lies between reads as zeros.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;
}

/// What a guest sees. All methods take `&self`: one worker uses a disk, and
/// a checkpoint switches its top from another thread.
pub trait Disk: Backing {
    fn is_read_only(&self) -> bool;
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// The range reads as zeros afterwards.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;
    /// The contents of the range are of no use any more. What a later read
    /// returns is either what was there or zeros.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    /// When it returns, all that was written before survives a power cut.
    fn flush(&self) -> Result<()>;
}

impl<T: Backing + ?Sized> Backing for Arc<T> {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }
}

impl<T: Disk + ?Sized> Disk for Arc<T> {
    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        (**self).write_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        (**self).write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        (**self).discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
}

/// Any [`Backing`] as a disk that refuses every change.
pub struct ReadOnly<B>(pub B);

impl<B: Backing> Backing for ReadOnly<B> {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

impl<B: Backing> Disk for ReadOnly<B> {
    fn is_read_only(&self) -> bool {
        true
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(DiskError::ReadOnly)
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        Err(DiskError::ReadOnly)
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Err(DiskError::ReadOnly)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Whether `path` can be an image at all, before it is opened: opening a FIFO
/// would wait for its other end.
fn inspect(storage: &Storage, path: &Path) -> Result<Metadata> {
    let meta = match storage.metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.is_not_found() => return Err(DiskError::Missing(path.to_owned())),
        Err(e) => return Err(e.into()),
    };
    match meta.kind {
        FileKind::File | FileKind::BlockDevice => Ok(meta),
        FileKind::Dir => Err(DiskError::IsFolder(path.to_owned())),
        FileKind::Other => Err(DiskError::NotAnImage(path.to_owned())),
    }
}

fn check_len(path: &Path, len: u64) -> Result<()> {
    if len == 0 {
        Err(DiskError::Empty(path.to_owned()))
    } else if !len.is_multiple_of(SECTOR) {
        Err(DiskError::BadLength { path: path.to_owned(), len })
    } else {
        Ok(())
    }
}

fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, len, size }),
    }
}

#[cfg(test)]
mod tests;
