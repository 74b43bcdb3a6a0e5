//! A chain against a model of it, with power cuts at any change of any file.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::disk::chain::Chain;
use crate::disk::delta::Delta;
use crate::disk::delta_format::{BLOCK, LayerId, Parent};
use crate::disk::frozen::FrozenChain;
use crate::disk::layer::{LayerInfo, LayerSpec, ancestry, inspect};
use crate::disk::merge::{Direction, resume};
use crate::disk::{Backing, Disk, ImageFormat, Result, SECTOR, open_base};
use crate::storage::Storage;
use crate::storage::sim::{Fault, Sim};

/// Two bitmap pages, and an end within a block.
const BLOCKS: u64 = 32512 + 40;
const SECTORS: u64 = BLOCKS * 8 - 5;
const SIZE: u64 = SECTORS * SECTOR;
/// Where the test looks and mostly writes: the start, and around the border
/// of the pages up to the end.
const NEAR: u64 = 40 * 8;
const FAR: u64 = (32512 - 16) * 8;
const SEEN: u64 = NEAR + SECTORS - FAR;

/// Sector of the disk of a sector that the test looks at.
fn real(seen: u64) -> u64 {
    if seen < NEAR { seen } else { seen - NEAR + FAR }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    DiscardAll,
    Flush,
    Checkpoint { publish: bool },
    Merge { upper: usize, direction: Option<Direction>, steps: u64, finish: bool },
    Reopen,
    Crash(u64),
    Fuse(u64, u64),
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SEEN, 1..60u64).prop_map(|(at, len)| {
        let end = if at < NEAR { NEAR } else { SEEN };
        (at, len.min(end - at))
    })
}

fn op() -> impl Strategy<Value = Op> {
    let direction = prop_oneof![Just(None), Just(Some(Direction::Commit)), Just(Some(Direction::Pull))];
    prop_oneof![
        12 => range().prop_map(|(at, len)| Op::Write(at, len)),
        3 => range().prop_map(|(at, len)| Op::Zero(at, len)),
        3 => range().prop_map(|(at, len)| Op::Discard(at, len)),
        1 => Just(Op::DiscardAll),
        4 => Just(Op::Flush),
        5 => any::<bool>().prop_map(|publish| Op::Checkpoint { publish }),
        5 => (0..8usize, direction, 0..30u64, any::<bool>()).prop_map(|(upper, direction, steps, finish)|
            Op::Merge { upper, direction, steps, finish }),
        1 => Just(Op::Reopen),
        2 => any::<u64>().prop_map(Op::Crash),
        3 => (0..25u64, any::<u64>()).prop_map(|(changes, seed)| Op::Fuse(changes, seed)),
    ]
}

/// What is recorded elsewhere (vm.json) before a merge begins to relink.
#[derive(Clone)]
struct Intent {
    /// `None`: the base.
    lower: Option<LayerSpec>,
    upper: LayerSpec,
    direction: Direction,
    children: Vec<LayerSpec>,
}

struct World {
    power: Sim,
    storage: Storage,
    chain: Option<Chain>,
    top: LayerSpec,
    /// Per sector what it may read as: what was flushed, and what came after.
    allowed: Vec<Vec<u32>>,
    /// Checkpoints and what they have to read as.
    nodes: Vec<(LayerId, Vec<u32>)>,
    intent: Option<Intent>,
    stamp: u32,
    files: u32,
    seed: u64,
}

fn fill(stamp: u32, sectors: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat((sectors * SECTOR / 4) as usize)
}

fn base_path() -> &'static Path {
    Path::new("/vm/base")
}

