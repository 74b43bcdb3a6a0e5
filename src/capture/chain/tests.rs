use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::capture::image::{ImageWriter, Merge};
use crate::capture::lazy::Filling;
use crate::memory::GuestMemory;
use crate::progress::Progress;

const PAGE: u64 = 4096;
/// Two ranges that share a group of the index, and one that ends in another.
const RAM: [(u64, u64); 2] = [(0, 40 * PAGE), (64 * PAGE, 1030 * PAGE)];
const PAGES: usize = 1070;

fn id(n: usize) -> Id {
    Id::from_bytes([n as u8 + 1; 16])
}

fn gpa_of(number: usize) -> u64 {
    (if number < 40 { number } else { number + 24 }) as u64 * PAGE
}

fn page(fill: u8) -> Vec<u8> {
    (0..PAGE).map(|i| if fill == 0 { 0 } else { fill ^ (i / 512) as u8 }).collect()
}

/// What each image of a chain, the lowest first, writes: numbers of pages and what they hold.
type Layers = Vec<Vec<(usize, u8)>>;

fn layers(depth: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Layers> {
    let numbers = prop_oneof![0..45usize, 1020..1030usize, 1060..PAGES];
    let fill = prop_oneof![1 => Just(0), 3 => 1u8..];
    prop::collection::vec(prop::collection::vec((numbers, fill), 0..40), depth)
}

/// The chain, its own image first, and what it has to read as. `packed`: which images, the lowest
/// first, are compressed.
fn write(dir: &Path, layers: &Layers, packed: &[bool]) -> (Vec<ImageSpec>, Vec<u8>) {
    let (mut specs, mut model) = (Vec::new(), vec![0; PAGES]);
    for (n, pages) in layers.iter().enumerate() {
        let path = dir.join(n.to_string());
        let mut writer = match n.checked_sub(1) {
            None => ImageWriter::create(&Storage::os(), &path, id(n), &RAM).unwrap(),
            Some(below) => ImageWriter::create_delta(&Storage::os(), &path, id(n), id(below), &RAM).unwrap(),
        };
        for (number, fill) in pages {
            writer.write(gpa_of(*number), &page(*fill)).unwrap();
            model[*number] = *fill;
        }
        if packed.get(n) == Some(&true) {
            writer.compress_all(&Progress::default()).unwrap();
        }
        let info = writer.finish().unwrap();
        specs.insert(0, ImageSpec { path, id: id(n), crc: info.crc });
    }
    (specs, model)
}

#[track_caller]
fn reads_as(chain: &MemoryChain, model: &[u8]) {
    for (first, end) in [(0, 40), (40, PAGES)] {
        let mut buf = vec![0xee; (end - first) * PAGE as usize];
        chain.read(gpa_of(first), &mut buf).unwrap();
        for (number, found) in (first..end).zip(buf.chunks(PAGE as usize)) {
            assert!(found == page(model[number]), "page {number}");
        }
        let pieces = chain.pieces(gpa_of(first), (end - first) as u64 * PAGE).unwrap();
        let mut at = gpa_of(first);
        for piece in &pieces {
            assert_eq!(piece.at.start, at);
            at = piece.at.end;
        }
        assert_eq!(at, gpa_of(first) + (end - first) as u64 * PAGE);
    }
    chain.verify(|_, _| ControlFlow::Continue(())).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_chain_reads_as_it_was_written(layers in layers(1..9), packed: [bool; 8]) {
        let dir = tempfile::tempdir().unwrap();
        let (specs, model) = write(dir.path(), &layers, &packed);
        reads_as(&MemoryChain::open(&Storage::os(), &specs).unwrap(), &model);
    }

    #[test]
    fn a_chain_is_the_same_in_one_file_that_is_mapped(layers in layers(1..6), packed: [bool; 5]) {
        let dir = tempfile::tempdir().unwrap();
        let (specs, model) = write(dir.path(), &layers, &packed);
        let storage = Storage::os();
        let sources = specs.iter().map(|one| Image::open(&storage, &one.path, one.id, one.crc).unwrap());
        let path = dir.path().join("flat");
        let info = Merge::flat(&storage, &path, sources.collect()).unwrap().finish().unwrap();
        let image = Image::open(&storage, &path, specs[0].id, info.crc).unwrap();
        prop_assert!(image.is_flat());
        prop_assert!(image.check_once(&Progress::default()).unwrap());
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 40 * PAGE as usize),
            (GuestAddress(64 * PAGE), 1030 * PAGE as usize)]).unwrap();
        memory.write_slice(&[0xaa; 4096], GuestAddress(2 * PAGE)).unwrap();
        let chain = MemoryChain::open(&storage, &[ImageSpec { path, id: specs[0].id, crc: info.crc }]).unwrap();
        let filling = Filling::map(chain, &memory).unwrap();
        prop_assert!(filling.is_shared() && filling.pending().is_some());
        let mut buf = page(0);
        for (number, fill) in model.iter().enumerate() {
            memory.read_slice(&mut buf, GuestAddress(gpa_of(number))).unwrap();
            prop_assert!(buf == page(*fill), "page {}", number);
        }
        // What is written is not in the file.
        memory.write_slice(&[0xbb; 4096], GuestAddress(0)).unwrap();
        reads_as(&filling.pending().unwrap(), &model);
    }

    #[test]
    fn merging_any_part_of_a_chain_changes_nothing_that_is_read(
        layers in layers(2..7), packed: [bool; 6],
        from: prop::sample::Index, count: prop::sample::Index, step in 1u64..40,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut specs, model) = write(dir.path(), &layers, &packed);
        let from = from.index(specs.len() - 1);
        let to = from + 2 + count.index(specs.len() - from - 1);
        let storage = Storage::os();
        let sources = specs[from..to].iter();
        let sources = sources.map(|one| Image::open(&storage, &one.path, one.id, one.crc).unwrap());
        let sources: Vec<Image> = sources.collect();
        let is_compressed = sources.iter().any(Image::is_compressed);
        let path = dir.path().join("merged");
        let mut merge = Merge::begin(&storage, &path, sources).unwrap();
        let mut copied = 0;
        while let bytes @ 1.. = merge.step(step * PAGE).unwrap() {
            copied += bytes;
        }
        prop_assert!(copied <= merge.total());
        let info = merge.finish().unwrap();
        let id = specs[from].id;
        specs.splice(from..to, [ImageSpec { path: path.clone(), id, crc: info.crc }]);
        reads_as(&MemoryChain::open(&storage, &specs).unwrap(), &model);
        let merged = Image::open(&storage, &path, id, info.crc).unwrap();
        prop_assert_eq!(merged.stored_bytes(), info.stored_bytes);
        prop_assert_eq!(merged.is_compressed(), is_compressed);
        prop_assert!(info.compressed_bytes.is_none_or(|bytes| bytes <= info.stored_bytes));
    }
}

