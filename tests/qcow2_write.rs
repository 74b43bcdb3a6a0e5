//! What piton writes as qcow2, seen by qemu-img. Not among the unit tests: a process that is being
//! started holds the locks of whoever starts it for a moment, which other tests run into.

use std::fs;
use std::process::Command;

use piton::disk::flat::Zeros;
use piton::disk::qcow2_write::write_qcow2;
use piton::disk::{Backing, ImageFormat, open_base};
use piton::progress::Progress;
use piton::storage::Storage;

#[test]
fn qemu_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, progress) = (Storage::os(), Progress::default());
    // More than one L2 table, and an end within a cluster.
    let size = (1100 << 20) + 512;
    let sparse = dir.path().join("sparse");
    let file = fs::File::create(&sparse).unwrap();
    file.set_len(size).unwrap();
    for at in [0, 65536 * 3 + 4096, (512 << 20) - 512, 1 << 30, size - 512] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[9; 512], at).unwrap();
    }
    let disk = open_base(&storage, &sparse, ImageFormat::Raw).unwrap();
    for (name, disk) in [("full", &disk as &dyn Backing), ("empty", &Zeros(512))] {
        let path = dir.path().join(name);
        write_qcow2(&storage, &path, disk, &progress).unwrap();
        let check = Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
        assert!(check.status.success(), "{check:?}");
        assert!(String::from_utf8_lossy(&check.stdout).contains("No errors were found"), "{check:?}");
    }
    // QEMU minds locks of others.
    drop(disk);
    let compared = Command::new("qemu-img").arg("compare").args([&sparse, &dir.path().join("full")]).output();
    assert!(compared.as_ref().unwrap().status.success(), "{compared:?}");
}