/// Every sector whole, or the test fails.
fn stamps(disk: &dyn Backing) -> Vec<u32> {
    let mut near = vec![0; (NEAR * SECTOR) as usize];
    disk.read_at(&mut near, 0).unwrap();
    let mut far = vec![0; ((SECTORS - FAR) * SECTOR) as usize];
    disk.read_at(&mut far, FAR * SECTOR).unwrap();
    let sectors = near.chunks(512).chain(far.chunks(512));
    let stamps: Vec<u32> = sectors
        .map(|sector| {
            let first = sector.first_chunk::<4>().unwrap();
            assert!(sector[4..] == sector[..508], "a torn sector");
            u32::from_le_bytes(*first)
        })
        .collect();
    // What is not data is zero.
    let mut at = 0;
    let mut data = vec![false; SECTORS as usize];
    while let Some(found) = disk.next_data(at).unwrap() {
        assert!(at <= found.start && found.start < found.end && found.end <= SIZE);
        data[(found.start / SECTOR) as usize..(found.end / SECTOR) as usize].fill(true);
        at = found.end;
    }
    for (seen, stamp) in stamps.iter().enumerate() {
        assert!(*stamp == 0 || data[real(seen as u64) as usize]);
    }
    stamps
}

impl World {
    fn new(seed: u64) -> Self {
        let power = Sim::default();
        let storage = power.storage();
        storage.create_dir(Path::new("/vm")).unwrap();
        let base = storage.create_new(base_path()).unwrap();
        base.set_len(SIZE).unwrap();
        let mut allowed = vec![vec![0]; SEEN as usize];
        for at in (0..SEEN).filter(|at| at % 7 < 4) {
            base.write_at(&fill(1000 + at as u32, 1), real(at) * SECTOR).unwrap();
            allowed[at as usize] = vec![1000 + at as u32];
        }
        base.sync_data().unwrap();
        let path = PathBuf::from("/vm/0.delta");
        let top = Delta::create(&storage, &path, SIZE, Parent::Base).unwrap();
        let spec = LayerSpec { path, id: top.id() };
        drop(top);
        power.settle();
        let mut world = Self {
            power,
            storage,
            chain: None,
            top: spec,
            allowed,
            nodes: Vec::new(),
            intent: None,
            stamp: 5000,
            files: 0,
            seed,
        };
        world.open().unwrap();
        world
    }

    fn layers(&self) -> Vec<LayerInfo> {
        let names = self.storage.list_dir(Path::new("/vm")).unwrap();
        let deltas = names.iter().filter(|n| n.as_encoded_bytes().ends_with(b".delta"));
        // A layer whose creation was cut short may be no layer at all.
        deltas.filter_map(|n| inspect(&self.storage, &Path::new("/vm").join(n)).ok()).collect()
    }

    /// Syncs what was written before, so the power can go here, too.
    fn open(&mut self) -> Result<()> {
        let mut specs = ancestry(&self.layers(), self.top.id)?;
        let top = specs.pop().unwrap();
        let base = open_base(&self.storage, base_path(), ImageFormat::Raw)?;
        self.chain = Some(Chain::open(&self.storage, base, &specs, &top)?);
        Ok(())
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().unwrap()
    }

    fn check(&mut self) {
        let now = stamps(self.chain());
        for (at, (stamp, allowed)) in now.iter().zip(&mut self.allowed).enumerate() {
            assert!(allowed.contains(stamp), "sector {at}: {stamp} not of {allowed:?}");
        }
        let layers = self.layers();
        for (id, expected) in &self.nodes {
            let specs = ancestry(&layers, *id).unwrap();
            let base = open_base(&self.storage, base_path(), ImageFormat::Raw).unwrap();
            let chain = FrozenChain::open(&self.storage, base, &specs).unwrap();
            assert!(stamps(&chain) == *expected, "checkpoint {id} reads otherwise");
        }
    }

