//! Files in the disks of checkpoints, read without starting anything: which checkpoints hold which
//! version of one, and what is in it.
//!
//! [`shelf`] opens checkpoints, [`look`] looks for a path on the disks of one and remembers what
//! that was read from, [`find`] does so for all of them. Whatever is on the disks is hostile input.

mod error;
mod find;
mod look;
mod restore;
mod shelf;

pub use error::{Result, SearchError};
pub use find::{Found, Unreadable, Version, find};
pub use look::{Hit, Wanted};
pub use restore::{Kept, restore};
pub use shelf::{StateName, Which, open};

use crate::disk::frozen::FrozenChain;
use crate::image::{NodeKind, Survey};
use std::sync::Arc;

/// A file in a checkpoint, open to be read.
pub struct File {
    survey: Survey,
    volume: usize,
    path: String,
    pub hit: Hit,
    _disk: Arc<FrozenChain>,
}

impl File {
    /// Hands its bytes to `each`, until it has all or wants no more.
    pub fn stream(&self, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let volume = self.survey.volumes.get(self.volume).ok_or(SearchError::Gone)?;
        let read = volume.stream(&self.path, &self.hit.node, each);
        read.map_err(|e| SearchError::Disk { disk: self.hit.disk.clone(), error: e.to_string() })
    }
}

/// The file of that path in one checkpoint, or in the current state.
pub fn file(shelf: &mut shelf::Shelf, wanted: &Wanted) -> Result<File> {
    let (state, mut hidden) = (0, Vec::new());
    for disk in shelf.disks(state, wanted.disk.as_deref())? {
        let chain = Arc::new(shelf.chain(state, disk)?);
        let id = shelf.disk_id(state, disk).to_owned();
        let failed = |error: String| SearchError::Disk { disk: id.clone(), error };
        let survey = look::survey(chain.clone()).map_err(failed)?;
        match look::locate(&id, &survey, wanted).map_err(failed)? {
            look::Located::Found(volume, hit) => {
                return match hit.node.kind() {
                    NodeKind::File => {
                        Ok(File { survey, volume, path: wanted.path.clone(), hit, _disk: chain })
                    }
                    kind => Err(SearchError::not_a_file(&wanted.path, kind)),
                };
            }
            look::Located::Missing(more) => hidden.extend(more),
        }
    }
    Err(SearchError::Missing { path: wanted.path.clone(), place: shelf.name(state), hidden })
}
