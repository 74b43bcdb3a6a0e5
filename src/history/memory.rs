//! Memory images whose checkpoint goes, or is gone, while others read through them.
//!
//! Before it goes, who reads through its image gets a hard link of it. Later the link and the image
//! above it become one file: [`crate::checkpoint::store::Store::merge_images`].

use super::{Catalog, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::store::{FoundImage, StoreError};
use crate::id::Id;

/// Gives all that stay the images that they read through and that would go with `gone`.
pub fn keep(catalog: &Catalog, manifests: &[Manifest], gone: &[Id]) -> Result<()> {
    for manifest in manifests.iter().filter(|manifest| !gone.contains(&manifest.id)) {
        match catalog.store.keep_images(manifest, manifests, gone) {
            // It cannot be used as it is, whatever goes.
            Err(e @ StoreError::NoImage { .. }) => log::warn!("{e}"),
            other => other?,
        }
    }
    Ok(())
}

/// Undoes [`keep`]: `manifests` are as they were before it.
pub fn take_back(catalog: &Catalog, manifests: &[Manifest]) {
    let kept = |manifest: &Manifest| manifest.memory.as_ref().map(|memory| memory.kept.clone());
    for before in manifests {
        let Ok(now) = catalog.store.load(before.id) else { continue };
        if kept(&now) != kept(before)
            && let Err(e) = catalog.store.unkeep_images(before)
        {
            log::warn!("{e}");
        }
    }
}

/// Checkpoints whose memory is not all there.
pub fn missing(catalog: &Catalog) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for manifest in catalog.manifests()? {
        match catalog.store.images(&manifest) {
            Err(e) => missing.push(e.to_string()),
            Ok(images) => {
                for FoundImage { spec, .. } in images {
                    if !catalog.folder.storage().exists(&spec.path)? {
                        let name = &manifest.name;
                        let path = spec.path.display();
                        missing.push(format!("{path}, which checkpoint `{name}` needs, is missing"));
                    }
                }
            }
        }
    }
    Ok(missing)
}
