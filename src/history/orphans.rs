//! Layers that nothing needs.

use std::collections::BTreeSet;

use super::catalog::is_complete;
use super::disks::remove_layers;
use super::inventory::Inventory;
use super::{Catalog, Finding, Result};
use crate::checkpoint::manifest::DiskPoint;
use crate::disk::layer::LayerSpec;
use crate::folder::Definition;
use crate::id::Id;

/// Layers that no node's chain goes through. While anything cannot be read nothing is removed:
/// it could be needed by that.
pub(super) fn orphans(catalog: &Catalog, definition: &Definition, repair: bool) -> Result<Vec<Finding>> {
    orphans_of(catalog, definition, &Inventory::read(catalog)?, repair)
}

pub(super) fn orphans_of(
    catalog: &Catalog,
    definition: &Definition,
    found: &Inventory,
    repair: bool,
) -> Result<Vec<Finding>> {
    let Inventory { listing, layers } = found;
    let points = listing.manifests.iter().flat_map(|manifest| manifest.disks.values());
    let checkpoints = points.filter_map(|point| match point {
        DiskPoint::Layer { id, .. } => Some(*id),
        DiskPoint::Base(_) => None,
    });
    let mut needed: BTreeSet<Id> = BTreeSet::new();
    let mut findings = Vec::new();
    for top in checkpoints.chain(definition.now.tops.values().copied()) {
        match layers.chain(top) {
            Ok(chain) => needed.extend(chain.into_iter().map(|layer| layer.id)),
            Err(e) => findings.push(Finding::damage(format!("layer {top} of a disk: {e}"))),
        }
    }
    if !is_complete(listing, definition) || !findings.is_empty() {
        return Ok(findings);
    }
    let orphans: Vec<LayerSpec> = layers
        .found
        .iter()
        .filter(|layer| !needed.contains(&layer.id))
        .map(|layer| LayerSpec { path: layer.path.clone(), id: layer.id })
        .collect();
    let names = orphans.iter().map(|layer| &layer.path).chain(layers.broken.iter().map(|(path, _)| path));
    findings.extend(names.map(|path| Finding::mended(format!("{} is an unused layer", path.display()))));
    if repair {
        remove_layers(catalog.folder, &orphans);
        for (path, _) in &layers.broken {
            catalog.folder.storage().remove_file_if_exists(path)?;
        }
    }
    Ok(findings)
}
