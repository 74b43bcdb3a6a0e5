//! A checkpoint's memory as one image that VMs can map and share.

use super::{CheckpointError, Result};
use crate::capture::chain::MemoryChain;
use crate::capture::image::ImageError;
use crate::checkpoint::Manifest;
use crate::checkpoint::store::{Store, StoreError};
use crate::progress::Progress;
use crate::storage::StorageError;

/// The one flat image of `manifest`, all of it checked since the host booted. It is made if there
/// is none. Whoever calls this holds the lock of the VM.
pub fn ready(store: &Store, manifest: &Manifest, progress: &Progress) -> Result<MemoryChain> {
    let is_copy = manifest.memory.as_ref().is_some_and(|memory| !memory.is_flat());
    if store.flat_image(manifest).is_some() {
        match checked(store, manifest, progress) {
            Ok(chain) => return Ok(chain),
            Err(e) if !is_copy || e.is_cancelled() => return Err(e),
            // What it was made of may be whole.
            Err(e) => log::warn!("{e}: making a new one"),
        }
    }
    let manifest = &store.make_flat(manifest, progress).map_err(|e| refine(e, manifest))?;
    checked(store, manifest, progress).map_err(|e| {
        if e.is_cancelled() {
            return e;
        }
        if let Err(e) = store.drop_flat(manifest.id) {
            log::warn!("{e}");
        }
        // Pages are copied with their checksums: the damage is where they came from.
        source_damage(store, manifest, progress).err().unwrap_or(e)
    })
}

fn checked(store: &Store, manifest: &Manifest, progress: &Progress) -> Result<MemoryChain> {
    let chain = MemoryChain::open(store.storage(), store.flat_image(manifest).as_slice())?;
    for image in chain.images() {
        image.check_once(progress)?;
    }
    Ok(chain)
}

fn source_damage(store: &Store, manifest: &Manifest, progress: &Progress) -> Result<()> {
    let chain = MemoryChain::open(store.storage(), &store.memory_chain(manifest)?)?;
    chain.verify(|_, _| match progress.is_cancelled() {
        true => std::ops::ControlFlow::Break(()),
        false => std::ops::ControlFlow::Continue(()),
    })?;
    Ok(())
}

/// Says what an error of making the copy means for who asked.
fn refine(error: StoreError, manifest: &Manifest) -> CheckpointError {
    let source = match error {
        StoreError::Image(ImageError::Cancelled(cancelled)) => return cancelled.into(),
        StoreError::Image(ImageError::Storage(source)) | StoreError::Storage(source) => source,
        StoreError::Full { source, .. } => source,
        StoreError::Image(e) => return e.into(),
        e => return e.into(),
    };
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded => CheckpointError::Refused(format!(
            "there is not enough space for a copy of the memory of `{}` that VMs can share ({source}): \
             free some space, or give each VM its own memory (`clone --own-memory`, `apply` without \
             --share)",
            manifest.name
        )),
        _ => StorageError::into(source),
    }
}
