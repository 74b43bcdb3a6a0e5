//! Whether a file of the user's is still what it was.

use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::config::DiskFormat;
use crate::disk::{DiskError, files_of};
use crate::storage::{Access, File, Storage, StorageError};

/// Bytes that are hashed at once.
const BLOCK: u64 = 64 << 10;
/// The sample of a base image: its first and its last 64 KiB, where file systems and partition
/// tables note every mount, and 4 KiB at each of this many places between.
const PLACES: u64 = 62;
const PLACE: u64 = 4096;

/// A base image at a checkpoint, with all that it is read through. To hash all of it would take as
/// long as to copy it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseStamp {
    #[serde(flatten)]
    pub top: Part,
    /// The backing files of a qcow2 image, from the top down. None of them: it has none, or an
    /// older piton took the stamp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub below: Vec<Part>,
}

/// One file of a base image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub len: u64,
    pub modified: DateTime<Utc>,
    /// CRC-32 of a sample.
    pub sample: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseChange {
    Same,
    /// Another time, the same length and sample: copied perhaps, or written where no sample is.
    Touched,
    Length {
        then: u64,
        now: u64,
    },
    Contents,
    Gone,
}

impl BaseChange {
    /// Whether it may well be what it was.
    pub fn is_sound(self) -> bool {
        matches!(self, Self::Same | Self::Touched)
    }
}

impl std::fmt::Display for BaseChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same => f.write_str("it is unchanged"),
            Self::Touched => f.write_str("its modification time differs"),
            Self::Length { then, now } => write!(f, "its size is {now} bytes instead of {then}"),
            Self::Contents => f.write_str("its contents differ"),
            Self::Gone => f.write_str("it is missing"),
        }
    }
}

impl BaseStamp {
    pub fn take(storage: &Storage, path: &Path, format: DiskFormat) -> Result<Self, DiskError> {
        let files = files_of(storage, path, format)?;
        let mut parts = files.iter().map(|file| Part::take(storage, file));
        let top = parts.next().unwrap_or_else(|| Part::take(storage, path))?;
        Ok(Self { top, below: parts.collect::<Result<_, _>>()? })
    }

    /// What became of the image since, and which of its files that is about.
    pub fn compare(
        &self,
        storage: &Storage,
        path: &Path,
        format: DiskFormat,
    ) -> Result<(PathBuf, BaseChange), DiskError> {
        let top = self.top.compare(storage, path)?;
        if !top.is_sound() || self.below.is_empty() {
            return Ok((path.to_owned(), top));
        }
        let files = match files_of(storage, path, format) {
            Ok(files) => files,
            Err(DiskError::Missing(file)) => return Ok((file, BaseChange::Gone)),
            Err(e) => return Err(e),
        };
        if files.len() != self.below.len() + 1 {
            return Ok((path.to_owned(), BaseChange::Contents));
        }
        let mut found = (path.to_owned(), top);
        for (part, file) in self.below.iter().zip(files.into_iter().skip(1)) {
            let change = part.compare(storage, &file)?;
            if !change.is_sound() {
                return Ok((file, change));
            }
            if change == BaseChange::Touched {
                found = (file, change);
            }
        }
        Ok(found)
    }
}

impl Part {
    fn take(storage: &Storage, path: &Path) -> Result<Self, StorageError> {
        let file = storage.open_named(path, Access::ReadOnly)?;
        let meta = file.metadata()?;
        let sample = sample(&file, meta.len)?;
        Ok(Self { len: meta.len, modified: meta.modified.into(), sample })
    }

    fn compare(&self, storage: &Storage, path: &Path) -> Result<BaseChange, StorageError> {
        let now = match storage.metadata(path) {
            Err(e) if e.is_not_found() => return Ok(BaseChange::Gone),
            other => other?,
        };
        Ok(if now.len != self.len {
            BaseChange::Length { then: self.len, now: now.len }
        } else if DateTime::<Utc>::from(now.modified) == self.modified {
            // A VM starts with this: of an image that nobody wrote to not even a sample is read.
            BaseChange::Same
        } else if sample(&storage.open_named(path, Access::ReadOnly)?, now.len)? != self.sample {
            BaseChange::Contents
        } else {
            BaseChange::Touched
        })
    }
}

