//! The checkpoints of a VM: finding them, naming them.

use std::collections::BTreeMap;

use super::{CheckpointError, Result};
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::shown::shown;
use crate::checkpoint::store::{Damaged, Listing, Store, StoreError};
use crate::checkpoint::tree::{ResolveError, Tree};
use crate::checkpoint::{CheckpointName, Manifest};
use crate::control::ChangeBody;
use crate::folder::{Definition, VmFolder};
use crate::id::Id;

/// The checkpoints in a VM's folder.
pub struct Catalog<'a> {
    pub folder: &'a VmFolder,
    pub store: Store,
    /// The checkpoints lie outside of the VM's folder, perhaps on a disk that comes and goes.
    external: bool,
}

impl<'a> Catalog<'a> {
    pub fn new(folder: &'a VmFolder, definition: &Definition) -> Self {
        Self {
            folder,
            store: Store::new(folder.storage().clone(), folder.checkpoints(definition)),
            external: definition.checkpoint_dir.is_some(),
        }
    }

    /// What is in the folder of checkpoints. One that is gone is not one that is empty: layers
    /// would look as if nothing needed them.
    pub fn listing(&self) -> Result<Listing> {
        let dir = self.store.dir();
        if self.external && !self.folder.storage().exists(dir)? {
            return Err(CheckpointError::Refused(format!(
                "the checkpoint folder {} does not exist: is its file system mounted?",
                dir.display()
            )));
        }
        Ok(self.store.list()?)
    }

    /// All manifests that can be read.
    pub fn manifests(&self) -> Result<Vec<Manifest>> {
        Ok(self.listing()?.manifests)
    }

    /// The checkpoints that users see, and which of them Now descends from.
    pub fn shown(&self, definition: &Definition) -> Result<(Vec<Manifest>, Option<Id>)> {
        Ok(shown(&self.manifests()?, definition.now.parent))
    }

    /// A manifest as users see it: with a parent that they see.
    pub fn as_shown(&self, definition: &Definition, manifest: Manifest) -> Manifest {
        let parent = self.shown(definition).ok().and_then(|(seen, _)| {
            seen.into_iter().find(|seen| seen.id == manifest.id).map(|seen| seen.parent)
        });
        Manifest { parent: parent.unwrap_or(manifest.parent), ..manifest }
    }

    pub fn resolve(&self, definition: &Definition, reference: &str) -> Result<Manifest> {
        let listing = self.listing()?;
        let (seen, now) = shown(&listing.manifests, definition.now.parent);
        let found = Tree::of(&seen, now).resolve(reference);
        if let Err(unknown @ ResolveError::Unknown { .. }) = &found
            && !listing.damaged.is_empty()
        {
            let ids: Vec<String> = listing.damaged.iter().map(|one| one.id.to_string()).collect();
            let text =
                format!("{unknown}; damaged checkpoints are known only by their id: {}", ids.join(", "));
            // It is there and cannot be read, which is another matter.
            return Err(match damaged(listing, reference) {
                Some(one) => one.error.into(),
                None => CheckpointError::Missing(text),
            });
        }
        let id = found?;
        let parent = seen.iter().find(|seen| seen.id == id).and_then(|seen| seen.parent);
        let loaded = self.store.load(id).map(|manifest| Manifest { parent, ..manifest });
        loaded.map_err(|e| match e {
            StoreError::Missing { .. } => {
                CheckpointError::Refused(format!("checkpoint `{reference}` has just been deleted"))
            }
            e => e.into(),
        })
    }

    /// As [`Catalog::resolve`], but a damaged one is found, too: its id, and what it is called.
    pub fn resolve_any(&self, definition: &Definition, reference: &str) -> Result<(Id, String)> {
        let found = self.resolve(definition, reference);
        match (found, damaged(self.listing()?, reference)) {
            (Err(CheckpointError::Store(_)), Some(one)) => Ok((one.id, one.id.to_string())),
            (found, _) => found.map(|manifest| (manifest.id, manifest.name.to_string())),
        }
    }

