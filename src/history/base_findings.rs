//! Looking at all bases of a VM.

use super::bases::{BaseProblem, compare, is_merged_into, look};
use super::disks::Layers;
use super::{Catalog, Result};
use crate::folder::Definition;

/// What is wrong with the bases of a VM's disks; the first that is found of each.
pub fn base_problems(catalog: &Catalog, definition: &Definition) -> Result<Vec<BaseProblem>> {
    let folder = catalog.folder;
    let (layers, manifests) = (Layers::read(folder)?, catalog.manifests()?);
    let mut problems = Vec::new();
    for config in &definition.config.disks {
        let size = definition.now.tops.get(&config.id).and_then(|top| layers.size(*top));
        if let Err(problem) = look(folder, config, size) {
            problems.push(*problem);
            continue;
        }
        for manifest in &manifests {
            let Some(stamp) = manifest.bases.get(&config.id) else { continue };
            // Where a merge into it was cut short it is not what it was, and is not damaged.
            if is_merged_into(definition, config) {
                break;
            }
            if let Some(problem) = compare(folder, manifest, config, stamp)? {
                problems.push(*problem);
                break;
            }
        }
    }
    Ok(problems)
}
