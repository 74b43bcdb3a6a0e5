//! Making a checkpoint: stage, pause, capture, resume, publish.
//!
//! The order makes it whole or absent whenever the process dies: until the rename in `publish`
//! there is a staging folder and one empty layer more than needed, which changes nothing that is
//! read; from the rename on, the checkpoint is there and recovery makes it Now's parent.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;

use super::{Catalog, CheckpointError, Result, remove_unless_named, save};
use crate::capture::guest;
use crate::capture::image::{ImageInfo, ImageWriter};
use crate::checkpoint::manifest::{DiskPoint, LeftOut, LeftOutWhy, MemoryInfo};
use crate::checkpoint::stamp::{BaseStamp, FileStamp};
use crate::checkpoint::state::write_state;
use crate::checkpoint::{CheckpointName, Kind, Manifest};
use crate::config::VmConfig;
use crate::control::CreateBody;
use crate::disk::Disk;
use crate::disk::delta::FrozenDelta;
use crate::disk::layer::LayerSpec;
use crate::disk::live::{LiveDisk, Prepared};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::id::Id;
use crate::machine::{Machine, MachineState};
use crate::vmm::disks::{DisksError, base_path, new_layer_path, remove_layers};

/// What a checkpoint is made of.
pub struct Subject<'a> {
    pub folder: &'a VmFolder,
    pub lock: &'a VmLock,
    pub definition: &'a mut Definition,
    /// The disks that checkpoints are taken of, open.
    pub disks: &'a BTreeMap<String, Arc<LiveDisk>>,
    /// None: the VM is off, and the checkpoint holds disks only.
    pub machine: Option<&'a mut Machine>,
    pub origin: Origin,
}

/// What the manifest says of how it came about.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Why it is no production checkpoint, although one was wanted.
    pub fallback: Option<String>,
    /// A start makes it, and not a user.
    pub automatic: bool,
}

impl Subject<'_> {
    /// The same for one more attempt.
    pub(super) fn again(&mut self) -> Subject<'_> {
        Subject {
            folder: self.folder,
            lock: self.lock,
            definition: self.definition,
            disks: self.disks,
            machine: self.machine.as_deref_mut(),
            origin: self.origin.clone(),
        }
    }
}

/// A disk's next overlay, and what the disk was made of before.
pub(super) struct Staged {
    pub disk: Arc<LiveDisk>,
    pub overlay: Prepared,
    pub before: Option<Id>,
    pub bytes: u64,
}

/// What the pause gave.
struct Captured {
    state: Option<(MachineState, ImageInfo)>,
    pause_us: Option<u64>,
}

pub fn create(subject: Subject, body: &CreateBody) -> Result<Manifest> {
    let Subject { folder, lock, definition, disks, machine, origin } = subject;
    let catalog = Catalog::new(folder, definition);
    let name = catalog.new_name(body.name.as_deref())?;
    let id = Id::random().map_err(CheckpointError::Random)?;

    // stage
    let staging = catalog.store.stage(id)?;
    let staged = stage_overlays(folder, disks)?;
    let before = definition.clone();
    if let Err(e) = announce(folder, lock, definition, id, &staged) {
        let layers: Vec<LayerSpec> = staged.into_values().map(|one| one.overlay.spec()).collect();
        remove_unless_named(folder, definition, &layers);
        return Err(e);
    }

    // pause, capture, resume
    let (captured, frozen) = match capture(folder, id, &staging.memory_path(), machine, staged) {
        Ok(done) => done,
        Err((error, aborted)) => {
            // First of all the room that it took, so that vm.json finds some.
            drop(staging);
            take_back(folder, lock, definition, before, aborted);
            return Err(error);
        }
    };

    // publish
    let published = (|| {
        for disk in disks.values() {
            disk.flush()?;
        }
        let state = match &captured.state {
            Some((state, _)) => {
                let json = serde_json::to_vec(state).map_err(CheckpointError::Decode)?;
                Some(write_state(folder.storage(), &staging.state_path(), &json)?)
            }
            None => None,
        };
        let mut manifest = describe(folder, &before, id, name, body, &frozen)?;
        manifest.kind = if state.is_some() { Kind::Standard } else { Kind::Offline };
        manifest.state = state;
        manifest.memory = captured.state.as_ref().map(|(_, image)| MemoryInfo {
            guest_bytes: image.guest_bytes,
            stored_bytes: image.stored_bytes,
            crc: image.crc,
        });
        manifest.pause_us = captured.pause_us;
        manifest.fallback = origin.fallback;
        manifest.automatic = origin.automatic;
        catalog.store.publish(staging, &manifest)?;
        Ok(manifest)
    })();
    conclude(folder, lock, definition, id, published)
}

