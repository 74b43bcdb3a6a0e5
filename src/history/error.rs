//! What can go wrong with a VM's checkpoints.

use crate::capture::guest::CaptureError;
use crate::capture::image::ImageError;
use crate::checkpoint::state::StateError;
use crate::checkpoint::store::StoreError;
use crate::checkpoint::tree::ResolveError;
use crate::disk::DiskError;
use crate::folder::FolderError;
use crate::machine::MachineError;
use crate::progress::Cancelled;
use crate::storage::StorageError;

use super::base_problem::BaseProblem;
use super::disks::DisksError;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    /// There is no such checkpoint.
    #[error("{0}")]
    Missing(String),
    /// Nothing was tried.
    #[error(transparent)]
    Base(#[from] Box<BaseProblem>),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the saved state {0}")]
    State(#[from] StateError),
    #[error("the saved state is invalid: {0}")]
    Decode(serde_json::Error),
    #[error(transparent)]
    Image(ImageError),
    #[error(transparent)]
    Capture(CaptureError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disks(DisksError),
    #[error(transparent)]
    Disk(DiskError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot get random bytes: {0}")]
    Random(std::io::Error),
    #[error("{0}")]
    NoProduction(String),
    #[error("{0}")]
    Network(String),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Of a checkpoint with disks that can be gone to all the same.
    #[error("{0}; `piton checkpoint apply --cold` goes to the checkpoint's disks without its memory")]
    NoMemory(Box<CheckpointError>),
    /// The current state, so nothing else was done.
    #[error(
        "cannot keep the current state for an undo ({0}), so nothing was changed: use --no-undo to go on \
         without"
    )]
    NotKept(Box<CheckpointError>),
    #[error("cancelled: nothing was changed")]
    Cancelled(#[from] Cancelled),
}

impl CheckpointError {
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Missing(_)
                | Self::Base(_)
                | Self::Resolve(_)
                | Self::Folder(
                    FolderError::Taken { .. }
                        | FolderError::Busy(_)
                        | FolderError::Trust(_)
                        | FolderError::NotRestored { .. }
                        | FolderError::Needed { .. }
                )
        )
    }

    /// What was asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Resolve(ResolveError::Unknown { .. }))
    }

    /// It failed for want of room.
    pub fn is_full(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                return matches!(error.kind(), StorageFull | QuotaExceeded);
            }
            next = error.source();
        }
        false
    }

    /// Cancelled by the user, and undone.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }
}

impl From<CaptureError> for CheckpointError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Cancelled => Self::Cancelled(Cancelled),
            error => Self::Capture(error),
        }
    }
}

impl From<ImageError> for CheckpointError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Image(error),
        }
    }
}

impl From<DiskError> for CheckpointError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Disk(error),
        }
    }
}

impl From<DisksError> for CheckpointError {
    fn from(error: DisksError) -> Self {
        match error {
            DisksError::Disk { error: DiskError::Cancelled(cancelled), .. } => Self::Cancelled(cancelled),
            DisksError::Base(problem) => Self::Base(problem),
            error => Self::Disks(error),
        }
    }
}

pub type Result<T> = std::result::Result<T, CheckpointError>;
