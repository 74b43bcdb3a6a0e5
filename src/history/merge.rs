//! Merging layers that nothing needs apart: what to do, and what is written down of it.
//!
//! Every merge goes through the same stations, whether the VM is off ([`settle`]) or its guest
//! runs (`crate::vmm::merging`): *check* both layers, which also takes the checksums of what they
//! will be; *begin*; *announce* it in vm.json; copy; write down that all is *copied*; finish;
//! *record* who is where now. A crash after *announce* is brought to its end by [`finish_merge`].
//! At every station vm.json names checksums of all that is read of either layer.

use super::base_findings::check_disk;
use super::orphans::orphans;
use super::pair::{Check, Checked, GoOn, Pair, graph, merged_disks, spec};
use super::saving::{is_saved, save};
use super::{Catalog, Result, sealing};
use crate::checkpoint::layers::{LayerGraph, Step, User};
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::store::Listing;
use crate::config::DiskConfig;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::disk::merge::{self, Direction, Merge};
use crate::disk::outlook::Outlook;
use crate::folder::{Definition, Merging, VmFolder, VmLock};
use crate::history::bases;
use crate::history::disks::{DisksError, Layers, base_path};
use crate::history::readers;
use crate::id::Id;
use crate::progress::Progress;

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
    let mut settler = Settler { catalog: &catalog, lock, definition, running: false };
    sealing::seal_fresh(folder, lock, settler.definition, progress)?;
    for disk in settler.disks() {
        while let Some(pair) = settler.next(&disk)? {
            settler.merge(pair, progress)?;
        }
    }
    catalog.store.merge_images(progress)?;
    progress.check()?;
    settler.prune_sums()
}

/// Brings a merge to its end that a crash cut short.
pub fn finish_merge(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let Some(merging) = definition.now.merging.clone() else { return Ok(()) };
    let catalog = Catalog::new(folder, definition);
    Settler { catalog: &catalog, lock, definition, running: false }.resume(&merging)
}

/// Takes back that a merge was begun. Wherever it stopped, everything reads the same; it is planned
/// anew another time.
pub fn give_up(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let catalog = Catalog::new(folder, definition);
    Settler { catalog: &catalog, lock, definition, running: false }.give_up()
}

/// How many merges wait for their time; one under way is among them.
pub fn pending(catalog: &Catalog, definition: &Definition) -> Result<usize> {
    pending_of(catalog, definition, &catalog.listing()?)
}

