//! Removing what no checkpoint of a depot needs, while others push to it. docs/depot.md has the
//! argument; in short: a pack is condemned first, which lets no new push count on it, and removed
//! only by a prune that begins so much later that every push which counted on it has ended, and that
//! finds no manifest that needs it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::chunks::{Chunks, condemned_key, index_key, pack_key};
use super::fetch::{Fetch, Wanted};
use super::name::Name;
use super::open::{CLOCK, CONDEMNED, Depot, FOLDERS, INDEX, PACKS};
use super::push::LIMIT;
use super::send::with_sender;
use super::store::{Object, Put};
use super::{DepotError, Result, stream};
use crate::id::Id;
use crate::moment::Moment;
use crate::progress::Progress;

/// How long a pack is condemned before it is removed.
pub const GRACE: Duration = Duration::from_secs(4 * LIMIT);
/// A pack of which less than this share is needed is packed anew.
const WORTH: u64 = 50;

#[derive(Debug, Default, serde::Serialize)]
pub struct Pruned {
    pub checkpoints: usize,
    pub packs: usize,
    /// Chunks that a checkpoint needs and those that none does, with what they take.
    pub needed_bytes: u64,
    pub unneeded_bytes: u64,
    /// Packs that are condemned now, and those that were removed.
    pub condemned: usize,
    pub condemned_bytes: u64,
    pub removed: usize,
    pub removed_bytes: u64,
    /// What of packs that were mostly garbage was packed anew.
    pub repacked_bytes: u64,
}

/// `grace` below [`GRACE`] is for depots to which nobody pushes meanwhile.
pub fn prune(depot: Depot, grace: Duration, dry: bool, progress: &Progress) -> Result<Pruned> {
    let began = Moment::now();
    let now = if dry { SystemTime::now() } else { store_time(&depot)? };
    let old = |modified: SystemTime| now.duration_since(modified).is_ok_and(|age| age >= grace);
    // Which packs may go is known before the manifests are read: what a manifest that comes later
    // needs was not condemned when its push looked, or its push had looked so long ago that it ended.
    let condemned: HashMap<Id, Object> = (depot.store.list(CONDEMNED)?.into_iter())
        .filter_map(|object| Some((object.name.parse().ok()?, object)))
        .collect();
    let depot = Arc::new(depot);
    let chunks = Arc::new(Chunks::load(&depot, progress)?);
    if let Some(damaged) = chunks.damaged.first() {
        return Err(DepotError::Refused(format!(
            "nothing is removed from a depot that is damaged: {damaged}; `piton depot verify` says what it is needed for"
        )));
    }
    let fetch = Fetch::new(depot.clone(), chunks.clone(), progress);
    let (checkpoints, needed) = needed(&fetch)?;
    if let Some(name) = needed.iter().find(|name| chunks.spot(name).is_none()) {
        return Err(DepotError::damaged(
            format!("the depot at {}", depot.at()),
            format!("chunk {name} is missing, so nothing is removed"),
        ));
    }
    let mut pruned = Pruned { checkpoints, packs: chunks.packs.len(), ..Pruned::default() };

    let mut live = vec![0u64; chunks.packs.len()];
    for (name, spot) in chunks.iter() {
        if needed.contains(name) {
            live[spot.pack] += u64::from(spot.stored);
            pruned.needed_bytes += u64::from(spot.stored);
        } else {
            pruned.unneeded_bytes += u64::from(spot.stored);
        }
    }
    let mut repack: BTreeSet<usize> = BTreeSet::new();
    let mut condemn: Vec<usize> = Vec::new();
    for (number, pack) in chunks.packs.iter().enumerate().filter(|(_, pack)| !pack.condemned) {
        // One that is younger may belong to a push that is under way.
        if !old(pack.modified) {
            continue;
        }
        if live[number] == 0 {
            condemn.push(number);
        } else if live[number] * 100 < pack.bytes * WORTH {
            repack.insert(number);
        }
    }
    // And those that are condemned and needed all the same, of which no copy is elsewhere.
    repack.extend(
        (0..chunks.packs.len()).filter(|number| chunks.packs[*number].condemned && live[*number] > 0),
    );
    pruned.repacked_bytes = repack.iter().map(|number| live[*number]).sum();
    pruned.condemned =
        condemn.len() + repack.iter().filter(|number| !chunks.packs[**number].condemned).count();
    pruned.condemned_bytes = (condemn.iter().chain(&repack))
        .map(|number| &chunks.packs[*number])
        .filter(|pack| !pack.condemned)
        .map(|pack| pack.bytes)
        .sum();
    // Before anything is packed anew: what is needed of these was found in others.
    let gone: Vec<(Id, u64)> = (chunks.packs.iter().enumerate())
        .filter(|(number, pack)| live[*number] == 0 && pack.condemned)
        .filter(|(_, pack)| condemned.get(&pack.id).is_some_and(|mark| old(mark.modified)))
        .map(|(_, pack)| (pack.id, pack.bytes))
        .collect();
    pruned.removed = gone.len();
    pruned.removed_bytes = gone.iter().map(|(_, bytes)| bytes).sum();
    if dry {
        return Ok(pruned);
    }
    let in_time = || {
        progress.check()?;
        if Moment::now().since(&began) > LIMIT {
            return Err(DepotError::Refused("the prune took too long: start it again".into()));
        }
        Ok(())
    };
    for (id, _) in &gone {
        in_time()?;
        // The index first: without it the pack says nothing. The mark last: until then nobody new
        // counts on it.
        depot.store.delete(&index_key(*id))?;
        depot.store.delete(&pack_key(*id))?;
        depot.store.delete(&condemned_key(*id))?;
    }
    if !repack.is_empty() {
        let wanted: Vec<Wanted> = (chunks.iter())
            .filter(|(name, spot)| repack.contains(&spot.pack) && needed.contains(*name))
            .map(|(name, spot)| (*name, spot.len as usize))
            .collect();
        progress.phase("packing anew", wanted.iter().map(|(_, len)| *len as u64).sum());
        // Nothing is known to it: all of these are sent.
        with_sender(&depot, &Arc::default(), false, progress, |sender| {
            for some in wanted.chunks(64) {
                in_time()?;
                for chunk in fetch.get(some)?.values() {
                    sender.chunk(chunk)?;
                    progress.add(chunk.len() as u64);
                }
            }
            Ok(())
        })?;
    }
    for number in condemn.iter().chain(&repack).filter(|number| !chunks.packs[**number].condemned) {
        in_time()?;
        let id = chunks.packs[*number].id;
        depot.store.put(&condemned_key(id), Vec::new(), Put::New)?;
    }
    leftovers(&depot, old, in_time)?;
    if let Some(before) = now.checked_sub(grace) {
        depot.store.sweep(&FOLDERS, before)?;
    }
    Ok(pruned)
}

