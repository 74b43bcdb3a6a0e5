//! A bit that flipped in any file is found and named, or does no harm; nothing else is ever read
//! without a word, and looking at the damage makes it no worse.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant, some of one")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use piton::disk::layer::inspect;
use piton::storage::sim::{Image, Ino, Rng, Sim};

use crate::check::{HOME, OTHERWISE, VM, damaged};
use crate::lab::Lab;
use crate::model::Expect;
use crate::scenarios::memory;

const PAGE: u64 = 4096;
/// Where the data of a small layer begins.
const DATA: u64 = 1 << 20;
/// Where the index of an image of 8 MiB begins.
const INDEX: u64 = 8 << 20;

struct Target {
    kind: &'static str,
    path: PathBuf,
    ino: Ino,
    /// Bytes that may flip.
    places: Vec<std::ops::Range<u64>>,
}

fn lab() -> (Image, Expect) {
    let mut lab = Lab::new(11);
    let make = |lab: &mut Lab| {
        lab.scribble(5)?;
        lab.create("a")?;
        lab.scribble(5)?;
        lab.standard("b", memory(1))?;
        lab.scribble(5)?;
        lab.standard("c", memory(2))?;
        lab.scribble(5)?;
        lab.create("d")?;
        lab.flush()
    };
    make(&mut lab).unwrap();
    lab.begin();
    (lab.sim.live(), lab.expect().clone())
}

/// Every kind of file, cut into what is in it.
fn targets(image: &Image) -> Vec<Target> {
    let sim = Sim::mount(image.clone());
    let folder = crate::check::folder(&sim);
    let tops = folder.load().unwrap().now.tops;
    let mut found = Vec::new();
    for (path, ino) in image.tree(&Path::new(HOME).join(VM)).unwrap() {
        let Some(content) = image.file(ino) else { continue };
        let len = content.size();
        let mut add = |kind, places: Vec<std::ops::Range<u64>>| {
            let places: Vec<_> = places.into_iter().filter(|place| !place.is_empty()).collect();
            if !places.is_empty() {
                found.push(Target { kind, path: path.clone(), ino, places });
            }
        };
        let data = |from: u64, to: u64| {
            let mut runs = Vec::new();
            let mut at = from;
            while let Some(run) = content.next_data(at).filter(|run| run.start < to) {
                at = run.end;
                runs.push(run.start.max(from)..run.end.min(to));
            }
            runs
        };
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".delta") {
            let id = inspect(&sim.storage(), &path).unwrap().id;
            if !tops.values().any(|top| *top == id) {
                add("layer: header", vec![0..2 * PAGE]);
                add("layer: bitmap", vec![2 * PAGE..4 * PAGE]);
                add("layer: data", data(DATA, len));
            }
        } else if name.ends_with(".sums") {
            add("layer: checksums", vec![0..len]);
        } else if name == "memory" {
            add("memory: pages", data(0, INDEX));
            add("memory: index", vec![INDEX..len - PAGE]);
            add("memory: last page", vec![len - PAGE..len]);
        } else if ["manifest.json", "state", "vm.json"].contains(&name.as_str()) {
            let kinds = ["manifest.json", "state", "vm.json"];
            add(kinds[kinds.iter().position(|kind| *kind == name).unwrap()], vec![0..len]);
        }
    }
    found
}

fn flip(image: &mut Image, ino: Ino, offset: u64, bit: u64) {
    let file = image.file_mut(ino).unwrap();
    let mut byte = [0];
    file.read(&mut byte, offset);
    file.write(offset, &[byte[0] ^ 1 << bit], &|_| true);
}

/// Whether the text says which file, or which checkpoint or layer it is of.
fn names(text: &str, target: &Target, image: &Image) -> bool {
    let path = target.path.to_string_lossy();
    let path = path.strip_suffix(".sums").unwrap_or(&path);
    let sim = Sim::mount(image.clone());
    let layer = inspect(&sim.storage(), Path::new(path)).map(|layer| layer.id.to_string());
    text.contains(path) || layer.is_ok_and(|id| text.contains(&id))
}

#[test]
fn a_flipped_bit_is_found_or_does_no_harm() {
    let flips = crate::number("PITON_PROOF_FLIPS", 30);
    let (image, expect) = lab();
    damaged(&Sim::mount(image.clone()), &expect).unwrap();
    let targets = targets(&image);
    let mut kinds: Vec<&str> = targets.iter().map(|target| target.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 10, "{kinds:?}");
    let mut rng = Rng::new(crate::number("PITON_PROOF_SEED", 1));
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for kind in kinds {
        let of: Vec<&Target> = targets.iter().filter(|target| target.kind == kind).collect();
        for _ in 0..flips {
            let target = of[rng.below(of.len() as u64) as usize];
            let place = &target.places[rng.below(target.places.len() as u64) as usize];
            let (offset, bit) = (place.start + rng.below(place.end - place.start), rng.below(8));
            let mut rotten = image.clone();
            flip(&mut rotten, target.ino, offset, bit);
            let whence = format!("{kind}: bit {bit} of byte {offset} of {}", target.path.display());
            let sim = Sim::mount(rotten);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| damaged(&sim, &expect)));
            let count = counts.entry(kind).or_default();
            match result.unwrap_or_else(|_| panic!("{whence}: piton panicked")) {
                Ok(()) => count.1 += 1,
                Err(e) => {
                    assert!(!e.contains(OTHERWISE), "{whence}: {e}");
                    assert!(names(&e, target, &image), "{whence} is not named: {e}");
                    count.0 += 1;
                }
            }
            // Nothing was thrown away for it: with the bit as it was all is well again.
            let mut mended = sim.live();
            assert_eq!(mended.find(&target.path).ok(), Some(target.ino), "{whence}: the file is gone");
            flip(&mut mended, target.ino, offset, bit);
            let again = damaged(&Sim::mount(mended), &expect);
            assert!(again.is_ok(), "{whence}: it was made worse: {}", again.unwrap_err());
        }
    }
    println!("| file | flipped bits | found and named | without harm |\n| --- | ---: | ---: | ---: |");
    for (kind, (found, harmless)) in &counts {
        println!("| {kind} | {} | {found} | {harmless} |", found + harmless);
    }
    // What has no effect is padding and second copies; what counts is mostly found.
    for kind in ["layer: data", "layer: checksums", "memory: pages", "state"] {
        assert_eq!(counts[kind].1, 0, "{kind}");
    }
}
