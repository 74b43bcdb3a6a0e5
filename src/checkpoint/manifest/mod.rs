//! The manifest of a checkpoint: what manifest.json says, as a type and as bytes; no files here.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capture::image::ImageInfo;
use crate::config::{ConfigError, VmConfig};
use crate::disk::delta_format::{LayerId, Parent};
use crate::id::Id;

use super::keeping::Keeping;
use super::name::CheckpointName;
use super::stamp::{BaseStamp, FileStamp};
use super::state::StateInfo;

/// Version of manifest.json that this piton writes; it reads this and older ones.
pub const FORMAT: u32 = 1;
const FORMAT_KEY: &str = "format";
const CRC_KEY: &str = "crc";

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(
        "it was written by a newer version of piton (format {found}, this version supports up to \
         {FORMAT}): use that version"
    )]
    Newer { found: u64 },
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it is damaged: its checksum is {found:08x}, but {recorded:08x} is recorded")]
    Checksum { found: u32, recorded: u32 },
    #[error("it belongs to checkpoint {found}, but {expected} is expected")]
    WrongId { found: Id, expected: Id },
    #[error("it has an invalid configuration: {0}")]
    Config(#[from] ConfigError),
    #[error("it is inconsistent: {0}")]
    Impossible(String),
    #[error("cannot write it: {0}")]
    Encode(serde_json::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// vCPUs, memory, devices and disks of one instant.
    Standard,
    /// Disks as the guest's agent quiesced them.
    Production,
    /// Disks of a VM that was stopped.
    Offline,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Standard => "standard",
            Self::Production => "production",
            Self::Offline => "offline",
        })
    }
}

/// What a disk was at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskPoint {
    /// The base image itself, as it was then.
    Base(BaseStamp),
    /// A layer, through to what it lies on.
    Layer {
        id: LayerId,
        /// Of its checksum file, as [`crate::disk::sums::Seal`] has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sums: Option<u32>,
    },
}

impl DiskPoint {
    pub fn top(&self) -> Parent {
        match self {
            Self::Base(_) => Parent::Base,
            Self::Layer { id, .. } => Parent::Delta(*id),
        }
    }
}

/// A disk that the checkpoint does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub disk: String,
    pub why: LeftOutWhy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeftOutWhy {
    Passthrough,
    ReadOnly,
}

impl std::fmt::Display for LeftOutWhy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Passthrough => "passthrough",
            Self::ReadOnly => "read-only",
        })
    }
}

/// The memory image; the numbers are [`crate::capture::image::ImageInfo`]'s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    pub guest_bytes: u64,
    pub stored_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_bytes: Option<u64>,
    pub crc: u32,
    /// The checkpoint whose image it lies on; none: it is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// How often a merge has put another file in place of the first one.
    #[serde(default, skip_serializing_if = "is_first")]
    pub file: u32,
    /// Images of other checkpoints that this one reads through and that lie in its own folder,
    /// because they are gone or another VM's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptImage>,
    /// A copy of all of it that can be mapped, in its own folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat: Option<FlatImage>,
}

/// An image that is full and not compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlatImage {
    pub crc: u32,
    pub stored_bytes: u64,
}

fn is_first(file: &u32) -> bool {
    *file == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptImage {
    /// Of the checkpoint that it was made for.
    pub id: Id,
    pub crc: u32,
    /// What it lies on; none: it is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
}

impl MemoryInfo {
    /// `parent`: what the image lies on.
    pub fn new(image: ImageInfo, parent: Option<Id>) -> Self {
        let ImageInfo { stored_bytes, compressed_bytes, guest_bytes, crc } = image;
        Self { guest_bytes, stored_bytes, compressed_bytes, crc, parent, ..Self::default() }
    }

    /// The image can be mapped as it is.
    pub fn is_flat(&self) -> bool {
        self.parent.is_none() && self.compressed_bytes.is_none()
    }

    pub fn kept(&self, id: Id) -> Option<&KeptImage> {
        self.kept.iter().find(|kept| kept.id == id)
    }
}

/// How memory is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// While the guest runs; it is paused only for the rest
    #[default]
    Live,
    /// While the guest is paused
    Stop,
}

/// How a capture went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureInfo {
    pub mode: Mode,
    /// Rounds in which changed memory was copied while the guest ran.
    pub rounds: u32,
    /// Of these the guest was slowed down in.
    pub slowed: u32,
    /// Bytes copied while the guest stood still.
    pub rest_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub id: Id,
    pub name: CheckpointName,
    #[serde(default)]
    pub note: String,
    /// The checkpoint that this one descends from.
    pub parent: Option<Id>,
    pub kind: Kind,
    pub created: DateTime<Utc>,
    /// The VM that it is of.
    pub vm: String,
    pub config: VmConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<FileStamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<FileStamp>,
    /// By the disk's id.
    pub disks: BTreeMap<String, DiskPoint>,
    /// The base image below each of these disks, so that one changed since is noticed.
    #[serde(default)]
    pub bases: BTreeMap<String, BaseStamp>,
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateInfo>,
    /// How long the guest did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// How long the guest's file systems were frozen, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_us: Option<u64>,
    /// Why this is a standard checkpoint although a production one was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Made by a start and not by a user; a clean shutdown removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    #[serde(flatten)]
    pub keeping: Keeping,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureInfo>,
    /// What the disks had written since the parent.
    pub disk_bytes: u64,
    /// Version of the piton that made it.
    pub piton: String,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What a later piton says besides, for which it needs no other format: it is kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

