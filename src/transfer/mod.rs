//! A VM at a checkpoint as a folder of files that needs nothing else: out of a VM, into another.
//!
//! docs/export.md draws the folder. [`format`] is what `export.json` says, [`source`] opens a
//! checkpoint to be read, [`export`] and [`import`] read from top to bottom.

pub mod compare;
pub mod export;
pub mod format;
pub mod import;
pub mod memory;
mod plan;
pub mod source;
mod sum;

use std::path::PathBuf;

use crate::capture::image::ImageError;
use crate::checkpoint::state::StateError;
use crate::checkpoint::store::StoreError;
use crate::disk::DiskError;
use crate::folder::FolderError;
use crate::history::CheckpointError;
use crate::history::disks::DisksError;
use crate::progress::Cancelled;
use crate::storage::StorageError;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    #[error("{} {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("disk `{disk}`: {error}")]
    Disk { disk: String, error: DiskError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Image(ImageError),
    #[error("the saved state {0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot get random bytes: {0}")]
    Random(std::io::Error),
    #[error("cancelled: nothing was left behind")]
    Cancelled(#[from] Cancelled),
}

pub type Result<T> = std::result::Result<T, TransferError>;

impl From<ImageError> for TransferError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Cancelled(cancelled) => cancelled.into(),
            error => Self::Image(error),
        }
    }
}

impl TransferError {
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Checkpoint(error) => error.is_refusal(),
            Self::Folder(error) => !matches!(error, FolderError::Storage(_)),
            _ => false,
        }
    }

    /// For `map_err`: names the disk.
    fn disk(disk: &str) -> impl Fn(DiskError) -> Self {
        move |error| match error {
            DiskError::Cancelled(cancelled) => cancelled.into(),
            error => Self::Disk { disk: disk.to_owned(), error },
        }
    }
}
