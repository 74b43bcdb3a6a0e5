//! Checkpoints as they are told to users.

use serde::{Deserialize, Serialize};

use crate::checkpoint::manifest::{CaptureInfo, DiskPoint, LeftOut};
use crate::checkpoint::store::Verified;
use crate::checkpoint::{CheckpointName, Kind, Manifest};
use crate::config::VmConfig;
use crate::id::Id;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
    Stopped,
    /// Its process is there and does not answer; said by commands only.
    Unresponsive,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Unresponsive => "unresponsive",
        })
    }
}

/// A checkpoint as it is told to users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    pub id: Id,
    pub name: CheckpointName,
    pub note: String,
    pub parent: Option<Id>,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub created: chrono::DateTime<chrono::Utc>,
    /// What the VM is after an apply.
    pub lands: State,
    /// How long the guest stood still, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// How long the guest's file systems were frozen at most, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_us: Option<u64>,
    /// Why it is no production checkpoint, although one was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Made by a start; a clean shutdown removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// It cannot be deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The VM's process made it by itself, because its time had come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scheduled: bool,
    /// How a capture of memory went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureInfo>,
    /// The checkpoint that the memory stored here lies on; nothing: all of it is stored here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_parent: Option<Id>,
    /// Bytes of guest memory stored, and of guest memory in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_stored: Option<u64>,
    /// What the stored ones take, if they were compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_compressed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes that the disks changed since the parent.
    pub disk_bytes: u64,
    /// What it takes; not known of one that was made just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeInfo>,
    /// Disks that are not part of it, and why.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Whether it was seen to come back; absent: it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

impl From<&Manifest> for CheckpointInfo {
    fn from(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id,
            name: manifest.name.clone(),
            note: manifest.note.clone(),
            parent: manifest.parent,
            kind: manifest.kind,
            created: manifest.created,
            lands: if manifest.memory.is_some() { State::Paused } else { State::Stopped },
            pause_us: manifest.pause_us,
            frozen_us: manifest.frozen_us,
            fallback: manifest.fallback.clone(),
            automatic: manifest.automatic,
            pinned: manifest.keeping.pinned,
            scheduled: manifest.keeping.scheduled,
            capture: manifest.capture,
            memory_parent: manifest.memory.as_ref().and_then(|memory| memory.parent),
            memory_stored: manifest.memory.as_ref().map(|memory| memory.stored_bytes),
            memory_compressed: manifest.memory.as_ref().and_then(|memory| memory.compressed_bytes),
            memory: manifest.memory.as_ref().map(|memory| memory.guest_bytes),
            disk_bytes: manifest.disk_bytes,
            size: None,
            left_out: manifest.left_out.clone(),
            warnings: manifest.warnings.clone(),
            verified: None,
        }
    }
}

/// What a checkpoint takes on disk, base images left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeInfo {
    /// Bytes of all files that it is read from.
    pub held: u64,
    /// Bytes that are free once it has gone for good, at least: what nothing else is read from.
    pub freed: u64,
    /// Bytes of the files that the current state is read from as well.
    pub shared_with_now: u64,
    /// Bytes of the files that other VMs have as well: clones, or what this one was cloned from.
    pub shared_with_vms: u64,
    /// For each other checkpoint, bytes of the files that both are read from; not in a list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedInfo {
    pub checkpoint: Id,
    pub name: CheckpointName,
    pub bytes: u64,
    /// That one is in the trash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_trash: bool,
}

/// A checkpoint with what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointDetails {
    #[serde(flatten)]
    pub info: CheckpointInfo,
    /// The VM that it was made of.
    pub vm: String,
    /// Version of the piton that made it.
    pub piton: String,
    /// The VM's hardware at that time.
    pub config: VmConfig,
    /// The disks that it holds.
    pub disks: Vec<DiskDetails>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskDetails {
    pub disk: String,
    /// The layer that holds what was written last; none: the image itself.
    pub layer: Option<Id>,
}

impl From<&Manifest> for CheckpointDetails {
    fn from(manifest: &Manifest) -> Self {
        let disks = manifest.disks.iter().map(|(disk, point)| DiskDetails {
            disk: disk.clone(),
            layer: match point {
                DiskPoint::Layer { id, .. } => Some(*id),
                DiskPoint::Base(_) => None,
            },
        });
        Self {
            info: manifest.into(),
            vm: manifest.vm.clone(),
            piton: manifest.piton.clone(),
            config: manifest.config.clone(),
            disks: disks.collect(),
        }
    }
}

/// All checkpoints of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeInfo {
    /// The checkpoint that the live state descends from.
    pub now: Option<Id>,
    /// Each after its parent, siblings by age.
    pub checkpoints: Vec<CheckpointInfo>,
    /// What lies in the folder and cannot be read, with the reason.
    #[serde(default)]
    pub damaged: Vec<String>,
    /// Merges of layers that are under way or wait for their time.
    #[serde(default)]
    pub pending_merges: usize,
}
