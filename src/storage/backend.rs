//! The primitive operations on a file system, and nothing else.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::SystemTime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Whether a name may be a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Somebody chose the name, and may have chosen a link or a block device.
    Follow,
    /// piton wrote the file itself: anything else in its place is not its own.
    Refuse,
}

/// A lock on an open file. It belongs to the open file, not to the process, so
/// two handles of one process exclude each other, and it dies with the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    None,
    /// Needs a handle that can read.
    Shared,
    /// Needs a handle that can write: the kernel refuses it on any other.
    Exclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    BlockDevice,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub kind: FileKind,
    /// Bytes; of a block device, its capacity.
    pub len: u64,
    /// Bytes that the file occupies (holes do not).
    pub allocated: u64,
    pub modified: SystemTime,
    pub dev: u64,
    pub ino: u64,
    /// Names that the file has; with more than one, somebody else may count on what is in it.
    pub links: u64,
}

/// Primitive operations on names.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Never waits: what is neither a file nor, with [`Links::Follow`], a block device is an error.
    fn open(&self, path: &Path, access: Access, links: Links) -> io::Result<Box<dyn BackendFile>>;
    /// The file `name` below `root`, to be read; no part of `name` may be a symbolic link.
    fn open_within(&self, root: &Path, name: &Path) -> io::Result<Box<dyn BackendFile>>;
    /// A new empty file, mode 0600, open for reading and writing; an existing one is an error.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn BackendFile>>;
    /// A new folder, mode 0700; an existing one is an error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder survive a power cut.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn list_dir(&self, path: &Path) -> io::Result<Vec<OsString>>;
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
}

/// Primitive operations on an open file.
pub trait BackendFile: fmt::Debug + Send + Sync {
    /// As many bytes as there are before the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// All of `buf`, or an error after which any part of it may be there.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    fn metadata(&self) -> io::Result<Metadata>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The range reads as zeros afterwards and, where possible, occupies
    /// nothing. The length of the file does not change.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The first range at or after `offset` that may hold anything but zeros.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
    /// fdatasync: contents, and of the metadata what is needed to read them.
    fn sync_data(&self) -> io::Result<()>;
    /// fsync: also the times and the mode.
    fn sync_all(&self) -> io::Result<()>;
    /// Lets the disk begin with what was written to a range; nothing is durable by that.
    fn start_writing(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
    /// Waits until the disk has taken a range, and keeps no copy of it in memory. An error is one
    /// that a sync may not tell of any more.
    fn let_go(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
    /// Never waits. `false`: another handle holds a lock against it.
    fn try_lock(&self, lock: Lock) -> io::Result<bool>;
    /// Who has the file, after a lock was refused.
    fn lock_holder(&self) -> Option<String> {
        None
    }
    /// What [`BackendFile::set_note`] put there last; none where files cannot have notes.
    fn note(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Puts a short text beside the contents, where all names of the file have it and copies of it
    /// do not have to. Nothing of it is durable.
    fn set_note(&self, _text: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// To map the file; `None` if there is nothing behind it to map.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
}
