//! Which chunks a depot has, and where: what the indexes of its packs say.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::name::Name;
use super::open::{CONDEMNED, Depot, INDEX, PACKS};
use super::pack::{INDEX_MAX, Index};
use super::{DepotError, Result};
use crate::id::Id;
use crate::progress::Progress;

/// Indexes that are read at once.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct Pack {
    pub id: Id,
    pub bytes: u64,
    pub modified: SystemTime,
    /// A prune will remove it: nobody may count on it who did not before.
    pub condemned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Number of the pack.
    pub pack: usize,
    pub offset: u32,
    pub stored: u32,
    pub len: u32,
}

#[derive(Default)]
pub struct Chunks {
    pub packs: Vec<Pack>,
    spots: HashMap<Name, Spot>,
    /// Indexes that could not be read, and why.
    pub damaged: Vec<String>,
}

impl Chunks {
    /// Reads all indexes. Where a chunk is in more than one pack, one that is not condemned is taken.
    pub fn load(depot: &Depot, progress: &Progress) -> Result<Self> {
        let mut indexes: Vec<Id> =
            depot.store.list(INDEX)?.iter().filter_map(|object| object.name.parse().ok()).collect();
        // After the indexes: a pack whose index is there and that is not condemned by now was not
        // condemned when it was looked at.
        let condemned: HashSet<Id> =
            depot.store.list(CONDEMNED)?.iter().filter_map(|object| object.name.parse().ok()).collect();
        let packs: HashMap<Id, (u64, SystemTime)> = (depot.store.list(PACKS)?.into_iter())
            .filter_map(|object| Some((object.name.parse().ok()?, (object.bytes, object.modified))))
            .collect();
        // An index whose pack is not there says nothing.
        indexes.retain(|id| packs.contains_key(id));
        indexes.sort();
        progress.phase("index", 0);
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let read = || -> Result<()> {
            while let Some(&id) = indexes.get(next.fetch_add(1, Ordering::Relaxed)) {
                let index = read(depot, id)?;
                progress.add(index.as_ref().map_or(0, |index| index.as_ref().map_or(0, |index| index.bytes)));
                found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((id, index));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE.min(indexes.len())).map(|_| scope.spawn(read)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })?;
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The condemned last; else in one order, whoever was read first.
        found.sort_by_key(|(id, _)| (condemned.contains(id), *id));
        let mut chunks = Self::default();
        for (id, index) in found {
            let (bytes, modified) = packs[&id];
            match index {
                // Gone meanwhile.
                None => {}
                Some(Ok(index)) if index.bytes == bytes => {
                    chunks.add(Pack { id, bytes, modified, condemned: condemned.contains(&id) }, &index);
                }
                Some(Ok(index)) => chunks.damaged.push(format!(
                    "{} has {bytes} bytes instead of {}",
                    depot.store.shown(&pack_key(id)),
                    index.bytes
                )),
                Some(Err(what)) => {
                    chunks.damaged.push(format!("{} is damaged: {what}", depot.store.shown(&index_key(id))));
                }
            }
        }
        Ok(chunks)
    }

    fn add(&mut self, pack: Pack, index: &Index) {
        let number = self.packs.len();
        self.packs.push(pack);
        for entry in &index.entries {
            self.spots.entry(entry.name).or_insert(Spot {
                pack: number,
                offset: entry.offset,
                stored: entry.stored,
                len: entry.len,
            });
        }
    }

    pub fn spot(&self, name: &Name) -> Option<Spot> {
        self.spots.get(name).copied()
    }

    /// Whether a new checkpoint may count on it.
    pub fn is_safe(&self, name: &Name) -> bool {
        self.spot(name).is_some_and(|spot| !self.packs[spot.pack].condemned)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Spot)> {
        self.spots.iter()
    }

    pub fn len(&self) -> usize {
        self.spots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spots.is_empty()
    }
}

/// None: it is gone. What is wrong with it is told to who needs what it is about.
fn read(depot: &Depot, id: Id) -> Result<Option<std::result::Result<Index, String>>> {
    match depot.store.get(&index_key(id), INDEX_MAX) {
        Ok(bytes) => Ok(bytes.map(|bytes| Index::decode(&bytes, id))),
        Err(DepotError::Damaged { what, .. }) => Ok(Some(Err(what))),
        Err(e) => Err(e),
    }
}

pub fn pack_key(id: Id) -> String {
    format!("{PACKS}/{id}")
}

pub fn index_key(id: Id) -> String {
    format!("{INDEX}/{id}")
}

pub fn condemned_key(id: Id) -> String {
    format!("{CONDEMNED}/{id}")
}
