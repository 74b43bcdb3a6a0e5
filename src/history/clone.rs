//! New VMs that begin at a checkpoint of another one.
//!
//! What the checkpoint is made of is frozen, so a clone has the same files under names of its own
//! (hard links) and writes to overlays of its own above them. Either VM may go, with all its files:
//! the other's names stay. A file with more than one name is changed by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Catalog, CheckpointError, Result, apply, networks, outdated};
use crate::capture::chain::{ImageSpec, MemoryChain};
use crate::checkpoint::manifest::{KeptImage, LeftOutWhy, MemoryInfo};
use crate::checkpoint::store::Store;
use crate::checkpoint::{Keeping, Manifest};
use crate::config::NetArg;
use crate::control::{CloneBody, GoBack};
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::disk::sums;
use crate::folder::{Definition, Now, Origin, VmFolder, VmLock, VmName};
use crate::history::disks::{self, Layers, base_path};
use crate::history::flat;
use crate::id::Id;
use crate::progress::Progress;
use crate::seed;
use crate::storage::{Access, Storage};

/// Clones that are made at a time.
const AT_ONCE: usize = 8;

/// What every clone of one checkpoint has.
struct Source<'a> {
    folder: &'a VmFolder,
    store: &'a Store,
    manifest: &'a Manifest,
    /// The one image that the clones are to share, and what their manifests say of it; none: they
    /// get those that the checkpoint is read through.
    flat: Option<(ImageSpec, MemoryInfo)>,
    /// The files of all layers.
    layers: Vec<LayerSpec>,
    definition: Definition,
}

/// Makes VMs that stand at a checkpoint, off. All are checked before any is made, and each is there
/// whole or not at all. Whoever calls this holds the lock of the VM that they are made of.
pub fn make(
    folder: &VmFolder,
    definition: &Definition,
    checkpoint: Id,
    body: &CloneBody,
    progress: &Progress,
) -> Result<()> {
    let (catalog, names) = (Catalog::new(folder, definition), &body.names);
    // As it is now: recovery, or a merge that ended, may have put it on other layers.
    let (manifest, _) = &outdated::usable(&catalog, &catalog.store.load(checkpoint)?);
    let mut source = check(&catalog, definition, manifest, names, &body.net)?;
    if manifest.memory.is_some() && !body.own_memory {
        source.share_memory(progress)?;
    }
    let mut staged: Vec<(VmFolder, VmFolder, VmLock)> = Vec::new();
    let made = names.iter().try_for_each(|name| {
        let clone = folder.sibling(name);
        let (place, lock) = folder.stage(&clone, Id::random().map_err(CheckpointError::Random)?)?;
        staged.push((clone, place, lock));
        Ok(())
    });
    let made = made
        .and_then(|()| source.fill_all(&staged))
        .and_then(|()| Ok(staged.iter().try_for_each(|(clone, place, _)| clone.publish(place))?))
        .and_then(|()| Ok(folder.sync_home()?))
        // Last: before it is durable under its name it may not be gone from here.
        .and_then(|()| Ok(folder.storage().sync_dir(folder.path())?));
    if made.is_err() {
        for (_, place, _) in &staged {
            // Those that are published already are not there any more.
            if place.path().exists()
                && let Err(e) = folder.storage().remove_tree(place.path())
            {
                log::warn!("{e}");
            }
        }
    }
    made
}

