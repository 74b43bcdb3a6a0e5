//! A checkpoint, or a VM that is off, opened to be read. Everything is held open under shared
//! locks, so that whatever becomes of the VM it reads the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::Utc;

use super::{Result, WholeError};
use crate::capture::chain::MemoryChain;
use crate::checkpoint::manifest::{DiskPoint, LeftOut, LeftOutWhy};
use crate::checkpoint::stamp::FileStamp;
use crate::checkpoint::state::read_state;
use crate::checkpoint::{CheckpointName, Keeping, Kind, Manifest};
use crate::config::DiskConfig;
use crate::disk::frozen::FrozenChain;
use crate::disk::{DiskError, open_base};
use crate::folder::{CheckpointType, Definition, VmFolder, VmLock};
use crate::history::bases;
use crate::history::disks::{Layers, base_path, base_sums};
use crate::history::readers::{self, Reading};
use crate::history::{Catalog, CheckpointError, check_now, lost, outdated, steady};
use crate::id::Id;
use crate::storage::StorageError;

pub struct Source {
    pub manifest: Manifest,
    /// The VM's.
    pub folder: PathBuf,
    /// By the disk's id.
    pub disks: BTreeMap<String, FrozenChain>,
    pub memory: Option<MemoryChain>,
    /// The saved state, as JSON.
    pub state: Option<Vec<u8>>,
    /// The VM's settings.
    pub checkpoint_type: CheckpointType,
    pub auto_checkpoint: bool,
    _reading: Option<Reading>,
}

impl Source {
    /// Opens a checkpoint and leaves a note of it. `command` is for who is kept from deleting it.
    pub fn checkpoint(folder: &VmFolder, reference: &str, command: &str) -> Result<Self> {
        let definition = folder.load()?;
        let catalog = Catalog::new(folder, &definition);
        let id = catalog.resolve(&definition, reference)?.id;
        // The note first: a checkpoint that is there afterwards stays.
        let reading = readers::begin(folder, command, &[id])?;
        let opened =
            steady::open(folder, id, |definition, manifest| Self::open(folder, definition, manifest));
        let source = opened.map_err(|e| match e {
            WholeError::Disk { error: DiskError::Storage(StorageError::InUse { path, .. }), .. }
                if path.starts_with(folder.disks()) =>
            {
                WholeError::Refused(format!(
                    "layers of the VM `{}` are being merged: try again afterwards (`piton checkpoint jobs \
                     {0}` shows the progress)",
                    folder.name()
                ))
            }
            e => e,
        })?;
        Ok(Self { _reading: Some(reading), ..source })
    }

    fn open(folder: &VmFolder, definition: &Definition, manifest: &Manifest) -> Result<Self> {
        let (catalog, id) = (Catalog::new(folder, definition), manifest.id);
        let (manifest, why) = &outdated::usable(&catalog, manifest);
        if let Some(why) = why {
            log::warn!("checkpoint `{}` is read {why}", manifest.name);
        }
        bases::check(folder, definition, manifest, false)?;
        let (layers, sums) = (Layers::read(folder)?, catalog.layer_sums(definition)?);
        let mut disks = BTreeMap::new();
        for config in &manifest.config.disks {
            let Some(point) = manifest.disks.get(&config.id) else { continue };
            let top = match point {
                DiskPoint::Base(_) => None,
                DiskPoint::Layer { id, .. } => Some(*id),
            };
            disks.insert(config.id.clone(), open(folder, config, &layers, top, &sums)?);
        }
        let (memory, state) = match (&manifest.memory, &manifest.state) {
            (Some(_), Some(info)) => {
                let chain = MemoryChain::open(folder.storage(), &catalog.store.memory_chain(manifest)?)?;
                (Some(chain), Some(read_state(folder.storage(), &catalog.store.state_path(id), info)?))
            }
            _ => (None, None),
        };
        Ok(Self {
            manifest: manifest.clone(),
            folder: folder.path().to_owned(),
            disks,
            memory,
            state,
            checkpoint_type: definition.checkpoint_type,
            auto_checkpoint: definition.auto_checkpoint,
            _reading: None,
        })
    }

    /// What a VM that is off would start from. The lock is to be held as long as this lives.
    pub fn now(folder: &VmFolder, _: &VmLock, definition: &Definition) -> Result<Self> {
        let storage = folder.storage();
        if let Some(lost) = lost::list(folder)?.into_iter().next() {
            return Err(WholeError::Refused(lost.to_string()));
        }
        check_now(folder, definition)?;
        let catalog = Catalog::new(folder, definition);
        let (layers, sums) = (Layers::read(folder)?, catalog.layer_sums(definition)?);
        let Definition { config, now, .. } = definition;
        let (mut disks, mut stamps, mut points) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut left_out = Vec::new();
        for disk in &config.disks {
            if disk.readonly || disk.passthrough {
                let why = if disk.readonly { LeftOutWhy::ReadOnly } else { LeftOutWhy::Passthrough };
                left_out.push(LeftOut { disk: disk.id.clone(), why });
                continue;
            }
            let top = now.tops.get(&disk.id).copied();
            disks.insert(disk.id.clone(), open(folder, disk, &layers, top, &sums)?);
            let stamp = bases::stamp(folder, disk)?;
            stamps.insert(disk.id.clone(), stamp.clone());
            points.insert(
                disk.id.clone(),
                top.map_or(DiskPoint::Base(stamp), |id| DiskPoint::Layer { id, sums: None }),
            );
        }
        // One that is gone cannot be copied, and that is said.
        let stamp = |path: &Option<std::path::PathBuf>| {
            path.as_deref().and_then(|path| FileStamp::take(storage, path).ok())
        };
        let manifest = Manifest {
            id: Id::random().map_err(WholeError::Random)?,
            name: CheckpointName::of_time(&chrono::Utc::now(), |_| false),
            note: String::new(),
            parent: now.parent,
            kind: Kind::Offline,
            created: Utc::now(),
            vm: folder.name().to_string(),
            kernel: stamp(&config.kernel),
            initrd: stamp(&config.initrd),
            config: config.clone(),
            disks: points,
            bases: stamps,
            left_out,
            memory: None,
            state: None,
            pause_us: None,
            capture: None,
            frozen_us: None,
            fallback: None,
            automatic: false,
            keeping: Keeping::default(),
            disk_bytes: 0,
            piton: env!("CARGO_PKG_VERSION").into(),
            warnings: Vec::new(),
            unknown: Default::default(),
        };
        Ok(Self {
            manifest,
            folder: folder.path().to_owned(),
            disks,
            memory: None,
            state: None,
            checkpoint_type: definition.checkpoint_type,
            auto_checkpoint: definition.auto_checkpoint,
            _reading: None,
        })
    }

    /// For messages.
    pub fn name(&self) -> &str {
        self.manifest.name.as_str()
    }
}

fn open(
    folder: &VmFolder,
    config: &DiskConfig,
    layers: &Layers,
    top: Option<Id>,
    sums: &BTreeMap<Id, u32>,
) -> Result<FrozenChain> {
    let failed = WholeError::disk(&config.id);
    let storage = folder.storage();
    let specs = top.map_or(Ok(Vec::new()), |top| layers.chain(top)).map_err(&failed)?;
    bases::look(folder, config, top.and_then(|top| layers.base_size(top))).map_err(CheckpointError::from)?;
    let base = open_base(storage, &base_path(folder, config), config.format).map_err(&failed)?;
    if let Some(sums) = base_sums(folder, config)? {
        base.attach_sums(storage, &sums).map_err(&failed)?;
    }
    FrozenChain::open_checked(storage, base, &specs, sums).map_err(&failed)
}
