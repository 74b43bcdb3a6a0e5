//! What can go wrong with the folder of checkpoints.

use std::path::PathBuf;

use crate::capture::image::ImageError;
use crate::checkpoint::manifest::ManifestError;
use crate::id::Id;
use crate::storage::StorageError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("manifest {}: {source}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error(
        "the memory of checkpoint {id} depends on the memory image of checkpoint {image}, which is missing"
    )]
    NoImage { id: Id, image: Id },
    #[error("there is no checkpoint {id} in {}", dir.display())]
    Missing { id: Id, dir: PathBuf },
    #[error("{} has no manifest: it is not a checkpoint, or a damaged one", .0.display())]
    NoManifest(PathBuf),
    #[error("cannot write checkpoints to {} ({source}): make it writable, or choose another folder with \
     --checkpoint-dir", dir.display())]
    Refused { dir: PathBuf, source: StorageError },
    #[error("there is not enough space in {} ({source}): delete checkpoints, or free some space", dir.display())]
    Full { dir: PathBuf, source: StorageError },
    #[error("checkpoint {id} is incomplete: {} is {}", path.display(), if *.there { "present but not in \
     its manifest" } else { "missing" })]
    Incomplete { id: Id, path: PathBuf, there: bool },
    #[error(
        "checkpoint {id} may not survive a power cut ({source}), and could not be removed again ({undo})"
    )]
    InDoubt { id: Id, source: StorageError, undo: Box<StorageError> },
    #[error("checkpoint {id} has been deleted, but {} could not be removed ({source}): `piton doctor \
     --repair` removes it", path.display())]
    LeftOver { id: Id, path: PathBuf, source: StorageError },
}

pub type Result<T> = std::result::Result<T, StoreError>;
