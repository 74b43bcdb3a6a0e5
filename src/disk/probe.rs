//! Which format an image has.

use std::path::Path;

use super::foreign::{self, Foreign};
use super::{DiskError, ImageFormat, Result, delta_format, inspect};
use crate::storage::{Access, Storage};

/// What a qcow2 image begins with.
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The format of an image by its first bytes, never by its name.
///
/// Only for the first time that an image is seen; record the answer and pass
/// that from then on. A guest can write the header of a qcow2 image with any
/// backing file into its raw disk; if the disk were probed again, it would
/// then be shown that file.
///
/// What is neither is refused, unless it is a disk as it lies and will not be `written`.
pub fn probe(storage: &Storage, path: &Path, written: bool) -> Result<ImageFormat> {
    inspect(storage, path)?;
    let file = storage.open_named(path, Access::ReadOnly)?;
    match foreign::look_at(&file)? {
        None => {}
        Some(Foreign::Iso) if !written => {}
        Some(what) => return Err(DiskError::Foreign { path: path.to_owned(), what }),
    }
    let mut magic = [0; 8];
    let got = file.read_up_to(&mut magic, 0)?;
    if magic[..got].starts_with(&QCOW2_MAGIC) {
        Ok(ImageFormat::Qcow2)
    } else if got == magic.len() && magic == delta_format::MAGIC {
        Err(DiskError::IsDelta(path.to_owned()))
    } else {
        Ok(ImageFormat::Raw)
    }
}
