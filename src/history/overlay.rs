//! The overlays that disks go on with once a checkpoint is made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Result;
use super::disks::{DisksError, new_layer_path, remove_layers};
use crate::disk::delta::FrozenDelta;
use crate::disk::layer::LayerSpec;
use crate::disk::live::{LiveDisk, Prepared};
use crate::folder::VmFolder;
use crate::id::Id;
use crate::storage::Storage;

/// A disk's next overlay, and what the disk was made of before.
pub struct Staged {
    pub disk: Arc<LiveDisk>,
    pub overlay: Prepared,
    pub before: Option<Id>,
    pub bytes: u64,
}

/// A layer that was frozen in the pause: by disk, what it is and how much it holds.
pub struct Frozen {
    pub layer: Option<(Id, Arc<FrozenDelta>)>,
    pub bytes: u64,
}

pub(super) fn stage_overlays(
    folder: &VmFolder,
    disks: &BTreeMap<String, Arc<LiveDisk>>,
) -> Result<BTreeMap<String, Staged>> {
    let mut staged = BTreeMap::new();
    for (id, disk) in disks {
        let failed = |error| DisksError::Disk { id: id.clone(), error };
        let made = new_layer_path(folder, id).and_then(|path| {
            let bytes = disk.overlay_bytes().map_err(failed)?;
            let overlay = disk.prepare(folder.storage(), &path).map_err(failed)?;
            Ok(Staged { disk: disk.clone(), overlay, before: disk.top(), bytes })
        });
        match made {
            Ok(one) => {
                staged.insert(id.clone(), one);
            }
            Err(e) => {
                discard(folder, staged);
                return Err(e.into());
            }
        }
    }
    Ok(staged)
}

fn discard(folder: &VmFolder, staged: BTreeMap<String, Staged>) {
    let layers: Vec<LayerSpec> = staged.into_values().map(|one| one.overlay.spec()).collect();
    remove_layers(folder, &layers);
}

/// Lets the disks write to their overlays; `frozen` tells which do.
pub fn switch(
    storage: &Storage,
    staged: BTreeMap<String, Staged>,
    frozen: &mut BTreeMap<String, Frozen>,
) -> Result<()> {
    for (disk, one) in staged {
        let failed = |error| DisksError::Disk { id: disk.clone(), error };
        let layer = one.disk.push(storage, one.overlay).map_err(failed)?;
        frozen.insert(disk.clone(), Frozen { layer: one.before.zip(layer), bytes: one.bytes });
    }
    Ok(())
}
