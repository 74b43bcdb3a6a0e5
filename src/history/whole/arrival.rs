//! Making a VM of what came from elsewhere: one checkpoint, and Now on it.
//!
//! Its definition is written last, so until then there is no VM, only a folder that the next one
//! of this name takes over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Result, memory};
use crate::capture::chain::MemoryChain;
use crate::capture::image::ImageInfo;
use crate::checkpoint::manifest::{CaptureInfo, DiskPoint, LeftOut, MemoryInfo};
use crate::checkpoint::stamp::{BaseStamp, FileStamp};
use crate::checkpoint::state::write_state;
use crate::checkpoint::{CheckpointName, Keeping, Kind, Manifest};
use crate::config::{DiskFormat, VmConfig};
use crate::disk::delta_format::Parent;
use crate::disk::{Backing, flat};
use crate::folder::{CheckpointType, Definition, VmFolder, VmLock};
use crate::history::Catalog;
use crate::history::disks::{self, new_layer_path};
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::{File, Storage};

/// Bytes that are copied at once.
const STEP: u64 = 1 << 20;

pub const KERNEL: &str = "kernel";
pub const INITRD: &str = "initrd";

/// What is written once, as a file of its own.
pub trait Contents {
    /// To a new file, durable.
    fn write(&self, storage: &Storage, to: &Path, progress: &Progress) -> Result<()>;
}

impl Contents for File {
    fn write(&self, storage: &Storage, to: &Path, progress: &Progress) -> Result<()> {
        copy(storage, self, to, progress)
    }
}

/// Memory of a checkpoint that becomes one full image.
pub trait Memory {
    fn write(&self, storage: &Storage, path: &Path, id: Id, progress: &Progress) -> Result<ImageInfo>;
}

impl Memory for MemoryChain {
    fn write(&self, storage: &Storage, path: &Path, id: Id, progress: &Progress) -> Result<ImageInfo> {
        progress.phase("memory", self.ranges().iter().map(|(_, len)| len).sum());
        memory::write_full(storage, path, id, self, progress)
    }
}

/// What is said of the checkpoint, wherever it is.
#[derive(Debug, Clone)]
pub struct About {
    pub name: CheckpointName,
    pub note: String,
    pub kind: Kind,
    pub created: DateTime<Utc>,
    pub left_out: Vec<LeftOut>,
    pub pause_us: Option<u64>,
    pub capture: Option<CaptureInfo>,
    pub warnings: Vec<String>,
    /// The VM's settings.
    pub checkpoint_type: CheckpointType,
    pub auto_checkpoint: bool,
}