fn check<'a>(
    catalog: &'a Catalog<'a>,
    definition: &Definition,
    manifest: &'a Manifest,
    names: &[VmName],
    net: &[NetArg],
) -> Result<Source<'a>> {
    let refuse = |text: String| Err(CheckpointError::Refused(text));
    let (folder, store, storage) = (catalog.folder, &catalog.store, catalog.folder.storage());
    folder.sweep()?;
    if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
        return refuse("two clones cannot have the same name".into());
    }
    names.iter().try_for_each(|name| folder.sibling(name).make_room())?;
    apply::check(folder, definition, manifest, GoBack::default())?;
    let nets = networks::of_new(net, &manifest.config.nets, manifest.memory.is_some(), names.len())?;
    if let Some(merging) = &definition.now.merging {
        return refuse(format!(
            "a layer merge of disk `{}` was interrupted: finish it with `piton doctor {} --repair`, then \
             clone again",
            merging.disk,
            folder.name()
        ));
    }
    if let Some(left) = manifest.left_out.iter().find(|left| left.why == LeftOutWhy::Passthrough) {
        return refuse(format!(
            "cannot clone disk `{}`: it is passthrough, so it is not in the checkpoint and two VMs would \
             write to it",
            left.disk
        ));
    }
    let home = storage.metadata(folder.path())?.dev;
    let checkpoint = store.path(manifest.id);
    if storage.metadata(&checkpoint)?.dev != home {
        return refuse(format!(
            "{} is not on the same file system as {}: a clone shares files through hard links, which \
             cannot cross file systems",
            checkpoint.display(),
            folder.path().display()
        ));
    }
    // Damage is said now and not by each of the clones.
    if manifest.memory.is_some() {
        MemoryChain::open(storage, &store.memory_chain(manifest)?)?;
    }
    let found = Layers::read(folder)?;
    let mut layers: Vec<LayerSpec> = Vec::new();
    for point in manifest.disks.values() {
        if let Parent::Delta(top) = point.top() {
            layers.extend(found.chain(top)?);
        }
    }
    let mut config = manifest.config.clone();
    config.nets = nets;
    for disk in config.disks.iter_mut().filter(|disk| manifest.disks.contains_key(&disk.id)) {
        // Others rest on the base.
        disk.overlay = true;
    }
    let all = catalog.layer_sums(definition)?;
    let layer_sums = layers.iter().filter_map(|layer| Some((layer.id, *all.get(&layer.id)?))).collect();
    let definition = Definition {
        trash_seconds: definition.trash_seconds,
        cloned_from: Some(Origin { vm: folder.name().clone(), checkpoint: manifest.id }),
        now: Now { parent: Some(manifest.id), layer_sums, untouched: true, ..Now::default() },
        ..Definition::new(config)
    };
    Ok(Source { folder, store, manifest, flat: None, layers, definition })
}

