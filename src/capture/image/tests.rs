use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{HEADER, Header, Places};
use super::pages::{GROUP, Ram};
use super::*;
use crate::storage::Storage;

const PAGE: u64 = 4096;
const ID: Id = Id::from_bytes([7; 16]);
const PARENT: Id = Id::from_bytes([8; 16]);
const RAM: [(u64, u64); 2] = [(0, 40 * PAGE), (64 * PAGE, 30 * PAGE)];

fn place() -> (TempDir, PathBuf, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    (dir, path, Storage::os())
}

fn pages(fills: &[u8]) -> Vec<u8> {
    // Not constant, so that a shifted page is another.
    fills.iter().flat_map(|f| (0..PAGE).map(move |i| if *f == 0 { 0 } else { f ^ (i / 512) as u8 })).collect()
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn flip(path: &Path, offset: u64, bit: u32) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], offset).unwrap();
}

#[test]
fn pages_come_back_and_zeros_cost_nothing() {
    let (_dir, path, storage) = place();
    let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
    writer.write(2 * PAGE, &pages(&[1, 2, 0, 0, 3])).unwrap();
    writer.write(70 * PAGE, &pages(&[4])).unwrap();
    // A later round: one page became zeros, one came, one changed.
    writer.write(3 * PAGE, &pages(&[0, 9])).unwrap();
    writer.write(70 * PAGE, &pages(&[5])).unwrap();
    let info = writer.finish().unwrap();
    assert_eq!((info.stored_bytes, info.guest_bytes), (4 * PAGE, 70 * PAGE));
    let image = Image::open(&storage, &path, ID, info.crc).unwrap();
    assert_eq!((image.stored_bytes(), image.guest_bytes()), (4 * PAGE, 70 * PAGE));
    assert_eq!((image.id(), image.kind(), image.ranges()), (ID, Kind::Full, &RAM[..]));
    let runs: Vec<_> = image.present().unwrap().into_iter().map(|r| r.start / PAGE..r.end / PAGE).collect();
    assert_eq!(runs, [2..3, 4..5, 6..7, 70..71]);
    let mut buf = vec![0xee; 7 * 4096];
    image.read(PAGE, &mut buf).unwrap();
    assert!(buf == pages(&[0, 1, 0, 9, 0, 3, 0]));
    image.read(70 * PAGE, &mut buf[..4096]).unwrap();
    assert!(buf[..4096] == pages(&[5]));
    let mut told = Vec::new();
    image
        .verify(|done, total| {
            told.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(told.last(), Some(&(4 * PAGE, 4 * PAGE)));
    let stop = image.verify(|_, _| ControlFlow::Break(()));
    assert!(matches!(stop, Err(ImageError::Cancelled(_))));
}

#[test]
fn what_is_no_ram_is_refused() {
    let (_dir, path, storage) = place();
    assert!(matches!(ImageWriter::create(&storage, &path, ID, &[]), Err(ImageError::Ranges(_))));
    let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
    for (gpa, len) in [(39 * PAGE, 2 * PAGE), (40 * PAGE, PAGE), (1, PAGE), (0, 100), (u64::MAX - 4095, PAGE)]
    {
        let error = writer.write(gpa, &vec![0; len as usize]).unwrap_err();
        assert!(matches!(error, ImageError::NotRam { .. }), "{error}");
    }
    // No write was tried, so nothing is missing.
    writer.finish().unwrap();
}

#[test]
fn memory_of_zeros_takes_no_data() {
    let (_dir, path, storage) = place();
    let ranges = [(0, 3 << 30), (1 << 32, 1 << 30)];
    let mut writer = ImageWriter::create(&storage, &path, ID, &ranges).unwrap();
    writer.write(1 << 32, &vec![0; 8 << 20]).unwrap();
    let info = writer.finish().unwrap();
    assert_eq!((info.stored_bytes, info.guest_bytes), (0, 4 << 30));
    let allocated = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated < 256 << 10, "{allocated}");
    let image = Image::open(&storage, &path, ID, info.crc).unwrap();
    assert_eq!(image.present().unwrap(), []);
    let mut buf = vec![1; 1 << 20];
    image.read((1 << 32) + (7 << 20), &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == 0));
    image.verify(go_on).unwrap();
}

