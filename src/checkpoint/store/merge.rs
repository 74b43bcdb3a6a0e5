//! Merging memory images that nothing needs apart.
//!
//! The manifest names another file in the same step in which it stops to name those that were
//! merged, so at every moment it names files that are whole.

use crate::capture::image::{Image, Merge};
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::MemoryInfo;
use crate::id::Id;
use crate::progress::Progress;

use super::names::{FLAT, own_name};
use super::{FoundImage, Result, Store, StoreError};

/// Bytes copied between two looks at whether to stop.
const STEP: u64 = 64 << 20;

impl Store {
    /// Merges images that nothing needs apart. May be cut short anywhere: the next call goes on.
    /// Cancelled, it leaves the rest.
    pub fn merge_images(&self, progress: &Progress) -> Result<()> {
        let listing = self.list()?;
        for manifest in &listing.manifests {
            if manifest.memory.as_ref().is_none_or(|memory| memory.kept.is_empty()) {
                continue;
            }
            let manifest = self.forget_unneeded(&listing.manifests, manifest)?;
            self.merge(&manifest, progress)?;
        }
        Ok(())
    }

    /// A checkpoint that was to go and stayed needs nobody to keep its image.
    fn forget_unneeded(&self, manifests: &[Manifest], manifest: &Manifest) -> Result<Manifest> {
        let is_there =
            |id: Id| manifests.iter().any(|manifest| manifest.id == id && manifest.memory.is_some());
        let mut wanted = manifest.clone();
        if let Some(memory) = &mut wanted.memory {
            memory.kept.retain(|kept| !is_there(kept.id));
        }
        let images = self.images(&wanted)?;
        let is_read = |id: Id| images.iter().any(|image| image.holder == manifest.id && image.spec.id == id);
        let kept = manifest.memory.iter().flat_map(|memory| &memory.kept);
        let unneeded: Vec<Id> = kept.map(|kept| kept.id).filter(|id| !is_read(*id)).collect();
        if unneeded.is_empty() {
            return Ok(manifest.clone());
        }
        let updated = self.update(manifest.id, |manifest| {
            if let Some(memory) = &mut manifest.memory {
                memory.kept.retain(|kept| !unneeded.contains(&kept.id));
            }
        })?;
        for id in unneeded {
            self.storage.remove_file_if_exists(&self.kept_path(manifest.id, id))?;
        }
        Ok(updated)
    }

    /// Makes one file of a checkpoint's image and those below it that are kept for it alone.
    fn merge(&self, manifest: &Manifest, progress: &Progress) -> Result<()> {
        let images = self.images(manifest)?;
        let mut count = 0;
        for image in &images {
            // What has another name is shared; a copy of it would cost more than it saves.
            if image.holder != manifest.id || self.storage.metadata(&image.spec.path)?.links > 1 {
                break;
            }
            count += 1;
        }
        let (Some(memory), 2..) = (&manifest.memory, count) else { return Ok(()) };
        let (merged, below) = (&images[..count], images[count - 1].parent);
        let file = memory.file + 1;
        let path = self.path(manifest.id).join(own_name(file));
        self.storage.remove_file_if_exists(&path)?;
        let sources = merged
            .iter()
            .map(|FoundImage { spec, .. }| Image::open(&self.storage, &spec.path, spec.id, spec.crc))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut merge = Merge::begin(&self.storage, &path, sources)?;
        progress.phase("merging memory images", merge.total());
        let done = (|| {
            loop {
                match merge.step(STEP)? {
                    0 => break,
                    bytes => progress.add(bytes),
                }
                if progress.is_cancelled() {
                    return Ok(None);
                }
            }
            let info = merge.finish()?;
            self.storage.sync_parent(&path)?;
            Ok::<_, StoreError>(Some(info))
        })();
        let info = match done {
            Ok(Some(info)) => info,
            Ok(None) => return Ok(self.storage.remove_file(&path)?),
            Err(e) => {
                // The first error is the one to report.
                let _ = self.storage.remove_file_if_exists(&path);
                return Err(e);
            }
        };
        let mut needs_copy = false;
        self.update(manifest.id, |manifest| {
            if let Some(memory) = &mut manifest.memory {
                let mut kept = std::mem::take(&mut memory.kept);
                kept.retain(|kept| !merged.iter().any(|image| image.spec.id == kept.id));
                let flat = memory.flat.take();
                *memory = MemoryInfo { file, kept, ..MemoryInfo::new(info, below) };
                // What became flat itself needs no copy that is.
                memory.flat = flat.filter(|_| !memory.is_flat());
                needs_copy = memory.flat.is_some();
            }
        })?;
        if !needs_copy {
            self.storage.remove_file_if_exists(&self.path(manifest.id).join(FLAT))?;
        }
        for image in merged {
            self.storage.remove_file_if_exists(&image.spec.path)?;
        }
        Ok(())
    }
}
