//! The image that a user brought, below every layer of a chain.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::base_sums::{BaseSums, CHUNK};
use super::{Backing, DiskError, ImageFormat, Result, check_range, qcow2, raw};
use crate::storage::Storage;

/// The image below every delta of a chain; cannot be written through this. Once it has checksums,
/// all that is read of it is checked.
pub struct Base {
    image: Image,
    sums: OnceLock<BaseSums>,
}

enum Image {
    Raw(raw::RawImage),
    Qcow2(qcow2::Qcow2Image),
}

impl From<raw::RawImage> for Base {
    fn from(image: raw::RawImage) -> Self {
        Self { image: Image::Raw(image), sums: OnceLock::new() }
    }
}

impl Base {
    pub fn path(&self) -> &Path {
        match &self.image {
            Image::Raw(image) => image.path(),
            Image::Qcow2(image) => image.path(),
        }
    }

    pub fn format(&self) -> ImageFormat {
        match self.image {
            Image::Raw(_) => ImageFormat::Raw,
            Image::Qcow2(_) => ImageFormat::Qcow2,
        }
    }

    pub(super) fn as_raw(&self) -> Option<&raw::RawImage> {
        match &self.image {
            Image::Raw(image) => Some(image),
            Image::Qcow2(_) => None,
        }
    }

    /// See [`raw::RawImage::sync_former`].
    pub(super) fn sync_former(&self) -> Result<()> {
        self.as_raw().map_or(Ok(()), raw::RawImage::sync_former)
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.as_raw().map_or(Ok(()), raw::RawImage::sync)
    }

    fn as_backing(&self) -> &dyn Backing {
        match &self.image {
            Image::Raw(image) => image,
            Image::Qcow2(image) => image,
        }
    }

    /// Uses the checksums in a file for all that is read from here on.
    pub fn attach_sums(&self, storage: &Storage, path: &Path) -> Result<()> {
        let sums = BaseSums::load(storage, path, self.len())?;
        // Those that it has are of the same file.
        let _ = self.sums.set(sums);
        Ok(())
    }

    pub fn is_sealed(&self) -> bool {
        self.sums.get().is_some()
    }

    /// Checks all of it against its checksums, if it has some; `go_on` is told how much was read.
    pub fn verify(&self, go_on: &dyn Fn(u64) -> Result<()>) -> Result<()> {
        let Some(sums) = self.sums.get() else { return Ok(()) };
        sums.forget();
        for start in (0..self.len()).step_by(CHUNK as usize) {
            let end = (start + CHUNK).min(self.len());
            self.check(start..end)?;
            go_on(end - start)?;
        }
        Ok(())
    }

    fn check(&self, range: Range<u64>) -> Result<()> {
        let Some(sums) = self.sums.get() else { return Ok(()) };
        match sums.check(range, self.as_backing())? {
            None => Ok(()),
            Some(offset) => Err(DiskError::BaseDamaged { path: self.path().to_owned(), offset }),
        }
    }
}

impl Backing for Base {
    fn len(&self) -> u64 {
        self.as_backing().len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        self.check(offset..offset + buf.len() as u64)?;
        self.as_backing().read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let found = self.as_backing().next_data(offset)?;
        let zeros = offset..found.as_ref().map_or(self.len(), |data| data.start);
        // What was data and is a hole is to be read, so that it is found out.
        Ok(self.sums.get().and_then(|sums| sums.lost(zeros)).or(found))
    }
}

/// The files that an image is read through, itself first.
pub fn files_of(storage: &Storage, path: &Path, format: ImageFormat) -> Result<Vec<PathBuf>> {
    let below = match format {
        ImageFormat::Raw => Vec::new(),
        ImageFormat::Qcow2 => qcow2::files_below(storage, path)?,
    };
    Ok(std::iter::once(path.to_owned()).chain(below).collect())
}

/// An image to read only: the base of a chain, or a read-only disk. Held with
/// a shared lock, so that many may read it and none write.
pub fn open_base(storage: &Storage, path: &Path, format: ImageFormat) -> Result<Base> {
    Ok(match format {
        ImageFormat::Raw => raw::RawImage::open(storage, path)?.into(),
        ImageFormat::Qcow2 => {
            Base { image: Image::Qcow2(qcow2::Qcow2Image::open(storage, path)?), sums: OnceLock::new() }
        }
    })
}
