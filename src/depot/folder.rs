//! A depot in a folder, on this host or a network file system.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::pace::Pace;
use super::store::{Object, Put, Store};
use super::{DepotError, Result};
use crate::progress::Progress;
use crate::storage::{Access, FileKind, Storage, is_temporary};

/// Bytes that go at once where the pace is limited.
const STEP: usize = 1 << 20;

pub struct Folder {
    storage: Storage,
    /// For reading: whoever else can write there puts no links in the way.
    inside: Storage,
    root: PathBuf,
    pace: Arc<Pace>,
    progress: Progress,
}

impl Folder {
    pub fn open(storage: &Storage, root: &Path, pace: Arc<Pace>, progress: &Progress) -> Result<Self> {
        match storage.metadata(root) {
            Ok(meta) if meta.kind == FileKind::Dir => {}
            Err(e) if !e.is_not_found() => return Err(e.into()),
            _ => {
                return Err(DepotError::Refused(format!(
                    "there is no folder {}: create it first, or name another one",
                    root.display()
                )));
            }
        }
        Ok(Self {
            storage: storage.clone(),
            inside: storage.within(root),
            root: root.to_owned(),
            pace,
            progress: progress.clone(),
        })
    }

    /// Waits for the pace, and sees whether the work was called off.
    fn wait(&self, bytes: usize) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(100);
        let until = Instant::now() + self.pace.take(bytes as u64);
        loop {
            self.progress.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn read(&self, key: &str, range: impl FnOnce(u64) -> Result<Range<u64>>) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(key);
        let file = match self.inside.open(&path, Access::ReadOnly) {
            Err(e) if e.is_not_found() => return Ok(None),
            file => file?,
        };
        let range = range(file.len()?)?;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        let mut at = range.start;
        for part in bytes.chunks_mut(STEP) {
            self.wait(part.len())?;
            file.read_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(Some(bytes))
    }

    /// The folder of a key, made if it is not there.
    fn make_folder(&self, path: &Path) -> Result<()> {
        let Some(folder) = path.parent().filter(|folder| *folder != self.root) else { return Ok(()) };
        match self.storage.create_dir(folder) {
            Ok(()) => Ok(self.storage.sync_parent(folder)?),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Store for Folder {
    fn put(&self, key: &str, bytes: Vec<u8>, how: Put) -> Result<bool> {
        let path = self.root.join(key);
        self.make_folder(&path)?;
        let written: std::result::Result<(), DepotError> =
            self.storage.publish(&path, how == Put::Over, |file| {
                let mut at = 0;
                for part in bytes.chunks(STEP) {
                    self.wait(part.len())?;
                    file.write_at(part, at)?;
                    at += part.len() as u64;
                }
                Ok(())
            });
        match written {
            Ok(()) => Ok(true),
            Err(DepotError::Storage(e))
                if how == Put::New && e.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn get(&self, key: &str, most: u64) -> Result<Option<Vec<u8>>> {
        self.read(key, |len| {
            if len > most {
                let what = format!("it has {len} bytes, more than the maximum of {most}");
                return Err(DepotError::damaged(self.shown(key), what));
            }
            Ok(0..len)
        })
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        self.read(key, |len| {
            if range.end > len || range.start > range.end {
                let what = format!("it has {len} bytes, and those up to {} are needed", range.end);
                return Err(DepotError::damaged(self.shown(key), what));
            }
            Ok(range)
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<Object>> {
        let folder = self.root.join(folder);
        let names = match self.storage.list_dir(&folder) {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            names => names?,
        };
        let mut objects = Vec::new();
        for name in names.iter().filter(|name| !is_temporary(name)).filter_map(|name| name.to_str()) {
            self.progress.check()?;
            match self.storage.metadata(&folder.join(name)) {
                Ok(meta) if meta.kind == FileKind::File => {
                    objects.push(Object { name: name.to_owned(), bytes: meta.len, modified: meta.modified });
                }
                // Removed meanwhile, or not ours.
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(objects)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.root.join(key);
        if self.storage.remove_file_if_exists(&path)? {
            self.storage.sync_parent(&path)?;
        }
        Ok(())
    }

    fn shown(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }

    fn sweep(&self, folders: &[&str], before: SystemTime) -> Result<()> {
        for folder in folders.iter().chain(&[""]) {
            let folder = self.root.join(folder);
            let names = match self.storage.list_dir(&folder) {
                Err(e) if e.is_not_found() => continue,
                names => names?,
            };
            for name in names.iter().filter(|name| is_temporary(name)) {
                let path = folder.join(name);
                match self.storage.metadata(&path) {
                    Ok(meta) if meta.modified < before => drop(self.storage.remove_file_if_exists(&path)?),
                    Err(e) if !e.is_not_found() => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
