//! What a crash leaves in the folder, and its removal.

use std::fmt;
use std::path::{Path, PathBuf};

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
    pub fn recover(&self, recovery: Recovery) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for (what, path) in self.leftovers()? {
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
                found.extend(self.unneeded_images(id)?.into_iter().map(|path| (Leftover::Image, path)));
                // One that cannot be listed is damaged, and a listing says so.
                for file in self.storage.list_dir(&path).unwrap_or_default() {
                    // As Storage::replace calls them.
                    let name = file.to_str().and_then(|file| file.strip_prefix('.'));
                    let is =
                        name.and_then(|name| name.strip_prefix(MANIFEST).or(name.strip_prefix(VERIFIED)));
                    if is.is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".tmp")) {
                        found.push((Leftover::Temporary, path.join(file)));
                    }
                }
            }
        }
        Ok(found)
    }

    fn mend(&self, what: Leftover, path: &Path) -> std::result::Result<(), StorageError> {
        match what {
            Leftover::Temporary | Leftover::Image => {
                self.storage.remove_file(path)?;
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
