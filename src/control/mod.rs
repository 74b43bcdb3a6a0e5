//! What can be asked of a running VM, and the HTTP that carries it. Knows no machine: whoever
//! owns one answers the [`Request`]s.

pub mod client;
pub mod jobs;
pub mod server;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::manifest::{CaptureInfo, DiskPoint, LeftOut, Mode};
use crate::checkpoint::{CheckpointName, Kind, Manifest};
use crate::config::{Forward, NetArg, VmConfig};
use crate::folder::{CheckpointType, Definition, LastRun, VmFolder, VmName};
use crate::id::Id;
use crate::vm::Clock;

/// Value of the `Upgrade` header that turns a request for the console into a byte stream.
pub const CONSOLE_PROTOCOL: &str = "piton-console";
/// Header of the answer: how many of the first bytes of the stream were printed before.
pub const CONSOLE_PAST: &str = "piton-past";

/// Longest time that a guest stands still for its memory, unless said otherwise.
const DEFAULT_MAX_PAUSE: Duration = Duration::from_millis(10);

/// A request to the owner of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Show,
    Pause,
    Resume,
    /// Press the power button, and with `force` end the VM if its guest is not off in time.
    Stop(StopBody),
    /// End the VM at once.
    Kill,
    Checkpoints,
    /// Name or id of the checkpoint.
    Checkpoint(String),
    CreateCheckpoint(CreateBody),
    /// Name or id of the checkpoint, and what to change of it.
    ChangeCheckpoint(String, ChangeBody),
    ApplyCheckpoint(String, ApplyBody),
    DeleteCheckpoint(String, DeleteBody),
    Revert(RevertBody),
    Set(SetBody),
    CloneCheckpoint(String, CloneBody),
}

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

/// A VM as `GET /vm` and `piton show --json` tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    pub name: VmName,
    pub state: State,
    /// How its last run ended; only of one that is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<LastRun>,
    /// Why it is paused, if nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the user should know of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Since when its process runs it, by the host's clock; only of one that is not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<chrono::DateTime<chrono::Utc>>,
    /// How many checkpoints it has.
    #[serde(default)]
    pub checkpoints: usize,
    /// Process that runs it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether something in the guest has the agent's port open; only of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_connected: Option<bool>,
    /// Whether its memory is mapped from a checkpoint's image and shared with others, but for what
    /// it wrote; only of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_memory: Option<bool>,
    pub created: chrono::DateTime<chrono::Utc>,
    pub folder: std::path::PathBuf,
    pub checkpoint_type: CheckpointType,
    pub auto_checkpoint: bool,
    /// Absent: in the VM's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_dir: Option<std::path::PathBuf>,
    /// What keeps a stopped VM from starting, or from going back, as far as its disks show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
    /// How the networks of `config` do, in their order, while the VM runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkInfo>,
    pub config: VmConfig,
}

fn count(folder: &VmFolder, definition: &Definition) -> usize {
    let names = folder.storage().list_dir(&folder.checkpoints(definition)).unwrap_or_default();
    names.iter().filter(|name| name.to_str().is_some_and(|name| name.parse::<Id>().is_ok())).count()
}

/// How a network of a VM that runs does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Whether the guest can send and receive.
    pub up: bool,
    /// What the guest was seen to use.
    pub addresses: Vec<std::net::IpAddr>,
    /// By the guest.
    pub received: Traffic,
    pub sent: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

impl VmInfo {
    pub fn new(folder: &VmFolder, definition: &Definition, state: State, pid: Option<u32>) -> Self {
        Self {
            name: folder.name().clone(),
            state,
            last_run: None,
            reason: None,
            warnings: Vec::new(),
            started: None,
            checkpoints: count(folder, definition),
            pid,
            agent_connected: None,
            shares_memory: None,
            created: definition.created,
            folder: folder.path().to_owned(),
            checkpoint_type: definition.checkpoint_type,
            auto_checkpoint: definition.auto_checkpoint,
            checkpoint_dir: definition.checkpoint_dir.clone(),
            problems: Vec::new(),
            forwards: definition.forwards.clone(),
            networks: Vec::new(),
            config: definition.config.clone(),
        }
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    /// What the path names is not there.
    #[error("{0}")]
    Missing(String),
    /// It was tried and undone.
    #[error("{0}")]
    Failed(String),
    /// It was cancelled and undone.
    #[error("{0}")]
    Cancelled(String),
}

/// What a request that was done is answered with.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Reply {
    Vm(Box<VmInfo>),
    Checkpoint(Box<CheckpointInfo>),
    Details(Box<CheckpointDetails>),
    Tree(TreeInfo),
    Deleted(DeletedInfo),
    /// There is nothing to tell of it.
    Done {},
}

impl Reply {
    pub fn of(manifest: &Manifest) -> Self {
        Self::Checkpoint(Box::new(CheckpointInfo::from(manifest)))
    }
}

impl From<VmInfo> for Reply {
    fn from(info: VmInfo) -> Self {
        Self::Vm(Box::new(info))
    }
}

pub type Answer = Result<Reply, RequestError>;

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
    /// Disks that are not part of it, and why.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default)]
    pub warnings: Vec<String>,
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
            capture: manifest.capture,
            memory_parent: manifest.memory.as_ref().and_then(|memory| memory.parent),
            memory_stored: manifest.memory.as_ref().map(|memory| memory.stored_bytes),
            memory_compressed: manifest.memory.as_ref().and_then(|memory| memory.compressed_bytes),
            memory: manifest.memory.as_ref().map(|memory| memory.guest_bytes),
            disk_bytes: manifest.disk_bytes,
            left_out: manifest.left_out.clone(),
            warnings: manifest.warnings.clone(),
        }
    }
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

