use std::collections::BTreeSet;

use super::crash::Keep;
use super::*;
use crate::storage::StorageError;

fn path(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

/// What a file reads as; none if it is not there.
fn text(image: &Image, name: &str) -> Option<String> {
    let bytes = Sim::mount(image.clone()).storage().read(&path(name)).ok()?;
    Some(String::from_utf8(bytes).unwrap().replace('\0', "."))
}

/// All that the files can read as after a crash at any moment.
fn outcomes(sim: &Sim, names: &[&str]) -> BTreeSet<Vec<Option<String>>> {
    let mut found = BTreeSet::new();
    for point in points(&sim.start(), &sim.log()) {
        let (choices, whole) = point.choices(1 << 12, &mut Rng::new(1));
        assert!(whole);
        for choice in choices {
            let image = point.state(&choice);
            found.insert(names.iter().map(|name| text(&image, name)).collect());
        }
    }
    found
}

fn set<const N: usize>(outcomes: [&[Option<&str>]; N]) -> BTreeSet<Vec<Option<String>>> {
    outcomes.iter().map(|files| files.iter().map(|text| text.map(str::to_owned)).collect()).collect()
}

fn with_file(text: &[u8]) -> Sim {
    let sim = Sim::default();
    sim.storage().create_new(&path("a")).unwrap().write_at(text, 0).unwrap();
    sim.settle();
    sim
}

#[test]
fn it_is_a_file_system() {
    let sim = Sim::default();
    let storage = sim.storage();
    storage.create_dir(&path("d")).unwrap();
    let file = storage.create_new(&path("d/a")).unwrap();
    file.write_at(&[7; 1000], 300).unwrap();
    file.set_len(1 << 20).unwrap();
    file.punch_hole(512, 512).unwrap();
    let mut bytes = [1; 1400];
    file.read_at(&mut bytes, 0).unwrap();
    let expected = |at| u8::from((300..512).contains(&at) || (1024..1300).contains(&at)) * 7;
    assert!((0..1400).all(|at| bytes[at] == expected(at)));
    assert_eq!(file.next_data(0).unwrap(), Some(0..512));
    assert_eq!(file.next_data(512).unwrap(), Some(1024..1536));
    assert_eq!(file.next_data(2000).unwrap(), None);
    file.set_len(1100).unwrap();
    file.set_len(2000).unwrap();
    assert_eq!(file.read_up_to(&mut bytes, 1050).unwrap(), 950);
    assert!(bytes[..50] == [7; 50] && bytes[50..950] == [0; 900]);

    assert_eq!(storage.create_new(&path("d/a")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(storage.remove_dir(&path("d")).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(storage.remove_file(&path("d")).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    storage.rename(&path("d/a"), &path("d/b")).unwrap();
    assert!(storage.rename(&path("d/b"), &path("b")).is_err(), "from folder to folder");
    storage.link(&path("d/b"), &path("c")).unwrap();
    assert!(storage.open(&path("d/a"), Access::ReadOnly).unwrap_err().is_not_found());
    storage.remove_tree(&path("d")).unwrap();
    assert_eq!(storage.read(&path("c")).unwrap().len(), 2000);

    let second = storage.open(&path("c"), Access::ReadWrite).unwrap();
    second.lock(Lock::Exclusive).unwrap();
    assert!(matches!(file.lock(Lock::Shared), Err(StorageError::InUse { .. })));
    drop(second);
    file.lock(Lock::Shared).unwrap();
    let reader = storage.open(&path("c"), Access::ReadOnly).unwrap();
    assert!(reader.write_at(b"x", 0).is_err() && reader.lock(Lock::Exclusive).is_err());
}

#[test]
fn an_append_has_length_and_data_apart() {
    let sim = with_file(b"old");
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(b"new", 3).unwrap();
    assert_eq!(outcomes(&sim, &["a"]), set([&[Some("old")], &[Some("old...")], &[Some("oldnew")]]));
    file.sync_data().unwrap();
    sim.mark(1);
    let last = points(&sim.start(), &sim.log()).pop().unwrap();
    assert_eq!((last.epoch, last.units()), (1, 0));
}

#[test]
fn writes_to_one_place_may_be_any_of_them() {
    let sim = with_file(b"0");
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(b"1", 0).unwrap();
    file.write_at(b"2", 0).unwrap();
    assert_eq!(outcomes(&sim, &["a"]), set([&[Some("0")], &[Some("1")], &[Some("2")]]));
}

#[test]
fn a_replacement_is_whole_or_not() {
    let sim = with_file(b"old");
    sim.storage().replace(&path("a"), b"new").unwrap();
    assert_eq!(outcomes(&sim, &["a"]), set([&[Some("old")], &[Some("new")]]));
    // Without the sync before the rename it is not.
    let sim = with_file(b"old");
    sim.storage().create_new(&path("b")).unwrap().write_at(b"new", 0).unwrap();
    sim.storage().rename(&path("b"), &path("a")).unwrap();
    let found = outcomes(&sim, &["a"]);
    assert!(found.contains(&vec![Some(String::new())]) && found.contains(&vec![Some("...".into())]));
}

#[test]
fn a_new_file_is_whole_or_not_there() {
    let sim = with_file(b"old");
    let publish = |name: &str| {
        sim.storage().publish(&path(name), false, |file| -> crate::storage::Result<()> {
            file.write_at(b"new", 0)?;
            file.write_at(b"!", 600)
        })
    };
    publish("b").unwrap();
    assert_eq!(publish("a").unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    let whole = format!("new{}!", ".".repeat(597));
    let expected = set([&[Some("old"), None], &[Some("old"), Some(&whole)]]);
    assert_eq!(outcomes(&sim, &["a", "b"]), expected);
    let names: Vec<_> = sim.storage().list_dir(Path::new("/")).unwrap();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn names_come_and_go_in_any_order() {
    let sim = with_file(b"x");
    let storage = sim.storage();
    storage.link(&path("a"), &path("b")).unwrap();
    storage.remove_file(&path("a")).unwrap();
    let (x, none) = (Some("x"), None);
    let all = set([&[x, none], &[x, x], &[none, x], &[none, none]]);
    assert_eq!(outcomes(&sim, &["a", "b"]), all);
    storage.sync_dir(&path("")).unwrap();
    sim.mark(1);
    assert_eq!(points(&sim.start(), &sim.log()).pop().unwrap().units(), 0);
}

#[test]
fn the_name_of_a_synced_file_is_not_synced() {
    let sim = with_file(b"x");
    let file = sim.storage().create_new(&path("b")).unwrap();
    file.write_at(b"y", 0).unwrap();
    file.sync_all().unwrap();
    let found = outcomes(&sim, &["b"]);
    assert!(found.contains(&vec![None]) && found.contains(&vec![Some("y".into())]));
}

#[test]
fn writes_are_torn_at_sectors() {
    let sim = with_file(&[1; 8192]);
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(&[2; 8192], 0).unwrap();
    let point = points(&sim.start(), &sim.log()).pop().unwrap();
    for granule in [512, 4096] {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let image = point.state(&[Keep::Torn { granule: granule as u64, seed }]);
            let bytes = Sim::mount(image).storage().read(&path("a")).unwrap();
            assert!(bytes.chunks(granule).all(|part| part.iter().all(|b| *b == part[0])));
            seen.insert(bytes);
        }
        assert!(seen.len() >= if granule == 512 { 32 } else { 4 }, "{}", seen.len());
    }
}

#[test]
fn what_failed_to_sync_may_be_lost_for_good() {
    let sim = with_file(b"0");
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(b"1", 0).unwrap();
    sim.plan(Some(Fault::Error { at: 0, errno: libc::EIO, lasting: false }));
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    sim.mark(1);
    let last = points(&sim.start(), &sim.log()).pop().unwrap();
    assert_eq!(last.units(), 1);
    // But what is written and synced after it is there, and on top.
    file.write_at(b"2", 0).unwrap();
    file.sync_data().unwrap();
    sim.mark(2);
    let last = points(&sim.start(), &sim.log()).pop().unwrap();
    assert!([Keep::Lost, Keep::Whole].iter().all(|keep| text(&last.state(&[*keep]), "a").unwrap() == "2"));
}

#[test]
fn faults_come_when_they_are_planned() {
    let sim = with_file(&[0; 1024]);
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    let full = |at, lasting| Some(Fault::Error { at, errno: libc::ENOSPC, lasting });
    sim.plan(full(1, false));
    file.write_at(&[1; 1024], 0).unwrap();
    assert_eq!(file.write_at(&[2; 1024], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let mut bytes = [0; 1024];
    file.read_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[511], bytes[512]), (2, 1), "half of it is there");
    file.sync_data().unwrap();
    assert_eq!(sim.changes(), 3);
    sim.plan(full(0, true));
    assert!((0..3).all(|_| file.sync_data().is_err()));
    sim.plan(Some(Fault::Cut { at: 0 }));
    let recorded = sim.log_len();
    assert!(file.write_at(&[3; 1024], 0).is_err());
    assert_eq!(sim.log_len(), recorded);
}

#[test]
fn states_that_read_the_same_have_one_print() {
    let one = with_file(&[0; 512]);
    let two = Sim::default();
    two.storage().create_new(&path("b")).unwrap().set_len(512).unwrap();
    assert_ne!(one.live().print(), two.live().print());
    two.storage().rename(&path("b"), &path("a")).unwrap();
    assert_eq!(one.live().print(), two.live().print(), "a hole is zeros");
    let file = two.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(b"x", 511).unwrap();
    assert_ne!(one.live().print(), two.live().print());
    file.write_at(&[0], 511).unwrap();
    assert_eq!(one.live().print(), two.live().print());
}

#[test]
fn a_killed_process_loses_nothing_yet() {
    let sim = with_file(b"old");
    let file = sim.storage().open(&path("a"), Access::ReadWrite).unwrap();
    file.write_at(b"new", 0).unwrap();
    let after = Sim::resume(sim.start(), &sim.log());
    assert_eq!(after.storage().read(&path("a")).unwrap(), b"new");
    assert_eq!(outcomes(&after, &["a"]), set([&[Some("old")], &[Some("new")]]));
}
