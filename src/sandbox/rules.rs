//! What a process is to reach, as paths.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What may be done with what lies at a path, and with all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Files, folders and sockets come and go.
    All,
    /// The same, and symbolic links.
    Tree,
    /// List folders, make folders, and move folders to them: nothing is read, written or removed.
    MoveInto,
    Read,
    /// [`Self::Read`] of what the kernel makes up, and forgets unless somebody has it open.
    Kernel,
    /// What is there is read and written.
    Write,
}

/// Paths, and what is to be done there. A path may be there more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    paths: Vec<(PathBuf, Reach)>,
    connects: bool,
}

/// One whose path is there.
pub(super) struct Opened {
    pub file: OwnedFd,
    pub kind: Kind,
    pub reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    Device,
}

impl Rules {
    pub fn allow(&mut self, reach: Reach, path: impl Into<PathBuf>) -> &mut Self {
        let rule = (path.into(), reach);
        if !self.paths.contains(&rule) {
            self.paths.push(rule);
        }
        self
    }

    /// TCP connections to others.
    pub fn allow_connections(&mut self) -> &mut Self {
        self.connects = true;
        self
    }

    pub(super) fn connects(&self) -> bool {
        self.connects
    }

    pub fn paths(&self) -> impl Iterator<Item = (&Path, Reach)> {
        self.paths.iter().map(|(path, reach)| (path.as_path(), *reach))
    }

    pub(super) fn open(&self) -> impl Iterator<Item = Opened> {
        self.paths.iter().filter_map(|(path, reach)| {
            let mut options = File::options();
            let file = options.read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path).ok()?;
            let found = file.metadata().ok()?.file_type();
            let kind = match found.is_block_device() || found.is_char_device() {
                _ if found.is_dir() => Kind::Folder,
                true => Kind::Device,
                false => Kind::File,
            };
            Some(Opened { file: file.into(), kind, reach: *reach })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_left_out() {
        let mut rules = Rules::default();
        rules.allow(Reach::Read, "/proc/self").allow(Reach::Read, "/nowhere/at/all");
        rules.allow(Reach::Write, "/dev/null").allow(Reach::Write, "/dev/null");
        let found: Vec<_> = rules.open().map(|rule| (rule.kind, rule.reach)).collect();
        assert_eq!(found, [(Kind::Folder, Reach::Read), (Kind::Device, Reach::Write)]);
    }
}
