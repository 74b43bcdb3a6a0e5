//! Which checkpoints hold which version of a file.

use std::sync::Arc;

use super::error::{Result, SearchError};
use super::look::{Answer, Hit, Looker, Wanted};
use super::shelf::{Shelf, StateName};
use crate::image::NodeKind;
use crate::progress::Progress;

/// Checkpoints in which a file is the same to its time.
pub struct Version {
    pub hit: Hit,
    /// None: it is no file.
    pub sha256: Option<[u8; 32]>,
    pub states: Vec<StateName>,
}

pub struct Unreadable {
    pub state: StateName,
    pub error: String,
}

/// All in the order in which the checkpoints were made.
pub struct Found {
    pub versions: Vec<Version>,
    /// Where there is no such file.
    pub missing: Vec<StateName>,
    pub unreadable: Vec<Unreadable>,
    /// Why it may be there all the same.
    pub notes: Vec<String>,
}

pub fn find(shelf: &mut Shelf, wanted: &Wanted, progress: &Progress) -> Result<Found> {
    let mut looker = Looker::new(wanted, progress);
    let mut found =
        Found { versions: Vec::new(), missing: Vec::new(), unreadable: Vec::new(), notes: Vec::new() };
    for state in 0..shelf.len() {
        let name = shelf.state_name(state);
        match look(shelf, state, wanted, &mut looker) {
            Err(e @ (SearchError::Cancelled(_) | SearchError::Refused(_))) => return Err(e),
            Err(e) => found.unreadable.push(Unreadable { state: name, error: e.to_string() }),
            Ok(Answer::Missing(hidden)) => {
                found.missing.push(name);
                for note in hidden {
                    if !found.notes.contains(&note) {
                        found.notes.push(note);
                    }
                }
            }
            Ok(Answer::Found { hit, sha256 }) => {
                let same = |version: &&mut Version| {
                    let (a, b) = (&version.hit, &hit);
                    let place = (&a.disk, a.partition) == (&b.disk, b.partition);
                    let node = (a.node.len(), a.node.modified()) == (b.node.len(), b.node.modified());
                    place && version.sha256 == sha256 && (node || sha256.is_none())
                };
                match found.versions.iter_mut().find(same) {
                    Some(version) => version.states.push(name),
                    None => found.versions.push(Version { hit, sha256, states: vec![name] }),
                }
            }
        }
    }
    let folder = found.versions.iter().all(|version| version.hit.node.kind() == NodeKind::Folder);
    if folder && !found.versions.is_empty() && found.missing.is_empty() {
        return Err(SearchError::not_a_file(&wanted.path, NodeKind::Folder));
    }
    Ok(found)
}

/// The first of its disks that has it.
fn look(shelf: &mut Shelf, state: usize, wanted: &Wanted, looker: &mut Looker) -> Result<Answer> {
    let (mut hidden, mut broken) = (Vec::new(), None);
    for disk in shelf.disks(state, wanted.disk.as_deref())? {
        let id = shelf.disk_id(state, disk).to_owned();
        match shelf.chain(state, disk).and_then(|chain| looker.look(&id, &Arc::new(chain))) {
            Ok(found @ Answer::Found { .. }) => return Ok(found),
            Ok(Answer::Missing(more)) => hidden.extend(more),
            Err(e @ SearchError::Cancelled(_)) => return Err(e),
            Err(e) => {
                broken.get_or_insert(e);
            }
        }
    }
    broken.map_or(Ok(Answer::Missing(hidden)), Err)
}
