//! The disks of a VM: its definition's images with the layers in its folder.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{DiskConfig, DiskFormat};
use crate::disk::delta::Delta;
use crate::disk::delta_format::Parent;
use crate::disk::layer::{LayerInfo, ancestry, inspect};
use crate::disk::live::LiveDisk;
use crate::disk::{Backing, Disk, DiskError, ReadOnly, open_base};
use crate::folder::{Definition, FolderError, VmFolder};
use crate::id::Id;
use crate::machine::MachineDisk;

#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    #[error("disk `{id}`: {error}")]
    Disk { id: String, error: DiskError },
    #[error("disk `{0}` is a qcow2 image, which is only read: add ,overlay to write beside it, or ,readonly")]
    Qcow2NeedsOverlay(String),
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl DisksError {
    fn disk<E: Into<DiskError>>(config: &DiskConfig) -> impl FnOnce(E) -> Self {
        move |error| Self::Disk { id: config.id.clone(), error: error.into() }
    }
}

/// File names of delta layers end so.
const DELTA: &str = "delta";

/// A disk of the VM's own is named relative to its folder.
fn base_path(folder: &VmFolder, config: &DiskConfig) -> PathBuf {
    folder.path().join(&config.path)
}

/// Where the next layer of a disk goes.
fn new_layer_path(folder: &VmFolder, config: &DiskConfig) -> Result<PathBuf, DisksError> {
    let name = Id::random().map_err(|e| DisksError::disk(config)(DiskError::Random(e)))?.to_string();
    Ok(folder.make_disks_folder()?.join(format!("{}-{}.{DELTA}", config.id, &name[..8])))
}

/// Gives every disk that asks for an overlay its first one, and names it in the definition.
pub fn create_overlays(folder: &VmFolder, definition: &mut Definition) -> Result<(), DisksError> {
    for config in definition.config.disks.iter().filter(|disk| disk.overlay) {
        let storage = folder.storage();
        let base = open_base(storage, &base_path(folder, config), config.format)
            .map_err(DisksError::disk(config))?;
        let path = new_layer_path(folder, config)?;
        let layer =
            Delta::create(storage, &path, base.len(), Parent::Base).map_err(DisksError::disk(config))?;
        definition.now.tops.insert(config.id.clone(), layer.id());
    }
    Ok(())
}

/// All layers in the VM's folder, by what their headers say: a chain is found by its parents, not
/// by a list that could be older than the last merge.
fn layers(folder: &VmFolder) -> Result<Vec<LayerInfo>, DiskError> {
    let storage = folder.storage();
    let dir = folder.disks();
    let names = match storage.list_dir(&dir) {
        Ok(names) => names,
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let paths = names.iter().map(|name| dir.join(name));
    paths
        .filter(|path| path.extension().is_some_and(|e| e == DELTA))
        .map(|path| inspect(storage, &path))
        .collect()
}

/// Opens every disk as it is now.
pub fn open(folder: &VmFolder, definition: &Definition) -> Result<Vec<MachineDisk>, DisksError> {
    let mut layers_seen = None;
    let mut open_one = |config: &DiskConfig| -> Result<Arc<dyn Disk>, DisksError> {
        let storage = folder.storage();
        let path = base_path(folder, config);
        let failed = || DisksError::disk(config);
        if config.readonly {
            return Ok(Arc::new(ReadOnly(open_base(storage, &path, config.format).map_err(failed())?)));
        }
        let chain = match definition.now.tops.get(&config.id) {
            Some(top) => {
                if layers_seen.is_none() {
                    layers_seen = Some(layers(folder).map_err(failed())?);
                }
                ancestry(layers_seen.as_deref().unwrap_or_default(), *top).map_err(failed())?
            }
            None if config.format == DiskFormat::Qcow2 => {
                return Err(DisksError::Qcow2NeedsOverlay(config.id.clone()));
            }
            None => Vec::new(),
        };
        Ok(Arc::new(LiveDisk::open(storage, &path, config.format, &chain).map_err(failed())?))
    };
    let disks = &definition.config.disks;
    disks.iter().map(|config| Ok(MachineDisk { id: config.id.clone(), disk: open_one(config)? })).collect()
}