pub struct Arrival {
    pub about: About,
    /// Without the paths of what is brought along.
    pub config: VmConfig,
    pub disks: BTreeMap<String, Arc<dyn Backing>>,
    pub memory: Option<Box<dyn Memory>>,
    pub state: Option<Vec<u8>>,
    /// What the VM boots from, with its name in the folder to come.
    pub boot: Vec<(&'static str, Box<dyn Contents>)>,
    /// Read-only disks of the VM's own, by id.
    pub own: Vec<(String, Box<dyn Contents>)>,
}

/// Makes the VM, whose folder there must not be yet; after an error nothing is left of it.
pub fn make(folder: &VmFolder, arrival: Arrival, id: Id, progress: &Progress) -> Result<()> {
    let lock = folder.create()?;
    if let Err(e) = fill(folder, &lock, arrival, id, progress) {
        drop(lock);
        // Should somebody have taken it over meanwhile, it is theirs.
        if let Ok(lock) = folder.lock_leftover()
            && let Err(left) = folder.remove(&lock)
        {
            log::warn!("cannot remove {}: {left}", folder.path().display());
        }
        return Err(e);
    }
    Ok(())
}

fn fill(folder: &VmFolder, lock: &VmLock, arrival: Arrival, id: Id, progress: &Progress) -> Result<()> {
    let storage = folder.storage();
    // What one that was killed left there; whoever holds the lock keeps its file.
    for name in storage.list_dir(folder.path())?.iter().filter(|name| *name != "lock") {
        remove(storage, &folder.path().join(name))?;
    }
    let Arrival { about, mut config, disks, memory, state, boot, own } = arrival;
    for (name, from) in boot {
        let to = folder.path().join(name);
        from.write(storage, &to, progress)?;
        let path = if name == KERNEL { &mut config.kernel } else { &mut config.initrd };
        *path = Some(to);
    }
    for (id, from) in own {
        let to = folder.make_disks_folder()?.join(format!("{id}.raw"));
        from.write(storage, &to, progress)?;
        for disk in config.disks.iter_mut().filter(|disk| disk.id == id) {
            disk.path = PathBuf::from("disks").join(format!("{id}.raw"));
            disk.format = DiskFormat::Raw;
        }
    }
    let (mut points, mut bases) = (BTreeMap::new(), BTreeMap::new());
    for (disk, contents) in &disks {
        let failed = super::WholeError::disk(disk);
        let base = folder.make_disks_folder()?.join(format!("{disk}.raw"));
        // An empty base, and all that there is in a layer above it: layers have checksums.
        flat::write_raw(storage, &base, &flat::Zeros(contents.len()), &Progress::default())
            .map_err(&failed)?;
        progress.phase("disks", contents.len());
        let layer = flat::write_layer(storage, &new_layer_path(folder, disk)?, contents, progress);
        let layer = layer.map_err(&failed)?;
        let sums = Some(layer.seal(storage).map_err(&failed)?.crc);
        points.insert(disk.clone(), DiskPoint::Layer { id: layer.id(), sums });
        bases.insert(disk.clone(), BaseStamp::take(storage, &base, DiskFormat::Raw).map_err(&failed)?);
    }
    own_disks(&mut config, &points);
    let mut definition = Definition {
        checkpoint_type: about.checkpoint_type,
        auto_checkpoint: about.auto_checkpoint,
        ..Definition::new(config.clone())
    };
    let catalog = Catalog::new(folder, &definition);
    let staged = catalog.store.stage(id)?;
    let image =
        memory.map(|memory| memory.write(storage, &staged.memory_path(), id, progress)).transpose()?;
    let state = state.map(|state| write_state(storage, &staged.state_path(), &state)).transpose()?;
    let stamp =
        |path: &Option<PathBuf>| path.as_deref().map(|path| FileStamp::take(storage, path)).transpose();
    let manifest = Manifest {
        id,
        name: about.name,
        note: about.note,
        parent: None,
        kind: match about.kind {
            Kind::Standard if image.is_none() => Kind::Offline,
            kind => kind,
        },
        created: about.created,
        vm: folder.name().to_string(),
        kernel: stamp(&config.kernel)?,
        initrd: stamp(&config.initrd)?,
        config: config.clone(),
        disks: points.clone(),
        bases,
        left_out: about.left_out,
        memory: image.map(|image| MemoryInfo::new(image, None)),
        state,
        pause_us: about.pause_us,
        capture: about.capture,
        frozen_us: None,
        fallback: None,
        automatic: false,
        keeping: Keeping::default(),
        disk_bytes: 0,
        piton: env!("CARGO_PKG_VERSION").into(),
        warnings: about.warnings,
        unknown: BTreeMap::new(),
    };
    progress.check()?;
    catalog.store.publish(staged, &manifest)?;
    let parents: BTreeMap<String, Parent> =
        points.iter().map(|(disk, point)| (disk.clone(), point.top())).collect();
    let tops = disks::branch(folder, &config, &parents, &BTreeMap::new())?;
    definition.now.tops = tops.into_iter().map(|(disk, layer)| (disk, layer.id)).collect();
    definition.now.parent = Some(id);
    storage.sync_dir(folder.path())?;
    Ok(folder.save(lock, &definition)?)
}

/// Disks that came along are the VM's own; their base is never written.
fn own_disks(config: &mut VmConfig, points: &BTreeMap<String, DiskPoint>) {
    for disk in config.disks.iter_mut().filter(|disk| points.contains_key(&disk.id)) {
        disk.path = PathBuf::from("disks").join(format!("{}.raw", disk.id));
        disk.format = DiskFormat::Raw;
        disk.overlay = true;
    }
}

pub fn remove(storage: &Storage, path: &Path) -> Result<()> {
    match storage.remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => Ok(storage.remove_tree(path)?),
        other => Ok(other?),
    }
}

/// Copies a file that was not changed meanwhile, durably.
pub fn copy(storage: &Storage, from: &File, to: &Path, progress: &Progress) -> Result<()> {
    let to = storage.create_new(to)?;
    let len = from.len()?;
    for at in (0..len).step_by(STEP as usize) {
        progress.check()?;
        to.copy_from(from, at, STEP.min(len - at))?;
    }
    Ok(to.sync_data()?)
}
