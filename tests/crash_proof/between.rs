//! What is between two states that the proof knows: a merge that is cancelled at any change, a bit
//! that rots while a merge is under way, and a layer that cannot be read.

use std::panic::{AssertUnwindSafe, catch_unwind};

use piton::history::{CheckpointError, merge};
use piton::progress::Progress;
use piton::storage::sim::{Fault, Image, Rng, Sim, crash};

use crate::check::{OTHERWISE, check, damaged};
use crate::lab::{DISKS, Lab};
use crate::model::Expect;
use crate::scenarios::{Family, family};

const SEED: u64 = 8;

/// What leaves something to merge, in either direction.
const BEGINNINGS: usize = DELETED.len() + 1;

/// Families, and which of them is deleted.
const DELETED: &[fn(&Family) -> Vec<piton::id::Id>] = &[
    |f| vec![f.a],
    |f| vec![f.r, f.a],
    |f| vec![f.d, f.b, f.a],
    |f| vec![f.c, f.b],
    |f| vec![f.r, f.d, f.b, f.a],
];

fn prepared(which: usize) -> (Image, Expect) {
    let mut lab = Lab::new(SEED + which as u64);
    let deleted = match DELETED.get(which) {
        Some(pick) => pick(&family(&mut lab).unwrap()),
        None => small_over_large(&mut lab).unwrap(),
    };
    for id in deleted {
        lab.delete(id, false).unwrap();
        lab.scribble(2).unwrap();
    }
    lab.begin();
    (lab.sim.live(), lab.expect().clone())
}

/// Two frozen layers, the upper one of which goes into the lower one.
fn small_over_large(lab: &mut Lab) -> Result<Vec<piton::id::Id>, CheckpointError> {
    lab.create("below")?;
    for (disk, sectors) in DISKS {
        lab.write(disk, 0, sectors)?;
    }
    let large = lab.create("large")?;
    for (disk, _) in DISKS {
        lab.write(disk, 2, 3)?;
    }
    lab.create("small")?;
    lab.scribble(2)?;
    Ok(vec![large])
}

fn adopt(image: &Image, expect: &Expect) -> Lab {
    Lab::adopt(Sim::mount(image.clone()), expect.clone(), 0, SEED).unwrap()
}

/// Merges while the VM is off; what comes of it is for the caller.
fn settle(lab: &mut Lab, progress: &Progress) -> Result<(), CheckpointError> {
    lab.disks = Default::default();
    merge::settle(&lab.folder, &lab.lock, &mut lab.definition, progress)
}

/// A bit of the data of some layer.
fn flip(image: &mut Image, rng: &mut Rng) -> Option<String> {
    let layers = image.tree(std::path::Path::new("/home/demo/disks")).ok()?;
    let layers: Vec<_> =
        layers.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "delta")).collect();
    let (path, ino) = &layers[rng.below(layers.len() as u64) as usize];
    let file = image.file_mut(*ino)?;
    let data = file.next_data(1 << 20)?;
    let (at, bit) = (data.start + rng.below(data.end - data.start), rng.below(8));
    let mut byte = [0];
    file.read(&mut byte, at);
    file.write(at, &[byte[0] ^ 1 << bit], &|_| true);
    Some(format!("bit {bit} of byte {at} of {}", path.display()))
}

/// Damage is named, or harmless; nothing ever reads otherwise.
fn named_or_harmless(sim: &Sim, expect: &Expect) -> Result<bool, String> {
    match catch_unwind(AssertUnwindSafe(|| damaged(sim, expect))) {
        Err(_) => Err("piton panicked".into()),
        Ok(Ok(())) => Ok(false),
        Ok(Err(e)) if e.contains(OTHERWISE) => Err(e),
        Ok(Err(_)) => Ok(true),
    }
}

