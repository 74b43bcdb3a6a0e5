//! Opens a VM as piton does after a crash, and holds what it finds against the model.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use piton::capture::chain::MemoryChain;
use piton::checkpoint::Manifest;
use piton::checkpoint::manifest::DiskPoint;
use piton::checkpoint::state::read_state;
use piton::checkpoint::tree::Tree;
use piton::disk::frozen::FrozenChain;
use piton::disk::layer::LayerSpec;
use piton::disk::{Backing, open_base};
use piton::folder::{Definition, Happened, Home, VmFolder, VmLock, What};
use piton::history::disks::{self, DisksError, Layers, base_path};
use piton::history::{Catalog, lost, merge, recover, removed};
use piton::id::Id;
use piton::progress::Progress;
use piton::storage::sim::Sim;

use crate::model::{Expect, NodeModel, NowModel, Place, stamps};

pub const HOME: &str = "/home";
pub const VM: &str = "demo";

/// Begins what the model finds wrong, not piton.
pub const OTHERWISE: &str = "reads otherwise";

/// What recovery found.
pub struct Seen {
    pub checkpoints: Vec<Id>,
    /// Entries of the log when recovery was done.
    pub recovered_at: usize,
    pub is_gone: bool,
}

/// What the next command does with the home; and a VM in the trash comes back. Returns where it was.
fn come_back(sim: &Sim, folder: &VmFolder) -> Outcome<(Place, usize)> {
    let home = folder.home();
    removed::tidy(&home);
    let tidied_at = sim.log_len();
    if folder.must_exist().is_ok() {
        return Ok((Place::There, tidied_at));
    }
    let Some(found) = removed::find(&home, VM).map_err(|e| text("the trash")(&e))? else {
        let image = sim.live();
        let left = |(path, _): &(PathBuf, _)| path.to_string_lossy().contains(".removed-");
        let trees = [HOME, "/ext"].map(|place| image.tree(Path::new(place)).unwrap_or_default());
        return match trees.concat().iter().find(|one| left(one)) {
            Some((path, _)) => Err(format!("{} is left over", path.display())),
            None => Ok((Place::Nowhere, tidied_at)),
        };
    };
    removed::restore(&found, folder.name()).map_err(|e| text("back from the trash")(&e))?;
    Ok((Place::Trash, tidied_at))
}

pub fn folder(sim: &Sim) -> VmFolder {
    Home::at(PathBuf::from(HOME), sim.storage()).folder(&VM.parse().expect("a good name"))
}

/// The one that the proof records, again and again.
pub fn event() -> Happened {
    Happened { time: Default::default(), ..Happened::now(What::Paused, "an event of the proof") }
}

/// What is read are events that were recorded, and one more can be.
fn check_events(folder: &VmFolder, lock: &VmLock) -> Outcome<()> {
    let read = || folder.events().map_err(|e| text("events")(&e));
    let before = read()?;
    if before.is_empty() {
        return Ok(());
    }
    folder.record_within(lock, &event(), u64::MAX).map_err(|e| text("one more event")(&e))?;
    let after = read()?;
    match after.len() == before.len() + 1 && after.iter().all(|one| *one == event()) {
        true => Ok(()),
        false => Err(format!("{OTHERWISE}: events {before:?}, then {after:?}")),
    }
}

type Outcome<T> = Result<T, String>;

fn text(what: &str) -> impl Fn(&dyn std::fmt::Display) -> String + '_ {
    move |e| format!("{what}: {e}")
}

