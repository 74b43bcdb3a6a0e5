//! What the tests of checkpoints share beside `common`. The VM is always called `demo`.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod cuts;
pub mod kills;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use piton::capture::chain::MemoryChain;
use piton::checkpoint::store::Store;
use piton::disk::frozen::FrozenChain;
use piton::disk::layer::{ancestry, inspect};
use piton::disk::{Backing, ImageFormat, open_base};
use piton::id::Id;
use piton::storage::Storage;
use serde_json::Value;

use crate::common::{Finished, Home, Vm, until};

pub const MIB: u64 = 1 << 20;

/// A home with two images: `a.raw`, which the VM may write, and `b.raw`, a template.
pub struct Lab {
    pub home: Home,
    pub a: String,
    pub b: String,
    template: Vec<u8>,
}

impl std::ops::Deref for Lab {
    type Target = Home;
    fn deref(&self) -> &Home {
        &self.home
    }
}

impl Lab {
    pub fn new() -> Self {
        let home = Home::new();
        let a = home.image("a.raw", 4 * MIB);
        let template: Vec<u8> = (0..MIB / 2).flat_map(|word| word.to_le_bytes()).collect();
        let b = home.file("b.raw", &template);
        Self { home, a, b, template }
    }

    /// The words behind `piton run demo` for both disks.
    pub fn disks(&self) -> String {
        format!("--disk {},id=a --disk {},id=b,overlay", self.a, self.b)
    }

    /// A VM with both disks in the foreground, its journal on.
    #[track_caller]
    pub fn boot(&self, options: &str) -> Vm {
        self.home.boot(&format!("run demo {} {options}", self.disks()))
    }

    /// `piton checkpoint` with the words of `line`.
    pub fn cp(&self, line: &str) -> Finished {
        self.home.piton(&format!("checkpoint {line}"))
    }

    /// Makes a checkpoint; returns what `--json` tells of it.
    #[track_caller]
    pub fn create(&self, name: &str) -> Value {
        self.cp(&format!("create demo {name} --json")).json()
    }

    #[track_caller]
    pub fn delete(&self, name: &str) {
        self.cp(&format!("delete demo@{name} --yes")).ok();
    }

    #[track_caller]
    pub fn apply(&self, name: &str, options: &str) {
        self.cp(&format!("apply demo@{name} --discard-current {options}")).ok();
    }

