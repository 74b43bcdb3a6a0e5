//! Going back of a VM that is off, and keeping what it was.

use super::manage::{in_use, lock};
use super::offline::Offline;
use super::{run, work};
use crate::checkpoint::{Manifest, Trashed};
use crate::config::NetArg;
use crate::control::{GoBack, VmInfo, happened};
use crate::folder::{CheckpointType, VmFolder};
use crate::history::{Catalog, apply, trash};
use crate::moment::span;

/// Goes to a checkpoint of a VM that is off; with memory, its process is there then. `manifest` has the
/// networks that it is to have, and `nets` are those that were named.
pub fn go_offline(
    folder: &VmFolder,
    manifest: &Manifest,
    run: bool,
    how: GoBack,
    nets: &[NetArg],
) -> anyhow::Result<Option<VmInfo>> {
    if manifest.memory.is_some() {
        // It takes a process to hold the memory, which does the rest: mends what a crash left, too.
        let lock = lock(folder).map_err(|e| in_use(folder, e))?;
        let info = run::restore_in_background(folder, lock, manifest.id, how, nets, run)?;
        return Ok(Some(info));
    }
    let mut vm = Offline::open_as_it_is(folder)?;
    // A merge that was finished may have put it on another layer, or changed the base below it.
    let fresh = apply::seen_as(Catalog::new(folder, &vm.definition).store.load(manifest.id)?, how);
    let manifest = Manifest { config: manifest.config.clone(), ..fresh };
    let reuse = Default::default();
    let around = apply::Around { reuse: &reuse, idle: true, bare: None, inventory: None, runs: false };
    let mut ready = work::here(|progress| {
        apply::prepare(folder, &vm.lock, &vm.definition, &manifest, around, how, None, progress)
    })??;
    if let Err(e) = ready.commit(folder, &vm.lock, &mut vm.definition) {
        ready.discard(folder, &vm.definition);
        return Err(e.into());
    }
    drop(ready);
    vm.tell([happened::went_to(manifest.id, &manifest.name)]);
    apply::forget_former(folder, &vm.definition);
    if let Err(e) = trash::consume(folder, &vm.lock, &mut vm.definition) {
        log::warn!("cannot remove a restored entry from the trash yet: {e}");
    }
    Ok(None)
}

/// Puts the current state of a VM that is off into its trash, if that is wanted.
pub fn keep_now(vm: &mut Offline, why: String, by_undo: bool, no_undo: bool) -> anyhow::Result<()> {
    let can = vm.definition.checkpoint_type != CheckpointType::Disabled;
    if can && trash::is_on(&vm.definition, no_undo) {
        let how = trash::next(&Catalog::new(vm.folder, &vm.definition), why)?;
        let how = Trashed { was_now: true, by_undo, ..how };
        trash::keep_now(vm.folder, &vm.lock, &mut vm.definition, &how)?;
        trash::bound(vm.folder, &vm.lock, &mut vm.definition)?;
    }
    Ok(())
}

/// How what was taken away can be taken back.
pub fn hint(folder: &VmFolder) -> String {
    let kept = folder.load().map_or(0, |definition| definition.trash_seconds);
    format!("`piton undo {}` undoes this, for {}", folder.name(), span(kept))
}
