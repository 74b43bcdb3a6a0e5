//! Making a checkpoint: stage, pre-copy, pause, capture, resume, publish.
//!
//! The order makes it whole or absent whenever the process dies: until the rename in `publish`
//! there is a staging folder and one empty layer more than needed, which changes nothing that is
//! read; from the rename on, the checkpoint is there and recovery makes it Now's parent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use super::base_findings::problems_of_now;
use super::capture::{self, Plan};
use super::catalog::sums_of;
use super::overlay::{Frozen, Staged, stage_overlays, switch};
use super::saving::{remove_unless_named, save};
use super::{Catalog, CheckpointError, Result, reserve, sealing};
use crate::capture::chain::MemoryChain;
use crate::capture::guest::CaptureError;
use crate::checkpoint::manifest::{DiskPoint, LeftOut, LeftOutWhy, MemoryInfo};
use crate::checkpoint::retention::counted;
use crate::checkpoint::stamp::FileStamp;
use crate::checkpoint::state::write_state;
use crate::checkpoint::{CheckpointName, Keeping, Kind, Manifest, Trashed};
use crate::config::VmConfig;
use crate::control::CreateBody;
use crate::disk::Disk;
use crate::disk::layer::LayerSpec;
use crate::disk::live::LiveDisk;
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::bases;
use crate::history::disks::remove_layers;
use crate::id::Id;
use crate::machine::Machine;
use crate::moment::Moment;
use crate::progress::Progress;

/// What a checkpoint is made of.
pub struct Subject<'a> {
    pub folder: &'a VmFolder,
    pub lock: &'a VmLock,
    pub definition: &'a mut Definition,
    /// The disks that checkpoints are taken of, open.
    pub disks: &'a BTreeMap<String, Arc<LiveDisk>>,
    /// None: the VM is off, and the checkpoint holds disks only.
    pub machine: Option<&'a mut Machine>,
    /// Where memory that the machine does not have yet is read from.
    pub pending: Option<Arc<MemoryChain>>,
    pub origin: Origin,
}

/// What the manifest says of how it came about.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Why it is no production checkpoint, although one was wanted.
    pub fallback: Option<String>,
    /// A start makes it, and not a user.
    pub automatic: bool,
    /// It is for the trash from its first moment: nobody sees it.
    pub trash: Option<Trashed>,
    /// Its time had come.
    pub scheduled: bool,
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
            pending: self.pending.clone(),
            origin: self.origin.clone(),
        }
    }
}

