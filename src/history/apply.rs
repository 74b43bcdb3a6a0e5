//! Going back: a checkpoint becomes the active state.
//!
//! Everything that can fail happens beside the running machine. The one step that counts is the
//! replacement of vm.json; before it the VM is as it was, after it the VM is at the checkpoint.

use std::collections::BTreeMap;

use super::orphans::orphans;
use super::saving::{remove_unless_named, save};
use super::{Catalog, CheckpointError, Result};
use crate::capture::chain::MemoryChain;
use crate::capture::lazy::Filling;
use crate::checkpoint::Manifest;
use crate::checkpoint::state::read_state;
use crate::config::VmConfig;
use crate::control::GoBack;
use crate::disk::delta_format::Parent;
use crate::disk::layer::LayerSpec;
use crate::folder::{Definition, Now, VmFolder, VmLock};
use crate::history::disks::{self, Layers, OpenDisks, Reuse};
use crate::history::{bases, flat};
use crate::id::Id;
use crate::layout::GENERATION_PAGE;
use crate::machine::{self, Bare, Machine, MachineError, MachineState, Parts};
use crate::progress::Progress;

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
}

/// What of a checkpoint is gone to.
pub fn seen_as(manifest: Manifest, how: GoBack) -> Manifest {
    if how.cold { Manifest { memory: None, state: None, ..manifest } } else { manifest }
}

/// Builds the state of `manifest` beside whatever runs now. `parts` makes what the machine needs
/// beside its definition; without it only a checkpoint without memory can be gone to.
pub fn prepare(
    folder: &VmFolder,
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
    if around.idle
        && let Some(generation) = stays(folder, definition, manifest)?
    {
        let next = definition.clone();
        let (disks, machine, filling) =
            build(&catalog, definition, manifest, &next, generation, around, how, parts, progress)
                .map_err(or_cold)?;
        return Ok(Prepared { definition: next, disks, machine, filling, made: Vec::new(), stays: true });
    }
    let generation = Id::random().map_err(CheckpointError::Random)?;
    let parents = manifest.disks.iter().map(|(disk, point)| (disk.clone(), point.top())).collect();
    let made = disks::branch(folder, &manifest.config, &parents, &BTreeMap::new())?;
    let tops = made.iter().map(|(disk, layer)| (disk.clone(), layer.id)).collect();
    let made: Vec<LayerSpec> = made.into_values().collect();
    let next = Definition {
        config: manifest.config.clone(),
        now: Now {
            parent: Some(manifest.id),
            tops,
            layer_sums: definition.now.layer_sums.clone(),
            unsealed: definition.now.unsealed.clone(),
            generation: Some(generation),
            ..Now::default()
        },
        ..definition.clone()
    };
    let built = build(&catalog, definition, manifest, &next, generation, around, how, parts, progress);
    let built = built.map_err(or_cold);
    match built {
        Ok((disks, machine, filling)) => {
            Ok(Prepared { definition: next, disks, machine, filling, made, stays: false })
        }
        Err(e) => {
            disks::remove_layers(folder, &made);
            Err(e)
        }
    }
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
fn stays(folder: &VmFolder, definition: &Definition, manifest: &Manifest) -> Result<Option<Id>> {
    let now = &definition.now;
    if !now.untouched || now.parent != Some(manifest.id) || definition.config != manifest.config {
        return Ok(None);
    }
    let layers = Layers::read(folder)?;
    let lies_on = |disk: &str, below: Parent| {
        let top = now.tops.get(disk);
        layers.found.iter().any(|layer| Some(&layer.id) == top && layer.parent == below)
    };
    let fits = manifest.disks.iter().all(|(disk, point)| lies_on(disk, point.top()));
    Ok(now.generation.filter(|_| fits))
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
    how: GoBack,
    parts: Option<MakeParts<'_>>,
    progress: &Progress,
) -> Result<(OpenDisks, Option<Machine>, Option<Filling>)> {
    let folder = catalog.folder;
    let disks =
        disks::open(folder, &next.config, &next.now.tops, &catalog.layer_sums(definition)?, around.reuse)?;
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
                MemoryChain::open(folder.storage(), &catalog.store.memory_chain(manifest)?)?
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
    pub fn commit(&self, folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
        if self.stays {
            return Ok(());
        }
        save(folder, lock, definition, self.definition.clone())
    }

    /// Undoes the preparation.
    pub fn discard(self, folder: &VmFolder, definition: &Definition) {
        let Self { disks, machine, filling, made, .. } = self;
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
