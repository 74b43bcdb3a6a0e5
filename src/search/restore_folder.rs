//! A folder of a checkpoint, with all that is in it, as a folder of this host. It is filled beside its
//! place, under a temporary name, and gets its own when all of it is durable.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::Folder;
use super::error::{Result, SearchError};
use super::restore::missing_folder;
use crate::image::{At, Node, NodeKind, Volume, Walk};
use crate::progress::Progress;
use crate::storage::place::Place;
use crate::storage::{Storage, beside};

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptFolder {
    pub files: u64,
    /// Of files, as they claim; holes in them take no room.
    pub bytes: u64,
    /// Devices and the like, which were left out.
    pub left_out: u64,
}

/// Writes the folder to `to`, whole and durable or not at all; nothing may be there.
pub fn restore_folder(
    storage: &Storage,
    folder: &Folder,
    to: &Path,
    progress: &Progress,
) -> Result<KeptFolder> {
    if storage.exists(to)? {
        return Err(SearchError::Refused(format!(
            "{} already exists, and a folder replaces nothing: give another path",
            to.display()
        )));
    }
    let temp = beside(to);
    storage.create_dir(&temp).map_err(|e| match e.is_not_found() {
        true => missing_folder(to, e),
        false => e.into(),
    })?;
    let done = fill(storage, folder, &temp, progress).and_then(|kept| {
        storage.rename(&temp, to)?;
        storage.sync_parent(to)?;
        Ok(kept)
    });
    if done.is_err() {
        // The first error is the one to report.
        let _ = storage.remove_tree(&temp);
    }
    done
}

fn fill(storage: &Storage, folder: &Folder, temp: &Path, progress: &Progress) -> Result<KeptFolder> {
    progress.phase("copy", 0);
    let volume = folder.volume()?;
    let place = Place::open(temp).map_err(|error| host(temp, error))?;
    let mut filling = Filling {
        storage,
        volume,
        temp,
        place,
        walk: Walk::default(),
        room: folder.disk_len,
        folders: Vec::new(),
        kept: KeptFolder::default(),
        progress,
    };
    filling.folder(&At::new(&folder.path), &mut Vec::new())?;
    // Those in others first, which may then not be entered any more.
    let Filling { place, folders, kept, .. } = filling;
    for (parts, mode) in folders.iter().rev() {
        place.set_mode(parts, *mode).map_err(|error| host(&below(temp, parts), error))?;
    }
    place.set_mode(&[], folder.hit.node.mode() & 0o777).map_err(|error| host(temp, error))?;
    Ok(kept)
}

fn host(path: &Path, error: std::io::Error) -> SearchError {
    SearchError::Refused(format!("cannot write {}: {error}", path.display()))
}

fn below(temp: &Path, parts: &[Vec<u8>]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    parts.iter().fold(temp.to_owned(), |path, part| path.join(std::ffi::OsStr::from_bytes(part)))
}

struct Filling<'a> {
    storage: &'a Storage,
    volume: &'a Volume,
    temp: &'a Path,
    place: Place,
    walk: Walk,
    /// Bytes of data, but for zeros, that can still be on the disk.
    room: u64,
    folders: Vec<(Vec<Vec<u8>>, u32)>,
    kept: KeptFolder,
    progress: &'a Progress,
}

impl Filling<'_> {
    fn failed(&self, parts: &[Vec<u8>], error: std::io::Error) -> SearchError {
        host(&below(self.temp, parts), error)
    }

    fn folder(&mut self, at: &At, parts: &mut Vec<Vec<u8>>) -> Result<()> {
        self.progress.check()?;
        for (name, node) in self.volume.folder(&mut self.walk, at).map_err(SearchError::Image)? {
            let at = at.below(&name);
            parts.push(name);
            let mode = node.mode() & 0o777;
            match node.kind() {
                NodeKind::Folder => {
                    self.place.folder(parts).map_err(|e| self.failed(parts, e))?;
                    self.folders.push((parts.clone(), mode));
                    self.folder(&at, parts)?;
                }
                NodeKind::File => self.file(&at, parts, &node)?,
                NodeKind::Link => {
                    let target = self.volume.target(&at).map_err(SearchError::Image)?;
                    self.place.symlink(parts, &target).map_err(|e| self.failed(parts, e))?;
                }
                NodeKind::Special => self.kept.left_out += 1,
            }
            parts.pop();
        }
        Ok(self.storage.sync_dir(&below(self.temp, parts))?)
    }

    fn file(&mut self, at: &At, parts: &[Vec<u8>], node: &Node) -> Result<()> {
        let file = self.place.file(parts).map_err(|e| self.failed(parts, e))?;
        let (mut offset, mut failed, mut room) = (0, None, self.room);
        let each = &mut |bytes: &[u8]| {
            let zeros = bytes.iter().all(|byte| *byte == 0);
            let written = match room.checked_sub(if zeros { 0 } else { bytes.len() as u64 }) {
                _ if self.progress.is_cancelled() => Ok(()),
                None => Err(SearchError::Refused(
                    "the files are larger together than their disk, so they share data: restore single \
                     files instead"
                        .into(),
                )),
                Some(left) => {
                    room = left;
                    let written = if zeros { Ok(()) } else { file.write_all_at(bytes, offset) };
                    written.map_err(|e| self.failed(parts, e))
                }
            };
            offset += bytes.len() as u64;
            self.progress.add(bytes.len() as u64);
            written.map_err(|e| failed = Some(e)).is_ok() && !self.progress.is_cancelled()
        };
        self.volume.stream_at(at, node, each).map_err(SearchError::Image)?;
        self.progress.check()?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.room = room;
        let end = || -> std::io::Result<()> {
            file.set_len(node.len())?;
            // Nobody gets other rights by running it.
            file.set_permissions(std::fs::Permissions::from_mode(node.mode() & 0o777))?;
            file.sync_data()
        };
        end().map_err(|e| self.failed(parts, e))?;
        self.kept.files += 1;
        self.kept.bytes += node.len();
        Ok(())
    }
}
