//! A flat image: a checkpoint's memory in one file that can be mapped, so that any number of VMs can
//! share what the page cache holds of it.
//!
//! An own image that is full and not compressed is flat as it is. For any other there can be
//! `memory-flat` beside it, a copy that the manifest names and that nothing needs: it may go at any
//! time, and whoever maps it keeps what he has.

use std::path::{Path, PathBuf};

use crate::capture::chain::ImageSpec;
use crate::capture::image::{Image, ImageError, Merge};
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::FlatImage;
use crate::id::Id;
use crate::progress::Progress;

use super::names::FLAT;
use super::{FoundImage, Result, Store};

/// Bytes copied between two looks at whether to stop.
const STEP: u64 = 16 << 20;

impl Store {
    fn flat_path(&self, id: Id) -> PathBuf {
        self.path(id).join(FLAT)
    }

    /// The flat image that there is; none if it would have to be made.
    pub fn flat_image(&self, manifest: &Manifest) -> Option<ImageSpec> {
        let memory = manifest.memory.as_ref()?;
        if memory.is_flat() {
            return Some(ImageSpec { path: self.memory_path(manifest), id: manifest.id, crc: memory.crc });
        }
        let crc = memory.flat.as_ref()?.crc;
        Some(ImageSpec { path: self.flat_path(manifest.id), id: manifest.id, crc })
    }

    /// Makes the copy, in place of one that is there. After an error, and cancelled, there is none.
    pub fn make_flat(&self, manifest: &Manifest, progress: &Progress) -> Result<Manifest> {
        self.drop_flat(manifest.id)?;
        let path = self.flat_path(manifest.id);
        let made = self.copy_flat(manifest, &path, progress);
        let named = made.and_then(|flat| {
            self.update(manifest.id, |manifest| {
                if let Some(memory) = &mut manifest.memory {
                    memory.flat = Some(flat);
                }
            })
        });
        // The manifest may name it although its replacement failed at its end; then it is whole.
        let is_named = || self.load(manifest.id).is_ok_and(|found| self.names_flat(&found));
        if named.is_err() && !is_named() {
            // The first error is the one to report.
            let _ = self.storage.remove_file_if_exists(&path);
        }
        named
    }

    fn names_flat(&self, manifest: &Manifest) -> bool {
        manifest.memory.as_ref().is_some_and(|memory| memory.flat.is_some())
    }

    fn copy_flat(&self, manifest: &Manifest, path: &Path, progress: &Progress) -> Result<FlatImage> {
        let sources = self.images(manifest)?;
        let sources = sources
            .iter()
            .map(|FoundImage { spec, .. }| Image::open(&self.storage, &spec.path, spec.id, spec.crc))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut merge = Merge::flat(&self.storage, path, sources)?;
        progress.phase("copying memory", merge.total());
        loop {
            match merge.step(STEP)? {
                0 => break,
                bytes => progress.add(bytes),
            }
            progress.check().map_err(ImageError::from)?;
        }
        let info = merge.finish()?;
        self.storage.sync_parent(path)?;
        Ok(FlatImage { crc: info.crc, stored_bytes: info.stored_bytes })
    }

    /// Removes the copy, if there is one. First the manifest stops to name it: at no time does it
    /// name a file that is not whole.
    pub fn drop_flat(&self, id: Id) -> Result<bool> {
        let named = self.names_flat(&self.load(id)?);
        if named {
            self.update(id, |manifest| {
                if let Some(memory) = &mut manifest.memory {
                    memory.flat = None;
                }
            })?;
        }
        Ok(self.storage.remove_file_if_exists(&self.flat_path(id))? || named)
    }
}
