//! A file system of which only one folder can be reached, and only to be read.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::backend::{Access, Backend, BackendFile, Links, Metadata};

#[derive(Debug)]
pub(super) struct Within {
    inner: Arc<dyn Backend>,
    root: PathBuf,
}

impl Within {
    pub(super) fn new(inner: Arc<dyn Backend>, root: PathBuf) -> Self {
        Self { inner, root }
    }

    /// The name below the folder.
    fn name<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let name = path.strip_prefix(&self.root).ok();
        let inside = |name: &&Path| name.components().all(|part| matches!(part, Component::Normal(_)));
        name.filter(inside).ok_or_else(|| {
            let text = format!("it points outside {}", self.root.display());
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        })
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Backend for Within {
    fn open(&self, path: &Path, access: Access, _: Links) -> io::Result<Box<dyn BackendFile>> {
        if access == Access::ReadWrite {
            return read_only();
        }
        self.inner.open_within(&self.root, self.name(path)?)
    }

    fn open_within(&self, root: &Path, name: &Path) -> io::Result<Box<dyn BackendFile>> {
        self.inner.open_within(&self.root, self.name(&root.join(name))?)
    }

    /// Of files only.
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.open(path, Access::ReadOnly, Links::Refuse)?.metadata()
    }

    fn create_new(&self, _: &Path) -> io::Result<Box<dyn BackendFile>> {
        read_only()
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn remove_file(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn list_dir(&self, _: &Path) -> io::Result<Vec<OsString>> {
        read_only()
    }
}
