//! Checkpoints of a VM, opened to be read side by side: each layer and each base once, under shared
//! locks, so that whatever becomes of the VM they read the same.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{Result, SearchError};
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::DiskPoint;
use crate::checkpoint::stamp::BaseStamp;
use crate::config::DiskConfig;
use crate::disk::delta::FrozenDelta;
use crate::disk::frozen::FrozenChain;
use crate::disk::{Base, DiskError, ImageFormat, open_base};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::disks::{Layers, base_path, base_sums};
use crate::history::readers::{self, Reading};
use crate::history::{Catalog, CheckpointError, bases, steady};
use crate::id::Id;
use crate::storage::StorageError;

/// What a state is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateName {
    /// None: the current one.
    pub id: Option<Id>,
    pub name: String,
}

/// What is opened.
pub enum Which<'a> {
    /// All checkpoints; and the current state of a VM that is off, whose lock is held.
    All(Option<(&'a VmLock, &'a Definition)>),
    /// All checkpoints, of which this one is taken for the current state.
    AllWithNow(Id),
    One(&'a str),
    Now(&'a VmLock, &'a Definition),
}

struct State {
    name: StateName,
    /// None: the current one.
    manifest: Option<Manifest>,
    disks: Vec<Point>,
}

/// A disk at a state.
struct Point {
    config: DiskConfig,
    /// None: its base alone.
    top: Option<Id>,
    stamp: Option<BaseStamp>,
}

pub struct Shelf<'a> {
    folder: &'a VmFolder,
    states: Vec<State>,
    layers: Layers,
    open: BTreeMap<Id, Arc<FrozenDelta>>,
    /// Why some could not be opened.
    closed: BTreeMap<Id, String>,
    bases: Vec<(PathBuf, ImageFormat, Arc<Base>)>,
    /// Bases that are what they were.
    sound: Vec<(PathBuf, BaseStamp)>,
    _reading: Reading,
}

/// Opens what is asked for, and leaves a note of it. `command` is for who is kept from deleting.
pub fn open<'a>(folder: &'a VmFolder, which: &Which, command: &str) -> Result<Shelf<'a>> {
    let definition = folder.load()?;
    let catalog = Catalog::new(folder, &definition);
    let ids: Vec<Id> = match which {
        Which::All(_) | Which::AllWithNow(_) => {
            catalog.shown(&definition)?.0.iter().map(|manifest| manifest.id).collect()
        }
        Which::One(reference) => vec![catalog.resolve(&definition, reference)?.id],
        Which::Now(..) => Vec::new(),
    };
    // The note first: a checkpoint that is there afterwards stays.
    let reading = readers::begin(folder, command, &ids)?;
    let now = match which {
        Which::All(Some((_, definition))) | Which::Now(_, definition) => Some(*definition),
        _ => None,
    };
    let as_now = if let Which::AllWithNow(id) = which { Some(*id) } else { None };
    let (states, layers, open, closed) = steady::open_all(folder, |definition, manifests| -> Result<_> {
        let mut chosen: Vec<&Manifest> = manifests.iter().filter(|one| ids.contains(&one.id)).collect();
        chosen.sort_by_key(|one| (as_now == Some(one.id), one.created));
        let mut states: Vec<State> = chosen.into_iter().map(|one| of_checkpoint(one, as_now)).collect();
        states.extend(now.map(of_now));
        let (layers, sums) =
            (Layers::read(folder)?, Catalog::new(folder, definition).layer_sums(definition)?);
        let (mut open, mut closed) = (BTreeMap::new(), BTreeMap::new());
        for top in states.iter().flat_map(|state| &state.disks).filter_map(|point| point.top) {
            // One that has no chain says so when it is read.
            for spec in layers.chain(top).unwrap_or_default() {
                if open.contains_key(&spec.id) || closed.contains_key(&spec.id) {
                    continue;
                }
                let opened = FrozenDelta::open(folder.storage(), &spec).and_then(|layer| {
                    sums.get(&spec.id).map_or(Ok(()), |crc| layer.attach_sums(folder.storage(), *crc))?;
                    Ok(layer)
                });
                match opened {
                    Ok(layer) => drop(open.insert(spec.id, layer)),
                    Err(e) => drop(closed.insert(spec.id, why(folder, &e))),
                }
            }
        }
        Ok((states, layers, open, closed))
    })?;
    if let (Which::One(reference), []) = (which, &states[..]) {
        return Err(
            CheckpointError::Refused(format!("checkpoint `{reference}` has just been deleted")).into()
        );
    }
    Ok(Shelf {
        folder,
        states,
        layers,
        open,
        closed,
        bases: Vec::new(),
        sound: Vec::new(),
        _reading: reading,
    })
}

