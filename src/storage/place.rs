//! A folder of the host that a guest's files are put into, by its agent or from its disks. A name of the guest's leads nowhere else:
//! each part of it is opened below the one before, and no link is followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

/// Deepest folder below.
const DEPTH_MAX: usize = 256;

pub struct Place {
    root: OwnedFd,
}

/// A name below the place, in its parts.
pub type Parts = [Vec<u8>];

/// The parts of a name; none if it leads out, or nowhere.
pub fn parts(name: &[u8]) -> Option<Vec<Vec<u8>>> {
    if name.starts_with(b"/") || name.contains(&0) {
        return None;
    }
    let all = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let all: Vec<Vec<u8>> = all.map(<[u8]>::to_vec).collect();
    let inside = !all.is_empty() && all.len() <= DEPTH_MAX && all.iter().all(|part| part != b"..");
    inside.then_some(all)
}

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Place {
    /// A folder that the user named, so through links, too.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { root })
    }

    /// The folder that the last part is, or is to be, in.
    fn parent<'a>(&self, parts: &'a Parts) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (last, before) = parts.split_last().ok_or(ErrorKind::InvalidInput)?;
        let mut at = self.root.try_clone()?;
        for part in before {
            at = openat(at.as_fd(), OsStr::from_bytes(part), FOLDER, Mode::empty())?;
        }
        Ok((at, OsStr::from_bytes(last)))
    }

    /// A folder; one that is there already stays what it is.
    pub fn folder(&self, parts: &Parts) -> io::Result<()> {
        let (parent, name) = self.parent(parts)?;
        match mkdirat(parent.as_fd(), name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => openat(parent.as_fd(), name, FOLDER, Mode::empty()).map(|_| ())?,
            made => made?,
        }
        Ok(())
    }

    /// An empty file in place of the one that may be there.
    pub fn file(&self, parts: &Parts) -> io::Result<File> {
        let (parent, name) = self.parent(parts)?;
        // A FIFO would be waited for.
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(parent.as_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it exists and is not a file"));
        }
        file.set_len(0)?;
        Ok(file)
    }

    /// A link; it may lead anywhere, and nobody here follows it.
    pub fn symlink(&self, parts: &Parts, target: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(parts)?;
        let target = OsStr::from_bytes(target);
        match symlinkat(target, parent.as_fd(), name) {
            Err(Errno::EEXIST) => {
                unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir)?;
                symlinkat(target, parent.as_fd(), name)?;
            }
            made => made?,
        }
        Ok(())
    }

    /// Another name of a file that is here.
    pub fn link(&self, parts: &Parts, of: &Parts) -> io::Result<()> {
        let ((parent, name), (from, other)) = (self.parent(parts)?, self.parent(of)?);
        let link = || linkat(from.as_fd(), other, parent.as_fd(), name, AtFlags::empty());
        match link() {
            Err(Errno::EEXIST) => {
                unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir)?;
                link()?;
            }
            made => made?,
        }
        Ok(())
    }

    /// Of a folder; without parts of the place itself.
    pub fn set_mode(&self, parts: &Parts, mode: u32) -> io::Result<()> {
        let folder = if parts.is_empty() {
            File::from(self.root.try_clone()?)
        } else {
            let (parent, name) = self.parent(parts)?;
            File::from(openat(parent.as_fd(), name, FOLDER, Mode::empty())?)
        };
        folder.set_permissions(std::fs::Permissions::from_mode(mode))
    }

    /// Takes away a file that is not whole.
    pub fn remove(&self, parts: &Parts) {
        if let Ok((parent, name)) = self.parent(parts) {
            let _ = unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn path(text: &str) -> Vec<Vec<u8>> {
        parts(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_that_lead_out_are_none() {
        for wrong in ["/etc/passwd", "..", "a/../../b", "../x", "", ".", "a\0b", "./"] {
            assert_eq!(parts(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(path("./a//b/./c"), path("a/b/c"));
        assert_eq!(parts("x/".repeat(300).as_bytes()), None);
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for folder in [&inside, &outside] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(outside.join("file"), "kept").unwrap();
        let place = Place::open(&inside).unwrap();
        place.symlink(&path("door"), outside.as_os_str().as_bytes()).unwrap();
        place.symlink(&path("window"), outside.join("file").as_os_str().as_bytes()).unwrap();
        assert!(place.file(&path("door/new")).is_err());
        assert!(place.folder(&path("door")).is_err());
        assert!(place.folder(&path("door/new")).is_err());
        assert!(place.file(&path("window")).is_err());
        assert!(place.symlink(&path("door/x"), b"y").is_err());
        assert!(place.link(&path("mine"), &path("door/file")).is_err());
        assert!(place.set_mode(&path("door"), 0).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "kept");
        // And what is honest works.
        place.folder(&path("d")).unwrap();
        place.folder(&path("d")).unwrap();
        place.file(&path("d/f")).unwrap().write_all(b"long").unwrap();
        place.file(&path("d/f")).unwrap().write_all(b"x").unwrap();
        place.link(&path("d/g"), &path("d/f")).unwrap();
        place.symlink(&path("door"), b"elsewhere").unwrap();
        assert_eq!(std::fs::read_to_string(inside.join("d/g")).unwrap(), "x");
        assert_eq!(std::fs::read_link(inside.join("door")).unwrap(), Path::new("elsewhere"));
    }
}