pub fn create(subject: Subject, body: &CreateBody, progress: &Progress) -> Result<Manifest> {
    let Subject { folder, lock, definition, disks, machine, pending, origin } = subject;
    let catalog = Catalog::new(folder, definition);
    let name = catalog.new_name(body.name.as_ref())?;
    let id = Id::random().map_err(CheckpointError::Random)?;

    reserve::keep(folder, definition);
    // One without memory in between changes none.
    let memory_parent = catalog.with_memory(definition.now.parent)?;

    // stage
    let staging = catalog.store.stage(id)?;
    let staged = stage_overlays(folder, disks)?;
    // A base that was written so far is synced as far as it can be without the guest waiting.
    for disk in disks.values().filter(|disk| disk.top().is_none()) {
        disk.flush()?;
    }
    let before = definition.clone();
    if let Err(e) = announce(folder, lock, definition, id, &staged) {
        let layers: Vec<LayerSpec> = staged.into_values().map(|one| one.overlay.spec()).collect();
        remove_unless_named(folder, definition, &layers);
        return Err(e);
    }

    // pre-copy, pause, capture, resume
    let specs: BTreeMap<String, LayerSpec> =
        staged.iter().map(|(disk, one)| (disk.clone(), one.overlay.spec())).collect();
    let mut frozen = BTreeMap::new();
    let image = staging.memory_path();
    let captured = match machine {
        None => switch(folder.storage(), staged, &mut frozen).map(|()| None),
        Some(machine) => {
            let (storage, parent) = (folder.storage(), memory_parent);
            let plan = Plan { storage, id, parent, pending, image: &image, body, progress };
            capture::machine(&plan, machine, staged, &mut frozen).map(Some)
        }
    };
    let captured = match captured {
        Ok(captured) => captured,
        Err(error) => {
            // First of all the room that it took, so that vm.json finds some.
            drop(staging);
            take_back(folder, lock, definition, before, specs, &frozen);
            return Err(error);
        }
    };

    // publish
    let published = (|| {
        let mut manifest = describe(folder, &before, id, name, body)?;
        manifest.fallback = origin.fallback;
        manifest.automatic = origin.automatic;
        manifest.keeping.trash = origin.trash;
        manifest.keeping.scheduled = origin.scheduled;
        let shadow = captured.as_ref().and_then(|captured| captured.shadow.clone());
        if let Some(captured) = captured {
            let micros = |pause: Duration| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
            manifest.kind = Kind::Standard;
            manifest.pause_us = captured.pause.map(micros);
            manifest.capture = Some(captured.info);
            let parent = captured.parent;
            let (state, image) = captured.finish(body.compress, progress)?;
            let json = serde_json::to_vec(&state).map_err(CheckpointError::Decode)?;
            manifest.state = Some(write_state(folder.storage(), &staging.state_path(), &json)?);
            manifest.memory = Some(MemoryInfo::new(image, parent));
        }
        for disk in disks.values() {
            disk.flush()?;
        }
        describe_disks(folder, &frozen, &mut manifest)?;
        sealing::seal_below(folder, lock, definition, disks, &manifest)?;
        if progress.is_cancelled() {
            return Err(CaptureError::Cancelled.into());
        }
        catalog.store.publish(staging, &manifest)?;
        if let Some(shadow) = shadow {
            shadow.compare(&catalog, &manifest)?;
        }
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
    specs: BTreeMap<String, LayerSpec>,
    frozen: &BTreeMap<String, Frozen>,
) {
    let (pushed, unused): (BTreeMap<_, _>, BTreeMap<_, _>) =
        specs.into_iter().partition(|(disk, _)| frozen.contains_key(disk));
    let mut now = before.now.clone();
    now.unsealed.extend(pushed.keys().filter_map(|disk| before.now.tops.get(disk)));
    now.tops.extend(pushed.into_iter().map(|(disk, layer)| (disk, layer.id)));
    match save(folder, lock, definition, Definition { now, ..before }) {
        Ok(()) => remove_layers(folder, unused.values()),
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
    if let Ok(manifest) = Catalog::new(folder, definition).store.load(id) {
        now.parent = Some(id);
        sums_of([&manifest]).for_each(|(layer, _)| _ = now.unsealed.remove(&layer));
    }
    let next = Definition { now, ..definition.clone() };
    if let Err(e) = save(folder, lock, definition, next.clone()) {
        // vm.json still says that this checkpoint is being made, which recovery understands.
        log::warn!("{e}");
        *definition = next;
    }
    published
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
    // What is frozen gets its checksums once nobody waits for them.
    next.now.unsealed.extend(staged.values().filter_map(|one| one.before));
    next.now.tops.extend(staged.iter().map(|(disk, one)| (disk.clone(), one.overlay.spec().id)));
    save(folder, lock, definition, next)
}

/// The manifest but for what the machine and its disks gave.
pub(super) fn describe(
    folder: &VmFolder,
    before: &Definition,
    id: Id,
    name: CheckpointName,
    body: &CreateBody,
) -> Result<Manifest> {
    let storage = folder.storage();
    let stamp = |path: &Option<std::path::PathBuf>| {
        path.as_deref().map(|path| FileStamp::take(storage, path)).transpose()
    };
    let (all, now) = (Catalog::new(folder, before).manifests()?, Moment::now());
    let mut warnings: Vec<String> =
        problems_of_now(folder, before, &all)?.iter().map(ToString::to_string).collect();
    let mut stamp_or_warn = |path| {
        stamp(path).unwrap_or_else(|e| {
            warnings.push(format!("{e}; a cold boot from this checkpoint may use a different file"));
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
        disk_bytes: 0,
        disks: BTreeMap::new(),
        bases: BTreeMap::new(),
        memory: None,
        state: None,
        pause_us: None,
        capture: None,
        frozen_us: None,
        fallback: None,
        automatic: false,
        keeping: Keeping { counted: Some(counted(&all, &now)), made: Some(now), ..Keeping::default() },
        piton: env!("CARGO_PKG_VERSION").into(),
        warnings,
        unknown: BTreeMap::new(),
    })
}

/// Once the layers are durable.
pub(super) fn describe_disks(
    folder: &VmFolder,
    frozen: &BTreeMap<String, Frozen>,
    manifest: &mut Manifest,
) -> Result<()> {
    let storage = folder.storage();
    let configs = manifest.config.disks.iter().filter_map(|config| Some((config, frozen.get(&config.id)?)));
    for (config, one) in configs {
        let base = bases::stamp(folder, config)?;
        let point = match &one.layer {
            Some((id, layer)) => {
                let crc = layer.seal(storage)?.crc;
                layer.attach_sums(storage, crc)?;
                DiskPoint::Layer { id: *id, sums: Some(crc) }
            }
            None => DiskPoint::Base(base.clone()),
        };
        manifest.bases.insert(config.id.clone(), base);
        manifest.disks.insert(config.id.clone(), point);
    }
    manifest.disk_bytes = frozen.values().map(|one| one.bytes).sum();
    Ok(())
}

fn left_out(config: &VmConfig) -> Vec<LeftOut> {
    let why = |disk: &crate::config::DiskConfig| match (disk.readonly, disk.passthrough) {
        (true, _) => Some(LeftOutWhy::ReadOnly),
        (_, true) => Some(LeftOutWhy::Passthrough),
        _ => None,
    };
    config.disks.iter().filter_map(|disk| Some(LeftOut { disk: disk.id.clone(), why: why(disk)? })).collect()
}
