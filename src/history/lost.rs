//! Flushes that failed, written down in the VM's folder until somebody decides.
//!
//! After a failed sync the kernel takes what it could not write for written: it is read from memory
//! as if it were there, the next sync succeeds, and one day it is gone. So a disk whose flush failed
//! is not opened again until somebody accepts that ([`accept`]); then what is only in memory is
//! dropped, and the disk is what it is after a power cut.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::disk::DiskError;
use crate::folder::VmFolder;
use crate::storage::{Access, File, Storage, StorageError};

const NAME: &str = "lost-writes";
/// It is written in place: on the disk that is full or failing there may be no room for another.
const LEN: usize = 4096;
/// Of an error's text.
const MOST_TEXT: usize = 200;

/// A flush that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "disk `{disk}`: a flush of {} failed on {} ({error}), so writes since the last successful flush may \
     be lost; `piton start --accept-lost-writes` starts the VM anyway",
    path.display(),
    time.format("%F %TZ")
)]
pub struct Lost {
    pub disk: String,
    pub path: PathBuf,
    pub time: DateTime<Utc>,
    pub error: String,
}

/// The note, open: a disk's thread can write to it, and can open nothing.
#[derive(Debug)]
pub struct Note {
    file: File,
    lost: Mutex<Vec<Lost>>,
}

impl Note {
    /// Makes it if there is none.
    pub fn open(folder: &VmFolder) -> Result<Self, StorageError> {
        let (storage, path) = (folder.storage(), folder.path().join(NAME));
        let file = match storage.open(&path, Access::ReadWrite) {
            Err(e) if e.is_not_found() => make(storage, &path)?,
            other => other?,
        };
        let mut bytes = vec![0; LEN];
        let got = file.read_up_to(&mut bytes, 0)?;
        bytes.truncate(got);
        let lost = decode(&bytes).unwrap_or_else(|| {
            // Cut short while it was written: something failed.
            let error = format!("cannot read {}", path.display());
            vec![Lost { disk: String::new(), path: PathBuf::new(), time: Utc::now(), error }]
        });
        Ok(Self { file, lost: Mutex::new(lost) })
    }

    fn lost(&self) -> MutexGuard<'_, Vec<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a disk that is to be made of these files.
    pub fn of(&self, disk: &str, files: &[&Path]) -> Option<Lost> {
        let lost = self.lost();
        let hits = |lost: &&Lost| {
            lost.path.as_os_str().is_empty() || (lost.disk == disk && files.contains(&lost.path.as_path()))
        };
        let found = lost.iter().find(hits)?;
        Some(Lost { disk: disk.to_owned(), ..found.clone() })
    }

    /// Durable when it returns, before the guest is told.
    pub fn add(&self, disk: &str, path: &Path, error: &DiskError) {
        let mut lost = self.lost();
        if lost.iter().any(|one| one.disk == disk && one.path == path) {
            return;
        }
        let error = error.to_string().chars().take(MOST_TEXT).collect();
        lost.push(Lost { disk: disk.to_owned(), path: path.to_owned(), time: Utc::now(), error });
        if let Err(e) = self.write(&lost) {
            log::error!("a flush of {} failed, and this could not be recorded: {e}", path.display());
        }
    }

    fn write(&self, lost: &[Lost]) -> Result<(), StorageError> {
        let mut bytes = serde_json::to_vec(lost).unwrap_or_default();
        // What is too much for it cannot be read, and that refuses everything.
        bytes.resize(LEN, b' ');
        self.file.write_at(&bytes, 0)?;
        self.file.sync_data()
    }
}

fn make(storage: &Storage, path: &Path) -> Result<File, StorageError> {
    let file = storage.create_new(path)?;
    let made = file
        .write_at(&[b' '; LEN], 0)
        .and_then(|()| file.sync_data())
        .and_then(|()| storage.sync_parent(path));
    match made {
        Ok(()) => Ok(file),
        Err(e) => {
            let _ = storage.remove_file(path);
            Err(e)
        }
    }
}

/// None: it is not what was written.
fn decode(bytes: &[u8]) -> Option<Vec<Lost>> {
    if bytes.iter().all(|byte| [b' ', 0].contains(byte)) {
        return Some(Vec::new());
    }
    serde_json::from_slice(bytes).ok()
}

/// All flushes that failed, of a VM whether it runs or not.
pub fn list(folder: &VmFolder) -> Result<Vec<Lost>, StorageError> {
    match folder.storage().metadata(&folder.path().join(NAME)) {
        Err(e) if e.is_not_found() => Ok(Vec::new()),
        Err(e) => Err(e),
        Ok(_) => Ok(Note::open(folder)?.lost().clone()),
    }
}

/// Somebody takes the disks for what they are. The VM must be off.
pub fn accept(folder: &VmFolder) -> Result<(), StorageError> {
    if list(folder)?.is_empty() {
        return Ok(());
    }
    let note = Note::open(folder)?;
    for Lost { path, .. } in note.lost().iter() {
        let file = match folder.storage().open(path, Access::ReadOnly) {
            // Nobody reads it any more.
            Err(e) if e.is_not_found() || path.as_os_str().is_empty() => continue,
            other => other?,
        };
        // The first one may tell of the failure that is known.
        if let Err(e) = file.sync_data() {
            log::warn!("{e}");
            file.sync_data()?;
        }
        file.forget_cached()?;
    }
    note.write(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Home;

    #[test]
    fn what_failed_is_known_until_it_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().to_owned(), Storage::os());
        let folder = home.folder(&"demo".parse().unwrap());
        std::fs::create_dir(folder.path()).unwrap();
        let path = dir.path().join("a.raw");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(list(&folder).unwrap(), []);
        let note = Note::open(&folder).unwrap();
        for _ in 0..2 {
            note.add("a", &path, &DiskError::FlushFailed(path.clone()));
        }
        let again = Note::open(&folder).unwrap();
        let found = again.of("a", &[Path::new("/other"), &path]).unwrap();
        assert!(found.to_string().contains("a.raw"), "{found}");
        assert_eq!(again.of("a", &[Path::new("/other")]), None);
        assert_eq!(again.of("b", &[&path]), None);
        assert_eq!(list(&folder).unwrap().len(), 1);
        accept(&folder).unwrap();
        assert_eq!(list(&folder).unwrap(), []);
        // Half a note is one all the same.
        std::fs::write(folder.path().join(NAME), "[{\"disk\": \"a\", ").unwrap();
        assert!(Note::open(&folder).unwrap().of("b", &[]).is_some());
        accept(&folder).unwrap();
        assert_eq!(list(&folder).unwrap(), []);
    }
}
