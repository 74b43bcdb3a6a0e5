//! What a manifest says of how long its checkpoint stays, and who sees it.

use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::moment::Moment;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// Neither a delete nor a rule takes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// It is in the trash: layers and images are as they were, and users do not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Trashed>,
    /// When it was made, whatever became of the host's clock. None: of an older piton.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Moment>,
    /// Its time in seconds since 1970, counted on from the checkpoints before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<i64>,
    /// The VM's process made it by itself, because its time had come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scheduled: bool,
}

/// How a checkpoint came into the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// What was taken away in one go has the same.
    pub entry: Id,
    /// Counts up: the highest came last.
    pub number: u64,
    pub when: Moment,
    /// It was the current state until something else was gone to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_now: bool,
    /// Of a current state: whether the guest ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
    /// An undo put it here, so another undo passes it over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_undo: bool,
    /// For people: what took it away.
    pub why: String,
}
