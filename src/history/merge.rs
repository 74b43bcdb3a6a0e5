//! Merging layers that nothing needs apart: what to do, and what is written down of it.
//!
//! Every merge goes through the same stations, whether the VM is off ([`settle`]) or its guest
//! runs (`crate::vmm::merging`): *verify* both layers, as what is damaged must not get new checksums;
//! *forget* the checksums of what changes; *begin*; *announce* it in vm.json; copy; finish;
//! *record* who is where now. A crash after *announce* is brought to its end by [`finish_merge`].

use std::collections::BTreeMap;
use std::path::Path;

use super::catalog::is_complete;
use super::orphans::orphans;
use super::saving::{is_saved, save};
use super::{Catalog, Result};
use crate::checkpoint::layers::{BaseRole, LayerGraph, Step, User};
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::store::Listing;
use crate::config::{DiskConfig, DiskFormat};
use crate::disk::DiskError;
use crate::disk::delta::FrozenDelta;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::disk::merge::{self, Direction, Merge};
use crate::folder::{Definition, Merging, VmFolder, VmLock};
use crate::history::bases;
use crate::history::disks::{DisksError, Layers, base_path};
use crate::history::readers;
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::{Storage, StorageError};

/// Bytes moved between two looks at whether to stop.
pub const STEP: u64 = 4 << 20;

/// Merges all layers that nothing needs apart. The VM must be off. May be cut short anywhere: the
/// next call goes on.
pub fn settle(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    progress: &Progress,
) -> Result<()> {
    progress.check()?;
    finish_merge(folder, lock, definition)?;
    let catalog = Catalog::new(folder, definition);
    let mut settler = Settler { catalog: &catalog, lock, definition };
    for disk in settler.disks() {
        while let Some(pair) = settler.next(&disk)? {
            settler.merge(pair, progress)?;
        }
        settler.seal(&disk, progress)?;
    }
    catalog.store.merge_images(progress)?;
    progress.check()?;
    settler.prune_sums()
}

/// Brings a merge to its end that a crash cut short.
pub fn finish_merge(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let Some(merging) = definition.now.merging.clone() else { return Ok(()) };
    let catalog = Catalog::new(folder, definition);
    Settler { catalog: &catalog, lock, definition }.resume(&merging)
}

/// Takes back that a merge was begun. Wherever it stopped, everything reads the same; it is planned
/// anew another time.
pub fn give_up(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let catalog = Catalog::new(folder, definition);
    Settler { catalog: &catalog, lock, definition }.give_up()
}

/// How many merges wait for their time; one under way is among them.
pub fn pending(catalog: &Catalog, definition: &Definition) -> Result<usize> {
    let listing = catalog.listing()?;
    let layers = Layers::read(catalog.folder)?;
    let mut count = 0;
    for disk in merged_disks(definition) {
        let graph = graph(catalog.folder, definition, &listing, disk, &layers)?;
        count += graph.plan().iter().filter(|step| matches!(step, Step::Merge { .. })).count();
    }
    Ok(count)
}

fn merged_disks(definition: &Definition) -> impl Iterator<Item = &DiskConfig> {
    definition.config.disks.iter().filter(|disk| !disk.readonly && !disk.passthrough)
}