    /// The checkpoint that Now descends from.
    pub fn parent_of_now(&self, definition: &Definition) -> Result<Manifest> {
        let (_, now) = self.shown(definition)?;
        let id = now.ok_or_else(|| {
            CheckpointError::Refused(format!(
                "the VM `{}` has no checkpoint to revert to",
                self.folder.name()
            ))
        })?;
        Ok(self.store.load(id)?)
    }

    /// The nearest of a checkpoint and those that it descends from that holds memory.
    pub fn with_memory(&self, from: Option<Id>) -> Result<Option<Id>> {
        let manifests = self.manifests()?;
        let mut next = from;
        // Were they a ring, it ends.
        for _ in 0..manifests.len() {
            let Some(manifest) = manifests.iter().find(|manifest| Some(manifest.id) == next) else { break };
            if manifest.memory.is_some() {
                return Ok(next);
            }
            next = manifest.parent;
        }
        Ok(None)
    }

    /// The name, or the time's; unique in the VM.
    pub fn new_name(&self, asked: Option<&CheckpointName>) -> Result<CheckpointName> {
        let manifests = self.manifests()?;
        let taken = |name: &str| {
            manifests.iter().any(|manifest| !manifest.is_in_trash() && manifest.name.as_str() == name)
        };
        match asked {
            None => Ok(CheckpointName::of_time(&chrono::Utc::now(), taken)),
            Some(name) if taken(name.as_str()) => Err(CheckpointError::Refused(format!(
                "a checkpoint named `{name}` already exists: choose another name, or rename the existing one"
            ))),
            Some(name) => Ok(name.clone()),
        }
    }

    /// Renames, changes the note, pins.
    pub fn change(&self, definition: &Definition, reference: &str, body: &ChangeBody) -> Result<Manifest> {
        let manifest = self.resolve(definition, reference)?;
        let asked = body.name.as_ref().filter(|name| **name != manifest.name);
        let name = asked.map(|name| self.new_name(Some(name))).transpose()?;
        let changed = self.store.update(manifest.id, |manifest| {
            if let Some(name) = name {
                manifest.name = name;
            }
            if let Some(note) = &body.note {
                manifest.note.clone_from(note);
            }
            if let Some(pinned) = body.pinned {
                manifest.keeping.pinned = pinned;
            }
        })?;
        Ok(Manifest { parent: manifest.parent, ..changed })
    }

    /// Checksums of all frozen layers that have some.
    pub fn layer_sums(&self, definition: &Definition) -> Result<BTreeMap<Id, u32>> {
        Ok(effective_sums(&self.manifests()?, definition))
    }
}

/// What vm.json says counts: it is replaced in one step, a number of manifests is not.
pub(super) fn effective_sums(manifests: &[Manifest], definition: &Definition) -> BTreeMap<Id, u32> {
    let own = definition.now.layer_sums.iter().map(|(id, crc)| (*id, *crc));
    sums_of(manifests).chain(own).collect()
}

/// Checksums of the layers that manifests vouch for.
pub(super) fn sums_of<'a>(
    manifests: impl IntoIterator<Item = &'a Manifest>,
) -> impl Iterator<Item = (Id, u32)> {
    let points = manifests.into_iter().flat_map(|manifest| manifest.disks.values());
    points.filter_map(|point| match point {
        DiskPoint::Layer { id, sums } => Some((*id, (*sums)?)),
        DiskPoint::Base(_) => None,
    })
}

/// The damaged checkpoint whose id begins like this.
fn damaged(listing: Listing, reference: &str) -> Option<Damaged> {
    listing.damaged.into_iter().find(|one| one.id.begins_with(reference))
}

/// Whether all users of layers are known. Where one cannot be read, or is missing, nothing may be
/// removed or merged: that one could need it.
pub(super) fn is_complete(listing: &Listing, definition: &Definition) -> bool {
    let there = |id: Id| listing.manifests.iter().any(|manifest| manifest.id == id);
    listing.damaged.is_empty() && definition.now.parent.is_none_or(there)
}
