//! The one door to the file system for everything that must survive.
//!
//! [`Backend`] and [`BackendFile`] are the primitive operations and nothing
//! else: whatever stands behind them (the operating system, or in tests a
//! recorder that rebuilds crash states) sees every change of a file or folder.
//! [`Storage`] and [`File`] put names to errors and add what is made of the
//! primitives.

mod backend;
mod behind;
mod image_lock;
mod os;
pub mod place;
mod room;
pub mod sim;
mod staged;
mod temporary;
mod within;

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use behind::Behind;
use within::Within;

use crate::sandbox::told;

pub use backend::{Access, Backend, BackendFile, FileKind, Links, Lock, Metadata};
pub use room::Room;
pub use staged::Staged;
pub use temporary::{beside, is_temporary};

#[derive(Debug, Error)]
pub enum StorageError {
    #[error("cannot {op} {}: {}", path.display(), told(source))]
    Path { op: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {op} {len} bytes at offset {offset} of {}: {}", path.display(), told(source))]
    Range { op: &'static str, path: PathBuf, offset: u64, len: u64, source: io::Error },
    #[error("cannot rename {} to {}: {}", from.display(), to.display(), told(source))]
    Rename { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("{} is in use by another VM or process{holder}", path.display())]
    InUse {
        path: PathBuf,
        /// `: ` and who that is, or nothing.
        holder: String,
    },
}

impl StorageError {
    /// The kind of the underlying error, for callers that treat a missing file apart.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Path { source, .. } | Self::Range { source, .. } | Self::Rename { source, .. } => {
                source.kind()
            }
            Self::InUse { .. } => io::ErrorKind::WouldBlock,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }
}

pub type Result<T> = std::result::Result<T, StorageError>;

/// Most bytes of a JSON document that piton keeps or is given: far more than any has, and little
/// enough to be held in memory.
pub const DOCUMENT_MAX: u64 = 16 << 20;

/// Handle of the file system; cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage {
    backend: Arc<dyn Backend>,
}

impl Storage {
    /// The real one.
    pub fn os() -> Self {
        Self::new(Arc::new(os::Os))
    }

    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// This file system as far as it lies below `root`, to be read: for what somebody else put
    /// there. A name that leads out of it, and one with a symbolic link in it, is an error.
    pub fn within(&self, root: &Path) -> Self {
        Self::new(Arc::new(Within::new(self.backend.clone(), root.to_owned())))
    }

    /// A file that piton itself wrote.
    pub fn open(&self, path: &Path, access: Access) -> Result<File> {
        self.open_with(path, access, Links::Refuse)
    }

    /// A file or block device that the user named.
    pub fn open_named(&self, path: &Path, access: Access) -> Result<File> {
        self.open_with(path, access, Links::Follow)
    }

    fn open_with(&self, path: &Path, access: Access, links: Links) -> Result<File> {
        let op = match access {
            Access::ReadOnly => "open",
            Access::ReadWrite => "open for writing",
        };
        let inner = self.backend.open(path, access, links).map_err(at(op, path))?;
        Ok(File { inner, path: path.to_owned(), access, behind: None })
    }

    pub fn create_new(&self, path: &Path) -> Result<File> {
        let inner = self.backend.create_new(path).map_err(at("create", path))?;
        Ok(File { inner, path: path.to_owned(), access: Access::ReadWrite, behind: None })
    }

    pub fn create_dir(&self, path: &Path) -> Result<()> {
        self.backend.create_dir(path).map_err(at("create folder", path))
    }

