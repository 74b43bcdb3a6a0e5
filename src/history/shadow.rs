//! A check of captures for tests, in debug builds with `PITON_SHADOW` set: all of memory is copied
//! in the pause, and the published image is compared with the copy page by page.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::{Catalog, CheckpointError, Result};
use crate::capture::chain::MemoryChain;
use crate::capture::guest::{CaptureError, ranges};
use crate::checkpoint::Manifest;
use crate::memory::GuestMemory;

const STEP: u64 = 1 << 20;

/// Guest addresses with what was there.
#[derive(Clone)]
pub struct Shadow(Arc<Vec<(u64, Vec<u8>)>>);

impl Shadow {
    /// None unless the check is asked for.
    pub fn take(memory: &GuestMemory) -> Result<Option<Self>> {
        if !cfg!(debug_assertions) || std::env::var_os("PITON_SHADOW").is_none() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        for (start, len) in ranges(memory) {
            for at in (0..len).step_by(STEP as usize) {
                let mut part = vec![0; (len - at).min(STEP) as usize];
                memory.read_slice(&mut part, GuestAddress(start + at)).map_err(CaptureError::from)?;
                parts.push((start + at, part));
            }
        }
        Ok(Some(Self(Arc::new(parts))))
    }

    pub fn compare(&self, catalog: &Catalog, manifest: &Manifest) -> Result<()> {
        let specs = catalog.store.memory_chain(manifest)?;
        let chain = MemoryChain::open(catalog.folder.storage(), &specs)?;
        let mut page = [0; 4096];
        for (start, part) in self.0.iter() {
            for (at, expected) in (*start..).step_by(page.len()).zip(part.chunks_exact(page.len())) {
                chain.read(at, &mut page)?;
                if page != expected {
                    let text = format!("the image of `{}` is wrong at {at:#x}", manifest.name);
                    return Err(CheckpointError::Refused(text));
                }
            }
        }
        Ok(())
    }
}