/// As if there were just these checkpoints.
pub fn pending_of(catalog: &Catalog, definition: &Definition, listing: &Listing) -> Result<usize> {
    let layers = Layers::read(catalog.folder)?;
    let mut count = 0;
    for disk in merged_disks(definition) {
        let graph = graph(catalog.folder, definition, listing, disk, &layers)?;
        count += graph.plan().iter().filter(|step| matches!(step, Step::Merge { .. })).count();
    }
    Ok(count)
}

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
    /// The disks are open, and know how large their bases are.
    pub running: bool,
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
        let grown = layers.found.iter().filter(|layer| self.running && layer.below != layer.size);
        let graph = graph.hold(grown.map(|layer| layer.id));
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
        progress.phase("verify", 0);
        let checked = self.check(&pair, false)?.run(&going_on(progress)).map_err(|e| pair.failed(e))?;
        self.nobody_reads()?;
        let mut merge = pair.open(self.catalog.folder, &checked).map_err(|e| pair.failed(e))?;
        let merging = self.announce(&pair, merge.direction(), &checked)?;
        let copied = copy(&mut merge, progress, &|| Ok(progress.check()?)).and_then(|()| merge.sync());
        if let Err(e) = copied {
            drop(merge);
            self.give_up()?;
            return Err(pair.failed(e).into());
        }
        self.copied(&merging)?;
        merge.finish(storage, &pair.children).map_err(|e| pair.failed(e))?;
        drop(merge);
        self.record(&pair.disk, &merging, pair.graph)
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

    /// What is to be checked of a pair before it is merged; of one whose upper layer a running
    /// guest writes to, `live`, only the lower one.
    pub fn check(&self, pair: &Pair, live: bool) -> Result<Check> {
        if pair.lower == Parent::Base {
            check_disk(self.catalog, self.definition, &pair.disk)?;
        }
        let sums = self.catalog.layer_sums(self.definition)?;
        let checkable = |spec: &LayerSpec| (spec.clone(), sums.get(&spec.id).copied());
        Ok(Check {
            storage: self.catalog.folder.storage().clone(),
            // One that never had any becomes what it was: written by the guest.
            lower: pair.lower_spec().map(checkable).filter(|(_, crc)| !live || crc.is_some()),
            upper: Some(checkable(&pair.upper)).filter(|_| !live),
        })
    }

    /// Who came since a pair was chosen would read what is about to be changed.
    pub fn nobody_reads(&self) -> Result<()> {
        readers::check_all(self.catalog.folder)
    }

    /// Before the guest's layer goes down into the one below it, which is written again from then
    /// on, and has checksums no more.
    pub fn thaw(&mut self, pair: &Pair) -> Result<()> {
        let Parent::Delta(lower) = pair.lower else { return Ok(()) };
        let mut next = self.definition.clone();
        next.now.layer_sums.remove(&lower);
        next.now.unsealed.insert(lower);
        self.save(next)
    }

    /// Checksums of layers that are gone are of no use.
    pub fn prune_sums(&mut self) -> Result<()> {
        let layers = Layers::read(self.catalog.folder)?;
        if !layers.broken.is_empty() {
            // One that cannot be read now may be any of them.
            return Ok(());
        }
        let there = |id: &Id| layers.found.iter().any(|layer| layer.id == *id);
        let mut next = self.definition.clone();
        next.now.layer_sums.retain(|id, _| there(id));
        next.now.unsealed.retain(&there);
        if next != *self.definition {
            self.save(next)?;
        }
        sealing::remove_strays(self.catalog.folder, self.definition);
        Ok(())
    }

    /// Writes down which merge is begun, so that a crash finds it, and by which checksums the layer
    /// that changes is read meanwhile.
    pub fn announce(&mut self, pair: &Pair, direction: Direction, checked: &Checked) -> Result<Merging> {
        let merging = Merging {
            disk: pair.disk.id.clone(),
            lower: pair.lower_id(),
            upper: pair.upper.id,
            commit: direction == Direction::Commit,
            children: pair.children.iter().map(|child| child.id).collect(),
            sums: checked.outlook.map(|outlook| outlook.merged),
        };
        let mut next = self.definition.clone();
        next.now.merging = Some(merging.clone());
        next.now.layer_sums.extend(&checked.sealed);
        next.now.unsealed.retain(|id| !checked.sealed.contains_key(id));
        if let Some(outlook) = checked.outlook {
            next.now.layer_sums.insert(outlook.left, outlook.meanwhile);
        }
        self.save(next)?;
        Ok(merging)
    }

    /// Writes down that the layer that is left holds all of both, durably.
    pub fn copied(&mut self, merging: &Merging) -> Result<()> {
        let Some((left, sums)) = merging.left().zip(merging.sums) else { return Ok(()) };
        let mut next = self.definition.clone();
        next.now.layer_sums.insert(left, sums);
        self.save(next)
    }

    /// See [`give_up`].
    pub fn give_up(&mut self) -> Result<()> {
        let Some(merging) = self.definition.now.merging.clone() else { return Ok(()) };
        let disk = self.definition.config.disks.iter().find(|disk| disk.id == merging.disk);
        // What was moved into a base changed it, and a checkpoint is to know it as it is; so is the layer
        // on it, should it have grown.
        if let (Some(disk), None) = (disk, merging.lower) {
            self.stamp_base(disk)?;
            let folder = self.catalog.folder;
            let upper = spec(&Layers::read(folder)?, merging.upper).map_err(DisksError::from)?;
            merge::base_has_grown(folder.storage(), &base_path(folder, disk), &upper)
                .map_err(DisksError::from)?;
        }
        let mut next = self.definition.clone();
        next.now.merging = None;
        sealing::forget_tops(&mut next.now);
        self.save(next)?;
        sealing::remove_strays(self.catalog.folder, self.definition);
        Ok(())
    }

    /// Writes down a merge that is done.
    pub fn done(&mut self, pair: Pair, merging: &Merging) -> Result<()> {
        self.record(&pair.disk, merging, pair.graph)
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
        let direction = if merging.commit { Direction::Commit } else { Direction::Pull };
        let sums = self.catalog.layer_sums(self.definition)?;
        match merging.lower {
            None => {
                Merge::open_on_base(
                    storage,
                    &base_path(folder, &disk),
                    disk.format,
                    &upper,
                    sums.get(&upper.id).copied(),
                    true,
                )
                .and_then(|mut merge| merge.finish(storage, &children))
                .map_err(failed)?;
            }
            Some(id) => {
                let lower = spec(&layers, id)?;
                let sum = |id: &Id| sums.get(id).copied();
                let merged = merging.left().zip(merging.sums);
                match merged.map(|merged| (merged, sum(&id).zip(sum(&upper.id)))) {
                    // All is there, and vouched for; of the other one perhaps nobody knows any more.
                    Some(((left, merged), _)) if sum(&left) == Some(merged) => {
                        merge::relink_all(storage, &lower, &upper, direction, &children).map_err(failed)?;
                    }
                    Some(((left, merged), Some((lower_sums, upper_sums)))) => {
                        let meanwhile = if merging.commit { lower_sums } else { upper_sums };
                        let outlook = Outlook {
                            direction,
                            left,
                            lower: lower_sums,
                            upper: upper_sums,
                            meanwhile,
                            merged,
                        };
                        let mut merge =
                            Merge::open(storage, &lower, &upper, None, Some(&outlook)).map_err(failed)?;
                        copy(&mut merge, &Progress::default(), &|| Ok(()))
                            .and_then(|()| merge.sync())
                            .map_err(failed)?;
                        self.copied(merging)?;
                        merge.finish(storage, &children).map_err(failed)?;
                    }
                    // Of an older piton, which had dropped the checksums before.
                    None | Some((_, None)) => {
                        self.forget_points(&disk, &[id, upper.id])?;
                        merge::resume(storage, &lower, &upper, direction, &children).map_err(failed)?;
                    }
                }
            }
        }
        self.record(&disk, merging, graph)
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
        let point = |layer: Id| DiskPoint::Layer { id: layer, sums: merging.sums };
        // Who was on it already reads the same, of other contents of the file.
        if let Some(left) = merging.left() {
            for manifest in self.catalog.manifests()? {
                if let Some(DiskPoint::Layer { id, sums }) = manifest.disks.get(&disk.id)
                    && (*id, true) == (left, *sums != merging.sums)
                {
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
        sealing::forget_tops(&mut next.now);
        save(folder, self.lock, self.definition, next)?;
        orphans(self.catalog, self.definition, true)?;
        sealing::remove_strays(folder, self.definition);
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
