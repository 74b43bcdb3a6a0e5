//! The header of a layer in its file.

use std::path::Path;

use super::delta_format::{FormatError, Header, LayerId, PAGE, header_offset};
use super::{DiskError, Result};
use crate::storage::File;

pub(super) fn read_header(file: &File) -> Result<(Header, usize)> {
    let mut slots = [[0; PAGE]; 2];
    for (at, slot) in slots.iter_mut().enumerate() {
        // A file too short for a header is one without the magic.
        file.read_up_to(slot, header_offset(at))?;
    }
    Header::newest([&slots[0], &slots[1]]).map_err(|e| format_error(file.path(), e))
}

pub(super) fn check_id(path: &Path, found: LayerId, expected: LayerId) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(DiskError::WrongLayer { path: path.to_owned(), found, expected })
}

pub(super) fn format_error(path: &Path, source: FormatError) -> DiskError {
    DiskError::Format { path: path.to_owned(), source }
}
