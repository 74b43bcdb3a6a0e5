//! What it would free and what it would cost if checkpoints were gone for good.

use super::merge::pending_of;
use super::sizes::Sizes;
use super::{Catalog, Result};
use crate::folder::Definition;
use crate::id::Id;

#[derive(Debug, Clone, Copy, Default)]
pub struct Effect {
    /// At least: merging may free more.
    pub bytes: u64,
    /// Pairs of layers that nothing needs apart any more.
    pub merges: usize,
}

/// Told for what it is worth: what cannot be read counts for nothing.
pub fn of_delete(catalog: &Catalog, definition: &Definition, going: &[Id]) -> Effect {
    look(catalog, definition, going).unwrap_or_default()
}

fn look(catalog: &Catalog, definition: &Definition, going: &[Id]) -> Result<Effect> {
    let mut listing = catalog.listing()?;
    let bytes = Sizes::read(catalog, definition, &listing.manifests)?.frees(going);
    let before = pending_of(catalog, definition, &listing)?;
    listing.manifests.retain(|manifest| !going.contains(&manifest.id));
    let after = pending_of(catalog, definition, &listing)?;
    Ok(Effect { bytes, merges: after.saturating_sub(before) })
}
