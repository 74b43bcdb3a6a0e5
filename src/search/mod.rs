//! Files in the disks of checkpoints, read without starting anything: which checkpoints hold which
//! version of one, what is in it, and which differ between two.
//!
//! [`shelf`] opens checkpoints, [`look`] looks for a path on the disks of one and remembers what
//! that was read from, [`find`] does so for all of them. Whatever is on the disks is hostile input.

mod changes;
mod error;
mod find;
mod look;
mod restore;
mod restore_folder;
mod shelf;

pub use changes::{Change, ChangedFile, ChangedFiles, Pair, changed_files};
pub use error::{Result, SearchError};
pub use find::{Found, Unreadable, Version, find};
pub use look::{Hit, Wanted};
pub use restore::{Kept, restore};
pub use restore_folder::{KeptFolder, restore_folder};
pub use shelf::{StateName, Which, open};

use crate::disk::Backing;
use crate::image::{NodeKind, Survey, Volume};
use std::sync::Arc;

/// A file in a checkpoint, open to be read.
pub struct File {
    survey: Survey,
    volume: usize,
    path: String,
    pub hit: Hit,
}

impl File {
    /// Hands its bytes to `each`, until it has all or wants no more.
    pub fn stream(&self, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let volume = self.survey.volumes.get(self.volume).ok_or(SearchError::Gone)?;
        let read = volume.stream(&self.path, &self.hit.node, each);
        read.map_err(|e| SearchError::Disk { disk: self.hit.disk.clone(), error: e.to_string() })
    }
}

/// A folder in a checkpoint, open to be read.
pub struct Folder {
    survey: Survey,
    volume: usize,
    path: String,
    hit: Hit,
    disk_len: u64,
}

impl Folder {
    fn volume(&self) -> Result<&Volume> {
        self.survey.volumes.get(self.volume).ok_or(SearchError::Gone)
    }
}

pub enum Opened {
    File(File),
    Folder(Folder),
}

/// What a path leads to in one checkpoint, or in the current state.
pub fn open_path(shelf: &mut shelf::Shelf, wanted: &Wanted) -> Result<Opened> {
    let (state, mut hidden) = (0, Vec::new());
    for disk in shelf.disks(state, wanted.disk.as_deref())? {
        let chain = Arc::new(shelf.chain(state, disk)?);
        let id = shelf.disk_id(state, disk).to_owned();
        let failed = |error: String| SearchError::Disk { disk: id.clone(), error };
        let survey = look::plain(chain.clone()).map_err(failed)?;
        match look::locate(&id, &survey, wanted).map_err(failed)? {
            look::Located::Found(volume, hit) => {
                let path = wanted.path.clone();
                return match hit.node.kind() {
                    NodeKind::File => Ok(Opened::File(File { survey, volume, path, hit })),
                    NodeKind::Folder => {
                        let disk_len = Backing::len(&*chain);
                        Ok(Opened::Folder(Folder { survey, volume, path, hit, disk_len }))
                    }
                    kind => Err(SearchError::not_a_file(&wanted.path, kind)),
                };
            }
            look::Located::Missing(more) => hidden.extend(more),
        }
    }
    Err(SearchError::Missing { path: wanted.path.clone(), place: shelf.name(state), hidden })
}

/// The file of that path.
pub fn file(shelf: &mut shelf::Shelf, wanted: &Wanted) -> Result<File> {
    match open_path(shelf, wanted)? {
        Opened::File(file) => Ok(file),
        Opened::Folder(_) => Err(SearchError::not_a_file(&wanted.path, NodeKind::Folder)),
    }
}
