//! The trash of a VM as it is told to users.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::told::CheckpointInfo;
use crate::id::Id;

/// What was taken away in one go and can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    pub id: Id,
    pub when: DateTime<Utc>,
    /// When it goes for good, if the host's clock is not set meanwhile.
    pub until: DateTime<Utc>,
    /// What took it away.
    pub why: String,
    pub kind: TrashKind,
    /// Of a current state: the guest ran, and runs again once it is back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
    /// An undo put it here; the next one passes it over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_undo: bool,
    /// Bytes that are free once it has gone, at least.
    pub bytes: u64,
    /// What there is in it.
    pub checkpoints: Vec<CheckpointInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrashKind {
    /// Checkpoints that were deleted.
    Checkpoints,
    /// A current state that something else took the place of.
    CurrentState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashInfo {
    /// How long things stay; 0: nothing is kept.
    pub trash_seconds: u64,
    /// Bytes that are free once it is empty, at least.
    pub bytes: u64,
    /// The last one first.
    pub entries: Vec<TrashEntry>,
}

/// What is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptiedInfo {
    pub entries: Vec<TrashEntry>,
    pub bytes: u64,
}

/// Body of `POST /vm/undo` and `POST /vm/trash/{entry}/restore`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoBody {
    /// What a state that comes back takes the place of is gone at once.
    #[serde(default)]
    pub no_undo: bool,
}