    fn crash(&mut self, seed: u64) {
        self.chain = None;
        self.power.crash(seed);
        if let Some(intent) = self.intent.take() {
            let gone = match &intent.lower {
                Some(lower) => {
                    resume(&self.storage, lower, &intent.upper, intent.direction, &intent.children)
                }
                None => {
                    let merge = crate::disk::merge::Merge::open_on_base(
                        &self.storage,
                        base_path(),
                        ImageFormat::Raw,
                        &intent.upper,
                        None,
                        false,
                    );
                    merge.unwrap().finish(&self.storage, &intent.children)
                }
            };
            self.merged(&intent, &gone.unwrap());
        }
        self.open().unwrap();
        // What is read after a crash stays.
        let now = stamps(self.chain());
        self.check();
        self.allowed = now.into_iter().map(|stamp| vec![stamp]).collect();
    }

    fn merged(&mut self, intent: &Intent, gone: &Path) {
        if intent.direction == Direction::Commit {
            match &intent.lower {
                Some(lower) => {
                    for (id, _) in self.nodes.iter_mut().filter(|n| n.0 == intent.upper.id) {
                        *id = lower.id;
                    }
                }
                None => self.nodes.retain(|n| n.0 != intent.upper.id),
            }
        }
        self.storage.remove_file(gone).unwrap();
        self.storage.sync_parent(gone).unwrap();
    }

    fn run(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Write(at, len) => {
                self.stamp += 1;
                let stamp = self.stamp;
                self.note(at, len, stamp);
                self.chain().write_at(&fill(stamp, len), real(at) * SECTOR)
            }
            Op::Zero(at, len) => {
                self.note(at, len, 0);
                self.chain().write_zeroes(real(at) * SECTOR, len * SECTOR)
            }
            Op::Discard(at, len) => {
                self.note(at, len, 0);
                self.chain().discard(real(at) * SECTOR, len * SECTOR)
            }
            Op::DiscardAll => {
                self.note(0, SEEN, 0);
                self.chain().discard(0, SIZE)
            }
            Op::Flush => {
                self.chain().flush()?;
                self.settle();
                Ok(())
            }
            Op::Checkpoint { publish } => {
                self.files += 1;
                let path = PathBuf::from(format!("/vm/{}.delta", self.files));
                let fresh = self.chain().prepare_overlay(&self.storage, &path)?;
                self.top = fresh.spec();
                let frozen = self.chain().push_overlay(fresh);
                if publish {
                    frozen.sync()?;
                    // The layers below may have been pushed and not published.
                    self.chain().flush()?;
                    self.settle();
                    self.nodes.push((frozen.id(), stamps(self.chain())));
                }
                Ok(())
            }
            Op::Merge { upper, direction, steps, finish } => self.merge(upper, direction, steps, finish),
            Op::Reopen => {
                self.chain().flush()?;
                self.settle();
                self.chain = None;
                self.open()
            }
            Op::Crash(seed) => {
                self.crash(seed);
                Ok(())
            }
            Op::Fuse(changes, seed) => {
                self.power.plan(Some(Fault::Cut { at: changes }));
                self.seed = seed;
                Ok(())
            }
        }
    }

    fn note(&mut self, at: u64, len: u64, stamp: u32) {
        for allowed in &mut self.allowed[at as usize..(at + len) as usize] {
            allowed.push(stamp);
        }
    }

    /// After a flush what is read is what was written last, which for a
    /// discard only the disk knows.
    fn settle(&mut self) {
        let now = stamps(self.chain());
        for (allowed, stamp) in self.allowed.iter_mut().zip(now) {
            assert!(allowed.contains(&stamp));
            *allowed = vec![stamp];
        }
    }

    fn merge(&mut self, upper: usize, direction: Option<Direction>, steps: u64, finish: bool) -> Result<()> {
        let (top, frozen) = self.chain().layers();
        if frozen.is_empty() {
            return Ok(());
        }
        let at = upper % frozen.len();
        let upper = frozen[at].clone();
        let lower = at.checked_sub(1).map(|below| frozen[below].clone());
        // The lower layer's own node has to be gone.
        if let Some(lower) = &lower {
            self.nodes.retain(|n| n.0 != lower.id);
        }
        let mut merge = self.chain().begin_merge(&self.storage, upper.id, direction, None, None)?;
        for _ in 0..steps {
            merge.step(2 * BLOCK)?;
        }
        if !finish {
            return self.chain().cancel_merge(merge);
        }
        let child = frozen.get(at + 1).unwrap_or(&top).clone();
        let intent = Intent { lower, upper, direction: merge.direction(), children: vec![child] };
        self.intent = Some(intent.clone());
        let gone = self.chain().finish_merge(&self.storage, merge, &[], None)?;
        self.intent = None;
        if intent.lower.is_none() {
            // Written into the base: no earlier checkpoint was below it.
            self.nodes.retain(|n| n.0 != intent.upper.id);
        }
        // The power may go while the file is removed; it is not needed then.
        if intent.direction == Direction::Commit
            && let Some(lower) = &intent.lower
        {
            for (id, _) in self.nodes.iter_mut().filter(|n| n.0 == intent.upper.id) {
                *id = lower.id;
            }
        }
        self.storage.remove_file(&gone)?;
        Ok(self.storage.sync_parent(&gone)?)
    }
}

