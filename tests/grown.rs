//! Chains whose layers are of ever larger disks, against a model. Not among the unit tests: those that start
//! processes lend them the locks of its files for a moment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use piton::disk::delta::{Delta, FrozenDelta};
use piton::disk::delta_format::{BLOCK, Geometry, Parent};
use piton::disk::frozen::FrozenChain;
use piton::disk::layer::{LayerSpec, ancestry, inspect};
use piton::disk::live::LiveDisk;
use piton::disk::merge::{Direction, Merge, base_has_grown};
use piton::disk::outlook::Outlook;
use piton::disk::{Backing, Disk, ImageFormat, open_base};
use piton::id::Id;
use piton::storage::{Access, Storage};

/// Ends within a block.
const SIZE: u64 = 5 * BLOCK + 1536;

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Push { keep: bool },
    Grow(u64),
    Merge { upper: usize, sealed: bool, give_up: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<u64>(), 1..9000u64, 1..=255u8).prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
        2 => (any::<u64>(), 1..20_000u64).prop_map(|(at, len)| Op::Zero(at, len)),
        3 => any::<bool>().prop_map(|keep| Op::Push { keep }),
        3 => (1..400u64).prop_map(Op::Grow),
        4 => (any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(upper, sealed, give_up)| Op::Merge { upper, sealed, give_up }),
    ]
}

struct World {
    dir: tempfile::TempDir,
    storage: Storage,
    /// From the base upwards; the guest writes to the last.
    layers: Vec<LayerSpec>,
    model: Vec<u8>,
    nodes: BTreeMap<Id, Vec<u8>>,
    files: u32,
}

