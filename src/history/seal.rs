//! Checksums of base images, which are nobody's but the user's: taken once, if he asks for it, and
//! checked from then on.

use super::bases::{base_path, compare};
use super::saving::save;
use super::{Catalog, CheckpointError, Result};
use crate::config::{DiskConfig, VmConfig};
use crate::disk::{Backing, base_sums, open_base};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::disks::DisksError;
use crate::progress::Progress;

/// Whether the base of a disk stands still for good. Into any other one layers are merged.
pub fn is_sealable(disk: &DiskConfig) -> bool {
    disk.overlay || disk.readonly
}

fn is_sealed(folder: &VmFolder, disk: &DiskConfig) -> Result<bool> {
    Ok(folder.storage().exists(&folder.base_sums(&disk.id))?)
}

/// Bases that are to get checksums and have none.
pub fn wanted(folder: &VmFolder, definition: &Definition) -> Result<Vec<DiskConfig>> {
    let mut wanted = Vec::new();
    if definition.seal_base {
        for disk in definition.config.disks.iter().filter(|disk| is_sealable(disk)) {
            if !is_sealed(folder, disk)? {
                wanted.push(disk.clone());
            }
        }
    }
    Ok(wanted)
}

/// Bases of `config` whose bytes nothing vouches for, as users are told of them.
pub fn unchecked(folder: &VmFolder, config: &VmConfig) -> Result<Vec<String>> {
    let mut unchecked = Vec::new();
    for disk in config.disks.iter().filter(|disk| !disk.passthrough) {
        if !is_sealed(folder, disk)? {
            let hint = match is_sealable(disk) {
                true => format!(" (`piton set {} --seal-base` adds them)", folder.name()),
                false => String::new(),
            };
            unchecked.push(format!(
                "the base image {} of disk `{}`{hint}",
                base_path(folder, disk).display(),
                disk.id
            ));
        }
    }
    Ok(unchecked)
}

/// Takes note that bases are to get checksums.
pub fn want(folder: &VmFolder, definition: &mut Definition) -> Result<()> {
    if !definition.config.disks.iter().any(is_sealable) {
        return Err(CheckpointError::Refused(format!(
            "the VM `{}` has no base image that can have checksums: only disks with overlay or readonly \
             have one that does not change",
            folder.name()
        )));
    }
    definition.seal_base = true;
    Ok(())
}

/// Reads a base and writes down its checksums. One that is not what a checkpoint knows is left: it
/// must not pass for good.
pub fn seal(
    folder: &VmFolder,
    definition: &Definition,
    disk: &DiskConfig,
    progress: &Progress,
) -> Result<()> {
    let failed = |error| DisksError::Disk { id: disk.id.clone(), error };
    for manifest in Catalog::new(folder, definition).manifests()? {
        if let Some(stamp) = manifest.bases.get(&disk.id)
            && let Some(problem) = compare(folder, &manifest, disk, stamp)?
        {
            return Err(problem.into());
        }
    }
    let storage = folder.storage();
    let base = open_base(storage, &base_path(folder, disk), disk.format).map_err(failed)?;
    folder.make_disks_folder()?;
    progress.phase("base", base.len());
    base_sums::seal(storage, &folder.base_sums(&disk.id), &base, &|bytes| {
        progress.add(bytes);
        Ok(progress.check()?)
    })
    .map_err(failed)?;
    Ok(())
}

/// All that are wanted, of a VM that is off.
pub fn seal_all(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    progress: &Progress,
) -> Result<()> {
    for disk in wanted(folder, definition)? {
        let sealed = seal(folder, definition, &disk, progress);
        if sealed.as_ref().is_err_and(CheckpointError::is_cancelled) {
            forget(folder, lock, definition)?;
        }
        sealed?;
    }
    forget(folder, lock, definition)
}

/// Nothing is wanted any more: it is done, or it was cancelled.
pub fn forget(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    if !definition.seal_base {
        return Ok(());
    }
    save(folder, lock, definition, Definition { seal_base: false, ..definition.clone() })
}
