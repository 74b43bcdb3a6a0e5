//! Who reads checkpoints of a VM beside its owner: a server, an export. They take no lock of the
//! VM, so it can run meanwhile; each leaves a note in the VM's folder, under a lock that ends with
//! its process, for who wants to delete or merge what it reads.
//!
//! The notes are for clear words. What keeps a merge from changing a layer under a reader is the
//! shared lock on the open layer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CheckpointError, Result};
use crate::folder::VmFolder;
use crate::id::Id;
use crate::storage::{Access, File, Lock, Storage};

const FOLDER: &str = "readers";
/// A note that is not finished yet.
const UNFINISHED: &str = ".new";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// For people: what it is, and its process.
    pub what: String,
    pub checkpoints: Vec<Id>,
}

/// A note; gone when dropped.
#[derive(Debug)]
pub struct Reading {
    storage: Storage,
    path: PathBuf,
    id: Id,
    _file: File,
}

impl Reading {
    /// What the note is called.
    pub fn id(&self) -> Id {
        self.id
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Left, it is found to be nobody's.
        let _ = self.storage.remove_file(&self.path);
    }
}

/// To be called before anything of the checkpoints is opened.
pub fn begin(folder: &VmFolder, command: &str, checkpoints: &[Id]) -> Result<Reading> {
    let storage = folder.storage();
    let dir = folder.path().join(FOLDER);
    match storage.create_dir(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let reader = Reader {
        what: format!("`{command}` (process {})", std::process::id()),
        checkpoints: checkpoints.to_vec(),
    };
    let id = Id::random().map_err(CheckpointError::Random)?;
    let (path, unfinished) = (dir.join(id.to_string()), dir.join(format!("{UNFINISHED}-{id}")));
    let file = storage.create_new(&unfinished)?;
    let written = (|| {
        file.lock(Lock::Exclusive)?;
        file.write_at(&serde_json::to_vec(&reader).unwrap_or_default(), 0)?;
        // Only now can it be seen, so nobody sees it without its lock.
        storage.rename(&unfinished, &path)
    })();
    if let Err(e) = written {
        let _ = storage.remove_file(&unfinished);
        return Err(e.into());
    }
    Ok(Reading { storage: storage.clone(), path, id, _file: file })
}

/// Those that live; notes of others are removed.
pub fn list(folder: &VmFolder) -> Result<Vec<Reader>> {
    let storage = folder.storage();
    let dir = folder.path().join(FOLDER);
    let names = match storage.list_dir(&dir) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        other => other?,
    };
    let mut readers = Vec::new();
    for path in names.iter().map(|name| dir.join(name)) {
        let file = match storage.open(&path, Access::ReadWrite) {
            // It ended just now.
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        if file.lock(Lock::Exclusive).is_ok() {
            // Half a note may be about to get its lock.
            if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
                storage.remove_file_if_exists(&path)?;
            }
            continue;
        }
        let found = storage.read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        readers.extend(found);
    }
    Ok(readers)
}

/// Whether the process lives that left the note whose id begins like this.
pub fn is_held(folder: &VmFolder, id: &str) -> Result<bool> {
    let storage = folder.storage();
    let dir = folder.path().join(FOLDER);
    let names = match storage.list_dir(&dir) {
        Err(e) if e.is_not_found() => return Ok(false),
        other => other?,
    };
    let Some(name) = names.iter().find(|name| name.to_str().is_some_and(|name| name.starts_with(id))) else {
        return Ok(false);
    };
    match storage.open(&dir.join(name), Access::ReadWrite) {
        Err(e) if e.is_not_found() => Ok(false),
        file => Ok(file?.lock(Lock::Exclusive).is_err()),
    }
}

/// Refuses the deletion of checkpoints that somebody reads.
pub fn check(folder: &VmFolder, going: &[Id]) -> Result<()> {
    let reads = |reader: &Reader| reader.checkpoints.iter().any(|id| going.contains(id));
    match list(folder)?.into_iter().find(reads) {
        None => Ok(()),
        Some(Reader { what, .. }) => Err(CheckpointError::Refused(format!(
            "the checkpoint is being read by {what}: wait for it to finish, or stop it, then delete the \
             checkpoint"
        ))),
    }
}

/// Refuses a change of layers while anybody reads any.
pub fn check_all(folder: &VmFolder) -> Result<()> {
    match list(folder)?.into_iter().next() {
        None => Ok(()),
        Some(Reader { what, .. }) => Err(CheckpointError::Refused(format!(
            "{what} is reading a checkpoint of the VM: the layers will be merged when the VM stops, or by \
             `piton doctor --repair`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Home;

    #[test]
    fn who_lives_is_named_and_who_does_not_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().to_owned(), Storage::os());
        let folder = home.folder(&"demo".parse().unwrap());
        std::fs::create_dir(folder.path()).unwrap();
        let (one, two) = (Id::from_bytes([1; 16]), Id::from_bytes([2; 16]));
        assert!(list(&folder).unwrap().is_empty());
        check_all(&folder).unwrap();
        let reading = begin(&folder, "piton checkpoint serve", &[one]).unwrap();
        let error = check(&folder, &[two, one]).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains("serve"), "{error}");
        check(&folder, &[two]).unwrap();
        assert!(check_all(&folder).is_err());
        // One that was killed.
        std::fs::write(folder.path().join(FOLDER).join("dead"), "{}").unwrap();
        assert_eq!(list(&folder).unwrap().len(), 1);
        let id = reading.id().to_string();
        assert!(is_held(&folder, &id[..16]).unwrap() && !is_held(&folder, "nobody").unwrap());
        drop(reading);
        assert!(!is_held(&folder, &id[..16]).unwrap());
        check(&folder, &[one]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 0);
    }
}
