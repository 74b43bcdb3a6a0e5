//! Two layers that nothing needs apart, and what is looked at before they become one.

use std::collections::BTreeMap;
use std::path::Path;

use super::catalog::is_complete;
use super::{Result, sealing};
use crate::checkpoint::layers::{BaseRole, LayerGraph, User};
use crate::checkpoint::store::Listing;
use crate::config::{DiskConfig, DiskFormat};
use crate::disk::DiskError;
use crate::disk::delta::FrozenDelta;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::disk::merge::Merge;
use crate::disk::outlook::Outlook;
use crate::folder::{Definition, VmFolder};
use crate::history::disks::{DisksError, Layers, base_path};
use crate::id::Id;
use crate::storage::{Storage, StorageError};

pub(super) fn merged_disks(definition: &Definition) -> impl Iterator<Item = &DiskConfig> {
    definition.config.disks.iter().filter(|disk| !disk.readonly && !disk.passthrough)
}

/// The layers of one disk and who is on them.
pub(super) fn graph(
    folder: &VmFolder,
    definition: &Definition,
    listing: &Listing,
    disk: &DiskConfig,
    layers: &Layers,
) -> Result<LayerGraph> {
    let mut users: Vec<(User, Parent)> = listing
        .manifests
        .iter()
        .filter_map(|manifest| Some((User::Checkpoint(manifest.id), manifest.disks.get(&disk.id)?.top())))
        .collect();
    let now = definition.now.tops.get(&disk.id).map_or(Parent::Base, |top| Parent::Delta(*top));
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
    let is_linked = |path: &Path| match folder.storage().metadata(path) {
        // A base that is gone is a finding of its own.
        Err(e) if e.is_not_found() => Ok(false),
        other => Ok::<_, StorageError>(other?.links > 1),
    };
    let mut shared = Vec::new();
    // Merged, what lost its checksums would take those of the other with it.
    let unchecked = sealing::unchecked(folder, definition, listing)?;
    shared.extend(unchecked.lost.iter().map(|layer| layer.id));
    for layer in layers.found.iter().filter(|layer| parents.contains_key(&layer.id)) {
        if is_linked(&layer.path)? {
            shared.push(layer.id);
        }
    }
    let base = base_path(folder, disk);
    // In the VM's own folder it is shared by another name, elsewhere by its path.
    let is_others = || -> Result<bool> {
        Ok((disk.path.is_relative() && is_linked(&base)?) || folder.others_rest_on(&base)?)
    };
    let own = disk.format == DiskFormat::Raw && !disk.overlay && !is_others()?;
    let role = if own { BaseRole::Mergeable } else { BaseRole::Fixed };
    Ok(LayerGraph::new(role, parents, users, is_complete(listing, definition)).share(shared))
}

/// Two layers of a disk to be merged.
pub struct Pair {
    pub disk: DiskConfig,
    pub lower: Parent,
    pub upper: LayerSpec,
    /// Layers on the upper one.
    pub children: Vec<LayerSpec>,
    /// Now is on the upper one: a running guest writes to it.
    pub upper_is_top: bool,
    /// Both, but for the base.
    pub(super) specs: Vec<LayerSpec>,
    pub(super) graph: LayerGraph,
}

impl Pair {
    pub fn lower_id(&self) -> Option<Id> {
        match self.lower {
            Parent::Base => None,
            Parent::Delta(id) => Some(id),
        }
    }

    pub(super) fn lower_spec(&self) -> Option<&LayerSpec> {
        self.specs.iter().find(|spec| spec.id != self.upper.id)
    }

    pub fn failed(&self, error: DiskError) -> DisksError {
        DisksError::Disk { id: self.disk.id.clone(), error }
    }

    /// Opens two layers that nobody else has open.
    pub fn open(&self, folder: &VmFolder, checked: &Checked) -> std::result::Result<Merge, DiskError> {
        let storage = folder.storage();
        match self.lower_spec() {
            None => Merge::open_on_base(
                storage,
                &base_path(folder, &self.disk),
                self.disk.format,
                &self.upper,
                checked.upper,
                true,
            ),
            Some(lower) => Merge::open(storage, lower, &self.upper, None, checked.outlook.as_ref()),
        }
    }
}

/// What is to be checked before a merge.
pub struct Check {
    pub(super) storage: Storage,
    /// None: the base, or what a running guest writes to.
    pub(super) lower: Option<Checkable>,
    pub(super) upper: Option<Checkable>,
}

/// A layer with its checksums; none: it never had any.
pub(super) type Checkable = (LayerSpec, Option<u32>);

/// What a check came to: nothing is damaged.
#[derive(Debug, Default)]
pub struct Checked {
    /// First checksums of layers.
    pub sealed: BTreeMap<Id, u32>,
    /// Checksums of the upper layer, if it is frozen.
    pub upper: Option<u32>,
    /// Of two layers that are both frozen.
    pub outlook: Option<Outlook>,
}

impl Check {
    /// Takes as long as it takes to read both layers.
    pub fn run(&self, go_on: &dyn Fn(u64) -> GoOn) -> std::result::Result<Checked, DiskError> {
        let mut checked = Checked::default();
        let mut known = |(spec, crc): &Checkable| match crc {
            Some(crc) => Ok::<_, DiskError>(*crc),
            None => {
                let layer = FrozenDelta::open(&self.storage, spec)?;
                layer.sync_former()?;
                let crc = layer.seal_while(&self.storage, go_on)?.crc;
                checked.sealed.insert(spec.id, crc);
                Ok(crc)
            }
        };
        let lower = self.lower.as_ref().map(|one| Ok::<_, DiskError>((&one.0, known(one)?))).transpose()?;
        let upper = self.upper.as_ref().map(|one| Ok::<_, DiskError>((&one.0, known(one)?))).transpose()?;
        checked.upper = upper.map(|(_, crc)| crc);
        match (lower, upper) {
            (Some(lower), Some(upper)) => {
                checked.outlook = Some(Outlook::take(&self.storage, lower, upper, None, go_on)?);
            }
            (Some((spec, crc)), None) | (None, Some((spec, crc))) => {
                let layer = FrozenDelta::open(&self.storage, spec)?;
                layer.attach_sums(&self.storage, crc)?;
                layer.verify(go_on)?;
            }
            (None, None) => {}
        }
        Ok(checked)
    }
}

/// Whether long work is to go on; asked between its parts.
pub type GoOn = std::result::Result<(), DiskError>;

/// A layer that is there.
pub(super) fn spec(layers: &Layers, id: Id) -> std::result::Result<LayerSpec, DiskError> {
    let found = layers.found.iter().find(|layer| layer.id == id).ok_or(DiskError::NoParent(id))?;
    Ok(LayerSpec { path: found.path.clone(), id })
}
