use super::*;
use crate::config::VmConfig;

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home { root: dir.path().join("a/b"), storage: Storage::os() };
    (dir, home)
}

fn config() -> VmConfig {
    VmConfig {
        cpus: 1,
        memory: 64 << 20,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        nets: Vec::new(),
        vsock: false,
        boot_disk: None,
    }
}

#[test]
fn names() {
    for good in ["demo", "a", "web-1.2_3", &"x".repeat(64)] {
        assert!(good.parse::<VmName>().is_ok(), "{good}");
    }
    let long = "x".repeat(300);
    for bad in ["", ".", "..", "a/b", "/", "-a", ".hidden", "a b", "a@b", "ä", &long] {
        let error = bad.parse::<VmName>().unwrap_err().to_string();
        assert!(error.len() < 250, "{error}");
    }
}

#[test]
fn a_vm_is_made_found_and_removed() {
    let (_dir, home) = home();
    let name: VmName = "demo".parse().unwrap();
    let folder = home.folder(&name);
    assert!(matches!(folder.load(), Err(FolderError::Missing { .. })));
    assert!(matches!(folder.lock(), Err(FolderError::Missing { .. })));
    let lock = folder.create().unwrap();
    let definition = Definition::new(config());
    folder.save(&lock, &definition).unwrap();
    assert_eq!(folder.load().unwrap(), definition);
    assert!(matches!(folder.create(), Err(FolderError::Taken { .. })));
    assert!(matches!(folder.lock(), Err(FolderError::Busy(_))));
    assert_eq!(home.all().unwrap().len(), 1);
    drop(lock);
    let lock = folder.lock().unwrap();
    folder.remove(&lock).unwrap();
    assert!(!folder.path().exists());
    assert!(home.all().unwrap().is_empty());
}

#[test]
fn what_an_interrupted_creation_left_is_taken_over() {
    let (_dir, home) = home();
    let folder = home.folder(&"demo".parse().unwrap());
    drop(folder.create().unwrap());
    assert!(home.all().unwrap().is_empty());
    folder.create().unwrap();
}

#[test]
fn a_wrong_definition_is_named() {
    let (_dir, home) = home();
    let folder = home.folder(&"demo".parse().unwrap());
    let _lock = folder.create().unwrap();
    let write = |text: &str| {
        std::fs::write(folder.definition_path(), text).unwrap();
        folder.load().unwrap_err().to_string()
    };
    assert!(write("garbage").contains("damaged"));
    assert!(write("{}").contains("no format version"));
    assert!(write(r#"{"format": 2, "new": true}"#).contains("newer version of piton"));
    let text = serde_json::to_string(&Definition::new(VmConfig { cpus: 0, ..config() })).unwrap();
    assert!(write(&text).contains("invalid definition"));
}

#[test]
fn a_flipped_bit_in_a_definition_is_noticed() {
    let (_dir, home) = home();
    let folder = home.folder(&"demo".parse().unwrap());
    let lock = folder.create().unwrap();
    let definition = Definition::new(config());
    folder.save(&lock, &definition).unwrap();
    let text = std::fs::read_to_string(folder.definition_path()).unwrap();
    let other = text.replace(&(64u64 << 20).to_string(), &(65u64 << 20).to_string());
    assert_ne!(text, other);
    std::fs::write(folder.definition_path(), &other).unwrap();
    let error = folder.load().unwrap_err().to_string();
    assert!(error.contains("checksum") && error.contains("vm.json"), "{error}");
    // As an older piton wrote it.
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value.as_object_mut().unwrap().remove(CRC).unwrap();
    std::fs::write(folder.definition_path(), value.to_string()).unwrap();
    assert_eq!(folder.load().unwrap(), definition);
}

#[test]
fn a_process_that_was_killed_leaves_its_socket() {
    let (_dir, home) = home();
    let folder = home.folder(&"demo".parse().unwrap());
    let lock = folder.create().unwrap();
    assert_eq!(folder.last_run(), None);
    let last = LastRun { ended: Some(chrono::Utc::now()), how: Ending::Off };
    folder.save_last_run(&lock, last.clone()).unwrap();
    assert_eq!(folder.last_run(), Some(last.clone()));
    std::fs::write(folder.socket(), "").unwrap();
    assert_eq!(folder.last_run(), Some(LastRun { ended: None, how: Ending::Killed }));
    std::fs::remove_file(folder.socket()).unwrap();
    assert_eq!(folder.last_run(), Some(last));
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let (dir, _) = home();
    let home = Home { root: dir.path().join("x".repeat(100)), storage: Storage::os() };
    let folder = home.folder(&"demo".parse().unwrap());
    assert!(matches!(folder.create(), Err(FolderError::SocketPath { .. })));
    assert!(!home.root.exists());
}