/// Recovers the VM and checks everything; with `settle` also merges what can be merged, after
/// which everything has to read the same.
pub fn check(sim: &Sim, expect: &Expect, settle: bool) -> Outcome<Seen> {
    let checked = catch_unwind(AssertUnwindSafe(|| checked(sim, expect, settle)));
    checked.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("piton panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    })
}

fn checked(sim: &Sim, expect: &Expect, settle: bool) -> Outcome<Seen> {
    let folder = folder(sim);
    let (place, tidied_at) = come_back(sim, &folder)?;
    if !expect.may_be(place) {
        return Err(format!("{OTHERWISE}: the VM is {place:?}, not of {:?}", expect.places));
    }
    if place == Place::Nowhere {
        return Ok(Seen { checkpoints: Vec::new(), recovered_at: tidied_at, is_gone: true });
    }
    let lock = folder.lock().map_err(|e| text("lock")(&e))?;
    let mut definition = folder.load().map_err(|e| text("vm.json")(&e))?;
    let found = recover(&folder, &lock, &mut definition, true).map_err(|e| text("recovery")(&e))?;
    if let Some(damage) = found.iter().find(|finding| !finding.mended) {
        return Err(format!("recovery finds damage: {}", damage.text));
    }
    // What is brought back from the trash is not where it was.
    let recovered_at = if place == Place::Trash { tidied_at } else { sim.log_len() };
    let loaded = folder.load().map_err(|e| text("vm.json")(&e))?;
    if loaded != definition {
        return Err("recovery leaves another vm.json than it goes on with".into());
    }
    accept_losses(&folder, &definition)?;
    let again = recover(&folder, &lock, &mut definition, false).map_err(|e| text("second look")(&e))?;
    if let Some(finding) = again.first() {
        return Err(format!("after recovery there still is: {}", finding.text));
    }
    let checkpoints = contents(sim, &folder, &definition, expect)?;
    if settle {
        settled(sim, &folder, &lock, &mut definition, expect).map_err(|e| format!("after merging: {e}"))?;
    }
    check_events(&folder, &lock)?;
    Ok(Seen { checkpoints, recovered_at, is_gone: false })
}

/// A disk whose flush failed is not opened until somebody accepts that; then it is what a power cut
/// would have left of it.
pub fn accept_losses(folder: &VmFolder, definition: &Definition) -> Outcome<()> {
    if lost::list(folder).map_err(|e| text("failed flushes")(&e))?.is_empty() {
        return Ok(());
    }
    let Definition { config, now, .. } = definition;
    match disks::open(folder, config, &now.tops, &BTreeMap::new(), &Default::default()) {
        Err(DisksError::Lost(_)) => {}
        Err(e) => return Err(format!("instead of a failed flush there is: {e}")),
        // It was of a layer that is gone.
        Ok(_) => return Ok(()),
    }
    lost::accept(folder).map_err(|e| text("accepting a failed flush")(&e))
}

fn settled(
    sim: &Sim,
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    expect: &Expect,
) -> Outcome<()> {
    merge::settle(folder, lock, definition, &Progress::default()).map_err(|e| e.to_string())?;
    contents(sim, folder, definition, expect).map(drop)
}

/// Everything that can be read, and that nothing else lies around.
fn contents(sim: &Sim, folder: &VmFolder, definition: &Definition, expect: &Expect) -> Outcome<Vec<Id>> {
    let mut files = Files::of(sim, folder, definition);
    let ids = checkpoints(folder, definition, expect, &mut files)?;
    now(folder, definition, expect, &mut files).map_err(|e| format!("Now: {e}"))?;
    files.check()?;
    Ok(ids)
}

/// What a VM says that may be damaged: recovery, and then its checkpoints are read. Now's own
/// writes have no checksums yet, as on any disk.
pub fn damaged(sim: &Sim, expect: &Expect) -> Outcome<()> {
    let folder = folder(sim);
    let lock = folder.lock().map_err(|e| text("lock")(&e))?;
    let mut definition = folder.load().map_err(|e| text("vm.json")(&e))?;
    let found = recover(&folder, &lock, &mut definition, true).map_err(|e| text("recovery")(&e))?;
    if let Some(damage) = found.iter().find(|finding| !finding.mended) {
        return Err(damage.text.clone());
    }
    checkpoints(&folder, &definition, expect, &mut Files::of(sim, &folder, &definition)).map(drop)
}

fn checkpoints(
    folder: &VmFolder,
    definition: &Definition,
    expect: &Expect,
    files: &mut Files,
) -> Outcome<Vec<Id>> {
    let catalog = Catalog::new(folder, definition);
    let listing = catalog.listing().map_err(|e| text("listing")(&e))?;
    if let Some(damaged) = listing.damaged.first() {
        return Err(format!("a damaged checkpoint: {}", damaged.error));
    }
    let tree = Tree::of(&listing.manifests, definition.now.parent);
    if let Some(problem) = tree.problems().first() {
        return Err(format!("the tree: {problem}"));
    }
    let ids: Vec<Id> = listing.manifests.iter().map(|manifest| manifest.id).collect();
    if let Some((id, node)) = expect.must.iter().find(|(id, _)| !ids.contains(id)) {
        return Err(format!("{OTHERWISE}: checkpoint `{}` ({id}) is gone", node.names[0]));
    }
    let layers = Layers::read(folder).map_err(|e| text("layers")(&e))?;
    let sums = catalog.layer_sums(definition).map_err(|e| text("sums")(&e))?;
    for manifest in &listing.manifests {
        let named = |e: String| format!("checkpoint `{}`: {e}", manifest.name);
        let node =
            expect.node(manifest.id).ok_or_else(|| named(format!("{OTHERWISE}: it must not be there")))?;
        described(manifest, node).map_err(named)?;
        node_disks(folder, manifest, node, &layers, &sums, files).map_err(named)?;
        node_memory(&catalog, manifest, node, files).map_err(named)?;
    }
    Ok(ids)
}

fn described(manifest: &Manifest, node: &NodeModel) -> Outcome<()> {
    let name = manifest.name.as_str();
    if !node.names.iter().any(|known| known == name) || !node.notes.contains(&manifest.note) {
        return Err(format!("{OTHERWISE}: name `{name}` or note `{}` was never given", manifest.note));
    }
    if !node.trash.contains(&manifest.is_in_trash()) {
        return Err(format!("{OTHERWISE}: it is in the trash and should not, or the other way round"));
    }
    if !node.parents.contains(&manifest.parent) {
        return Err(format!("{OTHERWISE}: its parent is {:?}, not of {:?}", manifest.parent, node.parents));
    }
    Ok(())
}

fn node_disks(
    folder: &VmFolder,
    manifest: &Manifest,
    node: &NodeModel,
    layers: &Layers,
    sums: &BTreeMap<Id, u32>,
    files: &mut Files,
) -> Outcome<()> {
    let storage = folder.storage();
    for (disk, point) in &manifest.disks {
        let failed = |e: piton::disk::DiskError| format!("disk `{disk}`: {e}");
        let config = manifest.config.disks.iter().find(|config| config.id == *disk).ok_or("no such disk")?;
        let base = open_base(storage, &base_path(folder, config), config.format).map_err(failed)?;
        let specs = match point {
            DiskPoint::Base(_) => Vec::new(),
            DiskPoint::Layer { id, .. } => layers.chain(*id).map_err(failed)?,
        };
        let chain = FrozenChain::open_checked(storage, base, &specs, sums).map_err(failed)?;
        for layer in chain.deltas() {
            files.need_layer(layer.path(), sums.get(&layer.id()));
            if !sums.contains_key(&layer.id()) {
                return Err(format!("disk `{disk}`: {} has no checksums", layer.path().display()));
            }
        }
        let (found, expected) = (stamps(&chain)?, node.disks.get(disk).ok_or("an unknown disk")?);
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(format!("{OTHERWISE}: disk `{disk}` has {found} sectors instead of {expected}"));
        }
        if let Some(at) = (0..found.len()).find(|at| found.get(*at) != expected.get(*at)) {
            return Err(format!(
                "{OTHERWISE}: disk `{disk}`, sector {at}: {} instead of {}",
                found[at], expected[at]
            ));
        }
    }
    Ok(())
}

