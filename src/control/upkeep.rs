//! What is asked and told of checkpoints that are made, and go, by rules.

use serde::{Deserialize, Serialize};

use super::told::CheckpointInfo;
use crate::folder::{CheckpointType, Counts, Retention, Schedule};

/// Of `PATCH /vm`: what is left out stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionChange {
    /// As a whole.
    pub keep: Option<Counts>,
    pub within_seconds: Option<u64>,
    pub max_bytes: Option<u64>,
    pub all: Option<bool>,
}

impl RetentionChange {
    pub fn on(&self, before: Retention) -> Retention {
        Retention {
            keep: self.keep.unwrap_or(before.keep),
            within_seconds: self.within_seconds.unwrap_or(before.within_seconds),
            max_bytes: self.max_bytes.unwrap_or(before.max_bytes),
            all: self.all.unwrap_or(before.all),
        }
    }
}

/// The same of the schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleChange {
    pub every_seconds: Option<u64>,
    #[serde(rename = "type")]
    pub kind: Option<CheckpointType>,
    pub only_if_changed: Option<bool>,
}

impl ScheduleChange {
    pub fn on(&self, before: Schedule) -> Schedule {
        Schedule {
            every_seconds: self.every_seconds.unwrap_or(before.every_seconds),
            kind: self.kind.or(before.kind),
            only_if_changed: self.only_if_changed.unwrap_or(before.only_if_changed),
        }
    }
}

/// Body of `POST /vm/prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneBody {
    /// Only tell what would go.
    pub dry_run: bool,
}

/// What a prune did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedInfo {
    pub dry_run: bool,
    /// Bytes that are free without those that go, at least.
    pub bytes: u64,
    /// The newest first.
    pub checkpoints: Vec<PruneVerdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneVerdict {
    pub checkpoint: CheckpointInfo,
    pub stays: bool,
    pub why: String,
}
