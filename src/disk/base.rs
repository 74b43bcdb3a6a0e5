//! The image that a user brought, below every layer of a chain.

use std::ops::Range;
use std::path::Path;

use super::{Backing, ImageFormat, Result, qcow2, raw};
use crate::storage::Storage;

/// The image below every delta of a chain; cannot be written through this.
pub enum Base {
    Raw(raw::RawImage),
    Qcow2(qcow2::Qcow2Image),
}

impl Base {
    pub fn path(&self) -> &Path {
        match self {
            Self::Raw(image) => image.path(),
            Self::Qcow2(image) => image.path(),
        }
    }

    pub fn format(&self) -> ImageFormat {
        match self {
            Self::Raw(_) => ImageFormat::Raw,
            Self::Qcow2(_) => ImageFormat::Qcow2,
        }
    }

    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Self::Raw(image) => image.sync(),
            Self::Qcow2(_) => Ok(()),
        }
    }

    fn as_backing(&self) -> &dyn Backing {
        match self {
            Self::Raw(image) => image,
            Self::Qcow2(image) => image,
        }
    }
}

impl Backing for Base {
    fn len(&self) -> u64 {
        self.as_backing().len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.as_backing().read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.as_backing().next_data(offset)
    }
}

/// An image to read only: the base of a chain, or a read-only disk. Held with
/// a shared lock, so that many may read it and none write.
pub fn open_base(storage: &Storage, path: &Path, format: ImageFormat) -> Result<Base> {
    Ok(match format {
        ImageFormat::Raw => Base::Raw(raw::RawImage::open(storage, path)?),
        ImageFormat::Qcow2 => Base::Qcow2(qcow2::Qcow2Image::open(storage, path)?),
    })
}