fn node_memory(catalog: &Catalog, manifest: &Manifest, node: &NodeModel, files: &mut Files) -> Outcome<()> {
    let store = &catalog.store;
    files.need(store.path(manifest.id).join(""));
    files.need(store.manifest_path(manifest.id));
    if manifest.memory.is_some() != node.memory.is_some() {
        return Err(format!("{OTHERWISE}: it has memory and should not, or the other way round"));
    }
    let (Some(state), Some(expected)) = (&manifest.state, &node.memory) else {
        return Ok(());
    };
    files.need(store.state_path(manifest.id));
    let specs = store.memory_chain(manifest).map_err(|e| e.to_string())?;
    specs.iter().for_each(|spec| files.need(spec.path.clone()));
    let chain = MemoryChain::open(store.storage(), &specs).map_err(|e| e.to_string())?;
    let found = read_memory(&chain)?;
    if manifest.memory.as_ref().is_some_and(|memory| memory.flat.is_some()) {
        let flat = store.flat_image(manifest).ok_or("no place of the copy of memory")?;
        files.need(flat.path.clone());
        let copy =
            MemoryChain::open(store.storage(), &[flat]).map_err(|e| format!("the copy of memory: {e}"))?;
        if read_memory(&copy)? != found {
            return Err(format!("{OTHERWISE}: the copy of memory is none"));
        }
    }
    let json =
        read_state(store.storage(), &store.state_path(manifest.id), state).map_err(|e| e.to_string())?;
    if found != expected.pages || json != expected.state.as_bytes() {
        return Err(format!("{OTHERWISE}: its memory or state is not what it was"));
    }
    Ok(())
}

