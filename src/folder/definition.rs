//! What vm.json says, as types; no files here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kind::CheckpointType;
use super::name::VmName;
use super::upkeep::{Retention, Schedule, VerifyPlan};
use crate::config::{Forward, VmConfig};
use crate::id::Id;
use crate::moment::parse_span;

/// Version of vm.json that this piton writes; it reads this and older ones.
pub(super) const FORMAT: u32 = 1;

/// The definition of a VM, as vm.json holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub format: u32,
    pub created: DateTime<Utc>,
    pub config: VmConfig,
    /// Folder for checkpoints, absolute; none: in the VM's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_dir: Option<PathBuf>,
    /// What checkpoints are made unless one is asked for by its type.
    #[serde(default)]
    pub checkpoint_type: CheckpointType,
    /// Every start makes a checkpoint if there is none; a clean shutdown removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_checkpoint: bool,
    /// Seconds that what is taken away stays in the trash; 0: it is gone at once.
    #[serde(default = "a_day")]
    pub trash_seconds: u64,
    /// Which checkpoints a prune deletes.
    #[serde(default, skip_serializing_if = "Retention::is_none")]
    pub retention: Retention,
    /// When checkpoints are made without being asked for.
    #[serde(default, skip_serializing_if = "Schedule::is_off")]
    pub schedule: Schedule,
    /// How often the newest checkpoint is tried, and how.
    #[serde(default, skip_serializing_if = "VerifyPlan::is_off")]
    pub verify: VerifyPlan,
    /// Base images that stand still are to get checksums, as soon as there is time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seal_base: bool,
    /// Ports of the host that lead to the guest. They are this VM's, whatever it goes back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
    /// The checkpoint that it began as, if it is a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<Origin>,
    /// Going to a checkpoint whose image can be mapped maps it, to be shared with all who do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_memory: bool,
    #[serde(default)]
    pub now: Now,
    /// What a later piton says besides, for which it needs no other format: it is kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

const fn a_day() -> u64 {
    24 * 3600
}

/// How long new VMs keep what is taken away: `PITON_TRASH`, or a day.
pub fn default_trash() -> Result<u64, String> {
    match std::env::var_os("PITON_TRASH").filter(|text| !text.is_empty()) {
        None => Ok(a_day()),
        Some(text) => parse_span(&text.to_string_lossy()).map_err(|e| format!("PITON_TRASH: {e}")),
    }
}

/// What a clone was made of. Both go their own ways since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub vm: VmName,
    pub checkpoint: Id,
}

/// The live state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// The checkpoint that it descends from.
    #[serde(default)]
    pub parent: Option<Id>,
    /// The VM generation id that the guest is told: another one whenever the live state became
    /// something else than what the guest did last. None: not chosen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Id>,
    /// Nothing ran since this was put at its parent: going there is staying here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untouched: bool,
    /// A checkpoint that is being made: once it is published, it is the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creating: Option<Id>,
    /// Checksums of layers whose checkpoint is gone while others still read through them, and of
    /// those that were merged. They count, whatever a manifest says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layer_sums: BTreeMap<Id, u32>,
    /// Layers that were written and never had checksums. Of any other that is frozen and has none
    /// they were lost, and nobody knows whether it is as it was.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unsealed: BTreeSet<Id>,
    /// A merge of two layers that was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merging: Option<Merging>,
    /// A base image that is given another place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relocating: Option<Relocating>,
    /// The writable layer of each disk that has one; a disk that is not named writes to its base.
    #[serde(default)]
    pub tops: BTreeMap<String, Id>,
}

/// A merge, so that it can be brought to its end after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    pub disk: String,
    /// None: the base.
    pub lower: Option<Id>,
    pub upper: Id,
    /// The upper layer goes down into the lower one; otherwise the lower one comes up.
    pub commit: bool,
    /// Layers on the upper one.
    pub children: Vec<Id>,
    /// Checksums that the layer that is left will have; none of a base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<u32>,
}

impl Merging {
    /// The layer that is left; none: the base.
    pub fn left(&self) -> Option<Id> {
        if self.commit { self.lower } else { Some(self.upper) }
    }
}

/// Another place of a base image, so that all manifests learn of it after a crash, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocating {
    pub disk: String,
    /// As a disk's path in the definition.
    pub from: PathBuf,
    pub to: PathBuf,
}

impl Definition {
    pub fn new(config: VmConfig) -> Self {
        Self {
            format: FORMAT,
            created: Utc::now(),
            config,
            checkpoint_dir: None,
            checkpoint_type: CheckpointType::default(),
            auto_checkpoint: false,
            trash_seconds: default_trash().unwrap_or_else(|_| a_day()),
            retention: Retention::default(),
            schedule: Schedule::default(),
            verify: VerifyPlan::default(),
            seal_base: false,
            forwards: Vec::new(),
            cloned_from: None,
            share_memory: false,
            now: Now::default(),
            unknown: BTreeMap::new(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct OnDisk<'a> {
    #[serde(flatten)]
    pub definition: &'a Definition,
    pub crc: u32,
}

/// Of the JSON without spaces and with the keys of every object in order, `crc` left out.
pub(super) fn crc_of(mut value: Value) -> u32 {
    value.sort_all_objects();
    crc32fast::hash(value.to_string().as_bytes())
}