    /// Replaces what `to` names. Durable after [`Storage::sync_dir`] of both folders.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.backend.rename(from, to).map_err(|source| StorageError::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            source,
        })
    }

    pub fn link(&self, from: &Path, to: &Path) -> Result<()> {
        self.backend.link(from, to).map_err(at("link", to))
    }

    pub fn remove_file(&self, path: &Path) -> Result<()> {
        self.backend.remove_file(path).map_err(at("remove", path))
    }

    /// [`Storage::remove_file`] where the file may already be gone.
    pub fn remove_file_if_exists(&self, path: &Path) -> Result<bool> {
        match self.remove_file(path) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub fn remove_dir(&self, path: &Path) -> Result<()> {
        self.backend.remove_dir(path).map_err(at("remove folder", path))
    }

    /// Removes a folder with everything in it; symbolic links are removed, not followed.
    pub fn remove_tree(&self, dir: &Path) -> Result<()> {
        for name in self.list_dir(dir)? {
            let path = dir.join(name);
            match self.remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::IsADirectory => self.remove_tree(&path)?,
                other => other?,
            }
        }
        self.remove_dir(dir)
    }

    pub fn sync_dir(&self, path: &Path) -> Result<()> {
        self.backend.sync_dir(path).map_err(at("sync folder", path))
    }

    /// Makes the name of `path` itself durable.
    pub fn sync_parent(&self, path: &Path) -> Result<()> {
        self.sync_dir(parent_of(path))
    }

    /// Names in a folder, sorted.
    pub fn list_dir(&self, path: &Path) -> Result<Vec<OsString>> {
        let mut names = self.backend.list_dir(path).map_err(at("list folder", path))?;
        names.sort();
        Ok(names)
    }

    /// Follows symbolic links.
    pub fn metadata(&self, path: &Path) -> Result<Metadata> {
        self.backend.metadata(path).map_err(at("inspect", path))
    }

    pub fn exists(&self, path: &Path) -> Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        self.read_at_most(path, u64::MAX)
    }

    /// [`Storage::read`] of a file that is an error if it is longer, and not read at all.
    pub fn read_at_most(&self, path: &Path, most: u64) -> Result<Vec<u8>> {
        let file = self.open(path, Access::ReadOnly)?;
        let len = file.len()?;
        if len > most {
            let text = format!("it has {len} bytes, more than the maximum of {most}");
            return Err(at("read", path)(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| {
            at("read", path)(io::Error::new(io::ErrorKind::OutOfMemory, "the file is too large"))
        })?;
        bytes.resize(len, 0);
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Puts `bytes` in place of the file `path`, whole or not at all: a
    /// temporary file beside it, fdatasync, rename, fsync of the folder.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.publish(path, true, |file| file.write_at(bytes, 0))
    }

    /// Makes the file `path` of what `fill` writes, whole or not at all, as [`Self::replace`]. Unless
    /// `over`, what is there already is left, and that is an error.
    pub fn publish<E: From<StorageError>>(
        &self,
        path: &Path,
        over: bool,
        fill: impl FnOnce(&File) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let temp = beside(path);
        if !over && self.exists(path)? {
            return Err(at("create", path)(io::ErrorKind::AlreadyExists.into()).into());
        }
        // A process of the same id may have died here before.
        self.remove_file_if_exists(&temp)?;
        let file = self.create_new(&temp)?;
        let written = fill(&file).and_then(|()| {
            file.sync_data()?;
            if over {
                return Ok(self.rename(&temp, path)?);
            }
            // Somebody may have made one meanwhile, which a rename would replace.
            match self.link(&temp, path) {
                Ok(()) => Ok(self.remove_file(&temp)?),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e.into()),
                // A file system without links.
                Err(_) => Ok(self.rename(&temp, path)?),
            }
        });
        if let Err(e) = written {
            // The first error is the one to report.
            let _ = self.remove_file(&temp);
            return Err(e);
        }
        Ok(self.sync_parent(path)?)
    }
}

/// An open file that knows its path, so that every error names it.
#[derive(Debug)]
pub struct File {
    inner: Box<dyn BackendFile>,
    path: PathBuf,
    access: Access,
    behind: Option<Behind>,
}

