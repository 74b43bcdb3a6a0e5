//! Making a VM of exports: one checkpoint, and Now on it.
//!
//! Its definition is written last, so until then there is no VM, only a folder that the next one
//! of this name takes over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::plan::{Plan, plan};
use super::{Result, TransferError, export, memory};
use crate::checkpoint::manifest::{DiskPoint, MemoryInfo};
use crate::checkpoint::stamp::{BaseStamp, FileStamp};
use crate::checkpoint::state::write_state;
use crate::checkpoint::{Keeping, Kind, Manifest};
use crate::config::{DiskFormat, VmConfig};
use crate::disk::delta_format::Parent;
use crate::disk::flat;
use crate::folder::{Definition, FolderError, Home, VmFolder, VmLock, VmName};
use crate::history::Catalog;
use crate::history::disks::{self, new_layer_path};
use crate::id::Id;
use crate::progress::Progress;

pub use super::plan::{Problem, Remap};

/// What to import, and as what.
pub struct Wanted<'a> {
    /// A whole export, and those that say the changes since, each to the one before it.
    pub dirs: &'a [PathBuf],
    /// None: what it was called.
    pub name: Option<VmName>,
    pub new_id: bool,
    pub remap: &'a Remap,
}

/// What came, or would come, of an import.
#[derive(Debug)]
pub struct Imported {
    pub vm: VmName,
    pub checkpoint: Id,
    pub name: String,
}

/// Looks, and with `make` makes the VM if nothing is in the way.
pub fn run(
    home: &Home,
    storage: &crate::storage::Storage,
    wanted: &Wanted,
    make_it: bool,
    progress: &Progress,
) -> Result<std::result::Result<Imported, Vec<Problem>>> {
    let (export, plan) = plan(storage, wanted.dirs, wanted.remap, progress)?;
    let vm = match &wanted.name {
        Some(name) => name.clone(),
        None => export.vm.parse().map_err(FolderError::from)?,
    };
    let folder = home.folder(&vm);
    let mut problems = Vec::new();
    if storage.exists(&folder.definition_path())? {
        let text = format!("a VM named `{vm}` already exists: choose another name with --name");
        problems.push(Problem { about: "name", text, damage: false });
    }
    let plan = match plan {
        Ok(plan) if problems.is_empty() => plan,
        Ok(_) => return Ok(Err(problems)),
        Err(more) => return Ok(Err(problems.into_iter().chain(more).collect())),
    };
    let checkpoint = if wanted.new_id { Id::random().map_err(TransferError::Random)? } else { export.id };
    if make_it {
        let lock = folder.create()?;
        if let Err(e) = make(&folder, &lock, plan, checkpoint, progress) {
            drop(lock);
            // Should somebody have taken it over meanwhile, it is theirs.
            if let Ok(lock) = folder.lock_leftover()
                && let Err(left) = folder.remove(&lock)
            {
                log::warn!("cannot remove {}: {left}", folder.path().display());
            }
            return Err(e);
        }
    }
    Ok(Ok(Imported { vm, checkpoint, name: export.name.to_string() }))
}

fn make(folder: &VmFolder, lock: &VmLock, plan: Plan, id: Id, progress: &Progress) -> Result<()> {
    let storage = folder.storage();
    // What an import that was killed left there; whoever holds the lock keeps its file.
    for name in storage.list_dir(folder.path())?.iter().filter(|name| *name != "lock") {
        export::remove(storage, &folder.path().join(name))?;
    }
    let Plan { export, mut config, disks, memory, state, copies, own } = plan;
    for (name, from) in copies {
        let to = folder.path().join(name);
        export::copy(storage, &from, &to, progress)?;
        let path = if name == super::format::KERNEL { &mut config.kernel } else { &mut config.initrd };
        *path = Some(to);
    }
    for (id, from) in own {
        let to = folder.make_disks_folder()?.join(format!("{id}.raw"));
        export::copy(storage, &from, &to, progress)?;
        for disk in config.disks.iter_mut().filter(|disk| disk.id == id) {
            disk.path = PathBuf::from("disks").join(format!("{id}.raw"));
            disk.format = DiskFormat::Raw;
        }
    }
    let (mut points, mut bases) = (BTreeMap::new(), BTreeMap::new());
    for (disk, contents) in &disks {
        let failed = TransferError::disk(disk);
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
        checkpoint_type: export.checkpoint_type,
        auto_checkpoint: export.auto_checkpoint,
        ..Definition::new(config.clone())
    };
    let catalog = Catalog::new(folder, &definition);
    let staged = catalog.store.stage(id)?;
    let image = match &memory {
        Some(chain) => {
            progress.phase("memory", chain.ranges().iter().map(|(_, len)| len).sum());
            Some(memory::write_full(storage, &staged.memory_path(), id, chain, progress)?)
        }
        None => None,
    };
    let state = state.map(|state| write_state(storage, &staged.state_path(), &state)).transpose()?;
    let stamp =
        |path: &Option<PathBuf>| path.as_deref().map(|path| FileStamp::take(storage, path)).transpose();
    let manifest = Manifest {
        id,
        name: export.name,
        note: export.note,
        parent: None,
        kind: match export.kind {
            Kind::Standard if image.is_none() => Kind::Offline,
            kind => kind,
        },
        created: export.created,
        vm: folder.name().to_string(),
        kernel: stamp(&config.kernel)?,
        initrd: stamp(&config.initrd)?,
        config: config.clone(),
        disks: points.clone(),
        bases,
        left_out: export.left_out,
        memory: image.map(|image| MemoryInfo::new(image, None)),
        state,
        pause_us: export.pause_us,
        capture: export.capture,
        frozen_us: None,
        fallback: None,
        automatic: false,
        keeping: Keeping::default(),
        disk_bytes: 0,
        piton: env!("CARGO_PKG_VERSION").into(),
        warnings: export.warnings,
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

/// Disks that were in the export are the VM's own; their base is never written.
fn own_disks(config: &mut VmConfig, points: &BTreeMap<String, DiskPoint>) {
    for disk in config.disks.iter_mut().filter(|disk| points.contains_key(&disk.id)) {
        disk.path = PathBuf::from("disks").join(format!("{}.raw", disk.id));
        disk.format = DiskFormat::Raw;
        disk.overlay = true;
    }
}