/// vm.json as it is without a checkpoint that came to nothing. The guest runs on: on its old layer
/// where no overlay was put on it.
pub(super) fn take_back(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    before: Definition,
    aborted: Aborted,
) {
    let mut now = before.now.clone();
    now.tops.extend(aborted.pushed);
    match save(folder, lock, definition, Definition { now, ..before }) {
        Ok(()) => remove_layers(folder, &aborted.unused),
        // As it stands vm.json reads the same; recovery finds what is too much.
        Err(e) => log::warn!("{e}"),
    }
}

/// Now descends from what was published.
pub(super) fn conclude(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    published: Result<Manifest>,
) -> Result<Manifest> {
    let mut now = definition.now.clone();
    now.creating = None;
    // An error at the very end may leave it there.
    if published.is_ok() || Catalog::new(folder, definition).store.load(id).is_ok() {
        now.parent = Some(id);
    }
    let next = Definition { now, ..definition.clone() };
    if let Err(e) = save(folder, lock, definition, next.clone()) {
        // vm.json still says that this checkpoint is being made, which recovery understands.
        log::warn!("{e}");
        *definition = next;
    }
    published
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

/// Names the overlays in vm.json before they are used: they are empty, so it reads the same.
pub(super) fn announce(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    staged: &BTreeMap<String, Staged>,
) -> Result<()> {
    let mut next = definition.clone();
    next.now.creating = Some(id);
    next.now.tops.extend(staged.iter().map(|(disk, one)| (disk.clone(), one.overlay.spec().id)));
    save(folder, lock, definition, next)
}

fn discard(folder: &VmFolder, staged: BTreeMap<String, Staged>) {
    let layers: Vec<LayerSpec> = staged.into_values().map(|one| one.overlay.spec()).collect();
    remove_layers(folder, &layers);
}

/// A layer that was frozen in the pause: by disk, what it is and how much it holds.
pub(super) struct Frozen {
    pub layer: Option<(Id, Arc<FrozenDelta>)>,
    pub bytes: u64,
}

/// What became of the overlays of a checkpoint that came to nothing.
pub(super) struct Aborted {
    /// Disks that write to their overlay already.
    pub pushed: BTreeMap<String, Id>,
    pub unused: Vec<LayerSpec>,
}

/// Everything between the guest's last instruction before the checkpoint and its first after it.
fn capture(
    folder: &VmFolder,
    id: Id,
    image_path: &Path,
    machine: Option<&mut Machine>,
    staged: BTreeMap<String, Staged>,
) -> std::result::Result<(Captured, BTreeMap<String, Frozen>), (CheckpointError, Aborted)> {
    let started = Instant::now();
    let specs: BTreeMap<String, LayerSpec> =
        staged.iter().map(|(disk, one)| (disk.clone(), one.overlay.spec())).collect();
    let was_running = machine.as_ref().is_some_and(|machine| machine.is_running());
    let mut frozen = BTreeMap::new();
    let run = || -> Result<Captured> {
        let held = machine.map(Machine::hold).transpose()?;
        let state = match &held {
            Some(held) => {
                let ranges = guest::ranges(held.memory());
                let mut image = ImageWriter::create(folder.storage(), image_path, id, &ranges)?;
                if let Err(e) = guest::save(held.memory(), &mut image) {
                    // Before the guest runs on: on a full disk it needs the room for its own writes.
                    drop(image);
                    let _ = folder.storage().remove_file_if_exists(image_path);
                    return Err(e.into());
                }
                Some((held.save()?, image))
            }
            None => None,
        };
        for (disk, one) in staged {
            let failed = |error| DisksError::Disk { id: disk.clone(), error };
            let layer = one.disk.push(folder.storage(), one.overlay).map_err(failed)?;
            frozen.insert(disk.clone(), Frozen { layer: one.before.zip(layer), bytes: one.bytes });
        }
        drop(held);
        let pause_us = was_running.then(|| u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
        let state =
            state.map(|(state, image)| Ok::<_, CheckpointError>((state, image.finish()?))).transpose()?;
        Ok(Captured { state, pause_us })
    };
    match run() {
        Ok(captured) => Ok((captured, frozen)),
        Err(error) => {
            let (pushed, unused): (BTreeMap<_, _>, BTreeMap<_, _>) =
                specs.into_iter().partition(|(disk, _)| frozen.contains_key(disk));
            let aborted = Aborted {
                pushed: pushed.into_iter().map(|(disk, layer)| (disk, layer.id)).collect(),
                unused: unused.into_values().collect(),
            };
            Err((error, aborted))
        }
    }
}

/// The manifest but for what the machine gave.
pub(super) fn describe(
    folder: &VmFolder,
    before: &Definition,
    id: Id,
    name: CheckpointName,
    body: &CreateBody,
    frozen: &BTreeMap<String, Frozen>,
) -> Result<Manifest> {
    let storage = folder.storage();
    let mut bases = BTreeMap::new();
    for config in before.config.disks.iter().filter(|config| frozen.contains_key(&config.id)) {
        bases.insert(config.id.clone(), BaseStamp::take(storage, &base_path(folder, config))?);
    }
    let mut disks = BTreeMap::new();
    for (disk, one) in frozen {
        let point = match &one.layer {
            Some((id, layer)) => DiskPoint::Layer { id: *id, sums: Some(layer.seal(storage)?.crc) },
            None => {
                let stamp = bases.get(disk).copied().ok_or_else(|| {
                    CheckpointError::Refused(format!("disk `{disk}` is not part of the VM"))
                })?;
                DiskPoint::Base(stamp)
            }
        };
        disks.insert(disk.clone(), point);
    }
    let stamp = |path: &Option<std::path::PathBuf>| {
        path.as_deref().map(|path| FileStamp::take(storage, path)).transpose()
    };
    let mut warnings = Vec::new();
    let mut stamp_or_warn = |path| {
        stamp(path).unwrap_or_else(|e| {
            warnings.push(format!("{e}; a cold start from this checkpoint may find another file"));
            None
        })
    };
    Ok(Manifest {
        id,
        name,
        note: body.note.clone(),
        parent: before.now.parent,
        kind: Kind::Offline,
        created: Utc::now(),
        vm: folder.name().to_string(),
        kernel: stamp_or_warn(&before.config.kernel),
        initrd: stamp_or_warn(&before.config.initrd),
        config: before.config.clone(),
        left_out: left_out(&before.config),
        disk_bytes: frozen.values().map(|one| one.bytes).sum(),
        disks,
        bases,
        memory: None,
        state: None,
        pause_us: None,
        frozen_us: None,
        fallback: None,
        automatic: false,
        piton: env!("CARGO_PKG_VERSION").into(),
        warnings,
    })
}

fn left_out(config: &VmConfig) -> Vec<LeftOut> {
    let why = |disk: &crate::config::DiskConfig| match (disk.readonly, disk.passthrough) {
        (true, _) => Some(LeftOutWhy::ReadOnly),
        (_, true) => Some(LeftOutWhy::Passthrough),
        _ => None,
    };
    config.disks.iter().filter_map(|disk| Some(LeftOut { disk: disk.id.clone(), why: why(disk)? })).collect()
}
