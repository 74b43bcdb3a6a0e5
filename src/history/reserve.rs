//! Room that is kept for deleting: what makes room must not need any.
//!
//! A file beside what a delete writes. On a full disk it goes first, and comes again once there is
//! room.

use std::path::{Path, PathBuf};

use super::Result;
use crate::folder::{Definition, VmFolder};
use crate::storage::{Storage, StorageError};

const NAME: &str = "reserve";
/// Some manifests, vm.json, and what a file system needs for names and places of them.
const LEN: usize = 256 << 10;

/// With checkpoints on another file system there is one there, too.
fn places(folder: &VmFolder, definition: &Definition) -> Vec<PathBuf> {
    let mut places = vec![folder.path().join(NAME)];
    if definition.checkpoint_dir.is_some() {
        places.push(folder.checkpoints(definition).join(NAME));
    }
    places
}

/// Makes it where it is missing, if there is room.
pub fn keep(folder: &VmFolder, definition: &Definition) {
    for path in places(folder, definition) {
        if let Err(e) = make(folder.storage(), &path) {
            log::debug!("cannot reserve disk space for deleting checkpoints: {e}");
        }
    }
}

fn make(storage: &Storage, path: &Path) -> std::result::Result<(), StorageError> {
    match storage.metadata(path) {
        Ok(found) if found.len == LEN as u64 => return Ok(()),
        // Cut short.
        Ok(_) => storage.remove_file(path)?,
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e),
    }
    let made = storage.create_new(path).and_then(|file| {
        // Not a hole, which takes no room.
        file.write_at(&vec![0x55; LEN], 0)?;
        file.sync_data()
    });
    if made.is_err() {
        let _ = storage.remove_file_if_exists(path);
    }
    made
}

/// Does `act`, which undoes what it did if it fails; if that is for want of room, once more with the
/// room that was kept.
pub fn with_room<T>(
    folder: &VmFolder,
    definition: &Definition,
    mut act: impl FnMut() -> Result<T>,
) -> Result<T> {
    let failed = match act() {
        Err(e) if e.is_full() => e,
        done => return done,
    };
    let mut freed = false;
    for path in places(folder, definition) {
        freed |= folder.storage().remove_file_if_exists(&path)?;
    }
    if !freed {
        return Err(failed);
    }
    let done = act();
    keep(folder, definition);
    done
}
