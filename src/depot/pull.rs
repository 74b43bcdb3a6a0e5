//! A checkpoint out of a depot, as a new VM.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunks::Chunks;
use super::fetch::Fetch;
use super::location::Title;
use super::manifest::{Manifest, Stream};
use super::open::Depot;
use super::stream::{Ram, Reader};
use super::{DepotError, Result};
use crate::disk::Backing;
use crate::folder::{Home, VmName};
use crate::history::networks;
use crate::history::whole::arrival::{self, About, Arrival, Contents, INITRD, KERNEL, Memory};
use crate::history::whole::fit::{self, Problem, Problems, Remap};
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::Storage;

/// What to pull, and as what.
pub struct Wanted<'a> {
    pub title: &'a Title,
    /// None: what it is called there.
    pub vm: Option<VmName>,
    pub new_id: bool,
    pub remap: &'a Remap,
}

#[derive(Debug)]
pub struct Pulled {
    pub vm: VmName,
    pub checkpoint: Id,
    pub name: String,
    /// Of memory, disks and files, zeros among them.
    pub bytes: u64,
}

/// Looks, and with `make` makes the VM if nothing is in the way.
pub fn pull(
    depot: Depot,
    home: &Home,
    storage: &Storage,
    wanted: &Wanted,
    make: bool,
    progress: &Progress,
) -> Result<std::result::Result<Pulled, Vec<Problem>>> {
    let manifest = depot.manifest(wanted.title)?;
    let vm = wanted.vm.clone().unwrap_or_else(|| wanted.title.vm.clone());
    let folder = home.folder(&vm);
    let mut problems = Problems::default();
    if storage.exists(&folder.definition_path())? {
        problems.add(
            "name",
            format!("a VM named `{vm}` already exists: give another name after the URL"),
            false,
        );
    }
    let depot = Arc::new(depot);
    let chunks = Arc::new(Chunks::load(&depot, progress)?);
    let fetch = Arc::new(Fetch::new(depot, chunks, progress));
    let arrival = arrival_of(&fetch, &manifest, storage, wanted.remap, &mut problems)?;
    let checkpoint = match wanted.new_id {
        true => Id::random().map_err(DepotError::Random)?,
        false => manifest.id,
    };
    if !problems.0.is_empty() {
        return Ok(Err(problems.0));
    }
    if make {
        arrival::make(&folder, arrival, checkpoint, progress)?;
    }
    let bytes = manifest.streams().iter().map(|(_, stream)| stream.bytes).sum();
    Ok(Ok(Pulled { vm, checkpoint, name: manifest.name.to_string(), bytes }))
}

fn arrival_of(
    fetch: &Arc<Fetch>,
    manifest: &Manifest,
    storage: &Storage,
    remap: &Remap,
    problems: &mut Problems,
) -> Result<Arrival> {
    let mut config = manifest.config.clone();
    let mut boot: Vec<(&'static str, Box<dyn Contents>)> = Vec::new();
    for (name, path, other, stream) in [
        (KERNEL, &mut config.kernel, &remap.kernel, &manifest.kernel),
        (INITRD, &mut config.initrd, &remap.initrd, &manifest.initrd),
    ] {
        if let Some(other) = other {
            if let Err(why) = fit::can_boot(storage, other) {
                problems.add(name, format!("the {name} {} {why}", other.display()), false);
            }
            *path = Some(other.clone());
            continue;
        }
        match (path, stream) {
            (Some(_), Some(stream)) => boot.push((name, Box::new(Reader::open(fetch, stream)?))),
            // What it says of this host is not believed, even if it is there.
            (Some(was), None) => {
                let was = was.display();
                let text =
                    format!("the {name} is not in the depot (it was {was}): give one with --{name} FILE");
                problems.add(name, text, false);
            }
            (None, _) => {}
        }
    }
    let own: Vec<(&String, &Stream)> =
        manifest.own.iter().filter(|(id, _)| !remap.disks.contains_key(*id)).collect();
    fit::outside_disks(
        storage,
        "the depot",
        &|id| manifest.disks.contains_key(id),
        &mut config,
        remap,
        &|id| own.iter().any(|(own, _)| *own == id),
        problems,
    );
    let mut disks = BTreeMap::new();
    for (id, stream) in &manifest.disks {
        disks.insert(id.clone(), Arc::new(Reader::open(fetch, stream)?) as Arc<dyn Backing>);
    }
    let (mut memory, mut state) = (None, None);
    if !remap.without_memory
        && let (Some(about), Some(saved)) = (&manifest.memory, &manifest.state)
    {
        let saved = Reader::open(fetch, saved)?.read_all()?;
        fit::check_processor(&manifest.config, &saved, problems);
        state = Some(saved);
        let reader = Reader::open(fetch, &about.stream)?;
        memory = Some(Box::new(Ram { reader, about: about.clone() }) as Box<dyn Memory>);
    }
    match networks::of_new(&remap.nets, &manifest.config.nets, memory.is_some(), 1) {
        Ok(nets) => config.nets = nets,
        Err(e) => problems.add("network", e.to_string(), false),
    }
    let mut brought = Vec::new();
    for (id, stream) in own {
        brought.push((id.clone(), Box::new(Reader::open(fetch, stream)?) as Box<dyn Contents>));
    }
    let about = About {
        name: manifest.name.clone(),
        note: manifest.note.clone(),
        kind: manifest.kind,
        created: manifest.created,
        left_out: manifest.left_out.clone(),
        pause_us: manifest.pause_us,
        capture: manifest.capture,
        warnings: manifest.warnings.clone(),
        checkpoint_type: manifest.checkpoint_type,
        auto_checkpoint: manifest.auto_checkpoint,
    };
    Ok(Arrival { about, config, disks, memory, state, boot, own: brought })
}
