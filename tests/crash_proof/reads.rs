//! A guest on layers that cannot be read, or that rotted: it gets what it wrote or an error, never
//! anything else, and nothing is lost by that.

use std::collections::BTreeMap;
use std::path::Path;

use piton::disk::layer::inspect;
use piton::disk::{Backing, Disk};
use piton::folder::VmLock;
use piton::history::disks::{self, OpenDisks};
use piton::history::{Catalog, lost, recover};
use piton::storage::sim::{Fault, Image, Op, Rng, Sim, crash};

use crate::check::{HOME, OTHERWISE, VM, check, folder};
use crate::lab::{DISKS, Lab};
use crate::model::{Allowed, Expect, SECTOR, Sectors, fill, stamps};
use crate::scenarios::family;

const SEED: u64 = 21;
/// Sectors that the guest reads at once: no block is read whole at once, and some reads go over two.
const PIECE: usize = 5;
/// Where the data of a layer of a small disk begins.
const DATA: u64 = 1 << 20;

fn recorded() -> (Image, Expect) {
    let mut lab = Lab::new(SEED);
    family(&mut lab).unwrap();
    (lab.sim.live(), lab.expect().clone())
}

struct Guest {
    disks: OpenDisks,
    allowed: BTreeMap<String, Allowed>,
    stamp: u32,
    _lock: VmLock,
}

impl Guest {
    /// As `piton start` opens its disks.
    fn open(sim: &Sim, expect: &Expect) -> Result<Self, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let folder = folder(sim);
        let lock = folder.lock().map_err(|e| text(&e))?;
        let mut definition = folder.load().map_err(|e| text(&e))?;
        let found = recover(&folder, &lock, &mut definition, true).map_err(|e| text(&e))?;
        if let Some(damage) = found.iter().find(|finding| !finding.mended) {
            return Err(damage.text.clone());
        }
        let sums = Catalog::new(&folder, &definition).layer_sums(&definition).map_err(|e| text(&e))?;
        let tops = &definition.now.tops;
        let disks = disks::open(&folder, &definition.config, tops, &sums, &Default::default())
            .map_err(|e| text(&e))?;
        let [now] = &expect.now[..] else { panic!("it is known what Now is") };
        Ok(Self { disks, allowed: now.disks.clone(), stamp: 90_000, _lock: lock })
    }

    /// Reads everything; how many of the reads failed.
    fn read_all(&self) -> Result<usize, String> {
        let mut failed = 0;
        for (disk, sectors) in DISKS {
            for start in (0..sectors).step_by(PIECE) {
                let mut bytes = vec![0xee; PIECE.min(sectors - start) * SECTOR];
                if let Err(e) = self.disks.live[disk].read_at(&mut bytes, (start * SECTOR) as u64) {
                    if !e.to_string().contains("/disks/") {
                        return Err(format!("it is not said of which file: {e}"));
                    }
                    failed += 1;
                    continue;
                }
                for (sector, at) in bytes.chunks_exact(SECTOR).zip(start..) {
                    let allowed = &self.allowed[disk][at];
                    if !allowed.iter().any(|stamp| fill(*stamp, 1) == sector) {
                        return Err(format!("{OTHERWISE}: disk `{disk}`, sector {at}: not of {allowed:?}"));
                    }
                }
            }
        }
        Ok(failed)
    }

    /// What all disks read as.
    fn seen(&self) -> BTreeMap<String, Sectors> {
        let disks = self.disks.live.iter();
        disks.map(|(id, disk)| (id.clone(), stamps(disk as &dyn Backing).unwrap())).collect()
    }

    /// Changes parts of blocks, whose rest has to come from the layers below; how many of these
    /// requests failed.
    fn write_some(&mut self, rng: &mut Rng) -> usize {
        let mut failed = 0;
        for _ in 0..8 {
            let (disk, sectors) = DISKS[rng.below(2) as usize];
            let at = rng.below(sectors as u64) as usize;
            let count = (1 + rng.below(3) as usize).min(sectors - at);
            self.stamp += 1;
            let (offset, discards) = ((at * SECTOR) as u64, rng.below(4) == 0);
            let done = match discards {
                true => self.disks.live[disk].write_zeroes(offset, (count * SECTOR) as u64),
                false => self.disks.live[disk].write_at(&fill(self.stamp, count), offset),
            };
            failed += usize::from(done.is_err());
            for allowed in &mut self.allowed.get_mut(disk).unwrap()[at..at + count] {
                if done.is_ok() {
                    allowed.clear();
                }
                allowed.push(if discards { 0 } else { self.stamp });
            }
        }
        failed
    }
}

/// Frozen layers, by what is in them.
fn frozen(image: &Image) -> Vec<(String, piton::storage::sim::Ino)> {
    let sim = Sim::mount(image.clone());
    let tops = folder(&sim).load().unwrap().now.tops;
    let files = image.tree(&Path::new(HOME).join(VM).join("disks")).unwrap();
    let layers = files.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "delta"));
    let is_top = |path: &Path| {
        let id = inspect(&sim.storage(), path).unwrap().id;
        tops.values().any(|top| *top == id)
    };
    layers
        .filter(|(path, _)| !is_top(path))
        .map(|(path, ino)| (path.to_string_lossy().into_owned(), ino))
        .collect()
}

