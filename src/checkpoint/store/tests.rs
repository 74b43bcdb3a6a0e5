use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::checkpoint::manifest::tests::sample;
use crate::checkpoint::state::write_state;
use crate::storage::{Access, Backend, BackendFile, File, Links, Lock, Metadata};

pub(super) fn id(n: u8) -> Id {
    Id::from_bytes([n; 16])
}

pub(super) fn place() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(Storage::os(), dir.path().join("checkpoints"));
    (dir, store)
}

/// Stages and publishes a checkpoint with a memory file and a state file.
pub(super) fn create(store: &Store, id: Id, name: &str, parent: Option<Id>) -> Result<()> {
    let staged = store.stage(id)?;
    let fill = |path: PathBuf| store.storage().create_new(&path)?.write_at(b"pages", 0);
    fill(staged.memory_path())?;
    let info = write_state(store.storage(), &staged.state_path(), b"{}");
    let mut manifest = sample(id, name, parent);
    match info {
        Ok(info) => manifest.state = Some(info),
        Err(crate::checkpoint::state::StateError::Storage(e)) => return Err(e.into()),
        Err(e) => panic!("{e}"),
    }
    store.publish(staged, &manifest)
}

pub(super) fn recover(store: &Store, recovery: Recovery) -> Result<Vec<Finding>> {
    store.recover(recovery, || Ok(Vec::new()))
}

fn names(store: &Store) -> Vec<String> {
    let names = store.storage().list_dir(store.dir()).unwrap_or_default();
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn a_checkpoint_is_made_found_changed_and_removed() {
    let (_dir, store) = place();
    assert!(store.list().unwrap().manifests.is_empty());
    create(&store, id(2), "two", None).unwrap();
    create(&store, id(1), "one", Some(id(2))).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(store.path(id(1))), mode(store.manifest_path(id(1)))), (0o700, 0o600));
    fs::write(store.dir().join("notes.txt"), "mine").unwrap();
    let listing = store.list().unwrap();
    assert_eq!(listing.manifests.iter().map(|m| m.id).collect::<Vec<_>>(), [id(1), id(2)]);
    assert!(listing.damaged.is_empty() && listing.leftovers.is_empty());
    let updated = store.update(id(1), |m| m.parent = None).unwrap();
    assert_eq!(store.load(id(1)).unwrap(), updated);
    assert_eq!(updated.parent, None);
    assert!(store.update(id(1), |m| m.id = id(3)).is_err());
    assert!(store.update(id(1), |m| m.memory = None).is_err());
    assert_eq!(store.load(id(1)).unwrap(), updated);
    store.remove(id(1)).unwrap();
    assert!(matches!(store.load(id(1)), Err(StoreError::Missing { .. })));
    assert!(matches!(store.remove(id(1)), Err(StoreError::Missing { .. })));
    assert!(matches!(store.update(id(1), |_| ()), Err(StoreError::Missing { .. })));
    assert_eq!(names(&store), [id(2).to_string(), "notes.txt".into()]);
    assert!(recover(&store, Recovery::Mend).unwrap().is_empty());
}

#[test]
fn what_is_dropped_or_refused_leaves_nothing() {
    let (_dir, store) = place();
    let staged = store.stage(id(1)).unwrap();
    fs::create_dir(staged.path().join("deep")).unwrap();
    fs::write(staged.path().join("deep/file"), "x").unwrap();
    assert_eq!(store.list().unwrap().leftovers.len(), 1);
    assert!(store.stage(id(1)).is_err(), "one at a time");
    drop(staged);
    assert_eq!(names(&store), [""; 0]);
    // A manifest that speaks of files that are not there, and of another checkpoint.
    let error = store.publish(store.stage(id(1)).unwrap(), &sample(id(1), "a", None)).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { there: false, .. }), "{error}");
    let error = store.publish(store.stage(id(1)).unwrap(), &sample(id(2), "a", None)).unwrap_err();
    assert!(matches!(error, StoreError::Manifest { .. }), "{error}");
    assert_eq!(names(&store), [""; 0]);
    // The id is there already: it is not replaced.
    create(&store, id(1), "a", None).unwrap();
    assert!(create(&store, id(1), "b", None).is_err());
    assert_eq!(store.load(id(1)).unwrap().name.as_str(), "a");
    assert_eq!(names(&store).len(), 1);
}