#[derive(Serialize)]
struct OnDisk<'a> {
    format: u32,
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc: Option<u32>,
}

impl Manifest {
    /// Of its disks alone, as if the power had gone at that instant.
    pub fn without_memory(&self, why: String) -> Self {
        let warnings = self.warnings.iter().cloned().chain([why]).collect();
        Self { kind: Kind::Offline, memory: None, state: None, warnings, ..self.clone() }
    }

    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        self.validate()?;
        let mut on_disk = OnDisk { format: FORMAT, manifest: self, crc: None };
        let value = serde_json::to_value(&on_disk).map_err(ManifestError::Encode)?;
        on_disk.crc = Some(crc_of(value));
        let mut bytes = serde_json::to_vec_pretty(&on_disk).map_err(ManifestError::Encode)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The manifest of checkpoint `id`.
    pub fn decode(bytes: &[u8], id: Id) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged(what.to_owned());
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|e| ManifestError::Damaged(e.to_string()))?;
        // A newer format may have anything beside it, another checksum among it.
        let format = value.get(FORMAT_KEY).and_then(Value::as_u64);
        let found = format.ok_or_else(|| damaged("it has no format version"))?;
        if found > FORMAT.into() || found == 0 {
            return Err(ManifestError::Newer { found });
        }
        let fields = value.as_object_mut().ok_or_else(|| damaged("it is not a JSON object"))?;
        let crc = fields.remove(CRC_KEY).and_then(|crc| crc.as_u64()?.try_into().ok());
        let recorded: u32 = crc.ok_or_else(|| damaged("it has no checksum"))?;
        let found = crc_of(value.clone());
        if found != recorded {
            return Err(ManifestError::Checksum { found, recorded });
        }
        if let Some(fields) = value.as_object_mut() {
            // Not one that is unknown.
            fields.remove(FORMAT_KEY);
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|e| ManifestError::Damaged(e.to_string()))?;
        if manifest.id != id {
            return Err(ManifestError::WrongId { found: manifest.id, expected: id });
        }
        manifest.validate()?;
        Ok(manifest)
    }

    pub fn is_in_trash(&self) -> bool {
        self.keeping.trash.is_some()
    }

    /// Whether the parts agree with each other.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let refuse = |what: String| Err(ManifestError::Impossible(what));
        self.config.validate()?;
        if self.parent == Some(self.id) {
            return refuse("it is its own parent".into());
        }
        for disk in &self.config.disks {
            let left_out = self.left_out.iter().filter(|left| left.disk == disk.id).count();
            match (self.disks.contains_key(&disk.id), left_out) {
                (true, 0) | (false, 1) => {}
                (false, 0) => return refuse(format!("it does not mention disk `{}`", disk.id)),
                _ => return refuse(format!("it mentions disk `{}` twice", disk.id)),
            }
        }
        let spoken_of = self.disks.keys().chain(self.left_out.iter().map(|left| &left.disk));
        for id in spoken_of {
            if !self.config.disks.iter().any(|disk| disk.id == *id) {
                return refuse(format!("it contains a disk `{id}` that its VM does not have"));
            }
        }
        if let Some(memory) = &self.memory {
            let mut ids: Vec<Id> = memory.kept.iter().map(|kept| kept.id).chain([self.id]).collect();
            ids.sort_unstable();
            if memory.parent == Some(self.id) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
                return refuse("it lists a memory image twice, or one that is its own parent".into());
            }
        }
        match (self.kind, &self.memory, &self.state) {
            (Kind::Standard, Some(memory), Some(_)) if memory.guest_bytes != self.config.memory => {
                refuse(format!(
                    "it has {} bytes of memory, but its VM has {}",
                    memory.guest_bytes, self.config.memory
                ))
            }
            (Kind::Standard, Some(_), Some(_)) | (Kind::Production | Kind::Offline, None, None) => Ok(()),
            (Kind::Standard, ..) => refuse("a standard checkpoint without memory or state".into()),
            (kind, ..) => refuse(format!("a checkpoint of kind {kind} with memory or state")),
        }
    }
}

/// Of the JSON without spaces and with the keys of every object in order, `crc` left out: how a
/// manifest is laid out does not matter, what it says does.
pub fn crc_of(mut value: Value) -> u32 {
    value.sort_all_objects();
    crc32fast::hash(value.to_string().as_bytes())
}

#[cfg(test)]
pub(crate) mod tests;