/// Pages that are not zeros; each is one byte all over, or an error.
pub fn read_memory(chain: &MemoryChain) -> Outcome<BTreeMap<u64, u8>> {
    let mut pages = BTreeMap::new();
    for (start, len) in chain.ranges() {
        for piece in chain.pieces(*start, *len).map_err(|e| e.to_string())? {
            if piece.image.is_none() {
                continue;
            }
            let mut bytes = vec![0; (piece.at.end - piece.at.start) as usize];
            chain.read_piece(&piece, &mut bytes).map_err(|e| e.to_string())?;
            for (gpa, page) in piece.at.step_by(4096).zip(bytes.chunks_exact(4096)) {
                if page[1..] != page[..4095] {
                    return Err(format!("{OTHERWISE}: page {gpa:#x} is mixed"));
                }
                if page[0] != 0 {
                    pages.insert(gpa, page[0]);
                }
            }
        }
    }
    Ok(pages)
}

fn now(folder: &VmFolder, definition: &Definition, expect: &Expect, files: &mut Files) -> Outcome<()> {
    let layers = Layers::read(folder).map_err(|e| text("layers")(&e))?;
    let sums = &Catalog::new(folder, definition).layer_sums(definition).map_err(|e| text("sums")(&e))?;
    let Definition { config, now, .. } = definition;
    for top in now.tops.values() {
        let chain = layers.chain(*top).map_err(|e| e.to_string())?;
        chain.iter().for_each(|layer| files.need_layer(&layer.path, sums.get(&layer.id)));
        let lost = |layer: &&LayerSpec| {
            layer.id != *top && !sums.contains_key(&layer.id) && !now.unsealed.contains(&layer.id)
        };
        if let Some(layer) = chain.iter().find(lost) {
            return Err(format!("{} lost its checksums", layer.path.display()));
        }
    }
    let open =
        disks::open(folder, config, &now.tops, sums, &Default::default()).map_err(|e| e.to_string())?;
    let mut found = BTreeMap::new();
    for (id, disk) in &open.live {
        found.insert(id.clone(), stamps(disk as &dyn Backing).map_err(|e| format!("disk `{id}`: {e}"))?);
    }
    let fits = |model: &NowModel| -> Outcome<()> {
        if !model.parents.contains(&now.parent) {
            return Err(format!("its parent is {:?}, not of {:?}", now.parent, model.parents));
        }
        if let Some(id) = found.keys().find(|id| !model.disks.contains_key(*id)) {
            return Err(format!("disk `{id}` is there"));
        }
        for (id, allowed) in &model.disks {
            let found = found.get(id).ok_or_else(|| format!("disk `{id}` is gone"))?;
            if found.len() != allowed.len() {
                return Err(format!("disk `{id}` has {} sectors, not {}", found.len(), allowed.len()));
            }
            let wrong = (0..allowed.len()).find(|at| !allowed[*at].contains(&found[*at]));
            if let Some(at) = wrong {
                return Err(format!("disk `{id}`, sector {at}: {} not of {:?}", found[at], allowed[at]));
            }
        }
        Ok(())
    };
    let misfits: Vec<String> = expect.now.iter().map_while(|model| fits(model).err()).collect();
    if misfits.len() < expect.now.len() { Ok(()) } else { Err(misfits.join("; or ")) }
}

/// Files that are there, and those that something needs.
struct Files {
    there: Vec<PathBuf>,
    needed: BTreeSet<PathBuf>,
}

impl Files {
    fn of(sim: &Sim, folder: &VmFolder, definition: &Definition) -> Self {
        let image = sim.live();
        let places = [folder.path().to_owned(), folder.checkpoints(definition)];
        let trees = places.iter().filter_map(|place| image.tree(place).ok());
        let there = trees.flatten().map(|(path, _)| path).collect();
        let usual =
            ["", "vm.json", "lock", "disks/", "reserve", "lost-writes"].map(|name| folder.path().join(name));
        let mut needed = BTreeSet::from(usual);
        needed.extend(folder.event_files());
        needed.extend(["", "reserve"].map(|name| folder.checkpoints(definition).join(name)));
        Self { there, needed }
    }

    fn need(&mut self, path: PathBuf) {
        self.needed.insert(path);
    }

    fn need_layer(&mut self, path: &Path, sums: Option<&u32>) {
        self.needed.extend(sums.map(|crc| piton::disk::sums::path_of(path, *crc)));
        self.needed.insert(path.to_owned());
    }

    fn check(self) -> Outcome<()> {
        // What came of trying a checkpoint may be beside its manifest.
        let beside = |path: &Path| {
            path.ends_with("verified.json") && self.needed.contains(&path.with_file_name("manifest.json"))
        };
        match self.there.iter().find(|path| !self.needed.contains(*path) && !beside(path)) {
            None => Ok(()),
            Some(path) => Err(format!("{} is left over", path.display())),
        }
    }
}
