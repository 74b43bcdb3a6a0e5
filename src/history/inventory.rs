//! What lies in a VM's folder, read once.

use super::disks::Layers;
use super::{Catalog, Result};
use crate::checkpoint::store::Listing;

/// All checkpoints and all layers. Whoever read it under the VM's lock knows them until something is
/// changed.
pub struct Inventory {
    pub listing: Listing,
    pub layers: Layers,
}

impl Inventory {
    pub fn read(catalog: &Catalog) -> Result<Self> {
        Ok(Self { listing: catalog.listing()?, layers: Layers::read(catalog.folder)? })
    }

    /// How many checkpoints users see.
    pub fn count(&self) -> usize {
        self.listing.manifests.iter().filter(|manifest| !manifest.is_in_trash()).count()
    }
}