/// Packs of which nobody knows, indexes of nothing, and marks of what is gone.
fn leftovers(
    depot: &Depot,
    old: impl Fn(SystemTime) -> bool,
    in_time: impl Fn() -> Result<()>,
) -> Result<()> {
    let objects = |folder: &str| -> Result<HashMap<Id, SystemTime>> {
        let objects = depot.store.list(folder)?.into_iter();
        Ok(objects.filter_map(|object| Some((object.name.parse().ok()?, object.modified))).collect())
    };
    let (marks, indexes, packs) = (objects(CONDEMNED)?, objects(INDEX)?, objects(PACKS)?);
    for (id, _) in packs.iter().filter(|(id, modified)| !indexes.contains_key(id) && old(**modified)) {
        in_time()?;
        depot.store.delete(&pack_key(*id))?;
    }
    for (id, _) in indexes.iter().filter(|(id, modified)| !packs.contains_key(id) && old(**modified)) {
        in_time()?;
        depot.store.delete(&index_key(*id))?;
    }
    for (id, _) in marks.iter().filter(|(id, modified)| !packs.contains_key(id) && old(**modified)) {
        in_time()?;
        depot.store.delete(&condemned_key(*id))?;
    }
    Ok(())
}

/// Every chunk that a manifest needs, those of the maps among them.
fn needed(fetch: &Fetch) -> Result<(usize, HashSet<Name>)> {
    let depot = &fetch.depot;
    let mut needed = HashSet::new();
    let mut count = 0;
    for object in depot.manifests()? {
        // One that cannot be read stops the prune: what it needs is not known.
        let Some(manifest) = depot.read_manifest(&object)? else { continue };
        count += 1;
        for (_, stream) in manifest.streams() {
            needed.extend(stream.map.iter().copied());
            needed.extend(stream::names(fetch, stream)?);
        }
    }
    needed.remove(&Name::ZEROS);
    Ok((count, needed))
}

/// What time it is at the store, whose clock dates its objects.
fn store_time(depot: &Depot) -> Result<SystemTime> {
    let name = Id::random().map_err(DepotError::Random)?.to_string();
    let key = format!("{CLOCK}/{name}");
    depot.store.put(&key, b"now".to_vec(), Put::Over)?;
    let found = depot.store.list(CLOCK)?.into_iter().find(|object| object.name == name);
    depot.store.delete(&key)?;
    found.map(|object| object.modified).ok_or_else(|| DepotError::Store {
        doing: "read",
        object: depot.store.shown(&key),
        why: "an object that was just written is not listed".into(),
    })
}

/// Removes the manifest of a checkpoint; what only it needed goes with later prunes.
pub fn forget(depot: &Depot, title: &super::location::Title) -> Result<()> {
    depot.manifest(title)?;
    depot.store.delete(&depot.manifest_key(title))
}