/// Flips a bit of the data of a frozen layer.
fn rot(image: &mut Image, rng: &mut Rng) -> String {
    let layers = frozen(image);
    let (path, ino) = &layers[rng.below(layers.len() as u64) as usize];
    let file = image.file_mut(*ino).unwrap();
    let mut runs = Vec::new();
    let mut at = DATA;
    while let Some(run) = file.next_data(at) {
        at = run.end;
        runs.push(run);
    }
    let run = &runs[rng.below(runs.len() as u64) as usize];
    let (at, bit) = (run.start + rng.below(run.end - run.start), rng.below(8));
    let mut byte = [0];
    file.read(&mut byte, at);
    file.write(at, &[byte[0] ^ 1 << bit], &|_| true);
    format!("bit {bit} of byte {at} of {path}")
}

#[test]
fn a_guest_whose_reads_fail() {
    let (image, expect) = recorded();
    let (mut reads, mut writes) = (0, 0);
    for at in 0.. {
        let sim = Sim::mount(image.clone());
        let guest = Guest::open(&sim, &expect).unwrap();
        sim.fail_read(at);
        let failed = guest.read_all().unwrap_or_else(|e| panic!("read {at}: {e}"));
        let most = sim.reads();
        assert_eq!(failed, usize::from(at < most), "read {at}");
        reads += failed;
        // In another guest, which has not checked any block yet; a write reads little.
        drop(guest);
        let mut guest = Guest::open(&sim, &expect).unwrap();
        sim.fail_read(at % 6);
        writes += guest.write_some(&mut Rng::new(at));
        sim.plan(None);
        // One error is no other one's, and what failed changed nothing.
        assert_eq!(guest.read_all(), Ok(0), "write {at}");
        guest.disks.flush();
        drop(guest);
        if at >= most {
            break;
        }
    }
    println!("{reads} reads of a guest failed, and {writes} of its writes");
    assert!(reads > 20 && writes > 20, "{reads} {writes}");
}

#[test]
fn a_guest_on_layers_that_rotted() {
    let (image, expect) = recorded();
    let (mut reads, mut writes) = (0, 0);
    for number in 0..crate::number("PITON_PROOF_FLIPS", 100) {
        let mut rng = Rng::new(1000 + number);
        let mut rotten = image.clone();
        let bit = rot(&mut rotten, &mut rng);
        let sim = Sim::mount(rotten);
        let mut guest = Guest::open(&sim, &expect).unwrap_or_else(|e| panic!("{bit}: {e}"));
        if rng.below(2) == 0 {
            reads += usize::from(guest.read_all().unwrap_or_else(|e| panic!("{bit}: {e}")) > 0);
        }
        writes += guest.write_some(&mut rng);
        guest.disks.flush();
        guest.read_all().unwrap_or_else(|e| panic!("{bit}, after writes: {e}"));
    }
    println!("of bits that rotted below a guest, {reads} failed its reads, and {writes} writes failed");
    assert!(reads > 5 && writes > 5, "{reads} {writes}");
}

#[test]
fn nothing_comes_out_of_the_cache_after_a_failed_flush() {
    let (image, expect) = recorded();
    let mut failed = 0;
    for at in 0.. {
        let sim = Sim::mount(image.clone());
        let mut lab = Lab::adopt(sim.clone(), expect.clone(), 0, SEED).unwrap();
        sim.plan(Some(Fault::Error { at, errno: libc::EIO, lasting: false }));
        let done = lab.scribble(6).and_then(|()| lab.flush());
        if sim.changes() <= at {
            break;
        }
        sim.plan(None);
        let expect = lab.expect().clone();
        drop(lab);
        if !sim.log().iter().any(|logged| matches!(logged.op, Op::SyncFailed { .. })) {
            continue;
        }
        assert!(done.is_err(), "change {at}: the guest was not told");
        failed += 1;
        // Another process, on the same host: what was not written is in its memory still.
        let sim = Sim::resume(sim.start(), &sim.log());
        let refused = Guest::open(&sim, &expect).err().unwrap_or_else(|| panic!("change {at}: not refused"));
        assert!(refused.contains("--accept-lost-writes"), "{refused}");
        lost::accept(&folder(&sim)).unwrap();
        let guest = Guest::open(&sim, &expect).unwrap();
        assert_eq!(guest.read_all(), Ok(0), "change {at}");
        // What it is told is flushed is what it has read.
        let seen = guest.seen();
        guest.disks.live.values().for_each(|disk| disk.flush().unwrap());
        drop(guest);
        let end = crash::end(&sim.start(), &sim.log());
        for seed in 0..6 {
            let choice = end.random_choice(&mut Rng::new(at * 100 + seed));
            let cut = Sim::mount(end.state(&choice));
            let guest = Guest::open(&cut, &expect).unwrap();
            for (disk, sectors) in guest.seen() {
                assert!(seen[&disk] == sectors, "change {at}, disk `{disk}`\n{}", end.describe(&choice));
            }
        }
    }
    println!("{failed} flushes failed, and nothing was read that was not there");
    assert!(failed > 2, "{failed}");
}

#[test]
fn a_start_whose_reads_fail() {
    let (image, expect) = recorded();
    let mut refused = 0;
    for at in 0.. {
        let sim = Sim::mount(image.clone());
        sim.fail_read(at);
        let opened = Guest::open(&sim, &expect);
        let most = sim.reads();
        sim.plan(None);
        match opened {
            Ok(guest) => assert_eq!(guest.read_all(), Ok(0), "read {at}"),
            Err(e) => {
                assert!(e.contains("/disks/"), "read {at}: {e}");
                refused += 1;
            }
        }
        check(&Sim::mount(sim.live()), &expect, true).unwrap_or_else(|e| panic!("read {at}: {e}"));
        if at >= most {
            break;
        }
    }
    println!("{refused} starts failed by a read");
    assert!(refused > 20, "{refused}");
}
