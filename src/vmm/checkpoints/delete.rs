//! Forgetting checkpoints.
//!
//! What has memory and state only is freed at once. Layers follow: those that nothing needs are
//! removed, those that nothing needs apart are merged. Nothing that a surviving checkpoint reads
//! changes, at any moment. Merging needs the layers for itself, so it waits for a VM that runs to
//! end.

use std::collections::BTreeMap;
use std::path::Path;

use super::recover::orphans;
use super::{Catalog, Result, is_complete, save, sums_of};
use crate::checkpoint::layers::{BaseRole, LayerGraph, Step, User};
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::stamp::BaseStamp;
use crate::checkpoint::store::StoreError;
use crate::checkpoint::tree::{DeletePlan, Tree};
use crate::config::{DiskConfig, DiskFormat};
use crate::control::{CheckpointInfo, DeleteBody, DeletedInfo};
use crate::disk::DiskError;
use crate::disk::delta::FrozenDelta;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::disk::merge::{self, Direction, Merge};
use crate::folder::{Definition, Merging, VmFolder, VmLock};
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::StorageError;
use crate::vmm::disks::{DisksError, Layers, base_path};

/// Bytes moved between two looks at whether to stop.
const STEP: u64 = 16 << 20;

/// Forgets `id`, or it and all that descends from it.
pub fn run(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    body: DeleteBody,
) -> Result<DeletedInfo> {
    let catalog = Catalog::new(folder, definition);
    let manifests = catalog.manifests()?;
    let tree = Tree::of(&manifests, definition.now.parent);
    let plan = tree.plan_delete(if body.subtree { tree.subtree(id) } else { vec![id] });
    let named = |id: &Id| manifests.iter().find(|manifest| manifest.id == *id).map(CheckpointInfo::from);
    let deleted = DeletedInfo {
        deleted: plan.gone.iter().filter_map(named).collect(),
        dry_run: body.dry_run,
        merge_later: false,
        merge_job: None,
    };
    if body.dry_run {
        return Ok(deleted);
    }
    super::memory::keep(&catalog, &manifests, &plan.gone)?;
    // Children and Now get their new parent before the old one goes, so that it is never missing.
    let former: Vec<(Id, Option<Id>)> =
        manifests.iter().map(|manifest| (manifest.id, manifest.parent)).collect();
    let going = manifests.iter().filter(|manifest| plan.gone.contains(&manifest.id));
    let sums: BTreeMap<Id, u32> = sums_of(going).collect();
    let was = definition.now.parent;
    let undo = |definition: &mut Definition| {
        for (id, parent) in former.iter().filter(|(id, _)| plan.reparent.contains_key(id)) {
            if let Err(again) = catalog.store.update(*id, |manifest| manifest.parent = *parent) {
                log::warn!("{again}");
            }
        }
        let mut next = definition.clone();
        next.now.parent = was;
        if next != *definition
            && let Err(again) = save(folder, lock, definition, next)
        {
            log::warn!("{again}");
        }
    };
    if let Err(e) = reparent(&catalog, lock, definition, &plan, sums) {
        undo(definition);
        return Err(e);
    }
    // Children first, as the plan has them: cut short, none is left without its parent.
    for (gone, id) in plan.gone.iter().enumerate() {
        match catalog.store.remove(*id) {
            Ok(()) => {}
            // It is gone; recovery removes the rest.
            Err(e @ StoreError::LeftOver { .. }) => log::warn!("{e}"),
            Err(e) => {
                if gone == 0 {
                    undo(definition);
                }
                return Err(e.into());
            }
        }
    }
    orphans(&catalog, definition, true)?;
    Ok(deleted)
}

/// `sums` are checksums that go with the checkpoints; their layers may stay a while.
fn reparent(
    catalog: &Catalog,
    lock: &VmLock,
    definition: &mut Definition,
    plan: &DeletePlan,
    sums: BTreeMap<Id, u32>,
) -> Result<()> {
    for (child, parent) in &plan.reparent {
        catalog.store.update(*child, |manifest| manifest.parent = *parent)?;
    }
    let mut next = definition.clone();
    next.now.layer_sums.extend(sums);
    if let Some(parent) = plan.now {
        next.now.parent = parent;
    }
    save(catalog.folder, lock, definition, next)
}

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
    let disks = settler.definition.config.disks.clone();
    for disk in disks.iter().filter(|disk| !disk.readonly && !disk.passthrough) {
        while settler.merge_one(disk, progress)? {}
        settler.seal(disk)?;
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

struct Settler<'a> {
    catalog: &'a Catalog<'a>,
    lock: &'a VmLock,
    definition: &'a mut Definition,
}