#[test]
fn a_merge_that_is_cancelled_at_any_change() {
    let (mut cancelled, mut found, mut harmless) = (0, 0, 0);
    for which in 0..BEGINNINGS {
        let (image, expect) = prepared(which);
        let mut rng = Rng::new(which as u64);
        for at in 0.. {
            let mut lab = adopt(&image, &expect);
            let (sim, expect) = (lab.sim.clone(), lab.expect().clone());
            let progress = Progress::default();
            let told = progress.clone();
            sim.at_change(at, move || told.cancel());
            let done = settle(&mut lab, &progress);
            if sim.changes() <= at {
                done.unwrap();
                break;
            }
            // Too late to be noticed is as good.
            if let Err(e) = done {
                assert!(e.is_cancelled(), "{which}, change {at}: {e}");
                cancelled += 1;
            }
            sim.plan(None);
            drop(lab);
            let whence = format!("family {which}, cancelled at change {at}");
            let live = sim.live();
            check(&Sim::mount(live.clone()), &expect, true).unwrap_or_else(|e| panic!("{whence}: {e}"));
            let end = crash::end(&sim.start(), &sim.log());
            let choice = end.random_choice(&mut rng);
            check(&Sim::mount(end.state(&choice)), &expect, true)
                .unwrap_or_else(|e| panic!("{whence}, and a power cut: {e}\n{}", end.describe(&choice)));
            let mut rotten = live;
            let Some(bit) = flip(&mut rotten, &mut rng) else { continue };
            match named_or_harmless(&Sim::mount(rotten), &expect) {
                Ok(true) => found += 1,
                Ok(false) => harmless += 1,
                Err(e) => panic!("{whence}, {bit}: {e}"),
            }
        }
    }
    println!(
        "{cancelled} merges cancelled; of a flipped bit after each: {found} found, {harmless} without harm"
    );
    assert!(cancelled > 20 && found > harmless, "{cancelled} {found} {harmless}");
}

#[test]
fn a_bit_that_rots_in_the_middle_of_a_merge() {
    let (mut found, mut harmless) = (0, 0);
    for which in 0..BEGINNINGS {
        let (image, expect) = prepared(which);
        let mut rng = Rng::new(100 + which as u64);
        for at in 0.. {
            let mut lab = adopt(&image, &expect);
            let (sim, expect) = (lab.sim.clone(), lab.expect().clone());
            sim.plan(Some(Fault::Cut { at }));
            let done = settle(&mut lab, &Progress::default());
            if sim.changes() <= at {
                done.unwrap();
                break;
            }
            drop(lab);
            let whence = format!("family {which}, killed at change {at}");
            let mut rotten = sim.live();
            let Some(bit) = flip(&mut rotten, &mut rng) else { continue };
            let sim = Sim::mount(rotten);
            // Recovery goes on with the merge; what it cannot is put off, and nothing is made good.
            match named_or_harmless(&sim, &expect) {
                Ok(true) => found += 1,
                Ok(false) => harmless += 1,
                Err(e) => panic!("{whence}, {bit}: {e}"),
            }
            let after = named_or_harmless(&sim, &expect);
            assert!(after.is_ok(), "{whence}, {bit}, once more: {}", after.unwrap_err());
        }
    }
    println!(
        "{} bits flipped in the middle of merges: {found} found, {harmless} without harm",
        found + harmless
    );
    assert!(found > 20, "{found} {harmless}");
}

#[test]
fn a_layer_that_cannot_be_read() {
    let all = std::env::var_os("PITON_PROOF_STATES").is_some();
    let (mut failed, mut done_all_the_same) = (0, 0);
    for which in 0..BEGINNINGS {
        let (image, expect) = prepared(which);
        let mut at = 0;
        loop {
            let mut lab = adopt(&image, &expect);
            let (sim, expect) = (lab.sim.clone(), lab.expect().clone());
            sim.fail_read(at);
            let merged = settle(&mut lab, &Progress::default());
            let reads = sim.reads();
            sim.plan(None);
            match merged {
                Ok(()) => done_all_the_same += 1,
                Err(CheckpointError::Cancelled(_)) => panic!("nobody cancelled it"),
                Err(_) => failed += 1,
            }
            drop(lab);
            let whence = format!("family {which}, read {at}");
            check(&Sim::mount(sim.live()), &expect, true).unwrap_or_else(|e| panic!("{whence}: {e}"));
            if reads <= at {
                break;
            }
            at += if all { 1 } else { 7 };
        }
    }
    println!("{failed} merges failed by a read, {done_all_the_same} done all the same");
    assert!(failed > 20, "{failed}");
}