fn sample(file: &File, len: u64) -> Result<u32, StorageError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buf = vec![0; BLOCK as usize];
    let mut take = |at: u64, count: u64| {
        let part = &mut buf[..count as usize];
        file.read_at(part, at)?;
        hasher.update(part);
        Ok::<(), StorageError>(())
    };
    take(0, BLOCK.min(len))?;
    if len > BLOCK {
        for i in 1..=PLACES {
            // In 128 bits: no length overflows.
            let at = (u128::from(len) * u128::from(i) / u128::from(PLACES + 1)) as u64 / PLACE * PLACE;
            take(at, PLACE.min(len - at))?;
        }
        take(len - BLOCK, BLOCK)?;
    }
    Ok(hasher.finalize())
}

/// A kernel or an initrd: small enough to hash whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    pub path: PathBuf,
    pub len: u64,
    pub modified: DateTime<Utc>,
    /// CRC-32 of the contents.
    pub crc: u32,
}

impl FileStamp {
    pub fn take(storage: &Storage, path: &Path) -> Result<Self, StorageError> {
        let file = storage.open_named(path, Access::ReadOnly)?;
        let meta = file.metadata()?;
        let mut hasher = crc32fast::Hasher::new();
        let mut buf = vec![0; BLOCK as usize];
        let mut at = 0;
        loop {
            let got = file.read_up_to(&mut buf, at)?;
            hasher.update(&buf[..got]);
            at += got as u64;
            if got < buf.len() {
                break;
            }
        }
        Ok(Self { path: path.to_owned(), len: at, modified: meta.modified.into(), crc: hasher.finalize() })
    }

    /// Whether the file still has these contents; one that is gone has not.
    pub fn is_current(&self, storage: &Storage) -> Result<bool, StorageError> {
        match storage.metadata(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
            Ok(meta) if meta.len != self.len => Ok(false),
            Ok(meta) if DateTime::<Utc>::from(meta.modified) == self.modified => Ok(true),
            Ok(_) => Ok(Self::take(storage, &self.path)?.crc == self.crc),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_changed_base_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, storage) = (dir.path().join("base"), Storage::os());
        for len in [0, 512, 70_000, 10 << 20] {
            fs::write(&path, vec![1; len]).unwrap();
            let compare = |stamp: &BaseStamp| stamp.compare(&storage, &path, DiskFormat::Raw).unwrap().1;
            let stamp = BaseStamp::take(&storage, &path, DiskFormat::Raw).unwrap();
            let text = serde_json::to_string(&stamp).unwrap();
            assert_eq!(
                serde_json::from_str::<BaseStamp>(&text).unwrap(),
                stamp,
                "no digit of the time is lost"
            );
            assert_eq!(compare(&stamp), BaseChange::Same);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(compare(&stamp), BaseChange::Touched);
            file.set_len(len as u64 + 512).unwrap();
            let longer = BaseChange::Length { then: len as u64, now: len as u64 + 512 };
            assert_eq!(compare(&stamp), longer);
            if len > 0 {
                file.set_len(len as u64).unwrap();
                file.write_all_at(&[2], len as u64 - 1).unwrap();
                assert_eq!(compare(&stamp), BaseChange::Contents);
            }
        }
        let stamp = BaseStamp::take(&storage, &path, DiskFormat::Raw).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(stamp.compare(&storage, &path, DiskFormat::Raw).unwrap().1, BaseChange::Gone);
        assert!(BaseStamp::take(&storage, &path, DiskFormat::Raw).is_err());
    }

    #[test]
    fn a_stamp_of_an_older_piton_is_read() {
        let old = r#"{"len": 512, "modified": "2026-01-02T03:04:05Z", "sample": 7}"#;
        let stamp: BaseStamp = serde_json::from_str(old).unwrap();
        assert_eq!((stamp.top.len, stamp.top.sample, stamp.below.len()), (512, 7, 0));
    }

    #[test]
    fn a_changed_kernel_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, storage) = (dir.path().join("bzImage"), Storage::os());
        fs::write(&path, vec![1; 200_000]).unwrap();
        let stamp = FileStamp::take(&storage, &path).unwrap();
        assert_eq!(stamp.len, 200_000);
        assert!(stamp.is_current(&storage).unwrap());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(stamp.is_current(&storage).unwrap());
        file.write_all_at(&[2], 100_000).unwrap();
        assert!(!stamp.is_current(&storage).unwrap());
        file.set_len(5).unwrap();
        assert!(!stamp.is_current(&storage).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!stamp.is_current(&storage).unwrap());
    }
}
