//! How much room a file system has.

use std::path::Path;

/// Bytes of a file system.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub all: u64,
    pub free: u64,
}

impl Room {
    /// Of the file system that `path` is on; none: it cannot be known.
    pub fn of(path: &Path) -> Option<Self> {
        let found = nix::sys::statvfs::statvfs(path).ok()?;
        let unit = found.fragment_size();
        Some(Self { all: found.blocks() * unit, free: found.blocks_available() * unit })
    }

    /// What a trash may take of it.
    pub fn share(&self) -> u64 {
        if self.free < self.all / 20 { self.all / 100 } else { self.all / 10 }
    }
}
