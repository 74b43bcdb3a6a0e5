//! What can be asked of a running VM, and the HTTP that carries it. Knows no machine: whoever
//! owns one answers the [`Request`]s.

pub mod agent;
pub mod agent_line;
pub mod client;
pub mod exposition;
pub mod forward;
pub mod happened;
pub mod jobs;
pub mod metrics;
pub mod server;
mod told;
pub mod trash;
pub mod upkeep;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use told::{CheckpointDetails, CheckpointInfo, DiskDetails, SharedInfo, SizeInfo, State, TreeInfo};

use trash::{EmptiedInfo, TrashEntry, TrashInfo, UndoBody};
use upkeep::{PruneBody, PrunedInfo, RetentionChange, ScheduleChange};

use crate::checkpoint::manifest::Mode;
use crate::checkpoint::store::Store;
use crate::checkpoint::{CheckpointName, Manifest};
use crate::config::{Forward, NetArg, VmConfig};
use crate::folder::{CheckpointType, Definition, LastRun, Retention, Schedule, VerifyPlan, VmFolder, VmName};
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
    Set(Box<SetBody>),
    CloneCheckpoint(String, CloneBody),
    Trash,
    Undo(UndoBody),
    /// The entry.
    RestoreTrash(String, UndoBody),
    /// The entry; none: all.
    EmptyTrash(Option<String>),
    Prune(PruneBody),
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
    /// How many jobs it is at, or has before it; only of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_jobs: Option<usize>,
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
    /// What its process is kept to; only of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxInfo>,
    pub created: chrono::DateTime<chrono::Utc>,
    pub folder: std::path::PathBuf,
    pub checkpoint_type: CheckpointType,
    pub auto_checkpoint: bool,
    /// How long what is taken away can be taken back, in seconds; 0: not at all.
    #[serde(default)]
    pub trash_seconds: u64,
    /// Which checkpoints a prune deletes; absent: none.
    #[serde(default, skip_serializing_if = "Retention::is_none")]
    pub retention: Retention,
    /// When its process makes checkpoints by itself; absent: never.
    #[serde(default, skip_serializing_if = "Schedule::is_off")]
    pub schedule: Schedule,
    /// How often the newest checkpoint is tried, and how; absent: never.
    #[serde(default, skip_serializing_if = "VerifyPlan::is_off")]
    pub verify: VerifyPlan,
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

/// How many checkpoints users see of a VM. Reads a file for each.
pub fn count(folder: &VmFolder, definition: &Definition) -> usize {
    let listing = Store::new(folder.storage().clone(), folder.checkpoints(definition)).list();
    let manifests = listing.map(|listing| listing.manifests).unwrap_or_default();
    manifests.iter().filter(|manifest| !manifest.is_in_trash()).count()
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

/// What keeps a VM's process to what its VM needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// Its threads may make only the system calls that they need.
    pub seccomp: bool,
    /// It can reach only the files that it needs, by this version of Landlock; absent: any of its user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<u32>,
}

impl VmInfo {
    pub fn new(folder: &VmFolder, definition: &Definition, state: State, pid: Option<u32>) -> Self {
        Self::counted(folder, definition, state, pid, count(folder, definition))
    }

    /// Of a VM whose checkpoints were counted before.
    pub fn counted(
        folder: &VmFolder,
        definition: &Definition,
        state: State,
        pid: Option<u32>,
        checkpoints: usize,
    ) -> Self {
        Self {
            name: folder.name().clone(),
            state,
            last_run: None,
            reason: None,
            warnings: Vec::new(),
            started: None,
            checkpoints,
            active_jobs: None,
            pid,
            agent_connected: None,
            shares_memory: None,
            sandbox: None,
            created: definition.created,
            folder: folder.path().to_owned(),
            checkpoint_type: definition.checkpoint_type,
            auto_checkpoint: definition.auto_checkpoint,
            trash_seconds: definition.trash_seconds,
            retention: definition.retention,
            schedule: definition.schedule,
            verify: definition.verify.clone(),
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
    Trash(TrashInfo),
    Undone(Box<UndoneInfo>),
    Emptied(EmptiedInfo),
    Pruned(PrunedInfo),
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
    /// How long what is taken away can be taken back, in seconds; 0: not at all.
    #[serde(default)]
    pub trash_seconds: Option<u64>,
    #[serde(default)]
    pub retention: RetentionChange,
    #[serde(default)]
    pub schedule: ScheduleChange,
    /// As a whole.
    #[serde(default)]
    pub verify: Option<VerifyPlan>,
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
    /// Of a VM that is off: bytes of memory.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Of a VM that is off.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Of a VM that is off: its kernel's command line, or what is appended to its image's.
    #[serde(default)]
    pub cmdline: Option<String>,
}

impl SetBody {
    /// Whether it asks for what only a VM that is off can be given.
    pub fn changes_hardware(&self) -> bool {
        self.memory.is_some() || self.cpus.is_some() || self.cmdline.is_some()
    }
}

/// Body of `PATCH /vm/checkpoints/{checkpoint}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeBody {
    #[serde(default)]
    pub name: Option<CheckpointName>,
    #[serde(default)]
    pub note: Option<String>,
    /// Whether it may be deleted.
    #[serde(default)]
    pub pinned: Option<bool>,
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
    /// A current state that is discarded is gone at once, and not in the trash.
    pub no_undo: bool,
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
    no_undo: bool,
    force: bool,
    clock: Clock,
    net: Vec<NetArg>,
    share: bool,
    cold: bool,
}

impl From<ApplyFields> for ApplyBody {
    fn from(fields: ApplyFields) -> Self {
        let ApplyFields { save_current, discard_current, name, run, no_undo, force, clock, net, share, cold } =
            fields;
        let how = GoBack { force, clock, share, cold };
        Self { save_current, discard_current, name, run, no_undo, how, net }
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
    /// To the disks only, as if the power had gone at that instant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
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
    /// For good at once, and not into the trash.
    #[serde(default)]
    pub no_undo: bool,
}

/// What a delete took, or would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedInfo {
    pub deleted: Vec<CheckpointInfo>,
    /// A damaged one, of which only the id is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<Id>,
    pub dry_run: bool,
    /// Of a dry run: bytes that are free once they are gone for good, at least; merging may free more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of a dry run: pairs of layers that are to be merged once they are gone for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges: Option<usize>,
    /// The entry of the trash that they are in; none: they are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Id>,
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
    /// The current state is gone at once, and not in the trash.
    #[serde(default)]
    pub no_undo: bool,
    /// To the disks only, as if the power had gone at that instant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
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

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoneInfo {
    pub entry: TrashEntry,
    pub vm: VmInfo,
}

/// Body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}
