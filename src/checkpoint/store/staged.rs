use std::path::{Path, PathBuf};

use crate::checkpoint::manifest::Manifest;
use crate::id::Id;
use crate::storage::{Access, StorageError};

use super::names::{MANIFEST, MEMORY, STATE};
use super::{Result, Store, StoreError, encode};

/// A checkpoint that is being made. Dropped, it goes with all that is in it.
#[derive(Debug)]
pub struct Staged {
    store: Store,
    id: Id,
    path: PathBuf,
    published: bool,
}

impl Staged {
    pub fn id(&self) -> Id {
        self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the memory image goes.
    pub fn memory_path(&self) -> PathBuf {
        self.path.join(MEMORY)
    }

    /// Where the state file goes.
    pub fn state_path(&self) -> PathBuf {
        self.path.join(STATE)
    }

    fn publish(mut self, manifest: &Manifest) -> Result<()> {
        let path = self.path.join(MANIFEST);
        let bytes = encode(manifest, self.id)
            .map_err(|source| StoreError::Manifest { path: path.clone(), source })?;
        self.check_files(manifest)?;
        self.write(&path, &bytes).map_err(|e| self.store.refine(e))?;
        let (storage, dir, to) = (&self.store.storage, &self.store.dir, self.store.path(self.id));
        storage.rename(&self.path, &to).map_err(|e| self.store.refine(e))?;
        if let Err(source) = storage.sync_dir(dir) {
            // Not to be there after an error, it has to be staging again, and that is removed.
            if let Err(undo) = storage.rename(&to, &self.path) {
                self.published = true;
                return Err(StoreError::InDoubt { id: self.id, source, undo: Box::new(undo) });
            }
            return Err(self.store.refine(source));
        }
        self.published = true;
        Ok(())
    }

    fn check_files(&self, manifest: &Manifest) -> Result<()> {
        let files =
            [(self.memory_path(), manifest.memory.is_some()), (self.state_path(), manifest.state.is_some())];
        for (path, wanted) in files {
            let there = self.store.storage.exists(&path)?;
            if there != wanted {
                return Err(StoreError::Incomplete { id: self.id, path, there });
            }
        }
        Ok(())
    }

    /// Everything durable, before the name is.
    fn write(&self, manifest: &Path, bytes: &[u8]) -> std::result::Result<(), StorageError> {
        let storage = &self.store.storage;
        storage.create_new(manifest)?.write_at(bytes, 0)?;
        for name in storage.list_dir(&self.path)? {
            storage.open(&self.path.join(name), Access::ReadOnly)?.sync_data()?;
        }
        storage.sync_dir(&self.path)
    }
}

impl Store {
    /// Begins a checkpoint: an empty folder that goes again unless it is published.
    pub fn stage(&self, id: Id) -> Result<Staged> {
        self.create_dir().map_err(|e| self.refine(e))?;
        let path = self.staging_path(id);
        self.storage.create_dir(&path).map_err(|e| self.refine(e))?;
        Ok(Staged { store: self.clone(), id, path, published: false })
    }

    /// Makes a staged checkpoint one: when it returns, the checkpoint survives a power cut. After
    /// an error it is not there, nor is anything of it.
    pub fn publish(&self, staged: Staged, manifest: &Manifest) -> Result<()> {
        staged.publish(manifest)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(e) = self.store.storage.remove_tree(&self.path) {
            log::warn!("cannot remove an unfinished checkpoint, `piton doctor --repair` will: {e}");
        }
    }
}