fn all(disk: &dyn Backing) -> Vec<u8> {
    let mut bytes = vec![0xcc; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    // What is not data is zeros.
    let mut at = 0;
    while let Some(data) = disk.next_data(at).unwrap() {
        assert!(at <= data.start && data.start < data.end && data.end <= disk.len(), "{data:?}");
        assert!(bytes[at as usize..data.start as usize].iter().all(|byte| *byte == 0));
        at = data.end;
    }
    assert!(bytes[at as usize..].iter().all(|byte| *byte == 0));
    bytes
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model: Vec<u8> = (0..SIZE).map(|at| (at / 700 % 5) as u8).collect();
        std::fs::write(dir.path().join("base"), &model).unwrap();
        let storage = Storage::os();
        let mut world = Self { dir, storage, layers: Vec::new(), model, nodes: BTreeMap::new(), files: 0 };
        let (path, size) = (world.path(), SIZE);
        let top = Delta::create(&world.storage, &path, size, Parent::Base).unwrap();
        world.layers.push(LayerSpec { path, id: top.id() });
        world
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn path(&mut self) -> PathBuf {
        self.files += 1;
        self.dir.path().join(format!("{}.delta", self.files))
    }

    fn open(&self) -> LiveDisk {
        LiveDisk::open(&self.storage, &self.base(), ImageFormat::Raw, &self.layers, &BTreeMap::new()).unwrap()
    }

    fn check(&self) {
        // Raw without layers, or the chain that the headers tell of.
        let infos: Vec<_> =
            self.layers.iter().map(|layer| inspect(&self.storage, &layer.path).unwrap()).collect();
        if let Some(top) = self.layers.last() {
            assert_eq!(ancestry(&infos, top.id).unwrap(), self.layers);
        }
        assert!(all(&self.open()) == self.model);
        for (id, expected) in &self.nodes {
            let specs = ancestry(&infos, *id).unwrap();
            let base = open_base(&self.storage, &self.base(), ImageFormat::Raw).unwrap();
            let chain = FrozenChain::open(&self.storage, base, &specs).unwrap();
            assert!(all(&chain) == *expected);
        }
    }

    fn range(&self, at: u64, len: u64) -> (u64, u64) {
        let at = at % self.model.len() as u64;
        (at, len.min(self.model.len() as u64 - at))
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write(at, len, byte) => {
                let (at, len) = self.range(at, len);
                let disk = self.open();
                disk.write_at(&vec![byte; len as usize], at).unwrap();
                disk.flush().unwrap();
                self.model[at as usize..(at + len) as usize].fill(byte);
            }
            Op::Zero(at, len) => {
                let (at, len) = self.range(at, len);
                let disk = self.open();
                disk.write_zeroes(at, len).unwrap();
                disk.flush().unwrap();
                self.model[at as usize..(at + len) as usize].fill(0);
            }
            Op::Push { keep } => {
                let path = self.path();
                let disk = self.open();
                let (before, overlay) = (disk.top(), disk.prepare(&self.storage, &path).unwrap());
                self.layers.push(overlay.spec());
                disk.push(&self.storage, overlay).unwrap();
                disk.flush().unwrap();
                if let Some(before) = before.filter(|_| keep) {
                    self.nodes.insert(before, self.model.clone());
                }
            }
            Op::Grow(sectors) => self.grow(sectors * 512),
            Op::Merge { upper, sealed, give_up } => self.merge(upper, sealed, give_up),
        }
    }

    fn grow(&mut self, more: u64) {
        let (from, to) = (self.model.len() as u64, self.model.len() as u64 + more);
        self.model.resize(to as usize, 0);
        let Some(top) = self.layers.last().cloned() else {
            let mut image = piton::disk::raw::RawDisk::open(&self.storage, &self.base()).unwrap();
            image.grow(to).unwrap();
            return image.flush().unwrap();
        };
        // What lies past the end of the disk in a layer's last block is nobody's.
        let (geometry, file) =
            (Geometry::new(from).unwrap(), self.storage.open(&top.path, Access::ReadWrite).unwrap());
        let rest = geometry.blocks * BLOCK - from;
        file.write_at(&vec![0xee; rest as usize], geometry.data_offset + from).unwrap();
        let path = self.path();
        let layer = Delta::create_over(&self.storage, &path, to, Parent::Delta(top.id), from).unwrap();
        self.layers.push(LayerSpec { path, id: layer.id() });
    }

    fn merge(&mut self, upper: usize, sealed: bool, give_up: bool) {
        if self.layers.is_empty() {
            return;
        }
        let at = upper % self.layers.len();
        let upper = self.layers[at].clone();
        let children: Vec<_> = self.layers.get(at + 1).into_iter().cloned().collect();
        let Some(lower) = at.checked_sub(1).map(|below| self.layers[below].clone()) else {
            let mut merge =
                Merge::open_on_base(&self.storage, &self.base(), ImageFormat::Raw, &upper, None, true)
                    .unwrap();
            if give_up {
                merge.step(BLOCK).unwrap();
                merge.sync().unwrap();
                drop(merge);
                return base_has_grown(&self.storage, &self.base(), &upper).unwrap();
            }
            self.nodes.remove(&upper.id);
            merge.finish(&self.storage, &children).unwrap();
            self.layers.remove(at);
            return;
        };
        let open = |spec: &LayerSpec| FrozenDelta::open(&self.storage, spec).unwrap();
        let outlook = sealed.then(|| {
            let seal = |spec: &LayerSpec| open(spec).seal(&self.storage).unwrap().crc;
            Outlook::take(&self.storage, (&lower, seal(&lower)), (&upper, seal(&upper)), None, &|_| Ok(()))
                .unwrap()
        });
        self.nodes.remove(&lower.id);
        let mut merge = Merge::open(&self.storage, &lower, &upper, None, outlook.as_ref()).unwrap();
        if give_up {
            merge.step(BLOCK).unwrap();
            return;
        }
        let direction = merge.direction();
        merge.finish(&self.storage, &children).unwrap();
        drop(merge);
        let left = match direction {
            Direction::Pull => self.layers.remove(at - 1) == lower,
            Direction::Commit => self.layers.remove(at) == upper,
        };
        assert!(left);
        if direction == Direction::Commit
            && let Some(node) = self.nodes.remove(&upper.id)
        {
            self.nodes.insert(lower.id, node);
        }
        if let Some(outlook) = outlook {
            let left = if direction == Direction::Pull { &upper } else { &lower };
            let layer = open(left);
            layer.attach_sums(&self.storage, outlook.merged).unwrap();
            layer.verify(|_| Ok(())).unwrap();
        }
    }
}

/// Each case is long.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: (usual.cases / 8).max(1), ..usual }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_disk_that_grows_reads_as_its_model(ops in prop::collection::vec(op(), 1..30)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
            world.check();
        }
    }
}
