//! Disk images with files in them, made by the tools that distributions make theirs with.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::path::PathBuf;
use std::process::Command;

use crate::common::{Finished, Home};

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
