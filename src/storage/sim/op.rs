//! Changes of a file system, as they are recorded.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Number of a file or folder; never used again for another.
pub type Ino = usize;

#[derive(Clone, Debug)]
pub enum Op {
    /// A new file or folder.
    Make {
        ino: Ino,
        dir: Ino,
        name: OsString,
        folder: bool,
    },
    Link {
        ino: Ino,
        dir: Ino,
        name: OsString,
    },
    /// Of the name of a file, or of an empty folder.
    Remove {
        dir: Ino,
        name: OsString,
    },
    /// Within one folder; what `to` named has that name no more.
    Rename {
        ino: Ino,
        dir: Ino,
        from: OsString,
        to: OsString,
    },
    Write {
        ino: Ino,
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen {
        ino: Ino,
        len: u64,
    },
    Punch {
        ino: Ino,
        offset: u64,
        len: u64,
    },
    /// fdatasync and fsync.
    SyncFile {
        ino: Ino,
    },
    SyncDir {
        ino: Ino,
    },
    /// An fdatasync that failed: what was written before may be lost for good, whatever is synced
    /// later.
    SyncFailed {
        ino: Ino,
    },
    /// What is in memory only, since a sync of it failed, is dropped: from now on the file is
    /// what the disk has, which `seed` decides.
    Reread {
        ino: Ino,
        seed: u64,
    },
    /// No change; whoever records says here that something else holds from now on.
    Mark(u32),
}

/// A change with the path that it was asked for by.
#[derive(Clone, Debug)]
pub struct Logged {
    pub op: Op,
    pub path: PathBuf,
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.op {
            Op::Make { folder: false, .. } => write!(f, "create {path}"),
            Op::Make { folder: true, .. } => write!(f, "mkdir {path}"),
            Op::Link { .. } => write!(f, "link {path}"),
            Op::Remove { .. } => write!(f, "unlink {path}"),
            Op::Rename { to, .. } => write!(f, "rename {path} -> {}", to.display()),
            Op::Write { offset, data, .. } => write!(f, "write {path} @{offset} +{}", data.len()),
            Op::SetLen { len, .. } => write!(f, "truncate {path} to {len}"),
            Op::Punch { offset, len, .. } => write!(f, "punch {path} @{offset} +{len}"),
            Op::SyncFile { .. } => write!(f, "fdatasync {path}"),
            Op::SyncDir { .. } => write!(f, "fsync folder {path}"),
            Op::SyncFailed { .. } => write!(f, "fdatasync {path} (failed)"),
            Op::Reread { .. } => write!(f, "drop the cache of {path}"),
            Op::Mark(epoch) => write!(f, "-- {epoch} --"),
        }
    }
}
