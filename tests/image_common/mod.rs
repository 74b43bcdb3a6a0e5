//! Disk images with files in them, made by the tools that distributions make theirs with.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use piton::disk::live::LiveDisk;
use piton::disk::{Backing, Disk, ImageFormat, layer};
use piton::storage::Storage;

use crate::common::{Finished, Home};

mod made;

#[allow(unused_imports, reason = "as above")]
pub use made::{fat_of, uki};

pub mod image {
    use super::*;

    /// The image in qcow2; returns its path.
    pub fn qcow2(home: &Home, raw: &str) -> String {
        let path = format!("{raw}.qcow2");
        run(home, "qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", raw, &path]);
        path
    }
}

fn run(_: &Home, program: &str, words: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    // Where an ordinary user's PATH often does not look.
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(words);
    Finished::run(command).ok();
}

/// Changes files of an ext4 file system as a guest would.
pub fn debugfs(image: &str, commands: &[&str]) {
    for command in commands {
        let done = Command::new("/sbin/debugfs").args(["-w", "-R", command, image]).output().unwrap();
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() && told.lines().count() == 1, "{command}: {told}");
    }
}

/// Puts `after` on a disk of a VM that is off, on layers over `base`, as its guest could have.
pub fn write_disk(home: &Home, vm: &str, id: &str, base: &str, after: &Contents) {
    let storage = Storage::os();
    let files = std::fs::read_dir(home.vm(vm).join("disks")).unwrap().map(|entry| entry.unwrap().path());
    let layers: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "delta"))
        .map(|path| layer::inspect(&storage, &path).unwrap())
        .collect();
    let definition = std::fs::read(home.vm(vm).join("vm.json")).unwrap();
    let definition: serde_json::Value = serde_json::from_slice(&definition).unwrap();
    let top = definition["now"]["tops"][id].as_str().unwrap().parse().unwrap();
    let chain = layer::ancestry(&layers, top).unwrap();
    let disk = LiveDisk::open(&storage, Path::new(base), ImageFormat::Raw, &chain, &BTreeMap::new()).unwrap();
    assert_eq!(Backing::len(&disk), after.len);
    let mut before = vec![0; 4096];
    let mut now = before.clone();
    for at in after.blocks() {
        disk.read_at(&mut before, at).unwrap();
        after.read(&mut now, at);
        if before != now {
            disk.write_at(&now, at).unwrap();
        }
    }
    disk.flush().unwrap();
}

/// What a disk is to read as: a raw file, in which holes stay what they are on the disk.
pub struct Contents {
    file: piton::storage::File,
    len: u64,
}

impl Contents {
    pub fn of(path: &str) -> Self {
        let file = Storage::os().open(Path::new(path), piton::storage::Access::ReadOnly).unwrap();
        Self { len: file.len().unwrap(), file }
    }

    fn blocks(&self) -> Vec<u64> {
        let (mut all, mut at) = (Vec::new(), 0);
        while let Some(data) = self.file.next_data(at).unwrap() {
            all.extend((data.start / 4096 * 4096..data.end).step_by(4096));
            at = data.end;
        }
        all
    }

    fn read(&self, block: &mut [u8], at: u64) {
        self.file.read_at(block, at).unwrap();
    }
}

/// The files of a file system to be.
pub struct Root<'a> {
    home: &'a Home,
    name: String,
}

impl<'a> Root<'a> {
    pub const UUID: &'static str = "11111111-2222-4333-8444-555555555555";

    pub fn new(home: &'a Home, name: &str) -> Self {
        let root = Self { home, name: name.to_owned() };
        std::fs::create_dir(root.folder()).unwrap();
        root
    }

    fn folder(&self) -> PathBuf {
        self.home.beside(&format!("{}.d", self.name))
    }

    pub fn file(&self, path: &str, content: &[u8]) {
        let path = self.folder().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.folder().join(path)).unwrap();
    }

    pub fn system(self, name: &str) -> Self {
        self.file("usr/lib/os-release", format!("PRETTY_NAME=\"{name}\"\nID=test\n").as_bytes());
        std::fs::create_dir_all(self.folder().join("etc")).unwrap();
        self.link("etc/os-release", "../usr/lib/os-release");
        self
    }

    pub fn grub(self, menu: &str) -> Self {
        self.file("boot/grub/grub.cfg", menu.as_bytes());
        self
    }

    /// The files as an ext4 file system of its own; returns its path.
    pub fn ext4(&self) -> String {
        self.ext4_of(16 << 20)
    }

    pub fn ext4_of(&self, bytes: u64) -> String {
        self.ext4_with(bytes, &[])
    }

    /// With more words for mkfs.ext4.
    pub fn ext4_with(&self, bytes: u64, more: &[&str]) -> String {
        let path = self.home.image(&format!("{}.ext4", self.name), bytes);
        let folder = self.folder();
        let words = ["-q", "-F", "-L", &self.name, "-U", Self::UUID, "-d", folder.to_str().unwrap(), &path];
        run(self.home, "mkfs.ext4", &[more, &words].concat());
        path
    }
}

/// A disk with these file systems on partitions; returns its path.
pub fn gpt(home: &Home, name: &str, parts: &[&str]) -> String {
    table(home, name, parts, "gpt")
}

pub fn mbr(home: &Home, name: &str, parts: &[&str]) -> String {
    table(home, name, parts, "dos")
}

fn table(home: &Home, name: &str, parts: &[&str], label: &str) -> String {
    const MIB: u64 = 1 << 20;
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| std::fs::read(part).unwrap()).collect();
    let mut script = format!("label: {label}\n");
    let mut start = MIB;
    let mut places = Vec::new();
    for part in &parts {
        let len = (part.len() as u64).next_multiple_of(MIB);
        script += &format!("start={}, size={}, type=L\n", start / 512, len / 512);
        places.push(start as usize);
        start += len;
    }
    let path = home.image(name, start + MIB);
    let script = home.file(&format!("{name}.sfdisk"), script.as_bytes());
    run(home, "sh", &["-c", &format!("sfdisk -q {path} <{script}")]);
    let mut bytes = std::fs::read(&path).unwrap();
    for (part, at) in parts.iter().zip(places) {
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A FAT file system with these files; returns its path.
pub fn fat(home: &Home, name: &str, bytes: usize, files: &[(&str, &[u8])]) -> String {
    home.file(name, &fat_of(bytes, files))
}
