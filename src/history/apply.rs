//! Going back: a checkpoint becomes the active state.
//!
//! Everything that can fail happens beside the running machine. The one step that counts is the
//! replacement of vm.json; before it the VM is as it was, after it the VM is at the checkpoint.

use std::collections::BTreeMap;

use super::catalog::effective_sums;
use super::inventory::Inventory;
use super::orphans::orphans;
use super::saving::{place, remove_unless_named};
use super::syncing::Syncing;
use super::{Catalog, CheckpointError, Result};
use crate::capture::chain::MemoryChain;
use crate::capture::lazy::Filling;
use crate::checkpoint::Manifest;
use crate::checkpoint::state::read_state;
use crate::config::VmConfig;
use crate::control::GoBack;
use crate::disk::delta::Delta;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::folder::{Definition, FolderError, Now, VmFolder, VmLock};
use crate::history::disks::{self, DisksError, Fresh, Layers, OpenDisks, Reuse};
use crate::history::{bases, flat};
use crate::id::Id;
use crate::layout::GENERATION_PAGE;
use crate::machine::{self, Bare, Machine, MachineError, MachineState, Parts};
use crate::progress::Progress;
use crate::storage::Staged;

/// A checkpoint that is ready to become the active state.
pub struct Prepared {
    pub definition: Definition,
    pub disks: OpenDisks,
    /// Standing still; none for a checkpoint without memory.
    pub machine: Option<Machine>,
    /// Of the machine's memory; to be dropped after it.
    pub filling: Option<Filling>,
    made: Vec<LayerSpec>,
    /// It is where the VM is already.
    pub stays: bool,
    /// What vm.json is to be, unless it says so already.
    staged: Option<Staged>,
    syncing: Syncing,
}

/// Makes what a machine of this definition, with these disks, needs beside them.
pub type MakeParts<'a> = &'a dyn Fn(&VmConfig, &OpenDisks) -> Parts;

/// What there is beside what is built.
pub struct Around<'a> {
    /// Disks that are open and stay as they are.
    pub reuse: &'a Reuse,
    /// Nothing runs, and no disk is open.
    pub idle: bool,
    /// KVM's side of the machine, if it was begun before.
    pub bare: Option<Bare>,
    /// What is in the folder, if nothing was changed since it was read.
    pub inventory: Option<Inventory>,
    /// The guest is to run at once: nobody will find it untouched.
    pub runs: bool,
}

/// What of a checkpoint is gone to.
pub fn seen_as(manifest: Manifest, how: GoBack) -> Manifest {
    if how.cold { Manifest { memory: None, state: None, ..manifest } } else { manifest }
}

/// Builds the state of `manifest` beside whatever runs now. `parts` makes what the machine needs
/// beside its definition; without it only a checkpoint without memory can be gone to. What it writes is
/// made durable meanwhile; [`Prepared::commit`] waits for it.
#[allow(clippy::too_many_arguments, reason = "a VM is its folder, its lock and its definition")]
pub fn prepare(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &Definition,
    manifest: &Manifest,
    mut around: Around,
    how: GoBack,
    parts: Option<MakeParts<'_>>,
    progress: &Progress,
) -> Result<Prepared> {
    check(folder, definition, manifest, how)?;
    let catalog = Catalog::new(folder, definition);
    // What KVM needs takes as long as the disks, and neither needs the other.
    if manifest.memory.is_some() {
        around.bare.get_or_insert_with(|| Bare::begin(&manifest.config));
    }
    let mut inventory = around.inventory.take().map_or_else(|| Inventory::read(&catalog), Ok)?;
    let here = stays(definition, manifest, &inventory.layers).filter(|_| around.idle);
    let (mut next, mut made, mut fresh) = (definition.clone(), Vec::new(), Fresh::new());
    let generation = match here {
        Some(generation) => generation,
        None => Id::random().map_err(CheckpointError::Random)?,
    };
    if here.is_some() {
        next.now.untouched &= !around.runs;
    } else {
        let parents = manifest.disks.iter().map(|(disk, point)| (disk.clone(), point.top())).collect();
        let layers = &inventory.layers;
        fresh = disks::branch_on(folder, &manifest.config, &parents, &BTreeMap::new(), layers)?;
        next.config = manifest.config.clone();
        next.now = Now {
            parent: Some(manifest.id),
            tops: fresh.iter().map(|(disk, layer)| (disk.clone(), layer.id())).collect(),
            layer_sums: definition.now.layer_sums.clone(),
            unsealed: definition.now.unsealed.clone(),
            generation: Some(generation),
            ..Now::default()
        };
        made.extend(fresh.values().map(|layer| LayerSpec { path: layer.path().to_owned(), id: layer.id() }));
        inventory.layers.found.extend(fresh.values().map(Delta::info));
    }
    let built = make_durable(folder, lock, definition, &next, &fresh).and_then(|(staged, syncing)| {
        let ground = Ground { inventory: &inventory, fresh, syncing: &syncing };
        let built =
            build(&catalog, definition, manifest, &next, generation, around, ground, how, parts, progress);
        Ok((built?, staged, syncing))
    });
    match built.map_err(or_cold) {
        Ok(((disks, machine, filling), staged, syncing)) => {
            let stays = here.is_some();
            Ok(Prepared { definition: next, disks, machine, filling, made, stays, staged, syncing })
        }
        Err(e) => {
            disks::remove_layers(folder, &made);
            Err(e)
        }
    }
}