/// Each case is long; PROPTEST_CASES asks for more of them.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: (usual.cases / 8).max(1), ..usual }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_chain_reads_as_its_model_after_any_power_cut(
        seed: u64, ops in prop::collection::vec(op(), 1..40)
    ) {
        let mut world = World::new(seed);
        for op in &ops {
            if world.run(op).is_err() {
                // Nothing but the power can fail here.
                world.crash(world.seed);
            }
            world.check();
        }
    }
}

/// With no power cut everything reads exactly as written last.
#[test]
fn reads_see_the_last_write() {
    let mut world = World::new(1);
    let ops = [
        Op::Write(3, 40),
        Op::Checkpoint { publish: false },
        Op::Write(10, 5),
        Op::Zero(12, 20),
        Op::Write(SEEN - 3, 3),
        Op::Checkpoint { publish: true },
        Op::Write(SEEN - 1, 1),
    ];
    let mut expected: Vec<u32> = world.allowed.iter().map(|a| a[0]).collect();
    for op in &ops {
        world.run(op).unwrap();
        if let Op::Write(at, len) = *op {
            expected[at as usize..(at + len) as usize].fill(world.stamp);
        } else if let Op::Zero(at, len) = *op {
            expected[at as usize..(at + len) as usize].fill(0);
        }
        assert!(stamps(world.chain()) == expected);
    }
}

#[test]
fn a_write_is_one_write_and_a_flush_no_more_than_it_must() {
    let world = World::new(1);
    let chain = world.chain();
    let cost = |work: &dyn Fn()| {
        let before = world.power.counts();
        work();
        let after = world.power.counts();
        (after.0 - before.0, after.1 - before.1)
    };
    let write = |at: u64, len: u64| chain.write_at(&fill(1, len / 512), at).unwrap();
    let flush = || chain.flush().unwrap();
    assert_eq!(cost(&|| write(0, 1 << 20)), (1, 0));
    assert_eq!(cost(&|| write(512, 4096)), (1, 0));
    assert_eq!(cost(&|| write((4 << 20) + 512, 512)), (1, 0));
    // Both ends are completed from the base.
    assert_eq!(cost(&|| write((8 << 20) + 512, 1 << 20)), (3, 0));
    assert_eq!(cost(&flush), (1, 2));
    assert_eq!(cost(&flush), (0, 0));
    assert_eq!(cost(&|| write(0, 4096)), (1, 0));
    assert_eq!(cost(&flush), (0, 1));
    let path = Path::new("/vm/next.delta");
    let fresh = chain.prepare_overlay(&world.storage, path).unwrap();
    write(0, 4096);
    let switched = std::cell::Cell::new(Some(fresh));
    assert_eq!(cost(&|| drop(chain.push_overlay(switched.take().unwrap()))), (0, 0));
    write(0, 4096);
    // The frozen layer's data; the top's data and bits.
    assert_eq!(cost(&flush), (1, 3));
}