#[test]
fn deep_chains() {
    for depth in [1, 8, 32, 100] {
        let layers: Layers = (0..depth)
            .map(|n| [0, n % 40, 41 + n, 1069].map(|number| (number, n as u8 + 1)).to_vec())
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let packed: Vec<bool> = (0..depth).map(|n| n % 3 == 0).collect();
        let (specs, model) = write(dir.path(), &layers, &packed);
        let chain = MemoryChain::open(&Storage::os(), &specs).unwrap();
        assert_eq!(chain.images().len(), depth);
        reads_as(&chain, &model);
    }
}

#[test]
fn a_chain_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (specs, _) = write(dir.path(), &vec![vec![(0, 1)], vec![(1, 2)], vec![(2, 3)]], &[]);
    let storage = Storage::os();
    for (part, says) in [(&specs[..2], "is based on"), (&specs[..0], "none")] {
        let error = MemoryChain::open(&storage, part).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let gap = [specs[0].clone(), specs[2].clone()];
    let error = MemoryChain::open(&storage, &gap).unwrap_err().to_string();
    assert!(error.contains("is not based on"), "{error}");
}

#[test]
fn damage_goes_through_a_merge_and_is_still_named() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::os();
    let (specs, _) = write(dir.path(), &vec![vec![(3, 1), (4, 5)], vec![(1, 2)]], &[]);
    let below = fs::OpenOptions::new().write(true).open(&specs[1].path).unwrap();
    below.write_all_at(&[99], 3 * PAGE + 7).unwrap();
    // A page that is lost altogether is no page of zeros.
    let file = storage.open(&specs[1].path, crate::storage::Access::ReadWrite).unwrap();
    file.punch_hole(4 * PAGE, PAGE).unwrap();
    let sources = specs.iter().map(|one| Image::open(&storage, &one.path, one.id, one.crc).unwrap());
    let path = dir.path().join("merged");
    let info = Merge::begin(&storage, &path, sources.collect()).unwrap().finish().unwrap();
    let merged = ImageSpec { path: path.clone(), id: specs[0].id, crc: info.crc };
    let chain = MemoryChain::open(&storage, &[merged]).unwrap();
    let mut buf = page(0);
    chain.read(PAGE, &mut buf).unwrap();
    for number in [3, 4] {
        let error = chain.read(number * PAGE, &mut buf).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { offset, .. } if offset == number * PAGE), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}

/// A chunk that another image has a part of is taken apart for the new one, so it has to be whole.
#[test]
fn damage_of_what_is_compressed_is_named_by_a_merge_that_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::os();
    let pages = |numbers: std::ops::Range<usize>| numbers.map(|number| (number, 7)).collect::<Vec<_>>();
    for (upper, needs) in [(1025..1026, true), (900..901, false)] {
        let (specs, _) = write(dir.path(), &vec![pages(1024..1034), pages(upper)], &[true, false]);
        let frame = gpa_of(1024);
        let below = fs::OpenOptions::new().write(true).open(&specs[1].path).unwrap();
        below.write_all_at(&[99], frame + 7).unwrap();
        let sources = specs.iter().map(|one| Image::open(&storage, &one.path, one.id, one.crc).unwrap());
        let path = dir.path().join("merged");
        let merged = Merge::begin(&storage, &path, sources.collect()).unwrap().finish();
        let error = match (merged, needs) {
            (Err(error), true) => error,
            (Ok(info), false) => {
                let image = Image::open(&storage, &path, specs[0].id, info.crc).unwrap();
                image.verify(|_, _| ControlFlow::Continue(())).unwrap_err()
            }
            (other, _) => panic!("{other:?}"),
        };
        assert!(matches!(error, ImageError::Corrupt { offset, .. } if offset == frame), "{error}");
        for name in ["0", "1", "merged"] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
    }
}