/// Body of `POST /vm/checkpoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    /// None: the time.
    #[serde(default)]
    pub name: Option<CheckpointName>,
    #[serde(default)]
    pub note: String,
    /// Leave the VM paused.
    #[serde(default)]
    pub pause_after: bool,
    /// None: as the VM's settings say.
    #[serde(default, rename = "type")]
    pub kind: Option<CheckpointType>,
    /// Longest time that the guest's file systems may be frozen, in milliseconds; none: 2000.
    #[serde(default)]
    pub freeze_timeout_ms: Option<u64>,
    #[serde(default)]
    pub mode: Mode,
    /// All of memory, not only what changed since the parent.
    #[serde(default)]
    pub full: bool,
    /// Memory, once the guest runs again.
    #[serde(default)]
    pub compress: bool,
    /// Longest time that the guest may stand still for memory, in milliseconds.
    #[serde(default)]
    pub max_pause_ms: Option<u32>,
}

impl CreateBody {
    pub fn max_pause(&self) -> Duration {
        self.max_pause_ms.map_or(DEFAULT_MAX_PAUSE, |ms| Duration::from_millis(ms.into()))
    }
}

/// Body of `PATCH /vm`: what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetBody {
    #[serde(default)]
    pub checkpoint_type: Option<CheckpointType>,
    #[serde(default)]
    pub auto_checkpoint: Option<bool>,
    /// Absolute.
    #[serde(default)]
    pub checkpoint_dir: Option<std::path::PathBuf>,
    /// Give base images that stand still checksums.
    #[serde(default)]
    pub seal_base: bool,
    /// Ports of the host that are to lead to the guest, too.
    #[serde(default)]
    pub forward: Vec<Forward>,
    /// Ports of the host that are to lead to it no more. One that does not is refused.
    #[serde(default)]
    pub no_forward: Vec<Forward>,
}

/// Body of `PATCH /vm/checkpoints/{checkpoint}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeBody {
    #[serde(default)]
    pub name: Option<CheckpointName>,
    #[serde(default)]
    pub note: Option<String>,
}

/// Body of `POST /vm/checkpoints/{checkpoint}/apply`: one of the first two must be said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ApplyFields")]
pub struct ApplyBody {
    /// Make a checkpoint of the live state first.
    pub save_current: bool,
    /// The live state is lost.
    pub discard_current: bool,
    /// Name of the checkpoint made first.
    pub name: Option<CheckpointName>,
    /// Resume at once.
    pub run: bool,
    #[serde(flatten)]
    pub how: GoBack,
    /// Other networks than the checkpoint has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetArg>,
}

/// [`ApplyBody`] as it is read: serde cannot refuse unknown fields beside a flattened part.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApplyFields {
    save_current: bool,
    discard_current: bool,
    name: Option<CheckpointName>,
    run: bool,
    force: bool,
    clock: Clock,
    net: Vec<NetArg>,
    share: bool,
}

impl From<ApplyFields> for ApplyBody {
    fn from(fields: ApplyFields) -> Self {
        let ApplyFields { save_current, discard_current, name, run, force, clock, net, share } = fields;
        Self { save_current, discard_current, name, run, how: GoBack { force, clock, share }, net }
    }
}

/// Choices about going back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoBack {
    /// Even if a base image was changed since.
    #[serde(default)]
    pub force: bool,
    /// What the guest's clock goes on from.
    #[serde(default)]
    pub clock: Clock,
    /// Map the memory image, to share what the host caches of it with other VMs that do.
    #[serde(default)]
    pub share: bool,
}

/// Body of `DELETE /vm/checkpoints/{checkpoint}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteBody {
    /// All that descends from it goes too.
    #[serde(default)]
    pub subtree: bool,
    /// Only tell what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a delete took, or would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedInfo {
    pub deleted: Vec<CheckpointInfo>,
    /// A damaged one, of which only the id is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<Id>,
    pub dry_run: bool,
    /// Layers are still merged, or wait for it; the answer does not.
    pub merge_later: bool,
    /// The job that merges them, in a VM that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_job: Option<Id>,
}

/// Body of `POST /vm/revert`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevertBody {
    #[serde(default)]
    pub run: bool,
    /// Even if a base image was changed since.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /vm/checkpoints/{checkpoint}/clone`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CloneFields")]
pub struct CloneBody {
    /// Of the new VMs, one at least.
    pub names: Vec<VmName>,
    /// Other networks than the checkpoint has; a tap device's has to be said anew.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetArg>,
    /// Each fills memory of its own instead of sharing that of the checkpoint.
    pub own_memory: bool,
}

/// [`CloneBody`] before it is known that there is something to make.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloneFields {
    names: Vec<VmName>,
    #[serde(default)]
    net: Vec<NetArg>,
    #[serde(default)]
    own_memory: bool,
}

impl TryFrom<CloneFields> for CloneBody {
    type Error = &'static str;

    fn try_from(CloneFields { names, net, own_memory }: CloneFields) -> Result<Self, Self::Error> {
        if names.is_empty() {
            Err("`names` is empty: give the names of the new VMs")
        } else {
            Ok(Self { names, net, own_memory })
        }
    }
}

/// Body of requests that say all in their path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoBody {}

/// Body of `POST /vm/stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    #[serde(default)]
    pub force: bool,
    /// How many seconds the guest has to shut down before a forced stop cuts its power [default: 30].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}