    #[track_caller]
    pub fn state(&self) -> String {
        self.home.piton("show demo --json").json()["state"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn stop(&self) {
        self.home.piton("stop demo --force").ok();
        self.ended();
    }

    /// Waits until nobody runs the VM. One that is just ending may not answer any more.
    #[track_caller]
    pub fn ended(&self) {
        until("the VM to end", || {
            let shown = self.home.piton("show demo --json");
            let is_off = shown.code == Some(0) && shown.json()["state"] == "stopped";
            // Its process may still be merging what a delete left.
            (is_off && self.home.piton("doctor demo").code != Some(3)).then_some(())
        });
    }

    #[track_caller]
    pub fn list(&self) -> Value {
        self.cp("list demo --json").json()
    }

    /// The names of all checkpoints with that of their parent, and `Now` among them.
    #[track_caller]
    pub fn parents(&self) -> BTreeMap<String, String> {
        let list = self.list();
        assert_eq!(list["damaged"], serde_json::json!([]), "{list}");
        let all = list["checkpoints"].as_array().unwrap();
        let name = |id: &Value| {
            let found = all.iter().find(|one| one["id"] == *id);
            found.map_or("-".to_owned(), |one| one["name"].as_str().unwrap().to_owned())
        };
        let mut parents: BTreeMap<_, _> =
            all.iter().map(|one| (name(&one["id"]), name(&one["parent"]))).collect();
        parents.insert("Now".into(), name(&list["now"]));
        parents
    }

    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        self.parents().into_keys().filter(|name| name != "Now").collect()
    }

    pub fn folder(&self, manifest: &Value) -> PathBuf {
        self.home.vm("demo").join("checkpoints").join(manifest["id"].as_str().unwrap())
    }

    /// The manifest.
    #[track_caller]
    pub fn show(&self, name: &str) -> Value {
        self.home.manifest("demo", name)
    }

    /// The delta layers of a disk that are in the folder.
    pub fn deltas(&self, disk: &str) -> Vec<PathBuf> {
        let dir = self.home.vm("demo").join("disks");
        let found = files(&dir).into_iter().filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&format!("{disk}-")) && name.ends_with(".delta")
        });
        found.collect()
    }

    /// Everything that the chain up to layer `top` of a disk holds.
    #[track_caller]
    pub fn chain(&self, disk: &str, base: &Path, top: Id) -> Vec<u8> {
        let storage = Storage::os();
        let layers: Vec<_> = self.deltas(disk).iter().map(|path| inspect(&storage, path).unwrap()).collect();
        let chain = ancestry(&layers, top).unwrap();
        let base = open_base(&storage, base, ImageFormat::Raw).unwrap();
        let chain = FrozenChain::open(&storage, base, &chain).unwrap();
        let mut bytes = vec![0; usize::try_from(chain.len()).unwrap()];
        chain.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Waits until a running VM is at work on nothing: while layers are merged nobody else can
    /// read them.
    #[track_caller]
    pub fn at_rest(&self) {
        until("all jobs to be over", || {
            let list = self.cp("jobs demo --json").json();
            let jobs = list["jobs"].as_array().unwrap();
            jobs.iter().all(|job| job["state"] != "queued" && job["state"] != "running").then_some(())
        });
    }

    /// What a checkpoint holds.
    #[track_caller]
    pub fn node(&self, name: &str) -> Node {
        self.at_rest();
        let manifest = self.show(name);
        let mut disks = BTreeMap::new();
        for (disk, point) in manifest["disks"].as_object().unwrap() {
            let base = self.base(&manifest["config"], disk);
            let content = match point["layer"]["id"].as_str() {
                Some(id) => self.chain(disk, &base, id.parse().unwrap()),
                None => std::fs::read(&base).unwrap(),
            };
            disks.insert(disk.clone(), content);
        }
        let state = manifest["state"]["crc"].as_u64();
        self.verify(name);
        Node { disks, sums: [self.memory(&manifest), state] }
    }

    /// A checksum of what guest memory holds, whichever images it is in.
    fn memory(&self, manifest: &Value) -> Option<u64> {
        let folder = self.folder(manifest);
        let store = Store::new(Storage::os(), folder.parent().unwrap().to_owned());
        let manifest = store.load(manifest["id"].as_str().unwrap().parse().unwrap()).unwrap();
        manifest.memory.as_ref()?;
        let chain = MemoryChain::open(&Storage::os(), &store.memory_chain(&manifest).unwrap()).unwrap();
        let mut hash = std::hash::DefaultHasher::new();
        for &(start, len) in chain.ranges() {
            for piece in chain.pieces(start, len).unwrap().iter().filter(|piece| piece.image.is_some()) {
                let mut bytes = vec![0; (piece.at.end - piece.at.start) as usize];
                chain.read_piece(piece, &mut bytes).unwrap();
                for (at, page) in (piece.at.start..).step_by(4096).zip(bytes.chunks(4096)) {
                    // One image may hold zeros that another leaves out.
                    if page.iter().any(|byte| *byte != 0) {
                        (at, page).hash(&mut hash);
                    }
                }
            }
        }
        Some(hash.finish())
    }

    fn base(&self, config: &Value, disk: &str) -> PathBuf {
        let disks = config["disks"].as_array().unwrap();
        let found = disks.iter().find(|one| one["id"] == disk).unwrap();
        self.home.vm("demo").join(found["path"].as_str().unwrap())
    }

    /// What a disk of a VM that is off holds.
    #[track_caller]
    pub fn now(&self, disk: &str) -> Vec<u8> {
        let definition = self.definition();
        let base = self.base(&definition["config"], disk);
        match definition["now"]["tops"][disk].as_str() {
            Some(id) => self.chain(disk, &base, id.parse().unwrap()),
            None => std::fs::read(&base).unwrap(),
        }
    }

    pub fn definition(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.home.vm("demo").join("vm.json")).unwrap()).unwrap()
    }

    #[track_caller]
    pub fn nodes(&self) -> BTreeMap<String, Node> {
        self.names().into_iter().map(|name| (name.clone(), self.node(&name))).collect()
    }

    /// Layers of a checkpoint that nothing checks; bases have no checksums unless they are asked for.
    #[track_caller]
    pub fn unchecked_layers(&self, name: &str) -> Vec<String> {
        let verified = self.verify(name);
        let all =
            verified["unchecked"].as_array().unwrap().iter().map(|what| what.as_str().unwrap().to_owned());
        all.filter(|what| !what.starts_with("the base image")).collect()
    }

    /// Asserts that nothing of a checkpoint is damaged.
    #[track_caller]
    pub fn verify(&self, name: &str) -> Value {
        let done = until("layers to be at rest", || {
            self.at_rest();
            let done = self.home.args(["checkpoint", "verify", &format!("demo@{name}"), "--json"]);
            // What an earlier process left to merge begins a while after a start.
            (!done.stderr.contains("are being merged")).then_some(done)
        });
        done.json()
    }

    /// Asserts that there is nothing to mend. The VM must be off.
    #[track_caller]
    pub fn sound(&self) {
        assert_eq!(self.home.piton("doctor demo --json").json(), serde_json::json!([]));
    }

    /// Asserts that no operation left anything that is nobody's: the VM must be off.
    #[track_caller]
    pub fn tidy(&self) {
        self.sound();
        let hidden = files(&self.home.vm("demo").join("checkpoints"));
        let hidden: Vec<_> = hidden
            .iter()
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.'))
            .collect();
        assert!(hidden.is_empty(), "{hidden:?}");
    }

    /// Asserts that the template is as it was at the beginning.
    #[track_caller]
    pub fn template_is_untouched(&self) {
        assert!(std::fs::read(&self.b).unwrap() == self.template, "the template was written to");
    }
}