/// The layers of one disk and who is on them.
fn graph(
    folder: &VmFolder,
    definition: &Definition,
    listing: &Listing,
    disk: &DiskConfig,
    layers: &Layers,
) -> Result<LayerGraph> {
    let mut users: Vec<(User, Parent)> = listing
        .manifests
        .iter()
        .filter_map(|manifest| Some((User::Checkpoint(manifest.id), manifest.disks.get(&disk.id)?.top())))
        .collect();
    let now = definition.now.tops.get(&disk.id).map_or(Parent::Base, |top| Parent::Delta(*top));
    users.push((User::Now, now));
    // A layer's header does not say of which disk it is; who uses it does.
    let mut parents: BTreeMap<Id, Parent> = BTreeMap::new();
    for (_, top) in &users {
        let Parent::Delta(top) = top else { continue };
        for layer in layers.chain(*top)? {
            let found = layers.found.iter().find(|found| found.id == layer.id);
            parents.extend(found.map(|found| (found.id, found.parent)));
        }
    }
    let is_linked = |path: &Path| match folder.storage().metadata(path) {
        // A base that is gone is a finding of its own.
        Err(e) if e.is_not_found() => Ok(false),
        other => Ok::<_, StorageError>(other?.links > 1),
    };
    let mut shared = Vec::new();
    for layer in layers.found.iter().filter(|layer| parents.contains_key(&layer.id)) {
        if is_linked(&layer.path)? {
            shared.push(layer.id);
        }
    }
    let base = base_path(folder, disk);
    // In the VM's own folder it is shared by another name, elsewhere by its path.
    let is_others = || -> Result<bool> {
        Ok((disk.path.is_relative() && is_linked(&base)?) || folder.others_rest_on(&base)?)
    };
    let own = disk.format == DiskFormat::Raw && !disk.overlay && !is_others()?;
    let role = if own { BaseRole::Mergeable } else { BaseRole::Fixed };
    Ok(LayerGraph::new(role, parents, users, is_complete(listing, definition)).share(shared))
}

/// Two layers of a disk to be merged.
pub struct Pair {
    pub disk: DiskConfig,
    pub lower: Parent,
    pub upper: LayerSpec,
    /// Layers on the upper one.
    pub children: Vec<LayerSpec>,
    /// Now is on the upper one: a running guest writes to it.
    pub upper_is_top: bool,
    /// Both, but for the base.
    specs: Vec<LayerSpec>,
    graph: LayerGraph,
}

impl Pair {
    pub fn lower_id(&self) -> Option<Id> {
        match self.lower {
            Parent::Base => None,
            Parent::Delta(id) => Some(id),
        }
    }

    /// The layer that is left after a merge; none: the base.
    pub fn left(&self, direction: Direction) -> Option<&LayerSpec> {
        match direction {
            Direction::Pull => Some(&self.upper),
            Direction::Commit => self.specs.iter().find(|spec| spec.id != self.upper.id),
        }
    }

    /// Whether checkpoints are on the upper layer, so that what is left of both needs checksums.
    pub fn is_used(&self) -> bool {
        let users = self.graph.users().iter();
        users.clone().any(|(user, on)| *user != User::Now && *on == Parent::Delta(self.upper.id))
    }

    pub fn failed(&self, error: DiskError) -> DisksError {
        DisksError::Disk { id: self.disk.id.clone(), error }
    }

    /// Opens two layers that nobody else has open.
    pub fn open(&self, folder: &VmFolder) -> std::result::Result<Merge, DiskError> {
        let storage = folder.storage();
        match self.specs.iter().find(|spec| spec.id != self.upper.id) {
            None => {
                Merge::open_on_base(storage, &base_path(folder, &self.disk), self.disk.format, &self.upper)
            }
            Some(lower) => Merge::open(storage, lower, &self.upper, None),
        }
    }
}

/// Checks layers against the checksums that are known of them.
pub fn verify(storage: &Storage, layers: &[(LayerSpec, u32)], go_on: &dyn Fn(u64) -> GoOn) -> GoOn {
    for (spec, crc) in layers {
        let layer = FrozenDelta::open(storage, spec)?;
        layer.attach_sums(storage, *crc)?;
        layer.verify(go_on)?;
    }
    Ok(())
}

/// Whether long work is to go on; asked between its parts.
pub type GoOn = std::result::Result<(), DiskError>;

fn going_on(progress: &Progress) -> impl Fn(u64) -> GoOn + '_ {
    |bytes| {
        progress.add(bytes);
        Ok(progress.check()?)
    }
}

pub struct Settler<'a> {
    pub catalog: &'a Catalog<'a>,
    pub lock: &'a VmLock,
    pub definition: &'a mut Definition,
}

