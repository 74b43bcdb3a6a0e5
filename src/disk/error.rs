use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::delta_format::{FormatError, LayerId};
use super::foreign::Foreign;
use super::limits::{MAX_LAYERS, SECTOR};
use crate::progress::Cancelled;
use crate::storage::StorageError;

#[derive(Debug, Error)]
pub enum DiskError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("disk image {} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{} is a folder, not a disk image", .0.display())]
    IsFolder(PathBuf),
    #[error("{} is neither a file nor a block device", .0.display())]
    NotAnImage(PathBuf),
    #[error("disk image {} is empty", .0.display())]
    Empty(PathBuf),
    #[error("the size of disk image {} is {len} bytes, which is not a multiple of {SECTOR}", path.display())]
    BadLength { path: PathBuf, len: u64 },
    #[error("disk image {} is not writable: add ,readonly to use it read-only", .0.display())]
    ReadOnlyFile(PathBuf),
    #[error(
        "{} is in use: it is mounted, part of a RAID, of LVM or of the swap space, or another program or VM \
         has claimed it", .0.display()
    )]
    DeviceBusy(PathBuf),
    #[error("{} is a piton delta layer, not a base image", .0.display())]
    IsDelta(PathBuf),
    #[error("{} is {what}, not a raw or qcow2 disk image: {}", path.display(), what.help(path))]
    Foreign { path: PathBuf, what: Foreign },
    #[error("qcow2 image {}: {reason}", path.display())]
    Qcow2 { path: PathBuf, reason: String },
    #[error(
        "{} has backing files, and piton opens only those that you name: add {}",
        path.display(), options(unnamed)
    )]
    Unnamed { path: PathBuf, unnamed: Vec<PathBuf> },
    #[error("{len} bytes at offset {offset} extend beyond the end of the disk ({size} bytes)")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    #[error("a layer is missing; it may be {}, which cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("the disk lost its layers when a switch to new ones failed: stop the VM and start it again")]
    Broken,
    /// What the place says that the contents come from.
    #[error("{0}")]
    Elsewhere(String),
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("base image {} is damaged or was changed: it does not match its checksums at offset {offset} \
     of the disk", path.display())]
    BaseDamaged { path: PathBuf, offset: u64 },
    #[error("cannot use the checksums of a base image in {}: {what}", path.display())]
    BaseSums { path: PathBuf, what: &'static str },
    #[error("delta layer {}: {source}", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error("delta layer {} is {found} bytes long, but should be {expected} for its disk", path.display())]
    Truncated { path: PathBuf, found: u64, expected: u64 },
    #[error("delta layer {} is damaged: {what} at offset {offset}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: &'static str },
    #[error("{} holds layer {found}, but layer {expected} is expected there", path.display())]
    WrongLayer { path: PathBuf, found: LayerId, expected: LayerId },
    #[error("{} was created on top of {found}, but {expected} is below it", path.display())]
    WrongParent { path: PathBuf, found: String, expected: String },
    #[error("{} belongs to a disk of {size} bytes, but {} to one of {below_size}", path.display(), below.display())]
    WrongSize { path: PathBuf, size: u64, below: PathBuf, below_size: u64 },
    #[error("{} belongs to a disk of {size} bytes, but is on top of one of {below}", path.display())]
    OtherSize { path: PathBuf, size: u64, below: u64 },
    #[error("layer {id} is not one of the frozen layers below {}", top.display())]
    NoSuchLayer { id: LayerId, top: PathBuf },
    #[error("layer {0} is missing")]
    NoParent(LayerId),
    #[error("a chain of {0} layers is too long (at most {MAX_LAYERS}): delete checkpoints first")]
    TooLong(usize),
    #[error(
        "{}: an earlier flush failed, so writes since the last successful one may be lost; reopen the disk",
        .0.display()
    )]
    FlushFailed(PathBuf),
    #[error("cannot get an id for a layer: {0}")]
    Random(std::io::Error),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn options(unnamed: &[PathBuf]) -> String {
    let options: Vec<_> = unnamed.iter().map(|path| format!("--backing {}", path.display())).collect();
    options.join(" ")
}

impl DiskError {
    /// The file that could not be synced, if that is what failed.
    pub fn file_not_synced(&self) -> Option<&Path> {
        match self {
            Self::Storage(StorageError::Path { op: "sync", path, .. }) | Self::FlushFailed(path) => {
                Some(path)
            }
            _ => None,
        }
    }

    /// The file that cannot grow, if a write failed for want of room. Not a failed sync: what the
    /// kernel could not write then is lost, so it is of no use to try again.
    pub fn file_without_room(&self) -> Option<&Path> {
        match self {
            Self::Storage(StorageError::Range { path, source, .. })
                if [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&source.kind()) =>
            {
                Some(path)
            }
            _ => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, DiskError>;
