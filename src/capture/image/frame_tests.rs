//! Images of which chunks lie compressed.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::Places;
use super::pages::Ram;
use super::*;
use crate::progress::Progress;
use crate::storage::Storage;

const PAGE: u64 = 4096;
const ID: Id = Id::from_bytes([7; 16]);
const PARENT: Id = Id::from_bytes([8; 16]);
/// The second chunk is of both ranges, and the last one is short.
const RAM: [(u64, u64); 2] = [(0, 100 * PAGE), (1 << 32, 200 * PAGE)];
const PAGES: u64 = 300;

fn places() -> Places {
    Places::new(&Ram::new(&RAM).unwrap(), true)
}

fn gpa_of(number: u64) -> u64 {
    if number < 100 { number * PAGE } else { (1 << 32) + (number - 100) * PAGE }
}

/// Even fills give what can be compressed, odd ones what cannot, and 0 zeros.
fn page(number: u64, fill: u8) -> Vec<u8> {
    let mut seed = number << 8 | u64::from(fill);
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 56) as u8
    };
    match fill {
        0 => vec![0; PAGE as usize],
        fill if fill % 2 == 0 => (0..PAGE).map(|i| fill ^ (i / 512) as u8).collect(),
        _ => (0..PAGE).map(|_| next()).collect(),
    }
}

struct Made {
    _dir: TempDir,
    path: PathBuf,
    info: ImageInfo,
}

impl Made {
    fn new(pages: &[(u64, u8)], delta: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let mut writer = match delta {
            true => ImageWriter::create_delta(&Storage::os(), &path, ID, PARENT, &RAM).unwrap(),
            false => ImageWriter::create(&Storage::os(), &path, ID, &RAM).unwrap(),
        };
        for (number, fill) in pages {
            writer.write(gpa_of(*number), &page(*number, *fill)).unwrap();
        }
        writer.compress_all(&Progress::default()).unwrap();
        let info = writer.finish().unwrap();
        Self { _dir: dir, path, info }
    }

    fn open(&self) -> Result<Image> {
        Image::open(&Storage::os(), &self.path, ID, self.info.crc)
    }
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn flip(path: &Path, offset: u64, bits: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ bits], offset).unwrap();
}

fn rounds() -> impl Strategy<Value = Vec<(u64, u8)>> {
    let numbers = prop_oneof![0..64u64, 90..110u64, 192..200u64, 250..PAGES];
    let fill =
        prop_oneof![1 => Just(0), 4 => (1..8u8).prop_map(|n| n * 2), 1 => (0..8u8).prop_map(|n| n * 2 + 1)];
    prop::collection::vec((numbers, fill), 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_compressed_reads_as_it_was_written(
        rounds in rounds(), delta: bool, from in 0..PAGES, len in 1..64u64,
    ) {
        let made = Made::new(&rounds, delta);
        let mut model = vec![None; PAGES as usize];
        rounds.iter().for_each(|(number, fill)| model[*number as usize] = Some(*fill));
        let stored = model.iter().flatten().filter(|fill| **fill != 0).count() as u64;
        prop_assert_eq!(made.info.stored_bytes, stored * PAGE);
        let image = made.open().unwrap();
        prop_assert!(image.is_compressed());
        image.verify(go_on).unwrap();
        let check = |first: u64, end: u64| {
            let mut buf = vec![0xee; ((end - first) * PAGE) as usize];
            image.read_with(gpa_of(first), &mut buf, |_, part| {
                part.fill(if delta { 0xdd } else { 0 });
                Ok(())
            }).unwrap();
            for (number, found) in (first..end).zip(buf.chunks(PAGE as usize)) {
                let expected = match model[number as usize] {
                    Some(fill) => page(number, fill),
                    None => vec![if delta { 0xdd } else { 0 }; PAGE as usize],
                };
                assert!(found == expected, "page {number}");
            }
        };
        check(0, 100);
        check(100, PAGES);
        check(from, (from + len).min(if from < 100 { 100 } else { PAGES }));
        let room = fs::metadata(&made.path).unwrap().blocks() * 512;
        // And what the file system needs for itself.
        let index = places().file_len() - gpa_of(PAGES) + 2 * PAGE;
        let bytes = made.info.compressed_bytes.unwrap();
        prop_assert!(bytes <= made.info.stored_bytes && room <= bytes + index, "{room} {bytes}");
    }
}

#[test]
fn only_what_gets_smaller_is_compressed() {
    let pages: Vec<(u64, u8)> = (0..192).map(|number| (number, if number < 128 { 2 } else { 1 })).collect();
    // The second chunk has no one place, and the third cannot be made smaller.
    assert_eq!(Made::new(&pages, false).info.compressed_bytes, Some((1 + 64 + 64) * PAGE));
    // Neither can zeros, which a delta has to have, or a single page.
    let pages: Vec<(u64, u8)> = (0..64).map(|number| (number, 0)).chain([(200, 2)]).collect();
    let info = Made::new(&pages, true).info;
    assert_eq!((info.compressed_bytes, info.stored_bytes), (Some(PAGE), PAGE));
}

#[test]
fn nothing_is_written_to_what_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ImageWriter::create(&Storage::os(), &dir.path().join("memory"), ID, &RAM).unwrap();
    (0..10).for_each(|number| writer.write(number * PAGE, &page(number, 2)).unwrap());
    writer.compress_all(&Progress::default()).unwrap();
    let error = writer.write(63 * PAGE, &page(63, 2)).unwrap_err();
    assert!(matches!(error, ImageError::Packed { gpa, .. } if gpa == 63 * PAGE), "{error}");
    // A second time changes nothing.
    writer.compress_all(&Progress::default()).unwrap();
    assert_eq!(writer.finish().unwrap().compressed_bytes, Some(PAGE));
}