impl Source<'_> {
    /// The clones are to map one image, which is checked here and not by each of them.
    fn share_memory(&mut self, progress: &Progress) -> Result<()> {
        let chain = flat::ready(self.store, self.manifest, progress)?;
        let image = &chain.images()[0];
        let (crc, stored_bytes, guest_bytes) = (image.crc(), image.stored_bytes(), image.guest_bytes());
        let info = MemoryInfo { crc, stored_bytes, guest_bytes, ..Default::default() };
        self.flat = Some((ImageSpec { path: image.path().to_owned(), id: image.id(), crc }, info));
        self.definition.share_memory = true;
        Ok(())
    }

    /// [`Self::fill`] of each, several at a time: most of it is waiting for a disk that takes what
    /// several wait for at once.
    fn fill_all(&self, staged: &[(VmFolder, VmFolder, VmLock)]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some((_, place, lock)) = staged.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.fill(place, lock)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let more = 1..AT_ONCE.min(staged.len());
            let start = |_| std::thread::Builder::new().name("clone".into()).spawn_scoped(scope, work).ok();
            let helpers: Vec<_> = more.filter_map(start).collect();
            let own = work();
            let failed = |_| CheckpointError::Thread(std::io::Error::other("its thread exited unexpectedly"));
            helpers.into_iter().try_for_each(|helper| helper.join().map_err(failed)?).and(own)
        })
    }

    /// Puts all of a clone into its folder, durably.
    fn fill(&self, place: &VmFolder, lock: &VmLock) -> Result<()> {
        let storage = place.storage();
        // Durable with vm.json, which is the last.
        let disks = place.disks();
        storage.create_dir(&disks)?;
        for layer in &self.layers {
            let crc = self.definition.now.layer_sums.get(&layer.id);
            let sums = crc.map(|crc| sums::locate(storage, &layer.path, *crc)).transpose()?;
            for from in [sums.as_ref(), Some(&layer.path)].into_iter().flatten() {
                if let Some(name) = from.file_name() {
                    storage.link(from, &disks.join(name))?;
                }
            }
        }
        // They share the bases, and what vouches for them.
        for disk in &self.definition.config.disks {
            if let Some(sums) = disks::base_sums(self.folder, disk)?.filter(|_| disk.id != seed::DISK) {
                storage.link(&sums, &place.base_sums(&disk.id))?;
            }
        }
        // Images in the VM's own folder would go with it.
        for disk in self.definition.config.disks.iter().filter(|disk| disk.path.is_relative()) {
            let (from, to) = (base_path(self.folder, disk), base_path(place, disk));
            if disk.id != seed::DISK || !self.fill_seed(place, &from, &to)? {
                storage.link(&from, &to)?;
            }
        }
        self.fill_checkpoint(place)?;
        let mut definition = self.definition.clone();
        definition.now.generation = Some(Id::random().map_err(CheckpointError::Random)?);
        let parents = self.manifest.disks.iter().map(|(disk, point)| (disk.clone(), point.top())).collect();
        let tops = disks::branch(place, &definition.config, &parents, &BTreeMap::new())?;
        definition.now.tops = tops.into_iter().map(|(disk, layer)| (disk, layer.id)).collect();
        if definition.now.tops.is_empty() {
            // With a layer, its name and all before it were made durable.
            storage.sync_dir(&disks)?;
        }
        // Syncs the folder, too.
        Ok(place.save(lock, &definition)?)
    }

    /// Cloud-init is to take a clone for another host; whether it was a disk for it.
    fn fill_seed(&self, place: &VmFolder, from: &Path, to: &Path) -> Result<bool> {
        let storage = place.storage();
        let file = storage.open(from, Access::ReadOnly)?;
        let mut bytes = vec![0; usize::try_from(file.len()?.min(seed::MOST)).unwrap_or_default()];
        file.read_at(&mut bytes, 0)?;
        let id = Id::random().map_err(CheckpointError::Random)?;
        let names = (self.folder.name().as_str(), place.name().as_str());
        let Some(bytes) = seed::for_clone(&bytes, id, names.0, names.1) else { return Ok(false) };
        write(storage, to, &bytes)?;
        Ok(true)
    }

    fn fill_checkpoint(&self, place: &VmFolder) -> Result<()> {
        let (storage, id) = (place.storage(), self.manifest.id);
        let parent = place.checkpoints(&self.definition);
        let to = Store::new(storage.clone(), parent.clone());
        let mut manifest = self.manifest.clone();
        manifest.vm = place.name().to_string();
        manifest.parent = None;
        manifest.keeping = Keeping { pinned: false, trash: None, scheduled: false, ..manifest.keeping };
        manifest.config = self.definition.config.clone();
        storage.create_dir(&parent)?;
        storage.create_dir(&to.path(id))?;
        if let Some(memory) = &mut manifest.memory {
            (memory.file, memory.kept, memory.flat) = (0, Vec::new(), None);
        }
        let own = to.memory_path(&manifest);
        let images = match &self.flat {
            Some((image, info)) => {
                storage.link(&image.path, &own)?;
                manifest.memory = Some(info.clone());
                Vec::new()
            }
            None => self.store.images(self.manifest)?,
        };
        for (n, image) in images.iter().enumerate() {
            if n == 0 {
                storage.link(&image.spec.path, &own)?;
                continue;
            }
            storage.link(&image.spec.path, &to.kept_path(id, image.spec.id))?;
            if let Some(memory) = &mut manifest.memory {
                let kept = KeptImage { id: image.spec.id, crc: image.spec.crc, parent: image.parent };
                memory.kept.push(kept);
            }
        }
        if manifest.state.is_some() {
            storage.link(&self.store.state_path(id), &to.state_path(id))?;
        }
        let path = to.manifest_path(id);
        let bytes = manifest.encode().map_err(|source| crate::checkpoint::store::StoreError::Manifest {
            path: path.clone(),
            source,
        })?;
        write(storage, &path, &bytes)?;
        storage.sync_dir(&to.path(id))?;
        Ok(storage.sync_dir(&parent)?)
    }
}

fn write(storage: &Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = storage.create_new(path)?;
    file.write_at(bytes, 0)?;
    Ok(file.sync_data()?)
}
