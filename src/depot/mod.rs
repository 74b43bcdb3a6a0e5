//! A depot: a place outside the host, in object storage or a folder, that holds checkpoints of VMs.
//!
//! docs/depot.md describes what lies there. A checkpoint's disks, memory and files are cut into
//! chunks that are named by their contents ([`keys`]) and lie in packs ([`pack`]); its manifest
//! ([`manifest`]) is written last. [`store`] is the one way to the place. [`push`], [`pull`],
//! [`verify`], [`copy`] and [`prune`] read from top to bottom.

pub mod chunks;
pub mod copy;
mod fetch;
mod folder;
mod http;
pub mod keys;
pub mod location;
pub mod manifest;
pub mod name;
pub mod open;
pub mod pace;
pub mod pack;
pub mod prune;
pub mod pull;
pub mod push;
mod s3;
mod send;
pub mod store;
mod stream;
pub mod verify;

use crate::history::whole::WholeError;
use crate::progress::Cancelled;
use crate::storage::StorageError;

#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    /// It is there, and not what was put there.
    #[error("{object} is damaged: {what}")]
    Damaged { object: String, what: String },
    #[error("cannot {doing} {object}: {why}")]
    Store { doing: &'static str, object: String, why: String },
    #[error(transparent)]
    Whole(#[from] WholeError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot get random bytes: {0}")]
    Random(std::io::Error),
    #[error("cancelled: what was sent already is not sent again")]
    Cancelled(#[from] Cancelled),
}

pub type Result<T> = std::result::Result<T, DepotError>;

impl DepotError {
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Whole(error) => error.is_refusal(),
            _ => false,
        }
    }

    fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), what: what.into() }
    }
}