fn spec(layers: &Layers, id: Id) -> std::result::Result<LayerSpec, DiskError> {
    let found = layers.found.iter().find(|layer| layer.id == id).ok_or(DiskError::NoParent(id))?;
    Ok(LayerSpec { path: found.path.clone(), id })
}

impl Settler<'_> {
    /// Those that take part in checkpoints.
    pub fn disks(&self) -> Vec<DiskConfig> {
        merged_disks(self.definition).cloned().collect()
    }

    /// What is to be merged next of a disk.
    pub fn next(&self, disk: &DiskConfig) -> Result<Option<Pair>> {
        let layers = Layers::read(self.catalog.folder)?;
        let graph = graph(self.catalog.folder, self.definition, &self.catalog.listing()?, disk, &layers)?;
        let Some(Step::Merge { lower, upper, children, upper_is_top }) = graph.next_step() else {
            return Ok(None);
        };
        readers::check_all(self.catalog.folder)?;
        let upper = spec(&layers, upper)?;
        let mut specs = vec![upper.clone()];
        if let Parent::Delta(lower) = lower {
            specs.push(spec(&layers, lower)?);
        }
        let children =
            children.iter().map(|id| spec(&layers, *id)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Some(Pair { disk: disk.clone(), lower, upper, children, upper_is_top, specs, graph }))
    }

    /// Does a merge of a VM that is off.
    fn merge(&mut self, pair: Pair, progress: &Progress) -> Result<()> {
        let storage = self.catalog.folder.storage();
        let sums = self.sums(&pair)?;
        progress.phase("verify", 0);
        verify(storage, &sums, &going_on(progress)).map_err(|e| pair.failed(e))?;
        self.forget(&pair)?;
        let mut merge = pair.open(self.catalog.folder).map_err(|e| pair.failed(e))?;
        let merging = self.announce(&pair, merge.direction())?;
        copy(&mut merge, progress, &|| Ok(progress.check()?)).map_err(|e| pair.failed(e))?;
        merge.finish(storage, &pair.children).map_err(|e| pair.failed(e))?;
        drop(merge);
        self.record(&pair.disk, &merging, pair.graph, None)
    }

    pub fn save(&mut self, next: Definition) -> Result<()> {
        save(self.catalog.folder, self.lock, self.definition, next)
    }

    /// Writes down that Now is on the lower layer, which holds all of the upper one.
    pub fn folded(&mut self, pair: &Pair) -> Result<()> {
        let mut next = self.definition.clone();
        match pair.lower {
            Parent::Base => next.now.tops.remove(&pair.disk.id),
            Parent::Delta(lower) => next.now.tops.insert(pair.disk.id.clone(), lower),
        };
        match self.save(next.clone()) {
            // What vm.json says is what a start goes by, whatever else went wrong.
            Err(e) if is_saved(self.catalog.folder, &next) => {
                log::warn!("{e}");
                *self.definition = next;
                Ok(())
            }
            saved => saved,
        }
    }

    pub fn remove_orphans(&self) -> Result<()> {
        orphans(self.catalog, self.definition, true).map(|_| ())
    }

    /// Checksums that are known of the two layers.
    pub fn sums(&self, pair: &Pair) -> Result<Vec<(LayerSpec, u32)>> {
        let sums = self.catalog.layer_sums(self.definition)?;
        let known = pair.specs.iter().filter_map(|spec| Some((spec.clone(), *sums.get(&spec.id)?)));
        Ok(known.collect())
    }

    /// Checksums of layers that are gone are of no use.
    pub fn prune_sums(&mut self) -> Result<()> {
        let layers = Layers::read(self.catalog.folder)?;
        let there = |id: &Id| layers.found.iter().any(|layer| layer.id == *id);
        if self.definition.now.layer_sums.keys().all(there) {
            return Ok(());
        }
        let mut next = self.definition.clone();
        next.now.layer_sums.retain(|id, _| there(id));
        save(self.catalog.folder, self.lock, self.definition, next)
    }

    /// Writes down which merge is begun, so that a crash finds it.
    pub fn announce(&mut self, pair: &Pair, direction: Direction) -> Result<Merging> {
        let merging = Merging {
            disk: pair.disk.id.clone(),
            lower: pair.lower_id(),
            upper: pair.upper.id,
            commit: direction == Direction::Commit,
            children: pair.children.iter().map(|child| child.id).collect(),
        };
        let mut next = self.definition.clone();
        next.now.merging = Some(merging.clone());
        save(self.catalog.folder, self.lock, self.definition, next)?;
        Ok(merging)
    }

    /// See [`give_up`].
    pub fn give_up(&mut self) -> Result<()> {
        let Some(merging) = self.definition.now.merging.clone() else { return Ok(()) };
        let disk = self.definition.config.disks.iter().find(|disk| disk.id == merging.disk);
        // What was moved into a base changed it, and a checkpoint is to know it as it is.
        if let (Some(disk), None) = (disk, merging.lower) {
            self.stamp_base(disk)?;
        }
        let mut next = self.definition.clone();
        next.now.merging = None;
        save(self.catalog.folder, self.lock, self.definition, next)
    }

    /// Writes down a merge that is done, and gives what is left of both its checksums, if they
    /// were taken.
    pub fn done(&mut self, pair: Pair, merging: &Merging, sums: Option<u32>) -> Result<()> {
        let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
        let left = pair.left(direction).map(|spec| spec.id);
        self.record(&pair.disk, merging, pair.graph, left.zip(sums))
    }

    fn resume(&mut self, merging: &Merging) -> Result<()> {
        let disks = &self.definition.config.disks;
        let Some(disk) = disks.iter().find(|disk| disk.id == merging.disk).cloned() else { return Ok(()) };
        let failed = |error| DisksError::Disk { id: disk.id.clone(), error };
        let folder = self.catalog.folder;
        let layers = Layers::read(folder)?;
        let storage = folder.storage();
        let graph = graph(self.catalog.folder, self.definition, &self.catalog.listing()?, &disk, &layers)?;
        let children = merging
            .children
            .iter()
            .map(|id| spec(&layers, *id))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let upper = spec(&layers, merging.upper)?;
        // It may have come so far that who was moved vouches for what is left; it is merged again,
        // and loses its checksums in that.
        let both: Vec<Id> = merging.lower.into_iter().chain([merging.upper]).collect();
        self.forget_points(&disk, &both)?;
        match merging.lower {
            None => {
                Merge::open_on_base(storage, &base_path(folder, &disk), disk.format, &upper)
                    .and_then(|mut merge| merge.finish(storage, &children))
                    .map_err(failed)?;
            }
            Some(lower) => {
                let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
                merge::resume(storage, &spec(&layers, lower)?, &upper, direction, &children)
                    .map_err(failed)?;
            }
        }
        self.record(&disk, merging, graph, None)?;
        self.seal(&disk, &Progress::default())
    }

    /// Writes down who is where after a merge; only then is the file that is left over nobody's.
    /// `sealed` is the layer that is left with its checksums, if they were taken.
    fn record(
        &mut self,
        disk: &DiskConfig,
        merging: &Merging,
        mut graph: LayerGraph,
        sealed: Option<(Id, u32)>,
    ) -> Result<()> {
        let step = Step::Merge {
            lower: merging.lower.map_or(Parent::Base, Parent::Delta),
            upper: merging.upper,
            children: merging.children.clone(),
            upper_is_top: false,
        };
        let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
        let done = graph.apply(&step, direction);
        let folder = self.catalog.folder;
        let sums = |layer: Id| sealed.filter(|(left, _)| *left == layer).map(|(_, crc)| crc);
        let point = |layer: Id| DiskPoint::Layer { id: layer, sums: sums(layer) };
        // Who was on it already is on other contents now, with checksums that were forgotten.
        if let Some((left, _)) = sealed {
            for manifest in self.catalog.manifests()? {
                if manifest.disks.get(&disk.id) == Some(&DiskPoint::Layer { id: left, sums: None }) {
                    self.set_point(manifest.id, disk, point(left))?;
                }
            }
        }
        let mut next = self.definition.clone();
        next.now.merging = None;
        for (user, top) in &done.moved {
            match (user, top) {
                (User::Checkpoint(id), Parent::Base) => {
                    let stamp = bases::stamp(folder, disk)?;
                    self.set_point(*id, disk, DiskPoint::Base(stamp))?;
                }
                (User::Checkpoint(id), Parent::Delta(layer)) => {
                    self.set_point(*id, disk, point(*layer))?;
                }
                (User::Now, Parent::Base) => {
                    next.now.tops.remove(&disk.id);
                }
                (User::Now, Parent::Delta(layer)) => {
                    next.now.tops.insert(disk.id.clone(), *layer);
                }
            }
        }
        if merging.lower.is_none() {
            self.stamp_base(disk)?;
        }
        save(folder, self.lock, self.definition, next)?;
        orphans(self.catalog, self.definition, true)?;
        Ok(())
    }

    /// After a merge into it the base is what every checkpoint knows it as.
    fn stamp_base(&self, disk: &DiskConfig) -> Result<()> {
        let stamp = bases::stamp(self.catalog.folder, disk)?;
        for manifest in self.catalog.manifests()? {
            if manifest.bases.contains_key(&disk.id) {
                self.catalog.store.update(manifest.id, |manifest| {
                    manifest.bases.insert(disk.id.clone(), stamp.clone());
                })?;
            }
        }
        Ok(())
    }

    fn set_point(&self, id: Id, disk: &DiskConfig, point: DiskPoint) -> Result<()> {
        self.catalog.store.update(id, |manifest| {
            manifest.disks.insert(disk.id.clone(), point);
        })?;
        Ok(())
    }

    /// Beginning a merge drops the checksums of the layer that changes, so nobody may vouch for
    /// them any more.
    pub fn forget(&mut self, pair: &Pair) -> Result<()> {
        // Who came since would make the merge fail only after this.
        readers::check_all(self.catalog.folder)?;
        let mut next = self.definition.clone();
        next.now.layer_sums.retain(|id, _| pair.specs.iter().all(|spec| spec.id != *id));
        if next != *self.definition {
            save(self.catalog.folder, self.lock, self.definition, next)?;
        }
        self.forget_points(&pair.disk, &[pair.upper.id])
    }

    fn forget_points(&self, disk: &DiskConfig, layers: &[Id]) -> Result<()> {
        for manifest in self.catalog.manifests()? {
            if let Some(DiskPoint::Layer { id, sums: Some(_) }) = manifest.disks.get(&disk.id)
                && layers.contains(id)
            {
                self.set_point(manifest.id, disk, DiskPoint::Layer { id: *id, sums: None })?;
            }
        }
        Ok(())
    }

    /// Gives checksums again to every layer of a checkpoint that has none.
    pub fn seal(&self, disk: &DiskConfig, progress: &Progress) -> Result<()> {
        let layers = Layers::read(self.catalog.folder)?;
        for manifest in self.catalog.manifests()? {
            if let Some(DiskPoint::Layer { id, sums: None }) = manifest.disks.get(&disk.id) {
                let storage = self.catalog.folder.storage();
                let layer = FrozenDelta::open(storage, &spec(&layers, *id)?)?;
                progress.phase("checksums", layer.allocated_bytes()?);
                let sums = Some(layer.seal_while(storage, &going_on(progress))?.crc);
                self.set_point(manifest.id, disk, DiskPoint::Layer { id: *id, sums })?;
            }
        }
        Ok(())
    }
}

/// Moves all blocks, step by step.
pub fn copy(merge: &mut Merge, progress: &Progress, go_on: &dyn Fn() -> GoOn) -> GoOn {
    progress.phase("merge", merge.progress().total);
    while !merge.progress().is_done() {
        go_on()?;
        let before = merge.progress().done;
        progress.add(merge.step(STEP)?.done - before);
    }
    Ok(())
}
