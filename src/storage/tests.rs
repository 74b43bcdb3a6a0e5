use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn a_new_file_is_private_and_refuses_to_replace() {
    let dir = folder();
    let storage = Storage::os();
    let path = dir.path().join("a");
    storage.create_new(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = storage.create_new(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");

    let sub = dir.path().join("d");
    storage.create_dir(&sub).unwrap();
    assert_eq!(fs::metadata(&sub).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(storage.create_dir(&sub).is_err());
}

#[test]
fn a_read_past_the_end_names_file_and_offset() {
    let dir = folder();
    let storage = Storage::os();
    let path = dir.path().join("a");
    let file = storage.create_new(&path).unwrap();
    file.write_at(b"hello", 3).unwrap();
    let mut buf = [0; 5];
    file.read_at(&mut buf, 3).unwrap();
    assert_eq!(&buf, b"hello");
    let text = file.read_at(&mut buf, 4).unwrap_err().to_string();
    assert!(text.contains("offset 4") && text.contains(path.to_str().unwrap()), "{text}");
    assert_eq!(file.read_up_to(&mut buf, 4).unwrap(), 4);
    assert_eq!(file.len().unwrap(), 8);
}

#[test]
fn replace_leaves_nothing_beside_the_file() {
    let dir = folder();
    let storage = Storage::os();
    let path = dir.path().join("vm.json");
    storage.replace(&path, b"one").unwrap();
    storage.replace(&path, b"two!").unwrap();
    assert_eq!(storage.read(&path).unwrap(), b"two!");
    assert_eq!(storage.list_dir(dir.path()).unwrap(), ["vm.json"]);
    assert!(storage.replace(&dir.path().join("no/vm.json"), b"x").is_err());
    // A folder in the way: the rename fails and the temporary file goes.
    let taken = dir.path().join("taken");
    storage.create_dir(&taken).unwrap();
    assert!(storage.replace(&taken, b"x").is_err());
    assert_eq!(storage.list_dir(dir.path()).unwrap(), ["taken", "vm.json"]);
}

#[test]
fn locks_belong_to_the_open_file() {
    let dir = folder();
    let storage = Storage::os();
    let path = dir.path().join("a");
    let first = storage.create_new(&path).unwrap();
    let second = storage.open(&path, Access::ReadWrite).unwrap();
    let reader = storage.open(&path, Access::ReadOnly).unwrap();
    first.lock(Lock::Exclusive).unwrap();
    assert!(matches!(second.lock(Lock::Exclusive), Err(StorageError::InUse { .. })));
    assert!(matches!(reader.lock(Lock::Shared), Err(StorageError::InUse { .. })));
    first.lock(Lock::Shared).unwrap();
    reader.lock(Lock::Shared).unwrap();
    assert!(matches!(first.lock(Lock::Exclusive), Err(StorageError::InUse { .. })));
    drop(reader);
    first.lock(Lock::Exclusive).unwrap();
    drop(first);
    second.lock(Lock::Exclusive).unwrap();
    // The kernel refuses an exclusive lock on a handle that cannot write.
    let reader = storage.open(&path, Access::ReadOnly).unwrap();
    second.lock(Lock::None).unwrap();
    assert!(matches!(reader.lock(Lock::Exclusive), Err(StorageError::Path { .. })));
}

#[test]
fn holes_read_as_zeros_and_are_not_data() {
    let dir = folder();
    let storage = Storage::os();
    let file = storage.create_new(&dir.path().join("a")).unwrap();
    file.set_len(1 << 20).unwrap();
    assert_eq!(file.next_data(0).unwrap(), None);
    file.write_at(&[7; 8192], 65536).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(65536..73728));
    assert_eq!(file.next_data(73728).unwrap(), None);
    assert_eq!(file.next_data(1 << 30).unwrap(), None);
    file.punch_hole(65536, 4096).unwrap();
    let mut buf = [1; 8192];
    file.read_at(&mut buf, 65536).unwrap();
    assert!(buf[..4096].iter().all(|b| *b == 0) && buf[4096..].iter().all(|b| *b == 7));
    assert_eq!(file.len().unwrap(), 1 << 20);
    file.punch_hole(0, 0).unwrap();
}

#[test]
fn metadata_tells_kinds_apart() {
    let dir = folder();
    let storage = Storage::os();
    let path = dir.path().join("a");
    let file = storage.create_new(&path).unwrap();
    assert_eq!(file.metadata().unwrap(), storage.metadata(&path).unwrap());
    assert_eq!(storage.metadata(&path).unwrap().kind, FileKind::File);
    assert_eq!(storage.metadata(dir.path()).unwrap().kind, FileKind::Dir);
    assert_eq!(storage.metadata(Path::new("/dev/null")).unwrap().kind, FileKind::Other);
    assert!(!storage.exists(&dir.path().join("b")).unwrap());
    assert!(storage.exists(&path).unwrap());
    assert!(!storage.remove_file_if_exists(&dir.path().join("b")).unwrap());
    storage.link(&path, &dir.path().join("b")).unwrap();
    assert!(storage.remove_file_if_exists(&dir.path().join("b")).unwrap());
}
