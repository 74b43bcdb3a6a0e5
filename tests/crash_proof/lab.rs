//! A VM on a recorded file system, with the model of what it must be after a crash. Its guest is
//! this program: it writes to the disks that piton opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use piton::capture::image::ImageWriter;
use piton::checkpoint::manifest::{DiskPoint, MemoryInfo};
use piton::checkpoint::state::write_state;
use piton::checkpoint::{Kind, Manifest};
use piton::config::{DiskConfig, DiskFormat, VmConfig};
use piton::control::{ChangeBody, CreateBody, DeleteBody, GoBack};
use piton::disk::live::Prepared;
use piton::disk::{Backing, Disk};
use piton::folder::{Definition, VmFolder, VmLock};
use piton::history::bases;
use piton::history::create::{Origin, Subject, create};
use piton::history::disk_changes::{NewSize, add, remove, resize};
use piton::history::disks::{self, OpenDisks, base_path, new_layer_path};
use piton::history::inventory::Inventory;
use piton::history::relocate::relocate;
use piton::history::{Catalog, CheckpointError, apply, delete, flat, merge, recover, sealing};
use piton::id::{self, Id};
use piton::progress::Progress;
use piton::storage::Access;
use piton::storage::sim::{Rng, Sim};

use crate::check;
use crate::model::{Expect, Memory, NodeModel, NowModel, SECTOR, exactly, fill, stamps};

/// Sectors: two chunks of checksums and an end within a block; and a small one.
pub const DISKS: [(&str, usize); 2] = [("root", 36 * 8 - 3), ("data", 5 * 8)];
/// Sectors of a disk that is added later, more than its image has.
const MORE: usize = 9 * 8;
const MEMORY: u64 = 8 << 20;

pub type Result<T> = std::result::Result<T, CheckpointError>;

pub struct Lab {
    pub sim: Sim,
    pub folder: VmFolder,
    pub lock: VmLock,
    pub definition: Definition,
    pub disks: OpenDisks,
    /// By epoch, from `first` on.
    pub expects: Vec<Expect>,
    pub first: u32,
    pub rng: Rng,
    stamp: u32,
}

fn config() -> VmConfig {
    let disk = |id: &str| DiskConfig {
        id: id.into(),
        path: format!("/img/{id}").into(),
        format: DiskFormat::Raw,
        readonly: false,
        passthrough: false,
        // The one is merged into its base, the other's base is never written.
        overlay: id == "data",
    };
    VmConfig {
        cpus: 1,
        memory: MEMORY,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        disks: DISKS.iter().map(|(id, _)| disk(id)).collect(),
        nets: Vec::new(),
        vsock: false,
        boot_disk: None,
    }
}

impl Lab {
    pub fn new(seed: u64) -> Self {
        id::foresee(seed);
        let sim = Sim::default();
        let storage = sim.storage();
        for dir in [check::HOME, "/img", "/ext"] {
            storage.create_dir(Path::new(dir)).unwrap();
        }
        let mut now = NowModel { parents: vec![None], disks: BTreeMap::new() };
        for (index, (disk, sectors)) in DISKS.iter().enumerate() {
            let file = storage.create_new(&Path::new("/img").join(disk)).unwrap();
            file.set_len((sectors * SECTOR) as u64).unwrap();
            let stamp = |at: usize| if at % 7 < 4 { (1000 * (index + 1) + at) as u32 } else { 0 };
            for at in 0..*sectors {
                file.write_at(&fill(stamp(at), 1), (at * SECTOR) as u64).unwrap();
            }
            now.disks.insert((*disk).into(), (0..*sectors).map(|at| vec![stamp(at)]).collect());
        }
        let folder = check::folder(&sim);
        let lock = folder.create().unwrap();
        let mut definition = Definition::new(config());
        disks::create_overlays(&folder, &mut definition, &BTreeMap::new()).unwrap();
        folder.save(&lock, &definition).unwrap();
        let expects = vec![Expect { doing: "nothing".into(), now: vec![now], ..Expect::default() }];
        let disks = OpenDisks::default();
        let rng = Rng::new(seed);
        let mut lab = Self { sim, folder, lock, definition, disks, expects, first: 0, rng, stamp: 10_000 };
        lab.open().unwrap();
        lab.begin();
        lab
    }

