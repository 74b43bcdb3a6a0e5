//! Reading all of a checkpoint against its checksums.

use std::ops::ControlFlow;

use super::args::{CheckpointRef, GuardArgs};
use super::error::refused;
use super::named::existing;
use super::out::{self, outln};
use super::output;
use super::units::size;
use super::{guard, work};
use crate::capture::chain::MemoryChain;
use crate::capture::image::Image;
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::state::read_state;
use crate::disk::delta::FrozenDelta;
use crate::disk::{Backing, DiskError, open_base};
use crate::folder::{Definition, FolderError, VmFolder};
use crate::history::disks::{self, DisksError, Layers, base_path};
use crate::history::{Catalog, CheckpointError, bases, outdated, seal, steady};
use crate::progress::Progress;
use crate::seccomp::Thread;
use crate::storage::StorageError;

/// What was found of a checkpoint that is not damaged.
struct Checked {
    bytes: u64,
    /// Bases without checksums.
    bases: Vec<String>,
    /// Layers without checksums, which all should have.
    layers: Vec<String>,
    /// Why its memory is not understood.
    memory: Option<String>,
}

pub fn run(target: &CheckpointRef, guard: &GuardArgs, json: bool) -> anyhow::Result<()> {
    guard::enter(guard, Thread::Files, &[])?;
    let folder = existing(&target.vm)?;
    let definition = folder.load()?;
    let manifest = Catalog::new(&folder, &definition).resolve(&definition, &target.checkpoint)?;
    let checked = work::here(|progress| {
        steady::open(&folder, manifest.id, |definition, manifest| {
            check(&folder, definition, manifest, progress)
        })
    })?;
    let Checked { bytes, bases, layers, memory } = checked.map_err(|e| match e {
        CheckpointError::Cancelled(_) => {
            anyhow::anyhow!("cancelled: no damage found in what was read so far")
        }
        e if is_merged(&e, &folder) => refused(format!(
            "layers of the VM `{}` are being merged: try again afterwards (`piton checkpoint jobs {0}` \
             shows the progress)",
            folder.name()
        )),
        // Its reader asked whether it is damaged, and it is.
        CheckpointError::Base(problem) => anyhow::anyhow!("{problem}"),
        e => e.into(),
    })?;
    if json {
        let unchecked: Vec<&String> = bases.iter().chain(&layers).chain(&memory).collect();
        let result = serde_json::json!({ "checkpoint": manifest.id, "bytes": bytes, "unchecked": unchecked });
        out::json_line(&result);
    } else {
        if layers.is_empty() && memory.is_none() {
            outln!("checkpoint `{}` is intact: {} read and checked", manifest.name, size(bytes));
        } else {
            outln!("{} read and checked", size(bytes));
        }
        output::unchecked(&bases);
        output::unchecked(&layers);
    }
    if let Some(why) = memory {
        anyhow::bail!("only the disks of checkpoint `{}` were checked: {why}", manifest.name);
    }
    if !layers.is_empty() {
        anyhow::bail!(
            "checkpoint `{}` cannot be fully checked: some of its layers have no checksums; `piton doctor \
            {}` says what to do",
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
    bases::check(folder, definition, manifest, false)?;
    let mut bytes = 0;
    let outdated = outdated::why(&catalog, manifest);
    let known = outdated.is_none();
    if let Some(info) = manifest.state.as_ref().filter(|_| known) {
        bytes += read_state(folder.storage(), &catalog.store.state_path(manifest.id), info)?.len() as u64;
    }
    if manifest.memory.is_some() && known {
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
    let mut without = Vec::new();
    for disk in manifest.config.disks.iter().filter(|disk| manifest.disks.contains_key(&disk.id)) {
        let Some(sums) = disks::base_sums(folder, disk)? else { continue };
        let failed = |error| DisksError::Disk { id: disk.id.clone(), error };
        let base = open_base(folder.storage(), &base_path(folder, disk), disk.format).map_err(failed)?;
        progress.phase("base", base.len());
        let checked = base.attach_sums(folder.storage(), &sums).and_then(|()| {
            base.verify(&|part| {
                progress.add(part);
                progress.check().map_err(DiskError::from)
            })
        });
        checked.map_err(failed)?;
        bytes += base.len();
    }
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
                None => without.push(format!("{} of disk `{disk}`", spec.path.display())),
            }
        }
    }
    Ok(Checked {
        bytes,
        bases: seal::unchecked(folder, &manifest.config)?,
        layers: without,
        memory: outdated,
    })
}