#[test]
fn a_delta_asks_its_parent() {
    let (_dir, path, storage) = place();
    let mut writer = ImageWriter::create_delta(&storage, &path, ID, PARENT, &RAM).unwrap();
    writer.write(PAGE, &pages(&[1, 0])).unwrap();
    let info = writer.finish().unwrap();
    assert_eq!(info.stored_bytes, PAGE);
    let image = Image::open(&storage, &path, ID, info.crc).unwrap();
    assert_eq!(image.kind(), Kind::Delta(PARENT));
    // The page of zeros is the delta's own.
    assert!(image.present().unwrap().into_iter().eq(std::iter::once(PAGE..3 * PAGE)));
    let mut buf = vec![0xee; 5 * 4096];
    let error = image.read(0, &mut buf).unwrap_err();
    assert!(matches!(error, ImageError::InParent { gpa: 0, .. }));
    let mut asked = Vec::new();
    image
        .read_with(0, &mut buf, |gpa, part| {
            asked.push((gpa, part.len()));
            part.fill(3);
            Ok(())
        })
        .unwrap();
    assert_eq!(asked, [(0, 4096), (3 * PAGE, 8192)]);
    assert!(buf[4096..3 * 4096] == pages(&[1, 0]) && buf[..4096] == [3; 4096]);
    image.verify(go_on).unwrap();
}

#[test]
fn another_image_is_not_taken_for_this_one() {
    let (_dir, path, storage) = place();
    let write = |path: &Path, fill| {
        let mut writer = ImageWriter::create(&storage, path, ID, &RAM).unwrap();
        writer.write(0, &pages(&[fill])).unwrap();
        writer.finish().unwrap()
    };
    let info = write(&path, 1);
    let error = Image::open(&storage, &path, PARENT, info.crc).unwrap_err();
    assert!(matches!(error, ImageError::WrongImage { found: ID, expected: PARENT, .. }));
    // The same but for one page: only the recorded checksum tells them apart.
    fs::remove_file(&path).unwrap();
    assert_ne!(write(&path, 2).crc, info.crc);
    let error = Image::open(&storage, &path, ID, info.crc).unwrap_err();
    assert!(matches!(error, ImageError::WrongIndex { .. }), "{error}");
}

#[test]
fn an_unfinished_or_foreign_file_is_named() {
    let (_dir, path, storage) = place();
    let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
    writer.write(0, &pages(&[1, 2])).unwrap();
    drop(writer);
    let error = Image::open(&storage, &path, ID, 0).unwrap_err().to_string();
    assert!(error.contains("truncated") && error.contains(path.to_str().unwrap()), "{error}");
    fs::write(&path, b"short").unwrap();
    assert!(matches!(
        Image::open(&storage, &path, ID, 0),
        Err(ImageError::Format { source: FormatError::Magic, .. })
    ));
    assert!(ImageWriter::create(&storage, &path, ID, &RAM).is_err(), "an existing file is not replaced");
}

