//! Replacing vm.json, and what to do where that fails.

use super::Result;
use super::disks::remove_layers;
use crate::disk::layer::LayerSpec;
use crate::folder::{Definition, FolderError, VmFolder, VmLock};
use crate::storage::Staged;

/// Replaces the definition on disk and in memory, or neither.
pub(super) fn save(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    next: Definition,
) -> Result<()> {
    let done = folder.save(lock, &next);
    settle(folder, lock, definition, next, done)
}

/// The same with what was staged for it, the content of which is durable.
pub(super) fn place(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    next: Definition,
    staged: &mut Staged,
) -> Result<()> {
    let done = folder.place_definition(lock, staged);
    settle(folder, lock, definition, next, done)
}

fn settle(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    next: Definition,
    done: std::result::Result<(), FolderError>,
) -> Result<()> {
    if let Err(e) = done {
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
pub(super) fn is_saved(folder: &VmFolder, definition: &Definition) -> bool {
    folder.load().is_ok_and(|found| found == *definition)
}

/// Removes layers that a failed operation made, unless vm.json may name them; then recovery
/// finds out.
pub(super) fn remove_unless_named(folder: &VmFolder, definition: &Definition, layers: &[LayerSpec]) {
    if is_saved(folder, definition) {
        remove_layers(folder, layers);
    }
}
