//! The base images of a VM's disks: where they are, and whether they are what they were.

use super::base_problem::problem;
use super::error::{CheckpointError, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::stamp::{BaseChange, BaseStamp};
use crate::config::DiskConfig;
use crate::folder::{Definition, VmFolder};

pub use super::base_problem::{BaseProblem, base_path, look};

/// A base as it is now.
pub fn stamp(folder: &VmFolder, config: &DiskConfig) -> Result<BaseStamp> {
    Ok(BaseStamp::take(folder.storage(), &base_path(folder, config), config.format)?)
}

/// Whether the base of a disk is what it was at a checkpoint.
pub fn compare(
    folder: &VmFolder,
    manifest: &Manifest,
    config: &DiskConfig,
    stamp: &BaseStamp,
) -> Result<Option<Box<BaseProblem>>> {
    let (file, change) = stamp.compare(folder.storage(), &base_path(folder, config), config.format)?;
    Ok((!change.is_sound()).then(|| problem(folder, config, &file, change, Some(manifest))))
}

/// Refuses a checkpoint whose bases are not what they were. With `force` they need only be there.
pub fn check(folder: &VmFolder, definition: &Definition, manifest: &Manifest, force: bool) -> Result<()> {
    for config in &manifest.config.disks {
        let Some(stamp) = manifest.bases.get(&config.id) else { continue };
        match compare(folder, manifest, config, stamp)? {
            // The stamps follow when the merge ends, or is given up.
            Some(problem) if problem.change == BaseChange::Contents && is_merged_into(definition, config) => {
                return Err(CheckpointError::Refused(format!(
                    "layers are being merged into the base image of disk `{}`: try again afterwards \
                     (`piton checkpoint jobs {1}` shows the progress; if the VM ended meanwhile, `piton \
                     doctor {1} --repair` finishes the merge)",
                    config.id,
                    folder.name()
                )));
            }
            Some(problem) if !force || problem.change == BaseChange::Gone => {
                return Err(CheckpointError::Base(problem));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the base of a disk is not as any checkpoint knows it because a merge writes to it.
pub fn is_merged_into(definition: &Definition, config: &DiskConfig) -> bool {
    let merging = definition.now.merging.as_ref();
    merging.is_some_and(|merging| merging.disk == config.id && merging.lower.is_none())
}
