//! A checkpoint as a whole: opened to be read, and what came from elsewhere written as a new VM.
//! Exports and the depot both begin and end here.

pub mod arrival;
pub mod fit;
pub mod memory;
pub mod source;

use std::path::PathBuf;

use crate::capture::image::ImageError;
use crate::checkpoint::state::StateError;
use crate::checkpoint::store::StoreError;
use crate::disk::DiskError;
use crate::folder::FolderError;
use crate::history::disks::DisksError;
use crate::history::error::CheckpointError;
use crate::progress::Cancelled;
use crate::storage::StorageError;

#[derive(Debug, thiserror::Error)]
pub enum WholeError {
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
    /// What the place that it comes from says.
    #[error("{0}")]
    Elsewhere(String),
    #[error("cancelled: nothing was left behind")]
    Cancelled(#[from] Cancelled),
}

pub type Result<T> = std::result::Result<T, WholeError>;

impl From<ImageError> for WholeError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Cancelled(cancelled) => cancelled.into(),
            error => Self::Image(error),
        }
    }
}

impl WholeError {
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Checkpoint(error) => error.is_refusal(),
            Self::Folder(error) => !matches!(error, FolderError::Storage(_)),
            _ => false,
        }
    }

    /// For `map_err`: names the disk.
    pub fn disk(disk: &str) -> impl Fn(DiskError) -> Self {
        move |error| match error {
            DiskError::Cancelled(cancelled) => cancelled.into(),
            error => Self::Disk { disk: disk.to_owned(), error },
        }
    }
}
