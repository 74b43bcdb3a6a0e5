//! Adding, removing and growing the disks of a VM that is off. Checkpoints keep the disks that they
//! were made with, and going back to one brings them back.

use std::collections::BTreeMap;
use std::path::Path;

use super::bases::base_path;
use super::disks::{self, DisksError, Layers, branch};
use super::merge;
use super::saving::{remove_unless_named, save};
use super::{Catalog, CheckpointError, Result, orphans};
use crate::checkpoint::Manifest;
use crate::config::{DiskConfig, DiskFormat, MAX_DISK};
use crate::disk::delta::Delta;
use crate::disk::delta_format::Parent;
use crate::disk::raw::RawDisk;
use crate::disk::{Backing, Disk, SECTOR, backing, open_base};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::storage::FileKind;

/// How large a disk is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewSize {
    To(u64),
    By(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    pub from: u64,
    pub to: u64,
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(CheckpointError::Refused(text.into()))
}

fn failed<E: Into<crate::disk::DiskError>>(disk: &str) -> impl FnOnce(E) -> DisksError {
    move |error| DisksError::Disk { id: disk.to_owned(), error: error.into() }
}

/// A disk of the VM as it is now.
pub fn find<'a>(folder: &VmFolder, definition: &'a Definition, id: &str) -> Result<&'a DiskConfig> {
    let disks = &definition.config.disks;
    disks.iter().find(|disk| disk.id == id).ok_or_else(|| {
        let known: Vec<&str> = disks.iter().map(|disk| disk.id.as_str()).collect();
        CheckpointError::Refused(format!(
            "the VM `{}` has no disk `{id}`: it has {}",
            folder.name(),
            if known.is_empty() { "none".into() } else { known.join(", ") }
        ))
    })
}

/// Bytes of a disk as the VM would boot with it.
pub fn size_of(folder: &VmFolder, definition: &Definition, disk: &DiskConfig) -> Result<u64> {
    let layers = Layers::read(folder)?;
    if let Some(size) = definition.now.tops.get(&disk.id).and_then(|top| layers.size(*top)) {
        return Ok(size);
    }
    let base = open_base(folder.storage(), &base_path(folder, disk), disk.format);
    Ok(base.map_err(failed(&disk.id))?.len())
}

/// Makes a disk larger: a larger layer goes on top, past whose parent's end all is zeros; an image that
/// the guest writes to directly grows itself. What that left to be merged is for
/// [`super::merge::settle`].
pub fn resize(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: &str,
    size: NewSize,
) -> Result<Resized> {
    let disk = find(folder, definition, id)?.clone();
    let path = base_path(folder, &disk);
    if disk.readonly {
        return refused(format!("disk `{id}` is read-only: a larger image takes its place"));
    }
    if disk.passthrough {
        return refused(format!(
            "disk `{id}` is a passthrough disk, which is as large as {}: grow that",
            path.display()
        ));
    }
    merge::finish_merge(folder, lock, definition)?;
    let from = size_of(folder, definition, &disk)?;
    let to = match size {
        NewSize::To(size) => Some(size),
        NewSize::By(more) => from.checked_add(more),
    };
    let Some(to) = to.filter(|to| *to <= MAX_DISK) else {
        return refused(format!("a disk has {} TiB at most", MAX_DISK >> 40));
    };
    if !to.is_multiple_of(SECTOR) {
        return refused(format!("{to} bytes are not a whole number of sectors"));
    }
    if to < from {
        return refused(format!(
            "disk `{id}` has {from} bytes, and {to} are less: a disk can only grow (shrinking would cut off \
             what the guest has at its end)"
        ));
    }
    if to == from {
        return Ok(Resized { from, to });
    }
    match definition.now.tops.get(id) {
        None => grow_image(folder, &disk, &path, to)?,
        Some(top) => {
            let parents = BTreeMap::from([(disk.id.clone(), Parent::Delta(*top))]);
            let sizes = BTreeMap::from([(disk.id.clone(), to)]);
            let made = branch(folder, &definition.config, &parents, &sizes)?;
            let mut next = definition.clone();
            next.now.unsealed.insert(*top);
            next.now.tops.extend(made.iter().map(|(disk, layer)| (disk.clone(), layer.id)));
            next.now.untouched = false;
            if let Err(e) = save(folder, lock, definition, next) {
                let made: Vec<_> = made.into_values().collect();
                remove_unless_named(folder, definition, &made);
                return Err(e);
            }
        }
    }
    Ok(Resized { from, to })
}

/// Without layers no checkpoint is based on it.
fn grow_image(folder: &VmFolder, disk: &DiskConfig, path: &Path, to: u64) -> Result<()> {
    let storage = folder.storage();
    let kind = storage.metadata(path).map_err(failed(&disk.id))?.kind;
    if kind != FileKind::File {
        return refused(format!("{} is a block device, which has its own size: grow that", path.display()));
    }
    if folder.others_rest_on(path)? {
        return refused(format!("{} is also the base image of another VM's disk", path.display()));
    }
    let mut image = RawDisk::open(storage, path).map_err(failed(&disk.id))?;
    image.grow(to).and_then(|()| image.flush()).map_err(failed(&disk.id))?;
    Ok(())
}