    /// Goes on where another process was killed; its log goes on, too.
    pub fn adopt(sim: Sim, mut expect: Expect, first: u32, seed: u64) -> Result<Self> {
        let folder = check::folder(&sim);
        let lock = folder.lock()?;
        let mut definition = folder.load()?;
        recover(&folder, &lock, &mut definition, true)?;
        let disks = OpenDisks::default();
        let (rng, parent) = (Rng::new(seed), definition.now.parent);
        let mut lab =
            Self { sim, folder, lock, definition, disks, expects: Vec::new(), first, rng, stamp: 50_000 };
        lab.open()?;
        let found = lab.reads();
        expect.now.retain(|now| now.parents.contains(&parent) && fits(now, &found));
        // Recovery made durable what Now descends from, and nothing of what the guest did not flush.
        expect.now.iter_mut().for_each(|now| now.parents = vec![parent]);
        expect.places.clear();
        lab.expect_from_here(expect);
        Ok(lab)
    }

    /// What came before is durable and not part of the proof.
    pub fn begin(&mut self) {
        self.flush().unwrap();
        self.sim.settle();
        let now = self.expect().clone();
        self.expects = vec![now];
    }

    /// Something happened that nobody waits for.
    pub fn record(&mut self) -> Result<()> {
        Ok(self.folder.record_within(&self.lock, &check::event(), 300)?)
    }

    pub fn expect(&self) -> &Expect {
        self.expects.last().unwrap()
    }