#[test]
fn damage_is_named_and_others_are_listed() {
    let (_dir, store) = place();
    for n in 1..=5 {
        create(&store, id(n), &format!("cp{n}"), None).unwrap();
    }
    let manifest = |n: u8| store.manifest_path(id(n));
    let text = fs::read_to_string(manifest(1)).unwrap();
    fs::write(manifest(1), text.replace("cp1", "cp9")).unwrap();
    fs::write(manifest(2), r#"{"format": 2, "layers": 7}"#).unwrap();
    fs::remove_file(manifest(3)).unwrap();
    fs::copy(manifest(5), manifest(4)).unwrap();
    // Not even a folder.
    fs::write(store.path(id(6)), "x").unwrap();
    assert!(recover(&store, Recovery::Mend).unwrap().is_empty());
    let listing = store.list().unwrap();
    assert_eq!(listing.manifests.iter().map(|m| m.id).collect::<Vec<_>>(), [id(5)]);
    assert_eq!(listing.damaged.len(), 5);
    fs::remove_file(store.path(id(6))).unwrap();
    let errors: Vec<String> = listing.damaged.iter().map(|d| d.error.to_string()).collect();
    for (n, what) in [(1, "checksum"), (2, "newer version of piton"), (3, "no manifest"), (4, "is expected")]
    {
        let error = &errors[n - 1];
        let path = store.path(id(n as u8));
        assert!(error.contains(what) && error.contains(path.to_str().unwrap()), "{error}");
    }
    // What is damaged can still be deleted.
    (1..=4).for_each(|n| store.remove(id(n)).unwrap());
    assert_eq!(names(&store), [id(5).to_string()]);
}

#[test]
fn recovery_looks_and_mends() {
    let (_dir, store) = place();
    create(&store, id(1), "whole", None).unwrap();
    for folder in [store.staging_path(id(2)), store.deleted_path(id(3))] {
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory"), "x").unwrap();
    }
    // Names that are not ours.
    let others = [".staging-mine", ".deleted-", &id(0xab).to_string().to_uppercase()];
    others.iter().for_each(|name| fs::create_dir(store.dir().join(name)).unwrap());
    fs::write(store.path(id(1)).join(".manifest.json.77-0.tmp"), "half").unwrap();
    let before = names(&store);
    let found = recover(&store, Recovery::Look).unwrap();
    let what: Vec<_> = found.iter().map(|f| f.what).collect();
    assert_eq!(what, [Leftover::Deleted, Leftover::Staging, Leftover::Temporary]);
    assert!(found.iter().all(|f| f.to_string().starts_with("found ")));
    assert_eq!(names(&store), before);
    let mended = recover(&store, Recovery::Mend).unwrap();
    assert!(mended.iter().all(|f| matches!(f.outcome, Outcome::Removed)), "{mended:?}");
    assert_eq!(names(&store).len(), 4);
    assert_eq!(store.storage().list_dir(&store.path(id(1))).unwrap(), ["manifest.json", "memory", "state"]);
    assert!(recover(&store, Recovery::Look).unwrap().is_empty());
    assert_eq!(store.load(id(1)).unwrap().name.as_str(), "whole");
}

/// Fails changes of files and folders from one on, or that one only.
#[derive(Debug)]
struct Faulty {
    inner: Storage,
    changes: Arc<AtomicUsize>,
    fails: Range<usize>,
    kind: io::ErrorKind,
}

#[derive(Debug)]
struct FaultyFile {
    inner: File,
    gate: Arc<Faulty>,
}

fn plain(e: StorageError) -> io::Error {
    e.kind().into()
}

impl Faulty {
    fn storage(fails: Range<usize>, kind: io::ErrorKind) -> (Storage, Arc<AtomicUsize>) {
        let changes = Arc::new(AtomicUsize::new(0));
        let faulty = Self { inner: Storage::os(), changes: Arc::clone(&changes), fails, kind };
        (Storage::new(Arc::new(Shared(Arc::new(faulty)))), changes)
    }

    fn change(&self) -> io::Result<()> {
        let n = self.changes.fetch_add(1, Ordering::Relaxed);
        if self.fails.contains(&n) { Err(self.kind.into()) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct Shared(Arc<Faulty>);

impl Shared {
    fn file(&self, inner: File) -> Box<dyn BackendFile> {
        Box::new(FaultyFile { inner, gate: Arc::clone(&self.0) })
    }

    fn changing(&self) -> io::Result<&Storage> {
        self.0.change().map(|()| &self.0.inner)
    }
}

impl Backend for Shared {
    fn open(&self, path: &Path, access: Access, links: Links) -> io::Result<Box<dyn BackendFile>> {
        let opened = match links {
            Links::Follow => self.0.inner.open_named(path, access),
            Links::Refuse => self.0.inner.open(path, access),
        };
        Ok(self.file(opened.map_err(plain)?))
    }
    fn open_within(&self, root: &Path, name: &Path) -> io::Result<Box<dyn BackendFile>> {
        Ok(self.file(self.0.inner.within(root).open(&root.join(name), Access::ReadOnly).map_err(plain)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn BackendFile>> {
        Ok(self.file(self.changing()?.create_new(path).map_err(plain)?))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.changing()?.create_dir(path).map_err(plain)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.changing()?.rename(from, to).map_err(plain)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.changing()?.link(from, to).map_err(plain)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.changing()?.remove_file(path).map_err(plain)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.changing()?.remove_dir(path).map_err(plain)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.changing()?.sync_dir(path).map_err(plain)
    }
    fn list_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.0.inner.list_dir(path).map_err(plain)
    }
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.0.inner.metadata(path).map_err(plain)
    }
}

impl BackendFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_up_to(buf, offset).map_err(plain)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        // Half of it is there when it fails.
        if let Err(e) = self.gate.change() {
            let _ = self.inner.write_at(&buf[..buf.len() / 2], offset);
            return Err(e);
        }
        self.inner.write_at(buf, offset).map_err(plain)
    }
    fn metadata(&self) -> io::Result<Metadata> {
        self.inner.metadata().map_err(plain)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.change()?;
        self.inner.set_len(len).map_err(plain)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.change()?;
        self.inner.punch_hole(offset, len).map_err(plain)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset).map_err(plain)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate.change()?;
        self.inner.sync_data().map_err(plain)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.gate.change()?;
        self.inner.sync_all().map_err(plain)
    }
    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        self.inner.lock(lock).map(|()| true).map_err(plain)
    }
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_fd()
    }
}

