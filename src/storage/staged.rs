//! A file that is to take another one's place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::temporary::beside;
use super::{File, Result, Storage};

/// A file beside the one that it is to replace. Unless it is put in place it goes when this is dropped.
#[derive(Debug)]
pub struct Staged {
    storage: Storage,
    file: Arc<File>,
    temp: PathBuf,
    path: PathBuf,
    placed: bool,
}

impl Storage {
    /// Writes what is to take the place of the file `path`; nothing of it is durable.
    pub fn stage(&self, path: &Path, bytes: &[u8]) -> Result<Staged> {
        let temp = beside(path);
        // A process of the same id may have died here before.
        self.remove_file_if_exists(&temp)?;
        let file = Arc::new(self.create_new(&temp)?);
        let staged = Staged { storage: self.clone(), file, temp, path: path.to_owned(), placed: false };
        staged.file.write_at(bytes, 0)?;
        Ok(staged)
    }
}

impl Staged {
    /// Makes its content durable, in whatever thread.
    pub fn content(&self) -> impl FnOnce() -> Result<()> + Send + use<> {
        let file = self.file.clone();
        move || file.sync_data()
    }

    /// Puts it in place, durably. Its content has to be durable.
    pub fn place(&mut self) -> Result<()> {
        self.storage.rename(&self.temp, &self.path)?;
        self.placed = true;
        self.storage.sync_parent(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.placed {
            // A crash leaves it, too.
            let _ = self.storage.remove_file_if_exists(&self.temp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::is_temporary;

    #[test]
    fn a_file_that_is_not_put_in_place_goes() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let path = dir.path().join("vm.json");
        std::fs::write(&path, "old").unwrap();
        let staged = storage.stage(&path, b"new").unwrap();
        assert!(is_temporary(staged.temp.file_name().unwrap()));
        drop(staged);
        let names = || storage.list_dir(dir.path()).unwrap();
        assert_eq!((names(), std::fs::read(&path).unwrap()), (vec!["vm.json".into()], b"old".to_vec()));
        let mut staged = storage.stage(&path, b"new").unwrap();
        staged.content()().unwrap();
        staged.place().unwrap();
        drop(staged);
        assert_eq!((names(), std::fs::read(&path).unwrap()), (vec!["vm.json".into()], b"new".to_vec()));
    }
}