/// Gives a VM that is off another disk, as large as `size` if that is given.
pub fn add(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    disk: DiskConfig,
    size: Option<u64>,
) -> Result<Resized> {
    let mut next = definition.clone();
    next.config.disks.push(disk.clone());
    next.config.validate().map_err(|e| CheckpointError::Refused(e.to_string()))?;
    let storage = folder.storage();
    let full: Vec<DiskConfig> = next
        .config
        .disks
        .iter()
        .map(|disk| DiskConfig { path: base_path(folder, disk), ..disk.clone() })
        .collect();
    if let Some(twice) = backing::given_twice(storage, &full) {
        return refused(twice.to_string());
    }
    let writes = !disk.readonly && !disk.overlay;
    if writes && disk.format == DiskFormat::Qcow2 {
        return refused(DisksError::Qcow2NeedsOverlay(disk.id).to_string());
    }
    for manifest in Catalog::new(folder, definition).listing()?.manifests {
        check_beside(folder, &manifest, &disk, writes)?;
    }
    let path = base_path(folder, &disk);
    let from = match writes {
        true => RawDisk::open(storage, &path).map(|image| image.len()),
        false => open_base(storage, &path, disk.format).map(|image| image.len()),
    };
    let from = from.map_err(|e| CheckpointError::Refused(failed(&disk.id)(e).to_string()))?;
    if let Some(size) = size.filter(|size| *size < from) {
        return refused(DisksError::Smaller { id: disk.id, size, image: from }.to_string());
    }
    let mut made = Vec::new();
    if disk.overlay {
        let path = disks::new_layer_path(folder, &disk.id)?;
        let layer = Delta::create_over(storage, &path, size.unwrap_or(from), Parent::Base, from);
        let layer = layer.map_err(failed(&disk.id))?;
        next.now.tops.insert(disk.id.clone(), layer.id());
        made.push(crate::disk::layer::LayerSpec { path, id: layer.id() });
    }
    next.now.untouched = false;
    if let Err(e) = save(folder, lock, definition, next) {
        remove_unless_named(folder, definition, &made);
        return Err(e);
    }
    Ok(Resized { from, to: size.unwrap_or(from) })
}

/// Whether a disk can be added to a VM that has this checkpoint.
fn check_beside(folder: &VmFolder, manifest: &Manifest, disk: &DiskConfig, writes: bool) -> Result<()> {
    let storage = folder.storage();
    for other in &manifest.config.disks {
        let path = base_path(folder, other);
        let same = backing::same_file(storage, &path, &base_path(folder, disk));
        if other.id == disk.id && (!same || other.format != disk.format) {
            return refused(format!(
                "checkpoint `{}` has another disk `{}`, {}: choose an id with ,id=NAME",
                manifest.name,
                disk.id,
                path.display()
            ));
        }
        let keeps = manifest.disks.contains_key(&other.id) || other.readonly;
        if same && writes && !disk.passthrough && keeps {
            return refused(format!(
                "checkpoint `{}` is based on {}, so it must not be written to: add ,overlay",
                manifest.name,
                path.display()
            ));
        }
    }
    Ok(())
}

/// Bytes that are on a disk's layers and that no checkpoint has.
pub fn unkept_bytes(folder: &VmFolder, definition: &Definition, disk: &DiskConfig) -> Result<u64> {
    let Some(top) = definition.now.tops.get(&disk.id) else { return Ok(0) };
    let layers = Layers::read(folder)?;
    let mut kept = Vec::new();
    for manifest in Catalog::new(folder, definition).manifests()? {
        if let Some(Parent::Delta(layer)) = manifest.disks.get(&disk.id).map(|point| point.top()) {
            kept.extend(layers.chain(layer).map_err(failed(&disk.id))?.into_iter().map(|layer| layer.id));
        }
    }
    let mut bytes = 0;
    for layer in layers.chain(*top).map_err(failed(&disk.id))? {
        if !kept.contains(&layer.id) {
            let open = crate::disk::delta::FrozenDelta::open(folder.storage(), &layer);
            bytes += open.and_then(|open| open.allocated_bytes()).map_err(failed(&disk.id))?;
        }
    }
    Ok(bytes)
}

/// Takes a disk from a VM that is off. Its image stays; layers that no checkpoint needs go, and with
/// `discard` also those that hold what the guest wrote.
pub fn remove(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: &str,
    discard: bool,
) -> Result<()> {
    let disk = find(folder, definition, id)?.clone();
    if definition.config.boot_disk.as_deref() == Some(id) {
        return refused(format!("the VM boots from disk `{id}`, so it cannot be removed"));
    }
    merge::finish_merge(folder, lock, definition)?;
    let unkept = unkept_bytes(folder, definition, &disk)?;
    if unkept > 0 && !discard {
        return refused(format!(
            "no checkpoint has the {unkept} bytes that the guest wrote to disk `{id}`: create a checkpoint \
             first, or discard them with --discard"
        ));
    }
    let mut next = definition.clone();
    next.config.disks.retain(|disk| disk.id != id);
    next.now.tops.remove(id);
    next.now.untouched = false;
    save(folder, lock, definition, next)?;
    let catalog = Catalog::new(folder, definition);
    orphans::orphans(&catalog, definition, true)?;
    super::sealing::remove_strays(folder, definition);
    Ok(())
}