fn why(folder: &VmFolder, error: &DiskError) -> String {
    match error {
        DiskError::Storage(StorageError::InUse { path, .. }) if path.starts_with(folder.disks()) => {
            "its layers are being merged: try again afterwards".into()
        }
        e => e.to_string(),
    }
}

fn of_checkpoint(manifest: &Manifest, as_now: Option<Id>) -> State {
    let disks = manifest.config.disks.iter().filter_map(|config| {
        let top = match manifest.disks.get(&config.id)? {
            DiskPoint::Base(_) => None,
            DiskPoint::Layer { id, .. } => Some(*id),
        };
        Some(Point { config: config.clone(), top, stamp: manifest.bases.get(&config.id).cloned() })
    });
    let id = Some(manifest.id).filter(|id| as_now != Some(*id));
    let name = StateName { id, name: manifest.name.to_string() };
    State { name, disks: disks.collect(), manifest: Some(manifest.clone()) }
}

fn of_now(definition: &Definition) -> State {
    let own = definition.config.disks.iter().filter(|disk| !disk.readonly && !disk.passthrough);
    let disks = own.map(|config| Point {
        config: config.clone(),
        top: definition.now.tops.get(&config.id).copied(),
        stamp: None,
    });
    State { name: StateName { id: None, name: String::new() }, manifest: None, disks: disks.collect() }
}

impl Shelf<'_> {
    pub fn len(&self) -> usize {
        self.states.len()
    }

    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    pub fn state_name(&self, state: usize) -> StateName {
        self.states[state].name.clone()
    }

    /// For messages.
    pub fn name(&self, state: usize) -> String {
        let StateName { id, name } = &self.states[state].name;
        match id {
            Some(_) => format!("checkpoint `{name}`"),
            None => "the current state".into(),
        }
    }

    /// The disks that are looked at, in the guest's order.
    pub fn disks(&self, state: usize, wanted: Option<&str>) -> Result<Vec<usize>> {
        let State { disks, manifest, .. } = &self.states[state];
        let Some(wanted) = wanted else { return Ok((0..disks.len()).collect()) };
        if let Some(at) = disks.iter().position(|point| point.config.id == wanted) {
            return Ok(vec![at]);
        }
        let left_out =
            manifest.as_ref().is_some_and(|one| one.left_out.iter().any(|left| left.disk == wanted));
        let place = self.name(state);
        let error = match left_out {
            true => format!("disk `{wanted}` is not part of {place}"),
            false => format!("{place} has no disk `{wanted}`"),
        };
        // Another checkpoint may have it.
        Err(SearchError::Disk { disk: wanted.to_owned(), error })
    }

    pub fn disk_id(&self, state: usize, disk: usize) -> &str {
        &self.states[state].disks[disk].config.id
    }

    /// A disk as it was.
    pub fn chain(&mut self, state: usize, disk: usize) -> Result<FrozenChain> {
        let State { disks, manifest, .. } = &self.states[state];
        let Point { config, top, stamp } = &disks[disk];
        let failed = SearchError::disk(&config.id);
        let path = base_path(self.folder, config);
        bases::look(self.folder, config, top.and_then(|top| self.layers.size(top)))
            .map_err(CheckpointError::from)?;
        if let (Some(manifest), Some(stamp)) = (manifest, stamp)
            && !self.sound.iter().any(|(known, sound)| *known == path && sound == stamp)
        {
            if let Some(problem) = bases::compare(self.folder, manifest, config, stamp)? {
                return Err(CheckpointError::from(problem).into());
            }
            self.sound.push((path.clone(), stamp.clone()));
        }
        let specs = top.map_or(Ok(Vec::new()), |top| self.layers.chain(top)).map_err(&failed)?;
        if let Some(error) = specs.iter().find_map(|spec| self.closed.get(&spec.id)) {
            return Err(SearchError::Disk { disk: config.id.clone(), error: error.clone() });
        }
        let known = self.bases.iter().find(|(known, format, _)| *known == path && *format == config.format);
        let base = match known {
            Some((_, _, base)) => base.clone(),
            None => {
                let storage = self.folder.storage();
                let base = open_base(storage, &path, config.format).map_err(&failed)?;
                if let Some(sums) = base_sums(self.folder, config)? {
                    base.attach_sums(storage, &sums).map_err(&failed)?;
                }
                let base = Arc::new(base);
                self.bases.push((path, config.format, base.clone()));
                base
            }
        };
        // They have their checksums.
        FrozenChain::open_sharing(self.folder.storage(), base, &specs, &BTreeMap::new(), Some(&self.open))
            .map_err(failed)
    }
}
