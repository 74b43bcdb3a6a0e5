//! What a crash leaves in the folder, and its removal.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::id::Id;
use crate::storage::StorageError;

use super::names::{Leftover, MANIFEST, VERIFIED, id_of};
use super::{Result, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Changes nothing.
    Look,
    Mend,
}

#[derive(Debug)]
pub enum Outcome {
    /// It was only looked for.
    Found,
    Removed,
    Failed(StorageError),
}

#[derive(Debug)]
pub struct Finding {
    pub what: Leftover,
    pub path: PathBuf,
    pub outcome: Outcome,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.outcome {
            Outcome::Found => write!(f, "found {}: {path}", self.what),
            Outcome::Removed => write!(f, "removed {}: {path}", self.what),
            Outcome::Failed(e) => write!(f, "could not remove {} at {path}: {e}", self.what),
        }
    }
}

impl Store {
    /// Finds what a crash left and, to mend it, removes it. Only under the VM's lock, and with no
    /// checkpoint being made: a staging folder does not say whether somebody is at work on it.
    ///
    /// Verdicts are written without the lock, by readers of the checkpoint: `being_read` is asked for
    /// those after all was listed, so that whatever of a verdict was listed had its writer until then.
    pub fn recover<E: From<super::StoreError>>(
        &self,
        recovery: Recovery,
        being_read: impl FnOnce() -> std::result::Result<Vec<Id>, E>,
    ) -> std::result::Result<Vec<Finding>, E> {
        let mut findings = Vec::new();
        let mut leftovers = self.leftovers()?;
        if leftovers.iter().any(|(what, _)| matches!(what, Leftover::Verdict(_))) {
            let read = being_read()?;
            leftovers.retain(|(what, _)| !matches!(what, Leftover::Verdict(id) if read.contains(id)));
        }
        for (what, path) in leftovers {
            let outcome = match recovery {
                Recovery::Look => Outcome::Found,
                Recovery::Mend => match self.mend(what, &path) {
                    Ok(()) => Outcome::Removed,
                    Err(e) => Outcome::Failed(e),
                },
            };
            findings.push(Finding { what, path, outcome });
        }
        Ok(findings)
    }

    fn leftovers(&self) -> Result<Vec<(Leftover, PathBuf)>> {
        let names = match self.storage.list_dir(&self.dir) {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for name in names.iter().filter_map(|name| name.to_str()) {
            let path = self.dir.join(name);
            if let Some(what) = Leftover::of(name) {
                found.push((what, path));
            } else if let Some(id) = id_of(name) {
                // One that cannot be listed is damaged, and a listing says so.
                let files = self.storage.list_dir(&path).unwrap_or_default();
                let images = self.unneeded_images(id, &files)?;
                found.extend(images.into_iter().map(|path| (Leftover::Image, path)));
                for file in files {
                    // As Storage::replace calls them.
                    let name = file.to_str().and_then(|file| file.strip_prefix('.'));
                    let Some(name) = name else { continue };
                    for (of, what) in [(MANIFEST, Leftover::Temporary), (VERIFIED, Leftover::Verdict(id))] {
                        let rest = name.strip_prefix(of);
                        if rest.is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".tmp")) {
                            found.push((what, path.join(&file)));
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    fn mend(&self, what: Leftover, path: &Path) -> std::result::Result<(), StorageError> {
        match what {
            Leftover::Temporary | Leftover::Image | Leftover::Verdict(_) => {
                // A verdict may have got its name meanwhile.
                self.storage.remove_file_if_exists(path)?;
                self.storage.sync_parent(path)
            }
            // The rename of a deletion may not have been durable yet. If it were undone after some
            // of the files went, that would be half a checkpoint.
            Leftover::Deleted => {
                self.storage.sync_dir(&self.dir)?;
                self.storage.remove_tree(path)
            }
            Leftover::Staging => self.storage.remove_tree(path),
        }
    }
}
