//! Which layers have checksums, which are still to get them, and which lost them.
//!
//! A layer that is frozen gets checksums once, and keeps them until others are durable. One that
//! never had any is written down as such (`unsealed` of vm.json) from before it is frozen. What is
//! neither, an older piton left, or damage: to take checksums of it would make good whatever is
//! wrong with it, so that is for somebody to decide ([`accept`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{effective_sums, sums_of};
use super::disks::Layers;
use super::inventory::Inventory;
use super::saving::save;
use super::{Catalog, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::store::Listing;
use crate::disk::delta::FrozenDelta;
use crate::disk::layer::LayerSpec;
use crate::disk::live::LiveDisk;
use crate::disk::sums;
use crate::folder::{Definition, Now, VmFolder, VmLock};
use crate::id::Id;
use crate::progress::Progress;

/// Frozen layers without checksums.
#[derive(Debug, Default)]
pub struct Unchecked {
    /// They never had any.
    pub fresh: Vec<LayerSpec>,
    /// They have to have some, which nobody knows any more.
    pub lost: Vec<LayerSpec>,
}

/// All that are read through, by checkpoints or by Now, and not written.
pub fn unchecked(folder: &VmFolder, definition: &Definition, listing: &Listing) -> Result<Unchecked> {
    let (layers, known) = (Layers::read(folder)?, effective_sums(&listing.manifests, definition));
    let tops: BTreeSet<Id> = definition.now.tops.values().copied().collect();
    let points = listing.manifests.iter().flat_map(|manifest| manifest.disks.values());
    let checkpoints = points.filter_map(|point| match point {
        DiskPoint::Layer { id, .. } => Some(*id),
        DiskPoint::Base(_) => None,
    });
    let mut seen = BTreeSet::new();
    let mut found = Unchecked::default();
    for top in checkpoints.chain(tops.iter().copied()) {
        // One that is missing is another finding.
        for layer in layers.chain(top).unwrap_or_default() {
            if known.contains_key(&layer.id) || tops.contains(&layer.id) || !seen.insert(layer.id) {
                continue;
            }
            let is_fresh = definition.now.unsealed.contains(&layer.id);
            if is_fresh { &mut found.fresh } else { &mut found.lost }.push(layer);
        }
    }
    Ok(found)
}

/// Takes the first checksums of all layers that never had any. The VM must be off.
pub fn seal_fresh(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    progress: &Progress,
) -> Result<()> {
    let listing = Catalog::new(folder, definition).listing()?;
    let mut next = definition.clone();
    for spec in unchecked(folder, definition, &listing)?.fresh {
        let layer = FrozenDelta::open(folder.storage(), &spec)?;
        layer.sync_former()?;
        progress.phase("checksums", layer.allocated_bytes()?);
        let seal = layer.seal_while(folder.storage(), &|bytes| {
            progress.add(bytes);
            Ok(progress.check()?)
        })?;
        next.now.layer_sums.insert(spec.id, seal.crc);
        next.now.unsealed.remove(&spec.id);
    }
    if next == *definition { Ok(()) } else { save(folder, lock, definition, next) }
}

/// The same of those that a checkpoint that is about to be published lies on.
pub fn seal_below(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    disks: &BTreeMap<String, Arc<LiveDisk>>,
    manifest: &Manifest,
) -> Result<()> {
    let own: BTreeMap<Id, u32> = sums_of([manifest]).collect();
    let mut next = definition.clone();
    for layer in disks.values().flat_map(|disk| disk.frozen()) {
        if next.now.unsealed.contains(&layer.id()) && !own.contains_key(&layer.id()) {
            let crc = layer.seal(folder.storage())?.crc;
            layer.attach_sums(folder.storage(), crc)?;
            next.now.layer_sums.insert(layer.id(), crc);
            next.now.unsealed.remove(&layer.id());
        }
    }
    if next == *definition { Ok(()) } else { save(folder, lock, definition, next) }
}

/// What the guest writes to next has no checksums, whatever it had.
pub fn forget_tops(now: &mut Now) {
    for top in now.tops.values() {
        if now.layer_sums.remove(top).is_some() {
            now.unsealed.insert(*top);
        }
    }
}

/// Somebody takes layers that lost their checksums for what they are: they get new ones.
pub fn accept(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let listing = Catalog::new(folder, definition).listing()?;
    let lost = unchecked(folder, definition, &listing)?.lost;
    let mut next = definition.clone();
    next.now.unsealed.extend(lost.iter().map(|layer| layer.id));
    if next == *definition { Ok(()) } else { save(folder, lock, definition, next) }
}

/// Files of checksums that nobody vouches for: those of before a merge, or of what was never
/// finished.
pub fn strays(folder: &VmFolder, definition: &Definition, found: &Inventory) -> Result<Vec<PathBuf>> {
    let Inventory { listing, layers } = found;
    let storage = folder.storage();
    let mut vouched: BTreeMap<Id, BTreeSet<u32>> = BTreeMap::new();
    let own = definition.now.layer_sums.iter().map(|(id, crc)| (*id, *crc));
    let merging = definition.now.merging.as_ref();
    let coming = merging.and_then(|merging| Some((merging.left()?, merging.sums?)));
    for (id, crc) in sums_of(&listing.manifests).chain(own).chain(coming) {
        vouched.entry(id).or_default().insert(crc);
    }
    let mut needed = BTreeSet::new();
    let broken = |path: &Path| {
        let of = sums::layer_of(path);
        layers.broken.iter().any(|(layer, _)| of.as_ref().is_some_and(|(of, _)| of == layer))
    };
    for layer in &layers.found {
        for crc in vouched.get(&layer.id).into_iter().flatten() {
            needed.insert(sums::locate(storage, &layer.path, *crc)?);
        }
    }
    let names = match storage.list_dir(&folder.disks()) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        other => other?,
    };
    let paths = names.iter().map(|name| folder.disks().join(name));
    let is_sums = |path: &PathBuf| sums::layer_of(path).is_some();
    Ok(paths.filter(|path| is_sums(path) && !needed.contains(path) && !broken(path)).collect())
}

/// Removes them. While a manifest cannot be read it might be the one that vouches for them.
pub fn remove_strays(folder: &VmFolder, definition: &Definition) {
    let removed = (|| {
        let found = Inventory::read(&Catalog::new(folder, definition))?;
        if !found.listing.damaged.is_empty() {
            return Ok(());
        }
        for path in strays(folder, definition, &found)? {
            folder.storage().remove_file_if_exists(&path)?;
        }
        Ok::<_, super::CheckpointError>(())
    })();
    if let Err(e) = removed {
        log::warn!("cannot remove unused checksums: {e}");
    }
}
