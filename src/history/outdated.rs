//! Checkpoints with memory or state of a format version that this piton does not read, too old or of a
//! newer one: their disks are there all the same. Other damage is damage, and said as such.

use super::Catalog;
use crate::capture::chain::MemoryChain;
use crate::capture::image::ImageError;
use crate::checkpoint::Manifest;
use crate::checkpoint::state::{StateError, read_state};

/// Why its memory is none to this piton, as a sentence's end.
pub fn why(catalog: &Catalog, manifest: &Manifest) -> Option<String> {
    let (Some(_), Some(state)) = (&manifest.memory, &manifest.state) else { return None };
    let (storage, store) = (catalog.folder.storage(), &catalog.store);
    // Of anything else that is wrong with it says whoever reads it.
    if let Err(e @ StateError::Version { .. }) = read_state(storage, &store.state_path(manifest.id), state) {
        return Some(e.to_string());
    }
    let opened = MemoryChain::open(storage, &store.memory_chain(manifest).ok()?);
    opened.err().filter(ImageError::is_version).map(|e| e.to_string())
}

/// What of a checkpoint can be used, and why not all of it.
pub fn usable(catalog: &Catalog, manifest: &Manifest) -> (Manifest, Option<String>) {
    match why(catalog, manifest) {
        None => (manifest.clone(), None),
        Some(why) => {
            let why = format!("without its memory: {why}");
            (manifest.without_memory(why.clone()), Some(why))
        }
    }
}
