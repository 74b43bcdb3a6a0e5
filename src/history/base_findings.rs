//! Looking at all bases of a VM.

use std::cmp::Reverse;

use super::bases::{BaseProblem, compare, is_merged_into, look};
use super::disks::Layers;
use super::{Catalog, CheckpointError, Result};
use crate::checkpoint::Manifest;
use crate::config::DiskConfig;
use crate::folder::{Definition, VmFolder};

/// What is wrong with the bases of a VM's disks; the first that is found of each.
pub fn base_problems(catalog: &Catalog, definition: &Definition) -> Result<Vec<BaseProblem>> {
    let folder = catalog.folder;
    let (layers, manifests) = (Layers::read(folder)?, newest_first(catalog)?);
    let mut problems = Vec::new();
    for config in &definition.config.disks {
        let size = definition.now.tops.get(&config.id).and_then(|top| layers.base_size(*top));
        if let Err(problem) = look(folder, config, size) {
            problems.push(*problem);
            continue;
        }
        problems.extend(since(folder, definition, config, &manifests)?.map(|problem| *problem));
    }
    Ok(problems)
}

/// What is wrong with the bases that Now lies on. Older checkpoints do not count: whoever used a base as
/// it was, and has a checkpoint of that, has decided.
pub fn problems_of_now(
    folder: &VmFolder,
    definition: &Definition,
    manifests: &[Manifest],
) -> Result<Vec<BaseProblem>> {
    let mut problems = Vec::new();
    for config in &definition.config.disks {
        let known = manifests.iter().filter(|manifest| manifest.bases.contains_key(&config.id));
        let newest = known.min_by_key(|manifest| Reverse(manifest.created));
        let newest = newest.map_or(&[][..], std::slice::from_ref);
        problems.extend(since(folder, definition, config, newest)?.map(|problem| *problem));
    }
    Ok(problems)
}

/// Refuses to use Now over other bases than those it was made over.
pub fn check_now(folder: &VmFolder, definition: &Definition) -> Result<()> {
    let manifests = Catalog::new(folder, definition).manifests()?;
    let first = problems_of_now(folder, definition, &manifests)?.into_iter().next();
    first.map_or(Ok(()), |problem| Err(CheckpointError::Base(Box::new(problem))))
}

/// Refuses to write to a base that is not what all checkpoints know it as: afterwards it would be.
pub fn check_disk(catalog: &Catalog, definition: &Definition, config: &DiskConfig) -> Result<()> {
    let found = since(catalog.folder, definition, config, &newest_first(catalog)?)?;
    found.map_or(Ok(()), |problem| Err(problem.into()))
}

fn newest_first(catalog: &Catalog) -> Result<Vec<Manifest>> {
    let mut manifests = catalog.manifests()?;
    manifests.sort_by_key(|manifest| Reverse(manifest.created));
    Ok(manifests)
}

/// The first of `manifests` that knows the base as something else.
fn since(
    folder: &VmFolder,
    definition: &Definition,
    config: &DiskConfig,
    manifests: &[Manifest],
) -> Result<Option<Box<BaseProblem>>> {
    if is_merged_into(definition, config) {
        // Where a merge into it was cut short it is not what it was, and is not damaged.
        return Ok(None);
    }
    let mut same = None;
    for manifest in manifests {
        let Some(stamp) = manifest.bases.get(&config.id) else { continue };
        // Most checkpoints of a disk know it as the same.
        if same != Some(stamp) {
            if let Some(problem) = compare(folder, manifest, config, stamp)? {
                return Ok(Some(problem));
            }
            same = Some(stamp);
        }
    }
    Ok(None)
}
