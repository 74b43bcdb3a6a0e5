//! Reading all of a checkpoint against its checksums.

use std::ops::ControlFlow;

use super::args::{CheckpointRef, GuardArgs};
use super::error::refused;
use super::manage::existing;
use super::out::{self, outln};
use super::units::size;
use super::{guard, work};
use crate::capture::chain::MemoryChain;
use crate::capture::image::Image;
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::state::read_state;
use crate::disk::DiskError;
use crate::disk::delta::FrozenDelta;
use crate::folder::{Definition, FolderError, VmFolder};
use crate::history::disks::Layers;
use crate::history::{Catalog, CheckpointError, steady};
use crate::progress::Progress;
use crate::seccomp::Thread;
use crate::storage::StorageError;

/// What was found of a checkpoint that is not damaged.
struct Checked {
    bytes: u64,
    /// Layers without checksums.
    unchecked: Vec<String>,
}

pub fn run(target: &CheckpointRef, guard: &GuardArgs, json: bool) -> anyhow::Result<()> {
    guard::enter(guard, Thread::Files)?;
    let folder = existing(&target.vm)?;
    let definition = folder.load()?;
    let manifest = Catalog::new(&folder, &definition).resolve(&definition, &target.checkpoint)?;
    let checked = work::here(|progress| {
        steady::open(&folder, manifest.id, |definition, manifest| {
            check(&folder, definition, manifest, progress)
        })
    })?;
    let Checked { bytes, unchecked } = checked.map_err(|e| match e {
        CheckpointError::Cancelled(_) => {
            anyhow::anyhow!("cancelled: what was read of it so far is not damaged")
        }
        e if is_merged(&e, &folder) => refused(format!(
            "layers of the VM `{}` are being merged: `piton checkpoint jobs {0}` shows when that is done",
            folder.name()
        )),
        e => e.into(),
    })?;
    if json {
        let result = serde_json::json!({ "checkpoint": manifest.id, "bytes": bytes, "unchecked": unchecked });
        out::json_line(&result);
    } else if unchecked.is_empty() {
        outln!("checkpoint `{}` is as it was written: {} read and checked", manifest.name, size(bytes));
    } else {
        outln!("{} read and checked", size(bytes));
        for layer in &unchecked {
            outln!("not checked, it has no checksums: {layer}");
        }
    }
    if !unchecked.is_empty() {
        anyhow::bail!(
            "checkpoint `{}` cannot be checked: layers of it have no checksums; `piton doctor {}` says what to do",
            manifest.name,
            folder.name()
        );
    }
    Ok(())
}

/// Whether it is the running VM that has a layer for itself.
fn is_merged(error: &CheckpointError, folder: &VmFolder) -> bool {
    matches!(error, CheckpointError::Disk(DiskError::Storage(StorageError::InUse { .. })))
        && matches!(folder.lock(), Err(FolderError::Busy(_)))
}

fn check(
    folder: &VmFolder,
    definition: &Definition,
    manifest: &Manifest,
    progress: &Progress,
) -> Result<Checked, CheckpointError> {
    let catalog = Catalog::new(folder, definition);
    let mut bytes = 0;
    if let Some(info) = &manifest.state {
        bytes += read_state(folder.storage(), &catalog.store.state_path(manifest.id), info)?.len() as u64;
    }
    if manifest.memory.is_some() {
        let chain = MemoryChain::open(folder.storage(), &catalog.store.memory_chain(manifest)?)?;
        progress.phase("memory", chain.images().iter().map(Image::present_bytes).sum());
        let mut before = 0;
        chain.verify(|done, _| {
            progress.add(done - std::mem::replace(&mut before, done));
            if progress.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        bytes += chain.images().iter().map(Image::stored_bytes).sum::<u64>();
    }
    let (layers, sums) = (Layers::read(folder)?, catalog.layer_sums(definition)?);
    let mut unchecked = Vec::new();
    for (disk, point) in &manifest.disks {
        let DiskPoint::Layer { id, .. } = point else { continue };
        for spec in layers.chain(*id)? {
            let layer = FrozenDelta::open(folder.storage(), &spec)?;
            match sums.get(&spec.id) {
                Some(crc) => {
                    layer.attach_sums(folder.storage(), *crc)?;
                    progress.phase("disks", layer.size());
                    layer.verify(|part| {
                        progress.add(part);
                        progress.check().map_err(DiskError::from)
                    })?;
                    bytes += layer.allocated_bytes()?;
                }
                None => unchecked.push(format!("{} of disk `{disk}`", spec.path.display())),
            }
        }
    }
    Ok(Checked { bytes, unchecked })
}
