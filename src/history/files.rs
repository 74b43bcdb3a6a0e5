//! Files below a folder, each once, whatever names it has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::storage::{FileKind, Storage};

/// Folders in a VM's folder are never deeper.
const DEEPEST: usize = 8;

/// Device and number.
pub type Inode = (u64, u64);

/// A file below some folders.
#[derive(Debug, Clone)]
pub struct Found {
    pub path: PathBuf,
    pub bytes: u64,
    /// Names that it has, and how many of them were found.
    pub names: u64,
    pub found: u64,
}

pub type Files = BTreeMap<Inode, Found>;

/// What cannot be looked at counts for nothing.
pub fn walk(storage: &Storage, dir: &Path, files: &mut Files) {
    step(storage, dir, DEEPEST, files);
}

fn step(storage: &Storage, dir: &Path, deepest: usize, files: &mut Files) {
    for name in storage.list_dir(dir).unwrap_or_default() {
        let path = dir.join(name);
        let Ok(meta) = storage.metadata(&path) else { continue };
        match meta.kind {
            FileKind::Dir if deepest > 0 => step(storage, &path, deepest - 1, files),
            FileKind::File => {
                let new = Found { path, bytes: meta.allocated, names: meta.links, found: 0 };
                files.entry((meta.dev, meta.ino)).or_insert(new).found += 1;
            }
            _ => {}
        }
    }
}
