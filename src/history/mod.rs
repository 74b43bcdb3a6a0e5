//! Checkpoints of a VM: the operations on its folder, its disks and, while it runs, its machine.
//!
//! [`create`] and [`apply`] read from top to bottom. Whoever calls them holds the VM's lock and is
//! its only actor: the VMM's queue while the VM runs, one command otherwise.

pub mod apply;
pub mod capture;
pub mod clone;
pub mod create;
pub mod delete;
pub mod disks;
pub mod memory;
pub mod merge;
pub mod policy;
mod production;
pub mod readers;
pub mod recover;
mod shadow;

use std::collections::BTreeMap;

use crate::capture::guest::CaptureError;
use crate::capture::image::ImageError;
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::name::NameError;
use crate::checkpoint::state::StateError;
use crate::checkpoint::store::{Damaged, Listing, Store, StoreError};
use crate::checkpoint::tree::ResolveError;
use crate::checkpoint::tree::{MIN_PREFIX, RowItem, Tree};
use crate::checkpoint::{CheckpointName, Manifest};
use crate::control::{ChangeBody, CheckpointInfo, TreeInfo};
use crate::disk::DiskError;
use crate::disk::layer::LayerSpec;
use crate::folder::{Definition, FolderError, VmFolder, VmLock};
use crate::history::disks::{DisksError, remove_layers};
use crate::id::Id;
use crate::machine::MachineError;
use crate::progress::Cancelled;
use crate::storage::StorageError;

pub use recover::{Finding, recover};

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the saved state {0}")]
    State(#[from] StateError),
    #[error("the saved state cannot be understood: {0}")]
    Decode(serde_json::Error),
    #[error(transparent)]
    Image(ImageError),
    #[error(transparent)]
    Capture(CaptureError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disks(DisksError),
    #[error(transparent)]
    Disk(DiskError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("no random bytes can be had: {0}")]
    Random(std::io::Error),
    #[error("{0}")]
    NoProduction(String),
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("cancelled: the VM is as it was, and nothing is left of it")]
    Cancelled(#[from] Cancelled),
}

impl CheckpointError {
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Name(_)
                | Self::Resolve(_)
                | Self::Folder(FolderError::Taken { .. } | FolderError::Busy(_))
        )
    }

    /// Called off by the user, and undone.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }
}

impl From<CaptureError> for CheckpointError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Cancelled => Self::Cancelled(Cancelled),
            error => Self::Capture(error),
        }
    }
}

impl From<ImageError> for CheckpointError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Image(error),
        }
    }
}

impl From<DiskError> for CheckpointError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Disk(error),
        }
    }
}

impl From<DisksError> for CheckpointError {
    fn from(error: DisksError) -> Self {
        match error {
            DisksError::Disk { error: DiskError::Cancelled(cancelled), .. } => Self::Cancelled(cancelled),
            error => Self::Disks(error),
        }
    }
}