fn spec(layers: &Layers, id: Id) -> std::result::Result<LayerSpec, DiskError> {
    let found = layers.found.iter().find(|layer| layer.id == id).ok_or(DiskError::NoParent(id))?;
    Ok(LayerSpec { path: found.path.clone(), id })
}

impl Settler<'_> {
    /// Checksums of layers that are gone are of no use.
    fn prune_sums(&mut self) -> Result<()> {
        let layers = Layers::read(self.catalog.folder)?;
        let there = |id: &Id| layers.found.iter().any(|layer| layer.id == *id);
        if self.definition.now.layer_sums.keys().all(there) {
            return Ok(());
        }
        let mut next = self.definition.clone();
        next.now.layer_sums.retain(|id, _| there(id));
        save(self.catalog.folder, self.lock, self.definition, next)
    }

    /// The layers of one disk and who is on them.
    fn graph(&self, disk: &DiskConfig, layers: &Layers) -> Result<LayerGraph> {
        let listing = self.catalog.listing()?;
        let mut users: Vec<(User, Parent)> = listing
            .manifests
            .iter()
            .filter_map(|manifest| Some((User::Checkpoint(manifest.id), manifest.disks.get(&disk.id)?.top())))
            .collect();
        let now = self.definition.now.tops.get(&disk.id).map_or(Parent::Base, |top| Parent::Delta(*top));
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
        let storage = self.catalog.folder.storage();
        let is_linked = |path: &Path| Ok::<_, StorageError>(storage.metadata(path)?.links > 1);
        let mut shared = Vec::new();
        for layer in layers.found.iter().filter(|layer| parents.contains_key(&layer.id)) {
            if is_linked(&layer.path)? {
                shared.push(layer.id);
            }
        }
        let base = base_path(self.catalog.folder, disk);
        // In the VM's own folder it is shared by another name, elsewhere by its path.
        let own = disk.format == DiskFormat::Raw
            && !disk.overlay
            && !(disk.path.is_relative() && is_linked(&base)?)
            && !self.catalog.folder.others_rest_on(&base)?;
        let role = if own { BaseRole::Mergeable } else { BaseRole::Fixed };
        let complete = is_complete(&listing, self.definition);
        Ok(LayerGraph::new(role, parents, users, complete).share(shared))
    }

    /// Does one merge, if there is one to do.
    fn merge_one(&mut self, disk: &DiskConfig, progress: &Progress) -> Result<bool> {
        let layers = Layers::read(self.catalog.folder)?;
        let graph = self.graph(disk, &layers)?;
        let Some(step @ Step::Merge { .. }) = graph.next_step() else { return Ok(false) };
        let Step::Merge { lower, upper, children, .. } = &step else { return Ok(false) };
        self.verify(disk, &layers, *upper)?;
        if let Parent::Delta(lower) = lower {
            self.verify(disk, &layers, *lower)?;
        }
        // Beginning a merge drops the checksums of the layer that changes, so no manifest may
        // vouch for them any more.
        self.forget_sums(disk, *lower, *upper)?;
        let mut merge = self.open(disk, &layers, *lower, *upper)?;
        let merging = Merging {
            disk: disk.id.clone(),
            lower: match lower {
                Parent::Base => None,
                Parent::Delta(id) => Some(*id),
            },
            upper: *upper,
            commit: merge.direction() == Direction::Commit,
            children: children.clone(),
        };
        let mut next = self.definition.clone();
        next.now.merging = Some(merging.clone());
        save(self.catalog.folder, self.lock, self.definition, next)?;
        let children =
            children.iter().map(|id| spec(&layers, *id)).collect::<std::result::Result<Vec<_>, _>>()?;
        progress.phase("merge", merge.progress().total);
        loop {
            let before = merge.progress().done;
            let now = merge.step(STEP).map_err(|error| self.failed(disk, error))?;
            progress.add(now.done - before);
            if now.is_done() {
                break;
            }
            progress.check()?;
        }
        merge.finish(self.catalog.folder.storage(), &children).map_err(|error| self.failed(disk, error))?;
        drop(merge);
        self.record(disk, &merging, graph)?;
        Ok(true)
    }

    fn failed(&self, disk: &DiskConfig, error: DiskError) -> DisksError {
        DisksError::Disk { id: disk.id.clone(), error }
    }

    fn open(&self, disk: &DiskConfig, layers: &Layers, lower: Parent, upper: Id) -> Result<Merge> {
        let storage = self.catalog.folder.storage();
        let upper = spec(layers, upper)?;
        let merge = match lower {
            Parent::Base => {
                Merge::open_on_base(storage, &base_path(self.catalog.folder, disk), disk.format, &upper)
            }
            Parent::Delta(lower) => Merge::open(storage, &spec(layers, lower)?, &upper, None),
        };
        Ok(merge.map_err(|error| self.failed(disk, error))?)
    }

    fn resume(&mut self, merging: &Merging) -> Result<()> {
        let disks = &self.definition.config.disks;
        let Some(disk) = disks.iter().find(|disk| disk.id == merging.disk).cloned() else { return Ok(()) };
        let layers = Layers::read(self.catalog.folder)?;
        let storage = self.catalog.folder.storage();
        let graph = self.graph(&disk, &layers)?;
        let children = merging
            .children
            .iter()
            .map(|id| spec(&layers, *id))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        match merging.lower {
            None => {
                self.open(&disk, &layers, Parent::Base, merging.upper)?
                    .finish(storage, &children)
                    .map_err(|error| self.failed(&disk, error))?;
            }
            Some(lower) => {
                let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
                let (lower, upper) = (spec(&layers, lower)?, spec(&layers, merging.upper)?);
                merge::resume(storage, &lower, &upper, direction, &children)
                    .map_err(|error| self.failed(&disk, error))?;
            }
        }
        self.record(&disk, merging, graph)?;
        self.seal(&disk)
    }

    /// Writes down who is where after a merge; only then is the file that is left over nobody's.
    fn record(&mut self, disk: &DiskConfig, merging: &Merging, mut graph: LayerGraph) -> Result<()> {
        let step = Step::Merge {
            lower: merging.lower.map_or(Parent::Base, Parent::Delta),
            upper: merging.upper,
            children: merging.children.clone(),
            upper_is_top: false,
        };
        let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
        let done = graph.apply(&step, direction);
        let folder = self.catalog.folder;
        let mut next = self.definition.clone();
        next.now.merging = None;
        for (user, top) in &done.moved {
            match (user, top) {
                (User::Checkpoint(id), Parent::Base) => {
                    let stamp = BaseStamp::take(folder.storage(), &base_path(folder, disk))?;
                    self.set_point(*id, disk, DiskPoint::Base(stamp))?;
                }
                (User::Checkpoint(id), Parent::Delta(layer)) => {
                    self.set_point(*id, disk, DiskPoint::Layer { id: *layer, sums: None })?;
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
        let stamp = BaseStamp::take(self.catalog.folder.storage(), &base_path(self.catalog.folder, disk))?;
        for manifest in self.catalog.manifests()? {
            if manifest.bases.contains_key(&disk.id) {
                self.catalog.store.update(manifest.id, |manifest| {
                    manifest.bases.insert(disk.id.clone(), stamp);
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

    /// What is merged gets new checksums, so what is damaged must not get so far.
    fn verify(&self, disk: &DiskConfig, layers: &Layers, layer: Id) -> Result<()> {
        let sums = self.catalog.layer_sums(self.definition)?;
        let Some(crc) = sums.get(&layer).copied() else { return Ok(()) };
        let storage = self.catalog.folder.storage();
        let layer = FrozenDelta::open(storage, &spec(layers, layer)?)?;
        let checked = layer.attach_sums(storage, crc).and_then(|()| layer.verify(|_| ()));
        Ok(checked.map_err(|error| self.failed(disk, error))?)
    }

    fn forget_sums(&mut self, disk: &DiskConfig, lower: Parent, layer: Id) -> Result<()> {
        let kept = &self.definition.now.layer_sums;
        if kept.contains_key(&layer) || matches!(lower, Parent::Delta(lower) if kept.contains_key(&lower)) {
            let mut next = self.definition.clone();
            next.now.layer_sums.retain(|id, _| *id != layer && Parent::Delta(*id) != lower);
            save(self.catalog.folder, self.lock, self.definition, next)?;
        }
        for manifest in self.catalog.manifests()? {
            if let Some(DiskPoint::Layer { id, sums: Some(_) }) = manifest.disks.get(&disk.id)
                && *id == layer
            {
                self.set_point(manifest.id, disk, DiskPoint::Layer { id: layer, sums: None })?;
            }
        }
        Ok(())
    }

    /// Gives checksums again to every layer of a checkpoint that has none.
    fn seal(&self, disk: &DiskConfig) -> Result<()> {
        let layers = Layers::read(self.catalog.folder)?;
        for manifest in self.catalog.manifests()? {
            if let Some(DiskPoint::Layer { id, sums: None }) = manifest.disks.get(&disk.id) {
                let layer = FrozenDelta::open(self.catalog.folder.storage(), &spec(&layers, *id)?)?;
                let sums = Some(layer.seal(self.catalog.folder.storage())?.crc);
                self.set_point(manifest.id, disk, DiskPoint::Layer { id: *id, sums })?;
            }
        }
        Ok(())
    }
}