impl File {
    /// For much that is not read again soon: the disk begins with it while more is written, and it
    /// leaves the page cache to others.
    pub fn streamed(self) -> Self {
        Self { behind: Some(Behind::default()), ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn access(&self) -> Access {
        self.access
    }

    /// All of `buf`; the end of the file within it is an error.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len();
        let got = self.inner.read_at(buf, offset).map_err(|e| self.range("read", offset, len as u64, e))?;
        if got < len {
            let end = io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before");
            return Err(self.range("read", offset, len as u64, end));
        }
        Ok(())
    }

    /// Up to the end of the file; returns how much that was.
    pub fn read_up_to(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let len = buf.len() as u64;
        self.inner.read_at(buf, offset).map_err(|e| self.range("read", offset, len, e))
    }

    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.inner.write_at(buf, offset).map_err(|e| self.range("write", offset, buf.len() as u64, e))?;
        self.written(offset, buf.len() as u64)
    }

    fn written(&self, offset: u64, len: u64) -> Result<()> {
        let Some(behind) = &self.behind else { return Ok(()) };
        behind.note(&*self.inner, offset..offset + len).map_err(|e| self.range("write", offset, len, e))
    }

    /// Copies a range from the same place of another file; where the file system can, both then
    /// share it.
    pub fn copy_from(&self, source: &File, offset: u64, len: u64) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let (mut at, end) = (offset, offset + len);
        if let (Some(from), Some(to)) = (source.as_fd(), self.as_fd()) {
            // A stream goes on its way step by step.
            let most = if self.behind.is_some() { STEP } else { len };
            while at < end {
                let wanted = (end - at).min(most);
                let done = os::copy_range(from, to, at, wanted);
                let done = done.map_err(|e| self.range("copy", at, wanted, e))?;
                self.written(at, done)?;
                at += done;
                if done < wanted {
                    break;
                }
            }
        }
        let mut buf = vec![0; (end - at).min(STEP) as usize];
        while at < end {
            let part = &mut buf[..(end - at).min(STEP) as usize];
            source.read_at(part, at)?;
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub fn metadata(&self) -> Result<Metadata> {
        self.inner.metadata().map_err(at("inspect", &self.path))
    }

    pub fn len(&self) -> Result<u64> {
        Ok(self.metadata()?.len)
    }

    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    pub fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len).map_err(|e| self.range("set the length to", 0, len, e))
    }

    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.punch_hole(offset, len).map_err(|e| self.range("clear", offset, len, e))
    }

    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.inner.next_data(offset).map_err(|e| self.range("look for data in", offset, 0, e))
    }

    pub fn sync_data(&self) -> Result<()> {
        self.inner.sync_data().map_err(at("sync", &self.path))
    }

    /// What is read next comes from the disk, whatever the host's memory has of it.
    pub fn forget_cached(&self) -> Result<()> {
        let len = self.len()?;
        self.inner.let_go(0..len).map_err(|e| self.range("drop the cache of", 0, len, e))
    }

    pub fn sync_all(&self) -> Result<()> {
        self.inner.sync_all().map_err(at("sync", &self.path))
    }

    /// Takes, changes or releases the lock; a conflict is [`StorageError::InUse`].
    pub fn lock(&self, lock: Lock) -> Result<()> {
        match self.inner.try_lock(lock) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let holder = self.inner.lock_holder().map_or(String::new(), |holder| format!(": {holder}"));
                Err(StorageError::InUse { path: self.path.clone(), holder })
            }
            Err(e) => Err(at("lock", &self.path)(e)),
        }
    }

    /// What was noted at the file: [`BackendFile::note`].
    pub fn note(&self) -> Result<Option<Vec<u8>>> {
        self.inner.note().map_err(at("read the note at", &self.path))
    }

    pub fn set_note(&self, text: &[u8]) -> Result<()> {
        self.inner.set_note(text).map_err(at("put a note at", &self.path))
    }

    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_fd()
    }

    fn range(&self, op: &'static str, offset: u64, len: u64, source: io::Error) -> StorageError {
        StorageError::Range { op, path: self.path.clone(), offset, len, source }
    }
}

fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Path { op, path, source }
}

/// The folder of a path; of a bare name, the current one.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