/// Begins to make durable what was made: fresh layers, and what vm.json is to be.
fn make_durable(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &Definition,
    next: &Definition,
    fresh: &Fresh,
) -> Result<(Option<Staged>, Syncing)> {
    let syncing = Syncing::begin()?;
    for (id, layer) in fresh {
        let (id, making) = (id.clone(), layer.making(folder.storage()));
        syncing.add(move || making().map_err(|error| DisksError::Disk { id, error }.into()));
    }
    if next == definition {
        return Ok((None, syncing));
    }
    let staged = folder.stage_definition(lock, next)?;
    let content = staged.content();
    syncing.add(move || content().map_err(|e| FolderError::from(e).into()));
    Ok((Some(staged), syncing))
}

/// Where it is memory or state that cannot be used, being damaged, of another version or another
/// processor, there are the disks still.
fn or_cold(error: CheckpointError) -> CheckpointError {
    match error {
        CheckpointError::Image(_)
        | CheckpointError::State(_)
        | CheckpointError::Decode(_)
        | CheckpointError::Machine(MachineError::Misfit(_)) => CheckpointError::NoMemory(Box::new(error)),
        error => error,
    }
}

/// Whether the VM is at `manifest` as it was put there; its generation then.
fn stays(definition: &Definition, manifest: &Manifest, layers: &Layers) -> Option<Id> {
    let now = &definition.now;
    if !now.untouched || now.parent != Some(manifest.id) || definition.config != manifest.config {
        return None;
    }
    let lies_on = |disk: &str, below: Parent| {
        let top = now.tops.get(disk);
        layers.found.iter().any(|layer| Some(&layer.id) == top && layer.parent == below)
    };
    let fits = manifest.disks.iter().all(|(disk, point)| lies_on(disk, point.top()));
    now.generation.filter(|_| fits)
}

/// What the disks are opened on.
struct Ground<'a> {
    /// With the fresh layers.
    inventory: &'a Inventory,
    fresh: Fresh,
    syncing: &'a Syncing,
}

/// The disks and the machine of `next`.
#[allow(clippy::too_many_arguments, reason = "what prepare has, and what it made of it")]
fn build(
    catalog: &Catalog,
    definition: &Definition,
    manifest: &Manifest,
    next: &Definition,
    generation: Id,
    around: Around,
    ground: Ground,
    how: GoBack,
    parts: Option<MakeParts<'_>>,
    progress: &Progress,
) -> Result<(OpenDisks, Option<Machine>, Option<Filling>)> {
    let (folder, manifests) = (catalog.folder, &ground.inventory.listing.manifests);
    let disks = disks::open_on(
        folder,
        &next.config,
        &next.now.tops,
        &effective_sums(manifests, definition),
        around.reuse,
        &ground.inventory.layers,
        ground.fresh,
        Some(&|sync| ground.syncing.add(move || Ok(sync()?))),
    )?;
    let (machine, filling) = match (&manifest.memory, &manifest.state) {
        (Some(_), Some(state_info)) => {
            let json = read_state(folder.storage(), &catalog.store.state_path(manifest.id), state_info)?;
            let state: MachineState = serde_json::from_slice(&json).map_err(CheckpointError::Decode)?;
            // To check a whole image takes as long as to read it, and less memory.
            let is_better = || next.share_memory || !Filling::can_be_lazy();
            let shares = how.share || (catalog.store.flat_image(manifest).is_some() && is_better());
            let chain = if shares {
                flat::ready(&catalog.store, manifest, progress)?
            } else {
                MemoryChain::open(folder.storage(), &catalog.store.memory_chain_of(manifest, manifests)?)?
            };
            let parts = parts.ok_or_else(|| {
                CheckpointError::Refused(format!("checkpoint `{}` holds memory", manifest.name))
            })?;
            let parts = Parts { generation, ..parts(&next.config, &disks) };
            let bare = around.bare.unwrap_or_else(|| Bare::begin(&next.config)).end(&next.config)?;
            let filling = if shares {
                Filling::map(chain, bare.vm.memory())?
            } else {
                Filling::begin(chain, bare.vm.memory(), parts.events.clone(), progress)?
            };
            // The first page that is touched, and by this thread.
            filling.bring(GENERATION_PAGE);
            let machine = machine::restore(manifest.id, bare, &state, how.clock, parts)?;
            (Some(machine), Some(filling))
        }
        _ => (None, None),
    };
    Ok((disks, machine, filling))
}

/// Whether `manifest` can be gone to: a base that somebody wrote to since is not what its layers
/// were made above.
pub fn check(folder: &VmFolder, definition: &Definition, manifest: &Manifest, how: GoBack) -> Result<()> {
    bases::check(folder, definition, manifest, how.force)
}

impl Prepared {
    /// The step that counts. After an error nothing has changed.
    pub fn commit(&mut self, folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
        self.syncing.wait()?;
        match &mut self.staged {
            Some(staged) => place(folder, lock, definition, self.definition.clone(), staged),
            None => Ok(()),
        }
    }

    /// Undoes the preparation.
    pub fn discard(self, folder: &VmFolder, definition: &Definition) {
        let Self { disks, machine, filling, made, staged, syncing, .. } = self;
        drop((syncing, staged));
        drop(machine);
        drop(filling);
        drop(disks);
        remove_unless_named(folder, definition, &made);
    }
}

/// Removes the layers that only the state before an apply needed. What cannot be removed now is
/// found by the next recovery.
pub fn forget_former(folder: &VmFolder, definition: &Definition) {
    let catalog = Catalog::new(folder, definition);
    let removed = orphans(&catalog, definition, true);
    if let Err(e) = removed {
        log::warn!("cannot remove the layers of the former state: {e}");
    }
}