pub type Result<T> = std::result::Result<T, CheckpointError>;

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
                "the folder of checkpoints {} is not there: is its disk mounted?",
                dir.display()
            )));
        }
        Ok(self.store.list()?)
    }

    /// All manifests that can be read.
    pub fn manifests(&self) -> Result<Vec<Manifest>> {
        Ok(self.listing()?.manifests)
    }

    pub fn resolve(&self, definition: &Definition, reference: &str) -> Result<Manifest> {
        let listing = self.listing()?;
        let found = Tree::of(&listing.manifests, definition.now.parent).resolve(reference);
        if let Err(unknown @ ResolveError::Unknown { .. }) = &found
            && !listing.damaged.is_empty()
        {
            let ids: Vec<String> = listing.damaged.iter().map(|one| one.id.to_string()).collect();
            let text =
                format!("{unknown}; of those that are damaged only the id is known: {}", ids.join(", "));
            // It is there and cannot be read, which is another matter.
            return Err(match damaged(listing, reference) {
                Some(one) => one.error.into(),
                None => CheckpointError::Refused(text),
            });
        }
        Ok(self.store.load(found?)?)
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
        let id = definition.now.parent.ok_or_else(|| {
            CheckpointError::Refused(format!(
                "the VM `{}` does not descend from a checkpoint: there is nothing to revert to",
                self.folder.name()
            ))
        })?;
        Ok(self.store.load(id)?)
    }

    /// The tree as users see it.
    pub fn info(&self, definition: &Definition) -> Result<TreeInfo> {
        let listing = self.listing()?;
        let tree = Tree::of(&listing.manifests, definition.now.parent);
        let manifest = |id: Id| listing.manifests.iter().find(|manifest| manifest.id == id);
        let rows = tree.rows().into_iter().filter_map(|row| match row.what {
            RowItem::Checkpoint(id) => manifest(id),
            RowItem::Now => None,
        });
        let damaged = listing.damaged.iter().map(|damaged| damaged.error.to_string());
        let problems = tree.problems().iter().map(ToString::to_string);
        Ok(TreeInfo {
            now: definition.now.parent,
            checkpoints: rows.map(CheckpointInfo::from).collect(),
            damaged: damaged.chain(problems).collect(),
            pending_merges: merge::pending(self, definition).unwrap_or(0),
        })
    }

    /// The checked name, or the time's; unique in the VM.
    pub fn new_name(&self, asked: Option<&str>) -> Result<CheckpointName> {
        let manifests = self.manifests()?;
        let taken = |name: &str| manifests.iter().any(|manifest| manifest.name.as_str() == name);
        match asked {
            None => Ok(CheckpointName::of_time(&chrono::Local::now(), taken)),
            Some(name) if taken(name) => Err(CheckpointError::Refused(format!(
                "a checkpoint `{name}` exists: choose another name, or rename that one"
            ))),
            Some(name) => Ok(name.parse()?),
        }
    }

    /// Renames, or changes the note.
    pub fn change(&self, definition: &Definition, reference: &str, body: &ChangeBody) -> Result<Manifest> {
        let manifest = self.resolve(definition, reference)?;
        let asked = body.name.as_deref().filter(|name| *name != manifest.name.as_str());
        let name = asked.map(|name| self.new_name(Some(name))).transpose()?;
        Ok(self.store.update(manifest.id, |manifest| {
            if let Some(name) = name {
                manifest.name = name;
            }
            if let Some(note) = &body.note {
                manifest.note.clone_from(note);
            }
        })?)
    }

    /// Checksums of all frozen layers that have some.
    pub fn layer_sums(&self, definition: &Definition) -> Result<BTreeMap<Id, u32>> {
        let manifests = self.manifests()?;
        Ok(definition.now.layer_sums.iter().map(|(id, crc)| (*id, *crc)).chain(sums_of(&manifests)).collect())
    }
}

/// Checksums of the layers that manifests vouch for.
fn sums_of<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> impl Iterator<Item = (Id, u32)> {
    let points = manifests.into_iter().flat_map(|manifest| manifest.disks.values());
    points.filter_map(|point| match point {
        DiskPoint::Layer { id, sums } => Some((*id, (*sums)?)),
        DiskPoint::Base(_) => None,
    })
}

/// The damaged checkpoint whose id begins like this.
fn damaged(listing: Listing, reference: &str) -> Option<Damaged> {
    let start = reference.to_ascii_lowercase();
    let mut damaged = listing.damaged.into_iter();
    damaged.find(|one| start.len() >= MIN_PREFIX && one.id.to_string().starts_with(&start))
}

/// Whether all users of layers are known. Where one cannot be read, or is missing, nothing may be
/// removed or merged: that one could need it.
fn is_complete(listing: &Listing, definition: &Definition) -> bool {
    let there = |id: Id| listing.manifests.iter().any(|manifest| manifest.id == id);
    listing.damaged.is_empty() && definition.now.parent.is_none_or(there)
}

/// Replaces the definition on disk and in memory, or neither.
fn save(folder: &VmFolder, lock: &VmLock, definition: &mut Definition, next: Definition) -> Result<()> {
    if let Err(e) = folder.save(lock, &next) {
        // It may have failed after the file was replaced; then the former one goes back.
        if !is_saved(folder, definition)
            && let Err(again) = folder.save(lock, definition)
        {
            log::warn!("{again}");
            lock.fall_behind();
        }
        return Err(e.into());
    }
    *definition = next;
    Ok(())
}

/// Saves again what vm.json may not say: what was taken back must not come back by a crash.
pub fn catch_up(folder: &VmFolder, lock: &VmLock, definition: &Definition) {
    if lock.is_behind()
        && let Err(e) = folder.save(lock, definition)
    {
        log::debug!("{e}");
    }
}

/// Whether vm.json says this.
fn is_saved(folder: &VmFolder, definition: &Definition) -> bool {
    folder.load().is_ok_and(|found| found == *definition)
}

/// Removes layers that a failed operation made, unless vm.json may name them; then recovery
/// finds out.
fn remove_unless_named(folder: &VmFolder, definition: &Definition, layers: &[LayerSpec]) {
    if is_saved(folder, definition) {
        remove_layers(folder, layers);
    }
}
