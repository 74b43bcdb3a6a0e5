//! A file of a checkpoint as a file of this host.

use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};

use super::File;
use super::error::{Result, SearchError};
use crate::progress::Progress;
use crate::storage::{self, Storage, StorageError};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub path: PathBuf,
    pub bytes: u64,
}

/// Writes the file to `to`, whole and durable or not at all; with `over` in place of what is there.
pub fn restore(storage: &Storage, file: &File, to: &Path, over: bool, progress: &Progress) -> Result<Kept> {
    let len = file.hit.node.len();
    progress.phase("copy", len);
    let fill = |new: &storage::File| -> Result<()> {
        let (mut at, mut failed) = (0, None);
        file.stream(&mut |bytes| {
            let written = progress.check().map_err(SearchError::from);
            let written = written.and_then(|()| Ok(new.write_at(bytes, at)?));
            at += bytes.len() as u64;
            progress.add(bytes.len() as u64);
            written.map_err(|e| failed = Some(e)).is_ok()
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        // What others may do with it is as it was; nobody gets other rights by running it.
        if let Some(fd) = new.as_fd() {
            let mode = Mode::from_bits_truncate(file.hit.node.mode() & 0o777);
            fchmod(fd, mode)
                .map_err(|e| SearchError::Refused(format!("cannot set the mode of {}: {e}", to.display())))?;
        }
        Ok(())
    };
    storage.publish(to, over, fill).map_err(|e| match e {
        SearchError::Storage(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            SearchError::Refused(format!("{} already exists: give another path, or --force", to.display()))
        }
        SearchError::Storage(e) if e.is_not_found() => missing_folder(to, e),
        e => e,
    })?;
    Ok(Kept { path: to.to_owned(), bytes: len })
}

pub(super) fn missing_folder(to: &Path, error: StorageError) -> SearchError {
    match to.parent().filter(|parent| !parent.exists()) {
        Some(parent) => {
            SearchError::Refused(format!("the folder {} does not exist: create it first", parent.display()))
        }
        None => error.into(),
    }
}