#[test]
fn compression_can_be_called_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ImageWriter::create(&Storage::os(), &dir.path().join("memory"), ID, &RAM).unwrap();
    writer.write(0, &page(0, 2)).unwrap();
    let progress = Progress::default();
    progress.cancel();
    assert!(matches!(writer.compress_all(&progress), Err(ImageError::Cancelled(_))));
}

#[test]
fn every_damaged_byte_of_a_frame_is_found_and_named() {
    let pages: Vec<(u64, u8)> = (0..20).map(|number| (number, 2 + number as u8 % 4 * 2)).collect();
    let made = Made::new(&pages, false);
    let mut entry = [0; 8];
    fs::File::open(&made.path).unwrap().read_exact_at(&mut entry, places().frames).unwrap();
    let len = u64::from(u32::from_le_bytes(entry[..4].try_into().unwrap()));
    assert!((20..PAGE).contains(&len), "{len}");
    for (offset, bit) in (0..len).zip((0..8).cycle()) {
        flip(&made.path, offset, 1 << bit);
        let image = made.open().unwrap();
        let error = image.verify(go_on).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { offset: 0, .. }), "{error}");
        assert!(image.read(5 * PAGE, &mut page(0, 0)).is_err());
        flip(&made.path, offset, 1 << bit);
    }
    made.open().unwrap().verify(go_on).unwrap();
    for offset in places().frames..places().frames + 128 {
        flip(&made.path, offset, 0xff);
        let error = made.open().unwrap().verify(go_on).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        flip(&made.path, offset, 0xff);
    }
}

/// All checksums are right, and only what is said of a frame is not.
#[test]
fn a_frame_that_cannot_be_is_refused() {
    let made = Made::new(&(0..20).map(|number| (number, 2)).collect::<Vec<_>>(), false);
    let places = places();
    let file = fs::OpenOptions::new().read(true).write(true).open(&made.path).unwrap();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let (bitmap, crcs, frames) =
        (read(places.bitmap, 128), read(places.crcs, 4096), read(places.frames, 128));
    let short = [9, 0, 0, 0, 1, 0, 0, 0];
    // Longer than its pages, of no length, of a chunk without pages, of one that has no place.
    for (chunk, entry) in [(0, [0xff; 8]), (0, [0, 0, 0, 0, 1, 0, 0, 0]), (2, short), (1, short)] {
        let mut wrong = frames.clone();
        wrong[chunk * 8..chunk * 8 + 8].copy_from_slice(&entry);
        file.write_all_at(&wrong, places.frames).unwrap();
        let mut table = read(places.table, 4096);
        let crc = crc32fast::hash(&[&bitmap[..], &crcs, &wrong].concat());
        table[..4].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&table, places.table).unwrap();
        let mut header = read(places.header, 4096);
        header[84..88].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let crc = crc32fast::hash(&header[..4092]);
        header[4092..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&header, places.header).unwrap();
        let image = Image::open(&Storage::os(), &made.path, ID, crc).unwrap();
        let error = image.verify(go_on).unwrap_err().to_string();
        assert!(error.contains("an invalid compressed frame"), "{chunk}: {error}");
    }
}
