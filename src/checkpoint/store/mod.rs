//! The folder of a VM's checkpoints: one folder each, whole or not there.
//!
//! | name | what it is |
//! | --- | --- |
//! | `<id>` | a checkpoint |
//! | `.staging-<id>` | one that is being made, or that a crash cut short |
//! | `.deleted-<id>` | one whose files are going, or that a crash kept from it |
//!
//! Each step from one to the next is a rename. Whoever writes holds the VM's lock.

mod error;
mod flat;
mod images;
mod merge;
mod names;
mod recover;
mod staged;
mod verified;

use std::path::{Path, PathBuf};

use crate::id::Id;
use crate::storage::{DOCUMENT_MAX, Storage, StorageError};

use super::manifest::{Manifest, ManifestError};
use names::{DELETED, STAGING, id_of, own_name};

pub use error::{Result, StoreError};
pub use images::FoundImage;
pub use names::{FLAT, Leftover, MANIFEST, MEMORY, STATE, VERIFIED};
pub use recover::{Finding, Outcome, Recovery};
pub use staged::Staged;
pub use verified::{Began, CONSOLE_MAX, Verified};

/// A checkpoint that is there and cannot be used.
#[derive(Debug)]
pub struct Damaged {
    pub id: Id,
    pub path: PathBuf,
    pub error: StoreError,
}

/// What is in the folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// By creation, then id.
    pub manifests: Vec<Manifest>,
    /// With any of these, not all that layers are needed for is known.
    pub damaged: Vec<Damaged>,
    /// What a crash left, or another process is at work on.
    pub leftovers: Vec<(Leftover, PathBuf)>,
}

#[derive(Clone, Debug)]
pub struct Store {
    storage: Storage,
    dir: PathBuf,
}

impl Store {
    pub fn new(storage: Storage, dir: PathBuf) -> Self {
        Self { storage, dir }
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, id: Id) -> PathBuf {
        self.dir.join(id.to_string())
    }

    pub fn manifest_path(&self, id: Id) -> PathBuf {
        self.path(id).join(MANIFEST)
    }

    /// The checkpoint's own memory image.
    pub fn memory_path(&self, manifest: &Manifest) -> PathBuf {
        let file = manifest.memory.as_ref().map_or(0, |memory| memory.file);
        self.path(manifest.id).join(own_name(file))
    }

    pub fn state_path(&self, id: Id) -> PathBuf {
        self.path(id).join(STATE)
    }

    fn staging_path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{STAGING}{id}"))
    }

    fn deleted_path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{DELETED}{id}"))
    }

    /// All checkpoints; a folder that is not there yet holds none, and names that are not ours
    /// are passed over.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let names = match self.storage.list_dir(&self.dir) {
            Err(e) if e.is_not_found() => return Ok(listing),
            other => other?,
        };
        for name in names.iter().filter_map(|name| name.to_str()) {
            let path = self.dir.join(name);
            if let Some(leftover) = Leftover::of(name) {
                listing.leftovers.push((leftover, path));
            } else if let Some(id) = id_of(name) {
                match self.load(id) {
                    Ok(manifest) => listing.manifests.push(manifest),
                    // Deleted since the names were read.
                    Err(StoreError::Missing { .. }) => {}
                    Err(error) => listing.damaged.push(Damaged { id, path, error }),
                }
            }
        }
        listing.manifests.sort_by_key(|manifest| (manifest.created, manifest.id));
        Ok(listing)
    }

    pub fn load(&self, id: Id) -> Result<Manifest> {
        let path = self.manifest_path(id);
        let bytes = match self.storage.read_at_most(&path, DOCUMENT_MAX) {
            Err(e) if e.is_not_found() => {
                let folder = self.path(id);
                return Err(match self.storage.exists(&folder)? {
                    true => StoreError::NoManifest(folder),
                    false => StoreError::Missing { id, dir: self.dir.clone() },
                });
            }
            other => other?,
        };
        Manifest::decode(&bytes, id).map_err(|source| StoreError::Manifest { path, source })
    }

    fn create_dir(&self) -> std::result::Result<(), StorageError> {
        match self.storage.create_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => match self.storage.exists(&self.dir) {
                // On a file system that is read-only it is not said that it exists.
                Ok(true) => Ok(()),
                _ => Err(e),
            },
            Ok(()) => self.storage.sync_parent(&self.dir),
        }
    }

    /// Replaces a manifest in one step: another name, note, parent or layer. Whether the name is
    /// taken is for the caller. After an error it is the one or the other, and whole.
    pub fn update(&self, id: Id, change: impl FnOnce(&mut Manifest)) -> Result<Manifest> {
        let mut manifest = self.load(id)?;
        change(&mut manifest);
        let path = self.manifest_path(id);
        let bytes =
            encode(&manifest, id).map_err(|source| StoreError::Manifest { path: path.clone(), source })?;
        self.storage.replace(&path, &bytes).map_err(|e| self.refine(e))?;
        Ok(manifest)
    }

    /// Deletes a checkpoint's folder, also a damaged one's. After [`StoreError::LeftOver`] the
    /// checkpoint is gone all the same; after any other error it is there as before.
    pub fn remove(&self, id: Id) -> Result<()> {
        let (from, to) = (self.path(id), self.deleted_path(id));
        match self.storage.rename(&from, &to) {
            Err(e) if e.is_not_found() => return Err(StoreError::Missing { id, dir: self.dir.clone() }),
            other => other.map_err(|e| self.refine(e))?,
        }
        if let Err(source) = self.storage.sync_dir(&self.dir) {
            return Err(match self.storage.rename(&to, &from) {
                Ok(()) => self.refine(source),
                Err(_) => StoreError::LeftOver { id, path: to, source },
            });
        }
        self.storage.remove_tree(&to).map_err(|source| StoreError::LeftOver { id, path: to, source })
    }

    /// Says what an error of writing means for who asked.
    fn refine(&self, source: StorageError) -> StoreError {
        use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let dir = self.dir.clone();
        match source.kind() {
            PermissionDenied | ReadOnlyFilesystem => StoreError::Refused { dir, source },
            StorageFull | QuotaExceeded => StoreError::Full { dir, source },
            _ => source.into(),
        }
    }
}

/// Only of a manifest that will be found under its id again.
fn encode(manifest: &Manifest, id: Id) -> std::result::Result<Vec<u8>, ManifestError> {
    if manifest.id != id {
        return Err(ManifestError::WrongId { found: manifest.id, expected: id });
    }
    manifest.encode()
}

#[cfg(test)]
mod tests;
