//! Layers by what their headers say: finding a chain, and changing a link of it.

use std::path::{Path, PathBuf};

use super::delta_format::{Geometry, Header, LayerId, Parent, header_offset};
use super::delta_header::{check_id, format_error, read_header};
use super::{DiskError, MAX_LAYERS, Result};
use crate::storage::{Access, Storage};

/// What the header of a layer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    pub path: PathBuf,
    pub id: LayerId,
    pub parent: Parent,
    pub size: u64,
    /// Of the disk that it is over.
    pub below: u64,
}

/// Where a layer is and which one has to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    pub path: PathBuf,
    pub id: LayerId,
}

/// Reads a header and nothing else; takes no lock.
pub fn inspect(storage: &Storage, path: &Path) -> Result<LayerInfo> {
    let file = storage.open(path, Access::ReadOnly)?;
    let (header, _) = read_header(&file)?;
    let Header { id, parent, size, below, .. } = header;
    Ok(LayerInfo { path: path.to_owned(), id, parent, size, below })
}

/// The layers from the base up to `top`, found by their parents.
pub fn ancestry(layers: &[LayerInfo], top: LayerId) -> Result<Vec<LayerSpec>> {
    let mut chain = Vec::new();
    let mut next = Parent::Delta(top);
    while let Parent::Delta(id) = next {
        let found = layers.iter().find(|layer| layer.id == id);
        let layer = found.ok_or(DiskError::NoParent(id))?;
        chain.push(LayerSpec { path: layer.path.clone(), id });
        // Also ends a ring.
        if chain.len() >= MAX_LAYERS {
            return Err(DiskError::TooLong(chain.len() + 1));
        }
        next = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// Gives a layer another parent. Only right where both read the same through
/// it, as after a merge. Written to the older slot: after a crash the layer
/// has the one parent or the other.
///
/// Takes no lock: whoever has the layer open has its layers open as well, and
/// the header is not read again. Two at a time are for the caller to prevent.
pub fn relink(storage: &Storage, layer: &LayerSpec, parent: Parent) -> Result<()> {
    relink_over(storage, layer, parent, None)
}

/// The same, to what may be of another size.
pub(super) fn relink_over(
    storage: &Storage,
    layer: &LayerSpec,
    parent: Parent,
    below: Option<u64>,
) -> Result<()> {
    let file = storage.open(&layer.path, Access::ReadWrite)?;
    let (mut header, slot) = read_header(&file)?;
    check_id(&layer.path, header.id, layer.id)?;
    let geometry = Geometry::new(header.size).map_err(|e| format_error(&layer.path, e))?;
    let below = below.unwrap_or(header.below);
    let slot = if (header.parent, header.below) == (parent, below) {
        // Perhaps from a relink whose sync failed: what is read may be in memory only, and the
        // kernel take it for written. So it is written again.
        slot
    } else {
        (header.parent, header.below) = (parent, below);
        header.generation += 1;
        1 - slot
    };
    file.write_at(&header.encode(geometry.data_offset), header_offset(slot))?;
    Ok(file.sync_data()?)
}
