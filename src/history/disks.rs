//! The disks of a VM: its definition's images with the layers in its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::base_problem::{BaseProblem, look};
use crate::config::{DiskConfig, DiskFormat, VmConfig};
use crate::disk::delta::{Delta, FrozenDelta};
use crate::disk::delta_format::Parent;
use crate::disk::layer::{LayerInfo, LayerSpec, ancestry, inspect};
use crate::disk::live::{LaterSync, LiveDisk, OnLoss, Opening};
use crate::disk::{Backing, Disk, DiskError, ReadOnly, open_base, sums};
use crate::folder::{Definition, FolderError, VmFolder};
use crate::history::lost::{Lost, Note};
use crate::id::Id;
use crate::machine::MachineDisk;

pub use super::base_problem::base_path;

#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    #[error(transparent)]
    Base(#[from] Box<BaseProblem>),
    #[error("disk `{id}`: {error}")]
    Disk { id: String, error: DiskError },
    #[error(
        "disk `{0}` is a qcow2 image, which piton does not write to: add ,overlay to keep the guest's \
     writes in a separate file, or ,readonly"
    )]
    Qcow2NeedsOverlay(String),
    #[error(
        "disk `{id}` cannot have {size} bytes: its image has {image}, and a disk cannot be smaller than that"
    )]
    Smaller { id: String, size: u64, image: u64 },
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Layer(#[from] DiskError),
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl OpenDisks {
    /// What a guest that went away never flushed is kept all the same, as by a disk's own cache
    /// over a reset.
    pub fn flush(&self) {
        for disk in &self.machine {
            if let Err(e) = disk.disk.flush() {
                log::warn!("disk {}: {e}", disk.id);
            }
        }
    }

    /// Those that no checkpoint touches, which stay as they are whatever the VM goes back to, and
    /// frozen layers, which others may read, too.
    pub fn reuse(&self) -> Reuse {
        let alone = self.machine.iter().filter(|disk| !self.live.contains_key(&disk.id));
        let layers = self.live.values().flat_map(|disk| disk.frozen());
        Reuse {
            disks: alone.map(|disk| (disk.id.clone(), disk.disk.clone())).collect(),
            layers: layers.map(|layer| (layer.id(), layer)).collect(),
        }
    }
}

impl DisksError {
    fn disk<E: Into<DiskError>>(config: &DiskConfig) -> impl FnOnce(E) -> Self {
        move |error| Self::Disk { id: config.id.clone(), error: error.into() }
    }
}

/// File names of delta layers end so.
const DELTA: &str = "delta";

/// Where the next layer of a disk goes.
pub fn new_layer_path(folder: &VmFolder, disk: &str) -> Result<PathBuf, DisksError> {
    let name = Id::random()
        .map_err(|e| DisksError::Disk { id: disk.to_owned(), error: DiskError::Random(e) })?
        .to_string();
    Ok(folder.make_disks_folder()?.join(format!("{disk}-{}.{DELTA}", &name[..8])))
}

/// Bytes of the disks that have layers, by what the layers say.
pub fn sizes(folder: &VmFolder, tops: &BTreeMap<String, Id>) -> BTreeMap<String, u64> {
    let layers = Layers::read(folder).unwrap_or_default();
    tops.iter().filter_map(|(disk, top)| Some((disk.clone(), layers.size(*top)?))).collect()
}

/// Gives every disk that asks for an overlay its first one, and names it in the definition. `sizes`
/// are those of disks that are to be larger than their images.
pub fn create_overlays(
    folder: &VmFolder,
    definition: &mut Definition,
    sizes: &BTreeMap<String, u64>,
) -> Result<(), DisksError> {
    let overlays = definition.config.disks.iter().filter(|disk| disk.overlay);
    let parents = overlays.map(|disk| (disk.id.clone(), Parent::Base)).collect();
    let made = branch(folder, &definition.config, &parents, sizes)?;
    definition.now.tops.extend(made.into_iter().map(|(disk, layer)| (disk, layer.id)));
    Ok(())
}

/// The layers in a VM's folder by what their headers say: a chain is found by its parents, not by
/// a list that could be older than the last merge.
#[derive(Default)]
pub struct Layers {
    pub found: Vec<LayerInfo>,
    /// Files whose header cannot be read: left by a crash in the middle of their creation, which
    /// hurts nobody, or damaged.
    pub broken: Vec<(PathBuf, DiskError)>,
}

impl Layers {
    pub fn read(folder: &VmFolder) -> Result<Self, DisksError> {
        let storage = folder.storage();
        let dir = folder.disks();
        let mut layers = Self { found: Vec::new(), broken: Vec::new() };
        let names = match storage.list_dir(&dir) {
            Ok(names) => names,
            Err(e) if e.is_not_found() => return Ok(layers),
            Err(e) => return Err(FolderError::from(e).into()),
        };
        for path in names.iter().map(|name| dir.join(name)) {
            if path.extension().is_some_and(|extension| extension == DELTA) {
                match inspect(storage, &path) {
                    Ok(layer) => layers.found.push(layer),
                    Err(e) => layers.broken.push((path, e)),
                }
            }
        }
        Ok(layers)
    }

    /// Of the disk that a layer is of.
    pub fn size(&self, layer: Id) -> Option<u64> {
        self.found.iter().find(|found| found.id == layer).map(|found| found.size)
    }

    /// Of the base that the layers up to `top` were made above; none if one of them is not there.
    pub fn base_size(&self, top: Id) -> Option<u64> {
        let chain = self.chain(top).ok()?;
        let lowest = chain.first()?.id;
        self.found.iter().find(|found| found.id == lowest).map(|found| found.below)
    }

    /// The layers from the base up to `top`.
    pub fn chain(&self, top: Id) -> Result<Vec<LayerSpec>, DiskError> {
        ancestry(&self.found, top).map_err(|missing| match self.broken.first() {
            Some((path, e)) => DiskError::Unreadable { path: path.clone(), reason: e.to_string() },
            None => missing,
        })
    }
}

/// What is open already of a VM's disks.
#[derive(Default)]
pub struct Reuse {
    disks: BTreeMap<String, Arc<dyn Disk>>,
    layers: BTreeMap<Id, Arc<FrozenDelta>>,
}

/// Open disks of a VM.
#[derive(Default)]
pub struct OpenDisks {
    /// As the machine gets them.
    pub machine: Vec<MachineDisk>,
    /// Those that checkpoints are taken of, by id.
    pub live: BTreeMap<String, Arc<LiveDisk>>,
}

/// Opens every disk: on the writable layer that `tops` names, or its base. `crcs` are the
/// checksums of frozen layers, `reuse` holds disks that are open already.
pub fn open(
    folder: &VmFolder,
    config: &VmConfig,
    tops: &BTreeMap<String, Id>,
    crcs: &BTreeMap<Id, u32>,
    reuse: &Reuse,
) -> Result<OpenDisks, DisksError> {
    open_on(folder, config, tops, crcs, reuse, &Layers::read(folder)?, Fresh::default(), None)
}

/// What takes the syncs of disks that are opened, to make them meanwhile.
pub type TakeSync<'a> = &'a dyn Fn(Box<dyn FnOnce() -> Result<(), DisksError> + Send>);

/// The same where the layers are known already, and those in `fresh` open. Before anything is built on
/// the disks, the syncs that `later` was given have to be made.
#[allow(clippy::too_many_arguments, reason = "what there is already of each part")]
pub fn open_on(
    folder: &VmFolder,
    config: &VmConfig,
    tops: &BTreeMap<String, Id>,
    crcs: &BTreeMap<Id, u32>,
    reuse: &Reuse,
    layers: &Layers,
    mut fresh: Fresh,
    later: Option<TakeSync>,
) -> Result<OpenDisks, DisksError> {
    let mut disks = OpenDisks::default();
    let note = match Note::open(folder) {
        Ok(note) => Some(Arc::new(note)),
        Err(e) => {
            log::warn!("a failed flush could not be recorded: {e}");
            None
        }
    };
    for config in &config.disks {
        let storage = folder.storage();
        let path = base_path(folder, config);
        let failed = || DisksError::disk(config);
        if !reuse.disks.contains_key(&config.id) {
            look(folder, config, tops.get(&config.id).and_then(|top| layers.base_size(*top)))?;
        }
        let disk: Arc<dyn Disk> = if let Some(open) = reuse.disks.get(&config.id) {
            open.clone()
        } else if config.readonly {
            let base = open_base(storage, &path, config.format).map_err(failed())?;
            if let Some(sums) = base_sums(folder, config)? {
                base.attach_sums(storage, &sums).map_err(failed())?;
            }
            Arc::new(ReadOnly(base))
        } else {
            let chain = match tops.get(&config.id) {
                Some(top) => layers.chain(*top).map_err(failed())?,
                None if config.format == DiskFormat::Qcow2 => {
                    return Err(DisksError::Qcow2NeedsOverlay(config.id.clone()));
                }
                None => Vec::new(),
            };
            let files: Vec<&Path> =
                chain.iter().map(|layer| layer.path.as_path()).chain([path.as_path()]).collect();
            if let Some(lost) = note.as_ref().and_then(|note| note.of(&config.id, &files)) {
                return Err(lost.into());
            }
            let tell: Option<OnLoss> = note.clone().map(|note| {
                let id = config.id.clone();
                Arc::new(move |path: &Path, e: &DiskError| note.add(&id, path, e)) as OnLoss
            });
            let take = later.map(|later| {
                let (id, tell) = (config.id.clone(), tell.clone());
                move |sync: LaterSync| {
                    let (id, tell) = (id.clone(), tell.clone());
                    later(Box::new(move || {
                        sync().map_err(|error| {
                            told(&error, tell.as_ref());
                            DisksError::Disk { id, error }
                        })
                    }));
                }
            });
            let opening = Opening {
                shared: Some(&reuse.layers),
                top: fresh.remove(&config.id),
                later: take.as_ref().map(|take| take as &dyn Fn(LaterSync)),
            };
            let opened = LiveDisk::open_with(storage, &path, config.format, &chain, crcs, opening);
            if let Err(e) = &opened {
                told(e, tell.as_ref());
            }
            let disk = opened.map_err(failed())?;
            if let Some(sums) = base_sums(folder, config)? {
                disk.attach_base_sums(storage, &sums).map_err(failed())?;
            }
            let disk = Arc::new(match tell {
                Some(tell) => disk.on_loss(tell),
                None => disk,
            });
            if !config.passthrough {
                disks.live.insert(config.id.clone(), disk.clone());
            }
            disk
        };
        disks.machine.push(MachineDisk { id: config.id.clone(), disk });
    }
    Ok(disks)
}

/// Whoever is to know of a failed sync does.
fn told(error: &DiskError, tell: Option<&OnLoss>) {
    if let (Some(tell), Some(path)) = (tell, error.file_not_synced()) {
        tell(path, error);
    }
}

/// The file with the checksums of a disk's base, if it has some.
pub fn base_sums(folder: &VmFolder, config: &DiskConfig) -> Result<Option<PathBuf>, DisksError> {
    let path = folder.base_sums(&config.id);
    let there = folder.storage().exists(&path).map_err(FolderError::from)?;
    Ok(there.then_some(path))
}

/// Makes a fresh, durable layer for each disk in `parents`, above what is named there; of that size,
/// or of the one in `sizes`.
pub fn branch(
    folder: &VmFolder,
    config: &VmConfig,
    parents: &BTreeMap<String, Parent>,
    sizes: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, LayerSpec>, DisksError> {
    let made = branch_on(folder, config, parents, sizes, &Layers::read(folder)?)?;
    let specs = made.iter().map(|(disk, layer)| {
        let spec = LayerSpec { path: layer.path().to_owned(), id: layer.id() };
        (disk.clone(), spec)
    });
    let specs: BTreeMap<String, LayerSpec> = specs.collect();
    for (id, layer) in &made {
        if let Err(error) = layer.making(folder.storage())() {
            remove_layers(folder, specs.values());
            return Err(DisksError::Disk { id: id.clone(), error });
        }
    }
    Ok(specs)
}

/// Layers that were made just now, by disk.
pub type Fresh = BTreeMap<String, Delta>;

/// The same on layers that are known already; none is durable before [`Delta::making`] has run.
pub fn branch_on(
    folder: &VmFolder,
    config: &VmConfig,
    parents: &BTreeMap<String, Parent>,
    sizes: &BTreeMap<String, u64>,
    layers: &Layers,
) -> Result<Fresh, DisksError> {
    let storage = folder.storage();
    let mut made = Fresh::new();
    let give_up = |made: &Fresh| {
        let specs = made.values().map(|layer| LayerSpec { path: layer.path().to_owned(), id: layer.id() });
        remove_layers(folder, &specs.collect::<Vec<_>>());
    };
    for config in &config.disks {
        let Some(parent) = parents.get(&config.id) else { continue };
        let failed = || DisksError::disk(config);
        let (base_size, below) = match parent {
            Parent::Base => (None, None),
            Parent::Delta(below) => (layers.base_size(*below), layers.size(*below)),
        };
        look(folder, config, base_size)?;
        let base = open_base(storage, &base_path(folder, config), config.format).map_err(failed())?;
        let below = below.unwrap_or(base.len());
        let size = sizes.get(&config.id).copied().unwrap_or(below);
        if size < below {
            give_up(&made);
            return Err(DisksError::Smaller { id: config.id.clone(), size, image: below });
        }
        let layer = new_layer_path(folder, &config.id)
            .and_then(|path| Delta::make_over(storage, &path, size, *parent, below).map_err(failed()));
        match layer {
            Ok(layer) => made.insert(config.id.clone(), layer),
            Err(e) => {
                give_up(&made);
                return Err(e);
            }
        };
    }
    Ok(made)
}

/// Removes the files of layers that nothing needs. What cannot be removed now is found again by
/// the next recovery.
pub fn remove_layers<'a>(folder: &VmFolder, layers: impl IntoIterator<Item = &'a LayerSpec>) {
    for layer in layers {
        // The checksums first: without their layer nobody would look for them.
        let sums = sums::files_of(folder.storage(), &layer.path).unwrap_or_default();
        for path in sums.iter().chain([&layer.path]) {
            if let Err(e) = folder.storage().remove_file_if_exists(path) {
                log::warn!("{e}");
            }
        }
    }
}