    pub fn catalog(&self) -> Catalog<'_> {
        Catalog::new(&self.folder, &self.definition)
    }

    pub fn open(&mut self) -> Result<()> {
        self.disks = OpenDisks::default();
        let sums = self.catalog().layer_sums(&self.definition)?;
        let Definition { config, now, .. } = &self.definition;
        self.disks = disks::open(&self.folder, config, &now.tops, &sums, &Default::default())?;
        Ok(())
    }

    /// From here on something else may be found.
    fn expect_from_here(&mut self, expect: Expect) {
        self.sim.mark(self.first + self.expects.len() as u32);
        self.expects.push(expect);
    }

    /// Does something whose outcome says what may be found meanwhile, and what afterwards. After
    /// an error that is what may be found meanwhile, too.
    pub fn step<T>(
        &mut self,
        doing: String,
        act: impl FnOnce(&mut Self) -> Result<T>,
        outcome: impl FnOnce(&Self, &mut Expect, &mut Expect, Option<&T>),
    ) -> Result<T> {
        let before = Expect { doing, ..self.expect().clone() };
        let index = self.expects.len();
        self.expect_from_here(before.clone());
        let done = act(self);
        let (mut during, mut after) = (before.clone(), before);
        outcome(self, &mut during, &mut after, done.as_ref().ok());
        after.doing = format!("after: {}", after.doing);
        self.expects[index] = during.clone();
        self.expect_from_here(if done.is_ok() { after } else { during });
        done
    }

    fn reads(&self) -> BTreeMap<String, Vec<u32>> {
        self.disks.live.iter().map(|(id, disk)| (id.clone(), stamps(disk as &dyn Backing).unwrap())).collect()
    }

    // The guest.

    fn note(&mut self, doing: String, disk: &str, at: usize, sectors: usize, stamp: u32) {
        let mut next = Expect { doing, ..self.expect().clone() };
        for now in &mut next.now {
            let allowed = now.disks.get_mut(disk).unwrap();
            allowed[at..at + sectors].iter_mut().for_each(|stamps| stamps.push(stamp));
        }
        self.expect_from_here(next);
    }

    pub fn write(&mut self, disk: &str, at: usize, sectors: usize) -> Result<()> {
        self.stamp += 1;
        self.note(format!("write {disk} {at} +{sectors}"), disk, at, sectors, self.stamp);
        Ok(self.disks.live[disk].write_at(&fill(self.stamp, sectors), (at * SECTOR) as u64)?)
    }

    pub fn discard(&mut self, disk: &str, at: usize, sectors: usize) -> Result<()> {
        self.note(format!("discard {disk} {at} +{sectors}"), disk, at, sectors, 0);
        Ok(self.disks.live[disk].discard((at * SECTOR) as u64, (sectors * SECTOR) as u64)?)
    }

    pub fn flush(&mut self) -> Result<()> {
        for disk in self.disks.live.values() {
            disk.flush()?;
        }
        let mut next = Expect { doing: "after: flush".into(), ..self.expect().clone() };
        let found = self.reads();
        // After a step that failed there is one that it was to lead to, and the one that is.
        if next.now.len() > 1 {
            next.now.retain(|now| fits(now, &found));
        }
        next.now.iter_mut().for_each(|now| collapse(now, &found));
        self.expect_from_here(next);
        Ok(())
    }

    /// A few writes all over the disks.
    pub fn scribble(&mut self, writes: usize) -> Result<()> {
        for _ in 0..writes {
            let (disk, sectors) = DISKS[self.rng.below(3) as usize / 2];
            let at = self.rng.below(sectors as u64) as usize;
            let count = (1 + self.rng.below(20) as usize).min(sectors - at);
            if self.rng.below(6) == 0 {
                self.discard(disk, at, count)?;
            } else {
                self.write(disk, at, count)?;
            }
        }
        Ok(())
    }

    // Checkpoints.

    fn made(
        lab: &Self,
        during: &mut Expect,
        after: &mut Expect,
        manifest: Option<&Manifest>,
        memory: Option<Memory>,
    ) {
        // After an error it may be there all the same, but then it is whole.
        let left = |lab: &Self| {
            let found = lab.catalog().manifests().unwrap_or_default();
            found.into_iter().find(|manifest| !during.must.contains_key(&manifest.id))
        };
        let left = if manifest.is_none() { left(lab) } else { None };
        let Some(manifest) = manifest.or(left.as_ref()) else { return };
        let found = lab.reads();
        let node = NodeModel {
            names: vec![manifest.name.to_string()],
            notes: vec![manifest.note.clone()],
            parents: vec![manifest.parent],
            disks: Rc::new(found.clone()),
            memory: memory.map(Rc::new),
            trash: vec![manifest.is_in_trash()],
        };
        during.may.insert(manifest.id, node.clone());
        during.now.iter_mut().for_each(|now| now.parents.push(Some(manifest.id)));
        after.must.insert(manifest.id, node);
        for now in &mut after.now {
            now.parents = vec![Some(manifest.id)];
            collapse(now, &found);
        }
    }

    pub fn create(&mut self, name: &str) -> Result<Id> {
        self.create_as(name, Origin::default())
    }

    pub fn create_as(&mut self, name: &str, origin: Origin) -> Result<Id> {
        let body = CreateBody { name: Some(name.parse().unwrap()), ..CreateBody::default() };
        let act = |lab: &mut Self| {
            let Self { folder, lock, definition, disks, .. } = lab;
            let disks = &disks.live;
            let subject = Subject { folder, lock, definition, disks, machine: None, pending: None, origin };
            create(subject, &body, &Progress::default())
        };
        let made = self.step(format!("create {name}"), act, |lab, during, after, manifest| {
            Self::made(lab, during, after, manifest, None);
        })?;
        Ok(made.id)
    }

    /// A standard checkpoint in the order of `create`, without a machine: the memory and the state
    /// are made up here, everything else is the code of the store, the image and the disks.
    pub fn standard(&mut self, name: &str, memory: Memory) -> Result<Id> {
        let kept = memory.clone();
        let act = |lab: &mut Self| lab.make_standard(name, &memory);
        let made = self.step(format!("create {name} with memory"), act, |lab, during, after, manifest| {
            Self::made(lab, during, after, manifest, Some(kept));
        })?;
        Ok(made.id)
    }

    /// The user copied a base to another place, and says so.
    pub fn relocate(&mut self, disk: &str, to: &str) -> Result<()> {
        let act = |lab: &mut Self| {
            lab.disks = OpenDisks::default();
            let Self { folder, lock, definition, .. } = lab;
            let config = definition.config.disks.iter().find(|config| config.id == disk).unwrap();
            let from = base_path(folder, config);
            let storage = folder.storage();
            let source = storage.open(&from, Access::ReadOnly)?;
            let copy = storage.create_new(Path::new(to))?;
            copy.copy_from(&source, 0, source.len()?)?;
            copy.sync_data()?;
            storage.sync_parent(Path::new(to))?;
            drop((source, copy));
            relocate(folder, lock, definition, disk, Path::new(to))?;
            lab.open()
        };
        self.step(format!("relocate {disk} to {to}"), act, |_, _, _, _| {})
    }

    fn make_standard(&mut self, name: &str, memory: &Memory) -> Result<Manifest> {
        let storage = self.folder.storage().clone();
        let store = self.catalog().store;
        let id = Id::random().map_err(CheckpointError::Random)?;
        let parent = self.definition.now.parent;
        let staging = store.stage(id)?;
        let mut staged: Vec<(String, Prepared, Option<Id>)> = Vec::new();
        for (disk, live) in &self.disks.live {
            let overlay = live.prepare(&storage, &new_layer_path(&self.folder, disk)?)?;
            staged.push((disk.clone(), overlay, live.top()));
        }
        let mut next = self.definition.clone();
        next.now.creating = Some(id);
        next.now.unsealed.extend(staged.iter().filter_map(|(.., before)| *before));
        next.now.tops.extend(staged.iter().map(|(disk, overlay, _)| (disk.clone(), overlay.spec().id)));
        self.folder.save(&self.lock, &next)?;
        self.definition = next;
        // Over a parent with memory only what changed since is written.
        let below = parent.and_then(|id| Some((id, self.expect().node(id)?.memory.clone()?)));
        let (path, ranges) = (staging.memory_path(), [(0, MEMORY)]);
        let mut image = match &below {
            None => ImageWriter::create(&storage, &path, id, &ranges)?,
            Some((parent, _)) => ImageWriter::create_delta(&storage, &path, id, *parent, &ranges)?,
        };
        let before = below.as_ref().map(|(_, memory)| memory.pages.clone()).unwrap_or_default();
        for gpa in before.keys().chain(memory.pages.keys().filter(|gpa| !before.contains_key(gpa))) {
            let byte = |pages: &BTreeMap<u64, u8>| pages.get(gpa).copied().unwrap_or(0);
            if byte(&before) != byte(&memory.pages) {
                image.write(*gpa, &[byte(&memory.pages); 4096])?;
            }
        }
        let mut frozen = BTreeMap::new();
        for (disk, overlay, before) in staged {
            frozen.insert(disk.clone(), before.zip(self.disks.live[&disk].push(&storage, overlay)?));
        }
        let image = image.finish()?;
        for disk in self.disks.live.values() {
            disk.flush()?;
        }
        let state = write_state(&storage, &staging.state_path(), memory.state.as_bytes())?;
        let (mut points, mut stamps) = (BTreeMap::new(), BTreeMap::new());
        let sealed: Vec<Id> = frozen.values().flatten().map(|(layer, _)| *layer).collect();
        for config in &self.definition.config.disks {
            let stamp = bases::stamp(&self.folder, config)?;
            stamps.insert(config.id.clone(), stamp.clone());
            let point = match &frozen[&config.id] {
                Some((id, layer)) => DiskPoint::Layer { id: *id, sums: Some(layer.seal(&storage)?.crc) },
                None => DiskPoint::Base(stamp),
            };
            points.insert(config.id.clone(), point);
        }
        let manifest = Manifest {
            id,
            name: name.parse().unwrap(),
            note: String::new(),
            parent,
            kind: Kind::Standard,
            created: chrono::Utc::now(),
            vm: check::VM.into(),
            config: self.definition.config.clone(),
            kernel: None,
            initrd: None,
            disks: points,
            bases: stamps,
            left_out: Vec::new(),
            memory: Some(MemoryInfo {
                guest_bytes: image.guest_bytes,
                stored_bytes: image.stored_bytes,
                crc: image.crc,
                parent: below.map(|(parent, _)| parent),
                ..MemoryInfo::default()
            }),
            capture: None,
            frozen_us: None,
            fallback: None,
            automatic: false,
            keeping: Default::default(),
            state: Some(state),
            pause_us: None,
            disk_bytes: 0,
            piton: "proof".into(),
            warnings: Vec::new(),
            unknown: Default::default(),
        };
        sealing::seal_below(&self.folder, &self.lock, &mut self.definition, &self.disks.live, &manifest)?;
        store.publish(staging, &manifest)?;
        let mut next = self.definition.clone();
        next.now.unsealed.retain(|layer| !sealed.contains(layer));
        (next.now.creating, next.now.parent) = (None, Some(id));
        self.folder.save(&self.lock, &next)?;
        self.definition = next;
        Ok(manifest)
    }

    /// As the VMM does once the disk is well again.
    pub fn catch_up(&self) {
        piton::history::catch_up(&self.folder, &self.lock, &self.definition);
    }

    /// As the VMM of a running guest: the former state stays open until the new one counts.
    pub fn apply(&mut self, id: Id) -> Result<()> {
        self.go_to(id, false)
    }

    /// As the process of a VM that was off, which looks at the folder once and lets the guest run.
    pub fn apply_off(&mut self, id: Id) -> Result<()> {
        self.disks = OpenDisks::default();
        let gone = self.go_to(id, true);
        if gone.is_err() {
            self.open()?;
        }
        gone
    }

    /// As a clone is made: nothing ran since it was put where it is.
    pub fn call_untouched(&mut self) -> Result<()> {
        let mut next = self.definition.clone();
        next.now.untouched = true;
        self.folder.save(&self.lock, &next)?;
        self.definition = next;
        Ok(())
    }

    fn go_to(&mut self, id: Id, idle: bool) -> Result<()> {
        let act = |lab: &mut Self| {
            let inventory = idle.then(|| Inventory::read(&lab.catalog())).transpose()?;
            let manifest = lab.catalog().store.load(id)?;
            let Self { folder, lock, definition, disks, .. } = lab;
            let reuse = disks.reuse();
            let mut ready = apply::prepare(
                folder,
                lock,
                definition,
                &manifest,
                apply::Around { reuse: &reuse, idle, bare: None, inventory, runs: idle },
                GoBack::default(),
                None,
                &Progress::default(),
            )?;
            if let Err(e) = ready.commit(folder, lock, definition) {
                ready.discard(folder, definition);
                return Err(e);
            }
            *disks = ready.disks;
            apply::forget_former(folder, definition);
            Ok(())
        };
        let name = self.expect().node(id).map_or_else(String::new, |node| node.names[0].clone());
        self.step(format!("apply {name}"), act, |_, during, after, _| {
            let node = &during.must[&id];
            let disks = node.disks.iter().map(|(disk, sectors)| (disk.clone(), exactly(sectors))).collect();
            let there = NowModel { parents: vec![Some(id)], disks };
            during.now.push(there.clone());
            after.now = vec![there];
        })
    }

    pub fn delete(&mut self, id: Id, subtree: bool) -> Result<()> {
        let mut gone = vec![id];
        if subtree {
            let nodes = &self.expect().must;
            while let Some((id, _)) = nodes.iter().find(|(id, node)| {
                !gone.contains(id) && node.parents[0].is_some_and(|parent| gone.contains(&parent))
            }) {
                gone.push(*id);
            }
        }
        let body = DeleteBody { subtree, ..DeleteBody::default() };
        let act = |lab: &mut Self| {
            let Self { folder, lock, definition, .. } = lab;
            delete::run(folder, lock, definition, id, body).map(drop)
        };
        self.deleting(&gone, act)
    }

    /// What deletes these for good.
    pub fn deleting(&mut self, gone: &[Id], act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let gone = gone.to_vec();
        self.step(format!("delete of {}", gone.len()), act, |_, during, after, _| {
            let nodes = during.must.clone();
            let heir = |mut parent: Option<Id>| {
                while let Some(id) = parent.filter(|id| gone.contains(id)) {
                    parent = nodes[&id].parents[0];
                }
                parent
            };
            for id in &gone {
                during.must.remove(id);
                during.may.insert(*id, nodes[id].clone());
                after.must.remove(id);
            }
            let add = |parents: &mut Vec<Option<Id>>| parents.push(heir(parents[0]));
            during.must.values_mut().for_each(|node| add(&mut node.parents));
            // One that goes later is until then below what is left.
            during.may.values_mut().for_each(|node| add(&mut node.parents));
            during.now.iter_mut().for_each(|now| add(&mut now.parents));
            after.must.values_mut().for_each(|node| node.parents = vec![heir(node.parents[0])]);
            after.now.iter_mut().for_each(|now| now.parents = vec![heir(now.parents[0])]);
        })
    }

    pub fn change(&mut self, id: Id, name: Option<&str>, note: Option<&str>) -> Result<()> {
        let (name_of, note_of) = (name.map(|name| name.parse().unwrap()), note.map(Into::into));
        let body = ChangeBody { name: name_of, note: note_of, ..ChangeBody::default() };
        let act = |lab: &mut Self| lab.catalog().change(&lab.definition, &id.to_string(), &body).map(drop);
        self.step("rename or note".into(), act, |_, during, after, _| {
            let (old, new) = (during.must.get_mut(&id).unwrap(), after.must.get_mut(&id).unwrap());
            if let Some(name) = name {
                old.names.push(name.into());
                new.names = vec![name.into()];
            }
            if let Some(note) = note {
                old.notes.push(note.into());
                new.notes = vec![note.into()];
            }
        })
    }

    /// As at the end of a VM: its disks are closed, then layers are merged.
    pub fn settle(&mut self) -> Result<()> {
        self.flush()?;
        let act = |lab: &mut Self| {
            lab.disks = OpenDisks::default();
            let done = merge::settle(&lab.folder, &lab.lock, &mut lab.definition, &Progress::default());
            lab.open()?;
            done
        };
        self.step("merge".into(), act, |_, _, _, _| {})
    }

    /// The VM is off, and a disk grows.
    pub fn resize(&mut self, disk: &str, sectors: usize) -> Result<()> {
        self.flush()?;
        let act = |lab: &mut Self| {
            lab.disks = OpenDisks::default();
            let Self { folder, lock, definition, .. } = lab;
            let done = resize(folder, lock, definition, disk, NewSize::To((sectors * SECTOR) as u64));
            lab.open()?;
            done.map(drop)
        };
        self.step(format!("grow {disk} to {sectors}"), act, |_, during, after, _| {
            for now in &mut after.now {
                now.disks.get_mut(disk).unwrap().resize(sectors, vec![0]);
            }
            during.now.extend(after.now.clone());
        })
    }

    /// The VM is off, and gets another disk or loses one.
    pub fn plug(&mut self, disk: &str, there: bool) -> Result<()> {
        self.flush()?;
        let config = DiskConfig { overlay: true, id: disk.into(), ..config().disks[1].clone() };
        let act = |lab: &mut Self| {
            lab.disks = OpenDisks::default();
            let Self { folder, lock, definition, .. } = lab;
            let done = match there {
                true => add(folder, lock, definition, config, Some(MORE as u64 * SECTOR as u64)).map(drop),
                false => remove(folder, lock, definition, disk, true),
            };
            lab.open()?;
            done
        };
        self.step(format!("disk {disk}, there: {there}"), act, |lab, during, after, _| {
            for now in &mut after.now {
                match (there, lab.disks.live.get(disk)) {
                    (true, Some(live)) => {
                        now.disks.insert(disk.into(), exactly(&stamps(live as &dyn Backing).unwrap()));
                    }
                    _ => drop(now.disks.remove(disk)),
                }
            }
            during.now.extend(after.now.clone());
        })
    }

    /// Makes, or removes, what clones of a checkpoint share.
    pub fn flat(&mut self, id: Id, there: bool) -> Result<()> {
        let act = |lab: &mut Self| {
            let store = &lab.catalog().store;
            if there {
                return flat::ready(store, &store.load(id)?, &Progress::default()).map(drop);
            }
            Ok(store.drop_flat(id).map(drop)?)
        };
        self.step("a copy of memory".into(), act, |_, _, _, _| {})
    }

    /// As `piton set --checkpoint-dir`.
    pub fn checkpoint_dir(&mut self, dir: &str) -> Result<()> {
        let act = |lab: &mut Self| {
            let mut next = lab.definition.clone();
            next.checkpoint_dir = Some(PathBuf::from(dir));
            let own = lab.folder.checkpoints(&next);
            lab.folder.storage().create_dir(&own)?;
            lab.folder.storage().sync_dir(Path::new(dir))?;
            lab.folder.save(&lab.lock, &next)?;
            lab.definition = next;
            Ok(())
        };
        self.step("checkpoint-dir".into(), act, |_, _, _, _| {})
    }
}

fn fits(now: &NowModel, found: &BTreeMap<String, Vec<u32>>) -> bool {
    let lens = |(disk, allowed): (&String, &Vec<Vec<u32>>)| {
        found.get(disk).is_some_and(|found| found.len() == allowed.len())
    };
    if now.disks.len() != found.len() || !now.disks.iter().all(lens) {
        return false;
    }
    let mut sectors = now.disks.iter().flat_map(|(disk, allowed)| allowed.iter().zip(&found[disk]));
    sectors.all(|(allowed, stamp)| allowed.contains(stamp))
}

/// After a flush what is read is what was written last, which for a discard only the disk knows.
fn collapse(now: &mut NowModel, found: &BTreeMap<String, Vec<u32>>) {
    for (disk, sectors) in found {
        let allowed = now.disks.get_mut(disk).unwrap();
        for (at, stamp) in sectors.iter().enumerate() {
            assert!(allowed[at].contains(stamp), "disk {disk}, sector {at}: {stamp} was never written");
            allowed[at] = vec![*stamp];
        }
    }
}