#[derive(PartialEq, Eq)]
pub struct Node {
    pub disks: BTreeMap<String, Vec<u8>>,
    /// Of memory and state.
    pub sums: [Option<u64>; 2],
}

/// Asserts that every checkpoint of `after` holds what it held `before`.
#[track_caller]
pub fn unchanged(before: &BTreeMap<String, Node>, after: &BTreeMap<String, Node>) {
    for (name, node) in after {
        let Some(old) = before.get(name) else { continue };
        assert_eq!(old.sums, node.sums, "memory and state of `{name}`");
        for (disk, content) in &node.disks {
            same(&format!("disk `{disk}` of `{name}`"), &old.disks[disk], content);
        }
    }
}

/// Asserts equality without printing megabytes.
#[track_caller]
pub fn same(what: &str, expected: &[u8], found: &[u8]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    if expected != found {
        let at = expected.iter().zip(found).position(|(a, b)| a != b);
        panic!("{what} differs first at {at:?}");
    }
}

/// Everything in a folder; one that is not there is empty.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// What the bundled guest's `blk write` puts at `offset`.
pub fn pattern(seed: u64, offset: u64, len: u64) -> Vec<u8> {
    let word = |index: u64| {
        let mut x = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (offset / 8..(offset + len) / 8).flat_map(|index| word(index).to_le_bytes()).collect()
}

/// A small generator of random numbers that a seed replays.
pub struct Dice(u64);

impl Dice {
    /// Seeded by `PITON_TEST_SEED`, or by the time; the seed is printed.
    pub fn from_env(test: &str) -> Self {
        let seed = match std::env::var("PITON_TEST_SEED") {
            Ok(seed) => seed.parse().expect("PITON_TEST_SEED is a number"),
            Err(_) => u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()),
        };
        eprintln!("{test}: PITON_TEST_SEED={seed}");
        Self(seed)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A checkpoint with its parent, as [`Lab::parents`] has them.
pub fn owned((name, parent): (&str, &str)) -> (String, String) {
    (name.to_owned(), parent.to_owned())
}