#[test]
fn the_header_says_what_it_cannot_read() {
    let ram = Ram::new(&RAM).unwrap();
    let kind = Kind::Delta(PARENT);
    let header = Header { id: ID, kind, frames: false, ram, present: 9, stored: 8, table_crc: 5 };
    let page = header.encode();
    assert_eq!(Header::decode(&page), Ok(header.clone()));
    let with_frames = Header { frames: true, ..header };
    assert_eq!(Header::decode(&with_frames.encode()), Ok(with_frames));
    let change = |at: usize, byte: u8, seal: bool| {
        let mut page = page;
        page[at] = byte;
        if seal {
            let crc = crc32fast::hash(&page[..HEADER - 4]);
            page[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        Header::decode(&page).unwrap_err()
    };
    assert_eq!(change(0, 0, true), FormatError::Magic);
    assert_eq!(change(8, 2, false), FormatError::Version(2));
    assert_eq!(change(12, 2, true), FormatError::Flags(2));
    assert_eq!(change(40, 1, false), FormatError::Checksum);
    for at in [48, 53, 56, 65, 72, 80, 88, 97] {
        assert!(matches!(change(at, 0xff, true), FormatError::Impossible(_)), "{at}");
    }
}

/// Rounds of writes: the page where one begins, and what its pages are filled with.
fn rounds() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let fills = prop::collection::vec(prop_oneof![2 => Just(0), 3 => 1u8..], 1..12);
    prop::collection::vec((0..70usize, fills), 0..24)
}

/// By number of the page; `None` was never written.
fn write_rounds(writer: &mut ImageWriter, rounds: &[(usize, Vec<u8>)]) -> Vec<Option<u8>> {
    let mut model = vec![None; 70];
    for (first, fills) in rounds {
        let end = if *first < 40 { 40 } else { 70 };
        let fills = &fills[..fills.len().min(end - first)];
        writer.write(gpa_of(*first), &pages(fills)).unwrap();
        for (slot, fill) in model[*first..].iter_mut().zip(fills) {
            *slot = Some(*fill);
        }
    }
    model
}

fn gpa_of(number: usize) -> u64 {
    (if number < 40 { number } else { number + 24 }) as u64 * PAGE
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_reads_as_it_was_written(rounds in rounds(), delta: bool) {
        let (_dir, path, storage) = place();
        let mut writer = match delta {
            true => ImageWriter::create_delta(&storage, &path, ID, PARENT, &RAM).unwrap(),
            false => ImageWriter::create(&storage, &path, ID, &RAM).unwrap(),
        };
        let model = write_rounds(&mut writer, &rounds);
        let info = writer.finish().unwrap();
        let stored = model.iter().flatten().filter(|fill| **fill != 0).count() as u64;
        prop_assert_eq!(info.stored_bytes, stored * PAGE);
        let image = Image::open(&storage, &path, ID, info.crc).unwrap();
        image.verify(go_on).unwrap();
        for (first, end) in [(0, 40), (40, 70)] {
            let mut buf = vec![0xee; (end - first) * 4096];
            image.read_with(gpa_of(first), &mut buf, |_, part| {
                part.fill(if delta { 0xdd } else { 0 });
                Ok(())
            }).unwrap();
            for (page, fill) in buf.chunks(4096).zip(&model[first..end]) {
                let expected = match fill {
                    Some(fill) => pages(&[*fill]),
                    None => vec![if delta { 0xdd } else { 0 }; 4096],
                };
                prop_assert!(page == expected);
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_named(rounds in rounds(), at: prop::sample::Index, bit in 0..8u32) {
        let (_dir, path, storage) = place();
        let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
        write_rounds(&mut writer, &rounds);
        let info = writer.finish().unwrap();
        // Every byte but those in the hole between the ranges, which is no memory.
        let len = fs::metadata(&path).unwrap().len();
        let offset = at.index((len - 24 * PAGE) as usize) as u64;
        let offset = if offset < 40 * PAGE { offset } else { offset + 24 * PAGE };
        // What the index has for a group without pages means nothing, nor what fills up its bitmap.
        let places = Places::new(&Ram::new(&RAM).unwrap(), false);
        let known = if info.stored_bytes == 0 { places.crcs } else { places.bitmap + 128 };
        prop_assume!(!(known..places.table).contains(&offset));
        flip(&path, offset, bit);
        let error = Image::open(&storage, &path, ID, info.crc).and_then(|image| image.verify(go_on)).unwrap_err();
        prop_assert!(error.to_string().contains(path.to_str().unwrap()));
        if offset < RAM[1].0 + RAM[1].1 {
            let page = offset / PAGE * PAGE;
            prop_assert!(
                matches!(error, ImageError::Corrupt { offset, .. } if offset == page), "{error}"
            );
        }
    }

    #[test]
    fn a_file_cut_short_is_refused(rounds in rounds(), at: prop::sample::Index) {
        let (_dir, path, storage) = place();
        let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
        write_rounds(&mut writer, &rounds);
        let info = writer.finish().unwrap();
        let len = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(at.index(len as usize) as u64).unwrap();
        prop_assert!(Image::open(&storage, &path, ID, info.crc).is_err());
    }
}

#[test]
fn the_index_lies_after_the_last_page() {
    let ram = Ram::new(&[(0, 3 << 30), (1 << 32, 1 << 30)]).unwrap();
    let places = Places::new(&ram, false);
    assert_eq!((places.crcs, places.bitmap - places.crcs), (5 << 30, 4 << 20));
    assert_eq!((places.table - places.bitmap, places.header - places.table), (128 << 10, 8192));
    assert_eq!(places.file_len() - places.header, 4096);
    let framed = Places::new(&ram, true);
    assert_eq!((framed.bitmap, framed.frames), (places.bitmap, places.table));
    assert_eq!((framed.table - framed.frames, framed.header - framed.table), (128 << 10, 8192));
}

#[test]
fn only_the_groups_that_are_asked_for_are_looked_at() {
    let (_dir, path, storage) = place();
    let pages_of_ram = 3 * GROUP + 5;
    let mut writer = ImageWriter::create(&storage, &path, ID, &[(0, pages_of_ram * PAGE)]).unwrap();
    for number in [0, GROUP - 1, 2 * GROUP, pages_of_ram - 1] {
        writer.write(number * PAGE, &pages(&[7])).unwrap();
    }
    let info = writer.finish().unwrap();
    let places = Places::new(&Ram::new(&[(0, pages_of_ram * PAGE)]).unwrap(), false);
    // The checksums of group 2, and the bitmap of group 3.
    flip(&path, places.crcs + 2 * 4096 + 5, 1);
    flip(&path, places.bitmap + 3 * 128, 4);
    let image = Image::open(&storage, &path, ID, info.crc).unwrap();
    let mut buf = vec![0xee; 2 * 4096];
    image.read((GROUP - 1) * PAGE, &mut buf).unwrap();
    assert!(buf == pages(&[7, 0]));
    for number in [2 * GROUP, 3 * GROUP] {
        let error = image.read(number * PAGE, &mut buf[..4096]).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
    assert!(image.verify(go_on).is_err() && image.present().is_err());
}

#[test]
fn an_image_is_checked_once_as_long_as_it_stays_as_it_is() {
    let (dir, path, storage) = place();
    let mut writer = ImageWriter::create(&storage, &path, ID, &RAM).unwrap();
    writer.write(2 * PAGE, &pages(&[1, 2, 3])).unwrap();
    let crc = writer.finish().unwrap().crc;
    let check = |path: &Path| {
        let image = Image::open(&storage, path, ID, crc).unwrap();
        assert!(image.is_flat());
        image.check_once(&crate::progress::Progress::default())
    };
    assert!(check(&path).unwrap());
    let remembered = storage.open(&path, crate::storage::Access::ReadOnly).unwrap().note().unwrap();
    if remembered.is_none() {
        return; // The file system has no place for it.
    }
    assert!(!check(&path).unwrap());
    // Another name is the same file; a copy is not, even with the note.
    let linked = dir.path().join("linked");
    fs::hard_link(&path, &linked).unwrap();
    assert!(!check(&linked).unwrap());
    let copy = dir.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let file = storage.open(&copy, crate::storage::Access::ReadWrite).unwrap();
    file.set_note(&remembered.unwrap()).unwrap();
    assert!(check(&copy).unwrap());
    // Written to since.
    flip(&path, 3 * PAGE + 5, 2);
    let error = check(&path).unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { offset, .. } if offset == 3 * PAGE), "{error}");
    assert!(check(&linked).is_err());
    flip(&path, 3 * PAGE + 5, 2);
    assert!(check(&path).unwrap());
    assert!(!check(&path).unwrap());
}
