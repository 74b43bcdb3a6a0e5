//! A base image that was moved: the VM and all its checkpoints follow.
//!
//! vm.json says first where it is going, then each manifest is replaced, then vm.json. A crash on
//! the way is brought to its end by [`finish`]: what was checked once is not checked again.

use std::path::{Path, PathBuf};

use super::bases::{base_path, compare, look};
use super::disks::{DisksError, Layers};
use super::saving::save;
use super::{Catalog, CheckpointError, Result};
use crate::config::DiskConfig;
use crate::disk::{Backing, open_base};
use crate::folder::{Definition, Relocating, VmFolder, VmLock};

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocated {
    pub from: PathBuf,
    pub to: PathBuf,
    /// Checkpoints that know the disk.
    pub checkpoints: usize,
}

/// Gives the disk `id` of a VM that is off the image at `to`, an absolute path, for a base. It has
/// to be what the base was at every checkpoint.
pub fn relocate(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: &str,
    to: &Path,
) -> Result<Relocated> {
    let disks = &definition.config.disks;
    let Some(former) = disks.iter().find(|disk| disk.id == id) else {
        let known: Vec<&str> = disks.iter().map(|disk| disk.id.as_str()).collect();
        return Err(CheckpointError::Refused(format!(
            "the VM `{}` has no disk `{id}`: it has {}",
            folder.name(),
            if known.is_empty() { "none".into() } else { known.join(", ") }
        )));
    };
    let moved = DiskConfig { path: to.to_owned(), ..former.clone() };
    check(folder, definition, &moved)?;
    let relocating = Relocating { disk: id.to_owned(), from: former.path.clone(), to: to.to_owned() };
    let mut next = definition.clone();
    next.now.relocating = Some(relocating.clone());
    save(folder, lock, definition, next)?;
    let checkpoints = finish(folder, lock, definition)?;
    Ok(Relocated { from: folder.path().join(relocating.from), to: relocating.to, checkpoints })
}

/// Whether the image of `moved` can be the base of what is there.
fn check(folder: &VmFolder, definition: &Definition, moved: &DiskConfig) -> Result<()> {
    let failed = |error| DisksError::Disk { id: moved.id.clone(), error };
    // Under a lock that says whether somebody writes to it.
    let path = base_path(folder, moved);
    let opened = open_base(folder.storage(), &path, moved.format)
        .map_err(|error| CheckpointError::Refused(failed(error).to_string()))?;
    let top = definition.now.tops.get(&moved.id);
    let size =
        top.map(|top| Layers::read(folder).map(|layers| layers.base_size(*top))).transpose()?.flatten();
    let refused = |what: String| {
        Err(CheckpointError::Refused(format!(
            "{} is not the base image of disk `{}`: {what}",
            path.display(),
            moved.id
        )))
    };
    if let Err(problem) = look(folder, moved, size) {
        return refused(problem.change.to_string());
    }
    if let Some(size) = size.filter(|size| *size != opened.len()) {
        return refused(format!("its disk has {} bytes, but {size} are expected", opened.len()));
    }
    let merging = definition.now.merging.as_ref();
    if merging.is_some_and(|merging| merging.disk == moved.id && merging.lower.is_none()) {
        // A part of what lies above it is in it already.
        return Ok(());
    }
    for manifest in Catalog::new(folder, definition).manifests()? {
        if let Some(stamp) = manifest.bases.get(&moved.id)
            && let Some(problem) = compare(folder, &manifest, moved, stamp)?
        {
            return refused(format!("since checkpoint `{}`: {}", manifest.name, problem.change));
        }
    }
    Ok(())
}

/// Brings what was begun to its end; returns how many checkpoints know the disk.
pub(super) fn finish(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<usize> {
    let Some(Relocating { disk, from, to }) = definition.now.relocating.clone() else { return Ok(0) };
    let catalog = Catalog::new(folder, definition);
    let is_it = |config: &DiskConfig| config.id == disk;
    let mut known = 0;
    for manifest in catalog.manifests()? {
        let config = manifest.config.disks.iter().find(|config| is_it(config));
        known += usize::from(config.is_some());
        if config.is_some_and(|config| config.path == from) {
            catalog.store.update(manifest.id, |manifest| {
                let disks = manifest.config.disks.iter_mut();
                disks.filter(|config| is_it(config)).for_each(|config| config.path.clone_from(&to));
            })?;
        }
    }
    let mut next = definition.clone();
    let disks = next.config.disks.iter_mut();
    disks.filter(|config| is_it(config)).for_each(|config| config.path.clone_from(&to));
    next.now.relocating = None;
    save(folder, lock, definition, next)?;
    Ok(known)
}