/// One operation with its outcomes: as before it, or as after it.
struct Case {
    act: fn(&Store) -> Result<()>,
    /// The name of checkpoint 1, and whether 2 is there.
    before: (Option<&'static str>, bool),
    after: (Option<&'static str>, bool),
}

const CASES: [Case; 3] = [
    Case {
        act: |store| create(store, id(2), "two", Some(id(1))),
        before: (Some("one"), false),
        after: (Some("one"), true),
    },
    Case {
        act: |store| {
            let name = "uno".parse().unwrap();
            store.update(id(1), |m| m.name = name).map(drop)
        },
        before: (Some("one"), false),
        after: (Some("uno"), false),
    },
    Case { act: |store| store.remove(id(1)), before: (Some("one"), false), after: (None, false) },
];

/// Whatever is listed is whole; and which of the checkpoints that is.
fn seen(store: &Store) -> (Option<String>, bool) {
    let listing = store.list().unwrap();
    assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
    for manifest in &listing.manifests {
        assert_eq!(fs::read(store.memory_path(manifest)).unwrap(), b"pages");
        let state = manifest.state.unwrap();
        crate::checkpoint::state::read_state(store.storage(), &store.state_path(manifest.id), &state)
            .unwrap();
    }
    let find = |n| listing.manifests.iter().find(|m| m.id == id(n));
    (find(1).map(|m| m.name.to_string()), find(2).is_some())
}

fn same(seen: &(Option<String>, bool), expected: (Option<&str>, bool)) -> bool {
    (seen.0.as_deref(), seen.1) == expected
}

#[test]
fn cut_short_anywhere_each_operation_is_done_or_not() {
    for (number, case) in CASES.iter().enumerate() {
        for cut in 0.. {
            let (_dir, store) = place();
            create(&store, id(1), "one", None).unwrap();
            let (storage, changes) = Faulty::storage(cut..usize::MAX, io::ErrorKind::Other);
            let cut_short = Store::new(storage, store.dir.clone());
            let done = (case.act)(&cut_short);
            let now = seen(&store);
            assert!(same(&now, case.before) || same(&now, case.after), "{number} {cut} {now:?}");
            let mended = recover(&store, Recovery::Mend).unwrap();
            assert!(mended.iter().all(|f| matches!(f.outcome, Outcome::Removed)), "{mended:?}");
            assert_eq!(seen(&store), now);
            assert_eq!(names(&store).len(), store.list().unwrap().manifests.len());
            if changes.load(Ordering::Relaxed) <= cut {
                done.unwrap();
                assert!(same(&now, case.after) && mended.is_empty());
                assert!(cut > 4, "{number} {cut}");
                break;
            }
            assert!(done.is_err());
        }
    }
}

#[test]
fn after_an_error_nothing_is_left_and_all_is_as_before() {
    for (number, case) in CASES.iter().enumerate() {
        for (cut, kind) in (0..).flat_map(|cut| {
            [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied].map(|kind| (cut, kind))
        }) {
            let (_dir, store) = place();
            create(&store, id(1), "one", None).unwrap();
            let (storage, changes) = Faulty::storage(cut..cut + 1, kind);
            let failing = Store::new(storage, store.dir.clone());
            let done = (case.act)(&failing);
            if changes.load(Ordering::Relaxed) <= cut {
                break;
            }
            let now = seen(&store);
            match done {
                // The deletion itself was done.
                Err(StoreError::LeftOver { .. }) => assert!(same(&now, case.after)),
                // The folder of a manifest could not be synced: it has been replaced, perhaps
                // not for good.
                Err(_) if number == 1 && same(&now, case.after) => {}
                // The folder is there already, whatever making it says.
                Ok(()) => assert!(number == 0 && cut == 0 && same(&now, case.after)),
                Err(error) => {
                    assert!(same(&now, case.before), "{number} {cut} {error}");
                    assert!(recover(&store, Recovery::Look).unwrap().is_empty(), "{number} {cut} {error}");
                }
            }
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let (_dir, store) = place();
    create(&store, id(1), "one", None).unwrap();
    let error = |kind| {
        let (storage, _) = Faulty::storage(0..usize::MAX, kind);
        Store::new(storage, store.dir.clone()).stage(id(2)).unwrap_err().to_string()
    };
    assert!(error(io::ErrorKind::ReadOnlyFilesystem).contains("--checkpoint-dir"));
    assert!(error(io::ErrorKind::PermissionDenied).contains("--checkpoint-dir"));
    assert!(error(io::ErrorKind::StorageFull).contains("not enough space"));
    let (storage, _) = Faulty::storage(1..usize::MAX, io::ErrorKind::Other);
    let error = Store::new(storage, store.dir.clone()).remove(id(1)).unwrap_err().to_string();
    assert!(error.contains("has been deleted") && error.contains("doctor"), "{error}");
}

mod images {
    use std::ops::ControlFlow;

    use super::*;
    use crate::capture::chain::MemoryChain;
    use crate::capture::image::ImageWriter;
    use crate::progress::Progress;

    const RAM: [(u64, u64); 1] = [(0, 64 << 20)];
    const PAGE: usize = 4096;

    /// Makes checkpoint `n` above `n - 1`; the first is full. Each writes its own page, and page 0.
    fn make(store: &Store, n: u8) {
        let staged = store.stage(id(n)).unwrap();
        let path = staged.memory_path();
        let mut writer = match n {
            1 => ImageWriter::create(store.storage(), &path, id(n), &RAM).unwrap(),
            _ => ImageWriter::create_delta(store.storage(), &path, id(n), id(n - 1), &RAM).unwrap(),
        };
        for number in [0, u64::from(n)] {
            writer.write(number * PAGE as u64, &[n; PAGE]).unwrap();
        }
        let info = writer.finish().unwrap();
        let parent = (n > 1).then(|| id(n - 1));
        let mut manifest = sample(id(n), &format!("c{n}"), parent);
        manifest.state = Some(write_state(store.storage(), &staged.state_path(), b"{}").unwrap());
        let memory = manifest.memory.as_mut().unwrap();
        (memory.crc, memory.stored_bytes, memory.parent) = (info.crc, info.stored_bytes, parent);
        store.publish(staged, &manifest).unwrap();
    }

    fn tree(depth: u8) -> (TempDir, Store) {
        let (dir, store) = place();
        (1..=depth).for_each(|n| make(&store, n));
        (dir, store)
    }

    /// The first byte of the first pages, all of it checked.
    fn read(store: &Store, n: u8) -> Vec<u8> {
        let manifest = store.load(id(n)).unwrap();
        let specs = store.memory_chain(&manifest).unwrap();
        let chain = MemoryChain::open(store.storage(), &specs).unwrap();
        chain.verify(|_, _| ControlFlow::Continue(())).unwrap();
        let mut buf = vec![0; 9 * PAGE];
        chain.read(0, &mut buf).unwrap();
        buf.chunks(PAGE).map(|page| page[0]).collect()
    }

    fn expected(n: u8) -> Vec<u8> {
        (0..9)
            .map(|page| {
                if page == 0 {
                    n
                } else if page <= n {
                    page
                } else {
                    0
                }
            })
            .collect()
    }

    /// Deletes as `piton checkpoint delete` does, but for the layers.
    fn delete(store: &Store, gone: u8) -> Result<()> {
        let manifests = store.list()?.manifests;
        let parent = store.load(id(gone))?.parent;
        for manifest in manifests.iter().filter(|manifest| manifest.id != id(gone)) {
            store.keep_images(manifest, &manifests, &[id(gone)])?;
        }
        for manifest in manifests.iter().filter(|manifest| manifest.parent == Some(id(gone))) {
            store.update(manifest.id, |manifest| manifest.parent = parent)?;
        }
        store.remove(id(gone))
    }

    fn settle(store: &Store) -> Result<()> {
        store.merge_images(&Progress::default())
    }

    fn depth(store: &Store, n: u8) -> usize {
        store.images(&store.load(id(n)).unwrap()).unwrap().len()
    }

    fn files(store: &Store, n: u8) -> Vec<String> {
        let names = store.storage().list_dir(&store.path(id(n))).unwrap();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_delete_leaves_what_others_read_and_a_merge_makes_it_one_file() {
        let (_dir, store) = tree(5);
        for gone in [3, 1, 2] {
            delete(&store, gone).unwrap();
            for n in 1..=5 {
                if store.load(id(n)).is_ok() {
                    assert_eq!(read(&store, n), expected(n), "{n} after the delete of {gone}");
                }
            }
        }
        assert_eq!((depth(&store, 4), depth(&store, 5)), (4, 5));
        settle(&store).unwrap();
        assert_eq!((depth(&store, 4), depth(&store, 5)), (1, 2));
        assert_eq!(files(&store, 4), ["manifest.json", "memory-1", "state"]);
        assert!(store.load(id(4)).unwrap().memory.unwrap().parent.is_none());
        delete(&store, 4).unwrap();
        settle(&store).unwrap();
        assert_eq!((read(&store, 5), depth(&store, 5)), (expected(5), 1));
        assert!(recover(&store, Recovery::Look).unwrap().is_empty());
    }

    #[test]
    fn two_children_share_what_they_lie_on() {
        let (_dir, store) = tree(2);
        let staged = store.stage(id(9)).unwrap();
        let mut writer =
            ImageWriter::create_delta(store.storage(), &staged.memory_path(), id(9), id(1), &RAM).unwrap();
        writer.write(0, &[9; PAGE]).unwrap();
        let info = writer.finish().unwrap();
        let mut manifest = sample(id(9), "c9", Some(id(1)));
        manifest.state = Some(write_state(store.storage(), &staged.state_path(), b"{}").unwrap());
        let memory = manifest.memory.as_mut().unwrap();
        (memory.crc, memory.parent) = (info.crc, Some(id(1)));
        store.publish(staged, &manifest).unwrap();
        delete(&store, 1).unwrap();
        settle(&store).unwrap();
        assert_eq!((depth(&store, 2), depth(&store, 9)), (2, 2), "no copy is made for each");
        assert_eq!((read(&store, 2), read(&store, 9)), (expected(2), [9, 1, 0, 0, 0, 0, 0, 0, 0].to_vec()));
        // The last one has it for itself.
        delete(&store, 2).unwrap();
        settle(&store).unwrap();
        assert_eq!((read(&store, 9), depth(&store, 9)), ([9, 1, 0, 0, 0, 0, 0, 0, 0].to_vec(), 1));
    }

    #[test]
    fn a_missing_image_is_named() {
        let (_dir, store) = tree(3);
        store.remove(id(2)).unwrap();
        let error = store.images(&store.load(id(3)).unwrap()).unwrap_err();
        assert!(matches!(error, StoreError::NoImage { image, .. } if image == id(2)), "{error}");
        fs::remove_file(store.path(id(1)).join("memory")).unwrap();
        assert!(
            store.memory_chain(&store.load(id(1)).unwrap()).is_ok(),
            "whether it is there shows on opening"
        );
    }

    /// Deletes and merges with the `n`th change of the file system failing, and each after it as a
    /// crash has it, or only that one.
    #[test]
    fn cut_short_anywhere_nothing_that_is_read_changes() {
        for last in [1, usize::MAX] {
            for n in 0.. {
                let (dir, store) = tree(4);
                let end = if last == 1 { n + 1 } else { usize::MAX };
                let (storage, changes) = Faulty::storage(n..end, io::ErrorKind::Other);
                let faulty = Store::new(storage, dir.path().join("checkpoints"));
                let done = delete(&faulty, 2).and_then(|()| settle(&faulty));
                let seen = |store: &Store| {
                    for n in [1, 3, 4] {
                        assert_eq!(read(store, n), expected(n), "{n}");
                    }
                    if store.load(id(2)).is_ok() {
                        assert_eq!(read(store, 2), expected(2));
                    }
                };
                seen(&store);
                recover(&store, Recovery::Mend).unwrap();
                seen(&store);
                settle(&store).unwrap();
                seen(&store);
                assert!(recover(&store, Recovery::Look).unwrap().is_empty());
                let is_there = store.load(id(2)).is_ok();
                assert_eq!(depth(&store, 3), if is_there { 3 } else { 2 });
                if changes.load(Ordering::Relaxed) <= n {
                    assert!(done.is_ok() && n > 20);
                    break;
                }
            }
        }
    }

    #[test]
    fn a_merge_that_is_stopped_leaves_nothing() {
        let (_dir, store) = tree(2);
        delete(&store, 1).unwrap();
        let before = files(&store, 2);
        let progress = Progress::default();
        progress.cancel();
        store.merge_images(&progress).unwrap();
        assert_eq!(files(&store, 2), before);
        assert_eq!(read(&store, 2), expected(2));
    }
}
