//! Why a file cannot be found or read.

use crate::disk::DiskError;
use crate::folder::FolderError;
use crate::history::CheckpointError;
use crate::history::disks::DisksError;
use crate::image::{ImageError, NodeKind};
use crate::progress::Cancelled;
use crate::storage::StorageError;

pub type Result<T> = std::result::Result<T, SearchError>;

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    #[error("{path} does not exist in {place}{}", looked(hidden))]
    Missing { path: String, place: String, hidden: Vec<String> },
    #[error("disk `{disk}`: {error}")]
    Disk { disk: String, error: String },
    #[error(transparent)]
    Image(ImageError),
    #[error("the file is no longer there")]
    Gone,
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cancelled")]
    Cancelled(#[from] Cancelled),
}

/// Where it may be all the same.
fn looked(hidden: &[String]) -> String {
    if hidden.is_empty() { String::new() } else { format!(" ({})", hidden.join("; ")) }
}

impl SearchError {
    pub fn disk(disk: &str) -> impl Fn(DiskError) -> Self {
        move |error| Self::Disk { disk: disk.to_owned(), error: error.to_string() }
    }

    pub fn not_a_file(path: &str, kind: NodeKind) -> Self {
        Self::Refused(match kind {
            NodeKind::Folder => format!("{path} is a folder: name a file in it"),
            NodeKind::File | NodeKind::Link | NodeKind::Special => {
                format!("{path} is a device, socket or pipe, not a file")
            }
        })
    }

    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Missing { .. } => true,
            Self::Checkpoint(e) => e.is_refusal(),
            _ => false,
        }
    }
}
