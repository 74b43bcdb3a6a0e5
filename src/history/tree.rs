//! The checkpoint tree as users see it.

use super::merge::pending;
use super::sizes::Sizes;
use super::{Catalog, Result, outdated};
use crate::checkpoint::Manifest;
use crate::checkpoint::shown::shown;
use crate::checkpoint::store::Verified;
use crate::checkpoint::tree::{RowItem, Tree};
use crate::control::{CheckpointDetails, CheckpointInfo, TreeInfo};
use crate::folder::Definition;
use crate::id::Id;

/// The tree as users see it.
pub fn tree(catalog: &Catalog, definition: &Definition) -> Result<TreeInfo> {
    let listing = catalog.listing()?;
    let (seen, now) = shown(&listing.manifests, definition.now.parent);
    let tree = Tree::of(&seen, now);
    let manifest = |id: Id| seen.iter().find(|manifest| manifest.id == id);
    let rows = tree.rows().into_iter().filter_map(|row| match row.what {
        RowItem::Checkpoint(id) => manifest(id),
        RowItem::Now => None,
    });
    let damaged = listing.damaged.iter().map(|damaged| damaged.error.to_string());
    let problems = tree.problems().iter().map(ToString::to_string);
    let sizes = Sizes::read(catalog, definition, &listing.manifests)?;
    let told = |manifest: &Manifest| CheckpointInfo {
        size: Some(sizes.of(manifest.id)),
        verified: catalog.store.verified(manifest.id).map(|verified| Verified { console: None, ..verified }),
        ..CheckpointInfo::from(manifest)
    };
    Ok(TreeInfo {
        now,
        checkpoints: rows.map(told).collect(),
        damaged: damaged.chain(problems).collect(),
        pending_merges: pending(catalog, definition).unwrap_or(0),
    })
}

/// All that is told of one checkpoint.
pub fn details(catalog: &Catalog, definition: &Definition, manifest: &Manifest) -> Result<CheckpointDetails> {
    let manifests = catalog.manifests()?;
    let mut details = CheckpointDetails::from(manifest);
    let sizes = Sizes::read(catalog, definition, &manifests)?;
    details.info.verified = catalog.store.verified(manifest.id);
    details.info.warnings.extend(
        outdated::why(catalog, manifest)
            .map(|why| format!("its memory cannot be used, only its disks: {why}")),
    );
    details.info.size = Some(sizes.in_detail(manifest.id, &manifests));
    Ok(details)
}
