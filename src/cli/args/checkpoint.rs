//! What can be typed about checkpoints, and about what is made of them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use regex::bytes::Regex;

use super::refs::{CheckpointRef, FileRef, Since, StateRef, parse_path};
use super::seconds::parse_seconds;
use crate::checkpoint::CheckpointName;
use crate::checkpoint::manifest::Mode;
use crate::checkpoint::name::NameError as CheckpointNameError;
use crate::config::{Forward, NetArg};
use crate::folder::{CheckpointType, VmName};
use crate::history::production::{FREEZE_TIMEOUT_MAX, FREEZE_TIMEOUT_MIN};
use crate::id::{Id, MIN_PREFIX};
use crate::transfer::format::FileFormat;
use crate::vm::Clock;

#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Create a checkpoint of a VM's current state
    Create {
        #[arg(value_name = "VM")]
        name: VmName,
        /// Name of the checkpoint [default: the time]
        checkpoint: Option<CheckpointName>,
        /// Note to store with the checkpoint
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        note: String,
        /// Leave the VM paused afterwards
        #[arg(long)]
        pause_after: bool,
        /// standard, production or production-only [default: as set with `piton set`]
        #[arg(long = "type", value_name = "TYPE", value_parser = parse_made_type)]
        kind: Option<CheckpointType>,
        /// Longest time the guest's file systems may stay frozen [default: 2]
        #[arg(long, value_name = "SECONDS", value_parser = parse_freeze_timeout)]
        freeze_timeout: Option<Duration>,
        /// When to copy memory: while the guest runs, or while it is paused
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Store all memory, not only what changed since the parent
        #[arg(long)]
        full: bool,
        /// Compress memory (zstd) once the guest is running again
        #[arg(long)]
        compress: bool,
        /// Longest pause for copying memory, in milliseconds [default: 10]
        #[arg(long, value_name = "MS")]
        max_pause: Option<u32>,
        /// Print the job's id and return immediately
        #[arg(long)]
        no_wait: bool,
    },
    /// Show a VM's checkpoints as a tree
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_name = "VM")]
        name: VmName,
        /// One line per checkpoint, oldest first
        #[arg(long)]
        flat: bool,
    },
    /// Show all details of a checkpoint
    Show {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
    },
    /// Rename a checkpoint
    Rename {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
        new_name: CheckpointName,
    },
    /// Replace the note of a checkpoint
    Note {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
        text: String,
    },
    /// Protect a checkpoint from being deleted
    Pin {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
    },
    /// Allow a pinned checkpoint to be deleted again
    Unpin {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
    },
    /// Go to a checkpoint; the VM is then paused, or stopped if the checkpoint has no memory
    #[command(visible_alias = "restore")]
    Apply(ApplyArgs),
    /// Go back to the parent of the current state, which is moved to the trash
    #[command(visible_alias = "rollback")]
    Revert {
        #[arg(value_name = "VM")]
        name: VmName,
        /// Run the VM afterwards instead of leaving it paused or stopped
        #[arg(long)]
        run: bool,
        /// Go back even if a base image has changed since the checkpoint
        #[arg(long)]
        force: bool,
        /// Do not keep the current state for `piton undo`
        #[arg(long)]
        no_undo: bool,
        /// Go back to the disks only, without the checkpoint's memory: the guest boots as after a power cut
        #[arg(long)]
        cold: bool,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Delete a checkpoint; the others stay intact
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
        /// Also delete all its descendants
        #[arg(long)]
        subtree: bool,
        /// Only show what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Do not wait for the layers to be merged
        #[arg(long)]
        no_wait: bool,
        /// Delete it permanently, so that `piton undo` cannot restore it
        #[arg(long)]
        no_undo: bool,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Permanently delete the checkpoints that a VM's rules do not keep (`piton set --keep`)
    Prune {
        #[arg(value_name = "VM")]
        name: VmName,
        /// Only show what would be deleted and what would be kept, and why
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Check all data of a checkpoint against its checksums, or that its guest comes back (--boot)
    Verify {
        #[arg(value_name = "VM@CHECKPOINT")]
        checkpoint: CheckpointRef,
        #[command(flatten)]
        boot: BootArgs,
        #[command(flatten)]
        guard: GuardArgs,
    },
    /// Try the newest checkpoint of each VM whose time has come (`piton set --verify-every`), as verify
    /// --boot does
    VerifyDue {
        /// Only of these [default: all VMs]
        #[arg(value_name = "VM")]
        names: Vec<VmName>,
    },
    /// Export a checkpoint to a self-contained folder, as a backup or for another host
    Export(ExportCheckpointArgs),
    /// Show which ranges of disks and memory differ between two checkpoints
    Diff(DiffArgs),
    /// Serve the disks of a checkpoint read-only over a socket (NBD)
    Serve(ServeArgs),
    /// Show which checkpoints hold which version of a file, without starting anything
    Find(FindArgs),
    /// Print a file as it was in a checkpoint
    Cat {
        #[arg(value_name = "VM[@CHECKPOINT]:/PATH")]
        file: FileRef,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        guard: GuardArgs,
    },
    /// Copy a file or folder out of a checkpoint, to this host or into a running guest
    RestoreFile(RestoreFileArgs),
    /// List the running and recently finished jobs of a VM
    Jobs {
        #[arg(value_name = "VM")]
        name: VmName,
    },
    /// Cancel a job of a running VM
    Cancel {
        #[arg(value_name = "VM")]
        name: VmName,
        /// Job id, or the first digits of it
        #[arg(value_parser = parse_job)]
        job: String,
    },
}

/// Of commands that read what others may have written.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Do not restrict the system calls of this command
    #[arg(long)]
    pub no_seccomp: bool,
    /// Do not restrict the files that this command can write, nor keep it from the network
    #[arg(long)]
    pub no_landlock: bool,
}

#[derive(Debug, Args)]
pub struct BootArgs {
    /// Resume or boot a temporary clone without a network instead of reading the data, and record
    /// whether its guest works
    #[arg(long)]
    pub boot: bool,
    /// Wait until the clone's console output matches this regular expression
    #[arg(long, value_name = "REGEX", requires = "boot", value_parser = parse_regex, conflicts_with_all = ["exec", "agent"])]
    pub wait_for: Option<Regex>,
    /// Wait until this shell command succeeds in the guest, through its agent
    #[arg(long, value_name = "COMMAND", requires = "boot", conflicts_with = "agent")]
    pub exec: Option<String>,
    /// Wait until the guest's agent answers
    #[arg(long, requires = "boot")]
    pub agent: bool,
    /// How long the guest has for it
    #[arg(long, value_name = "SECONDS", requires = "boot", value_parser = parse_seconds, default_value = "120")]
    pub timeout: Duration,
}

/// As text, what a guest prints is in no encoding that anybody promised.
fn parse_regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|e| e.to_string())
}

/// Of commands that begin at a checkpoint.
#[derive(Debug, Args)]
pub struct OtherNetworks {
    /// Network instead of the checkpoint's: user|tap=NAME|none[,mac=ADDRESS][,mtu=BYTES][,isolated][,shared-mac];
    /// once for each network card if the guest continues from memory
    #[arg(long = "net", value_name = "NET")]
    pub nets: Vec<NetArg>,
}

#[derive(Debug, Args)]
#[command(override_usage = "piton checkpoint apply [OPTIONS] <VM@CHECKPOINT>")]
pub struct ApplyArgs {
    #[arg(value_name = "VM@CHECKPOINT")]
    checkpoint: Option<CheckpointRef>,
    /// Save the current state as a checkpoint first
    #[arg(long, value_name = "NAME", num_args = 0..=1, conflicts_with = "discard_current")]
    save_current: Option<Option<String>>,
    /// Discard the current state
    #[arg(long)]
    pub discard_current: bool,
    /// Do not keep the discarded state for `piton undo`
    #[arg(long)]
    pub no_undo: bool,
    /// Run the VM afterwards instead of leaving it paused or stopped
    #[arg(long)]
    pub run: bool,
    /// Go back even if a base image has changed since the checkpoint
    #[arg(long)]
    pub force: bool,
    /// Where the guest's clock continues from
    #[arg(long, value_enum, default_value_t = Clock::Saved)]
    pub clock: Clock,
    #[command(flatten)]
    pub networks: OtherNetworks,
    /// Share the checkpoint's memory with other VMs, as clones do; the whole image is
    /// checked first, once per boot of the host
    #[arg(long)]
    pub share: bool,
    /// Go back to the disks only, without the checkpoint's memory: the guest boots as after a power cut
    #[arg(long, conflicts_with_all = ["share", "clock"])]
    pub cold: bool,
}

impl ApplyArgs {
    /// Where to go, and what the current state is saved as, if it is. `--save-current` takes the
    /// next word for its own; one with an `@` is no name, but where to go.
    pub fn target_and_save(&self) -> Result<(CheckpointRef, Option<Option<CheckpointName>>), String> {
        let (target, name) = match (&self.checkpoint, &self.save_current) {
            (Some(target), Some(Some(name))) => (target.clone(), Some(name)),
            (Some(target), _) => (target.clone(), None),
            (None, Some(Some(word))) => (word.parse()?, None),
            (None, _) => return Err("name the checkpoint to go to as VM@CHECKPOINT".into()),
        };
        let name =
            name.map(|name| name.parse()).transpose().map_err(|e: CheckpointNameError| e.to_string())?;
        Ok((target, self.save_current.as_ref().map(|_| name)))
    }
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    #[arg(value_name = "VM@CHECKPOINT")]
    pub checkpoint: CheckpointRef,
    /// Name of the new VM
    pub new: VmName,
    /// Create this many clones, named NEW-1, NEW-2 and so on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: Option<u32>,
    /// Forward a port of this host to each clone: [udp:][ADDRESS:]PORT:GUESTPORT, with PORT for the
    /// first clone, PORT+1 for the second, and so on; may be repeated
    #[arg(long, value_name = "FORWARD")]
    pub forward_from: Vec<Forward>,
    #[command(flatten)]
    pub networks: OtherNetworks,
    /// Where the guest's clock continues from
    #[arg(long, value_enum, default_value_t = Clock::Saved)]
    pub clock: Clock,
    /// Run the clones immediately
    #[arg(long)]
    pub run: bool,
    /// Give each clone an identity of its own, through the agent of its guest: hostname (the clone's
    /// name), machine id, SSH host keys, DHCP lease
    #[arg(long, requires = "run")]
    pub new_identity: bool,
    /// Time for each step of --new-identity in the guest
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "120", requires = "new_identity")]
    pub identity_timeout: Duration,
    /// Give each clone its own memory instead of sharing the checkpoint's
    #[arg(long)]
    pub own_memory: bool,
}

#[derive(Debug, Args)]
pub struct ExportCheckpointArgs {
    #[arg(value_name = "VM@CHECKPOINT")]
    pub checkpoint: CheckpointRef,
    /// Folder to create
    pub dir: PathBuf,
    /// Export only what changed since this checkpoint, as an increment to an export of it
    #[arg(long, value_name = "[VM@]CHECKPOINT")]
    pub since: Option<Since>,
    /// Disk format; increments (--since) always contain piton layers
    #[arg(long, value_enum, default_value_t)]
    pub format: FileFormat,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Folder to create
    pub dir: PathBuf,
    /// Export a running or paused VM, through a temporary checkpoint
    #[arg(long)]
    pub live: bool,
    /// Export only what changed since this checkpoint, as an increment to an export of it
    #[arg(long, value_name = "[VM@]CHECKPOINT")]
    pub since: Option<Since>,
    /// Disk format; increments (--since) always contain piton layers
    #[arg(long, value_enum, default_value_t)]
    pub format: FileFormat,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder of an export, followed by its increments (--since), in order
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Name of the new VM [default: as exported]
    #[arg(long)]
    pub name: Option<VmName>,
    /// Give the imported checkpoint a new id
    #[arg(long)]
    pub new_id: bool,
    /// Do not import; only report what would prevent it
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub fit: FitArgs,
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// What this host has to bring for a VM that comes from elsewhere.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Image of a disk that does not come along; may be repeated
    #[arg(long = "disk", value_name = "ID=PATH", value_parser = parse_disk_path)]
    pub disks: Vec<(String, PathBuf)>,
    /// Backing file that such an image may use; may be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    /// Kernel to boot
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Take only the disks
    #[arg(long)]
    pub without_memory: bool,
    #[command(flatten)]
    pub networks: OtherNetworks,
}

fn parse_disk_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok((id.to_owned(), path.into())),
        _ => Err(format!("name the disk as ID=PATH, not `{text}`")),
    }
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The checkpoint to compare with
    #[arg(value_name = "VM@CHECKPOINT")]
    pub a: CheckpointRef,
    /// The checkpoint whose changes are shown; VM alone means its current state
    #[arg(value_name = "VM[@CHECKPOINT]")]
    pub b: StateRef,
    /// Compare a running or paused VM, through a temporary checkpoint
    #[arg(long)]
    pub live: bool,
    /// Also list the files that differ, on ext4
    #[arg(long)]
    pub files: bool,
    /// Write the new contents of the changed ranges to this file
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[arg(value_name = "VM@CHECKPOINT")]
    pub checkpoint: CheckpointRef,
    /// Serve only this disk
    #[arg(long, value_name = "ID")]
    pub disk: Option<String>,
    /// Unix socket to create
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// Where a file is looked for.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Look only on this disk [default: the first that has the file]
    #[arg(long, value_name = "ID")]
    pub disk: Option<String>,
    /// Look only on this partition [default: the first that has the file]
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
}

#[derive(Debug, Args)]
pub struct FindArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Absolute path of the file, in its file system
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    pub path: String,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Include the current state of a running or paused VM, through a temporary checkpoint
    #[arg(long)]
    pub live: bool,
    /// Call this checkpoint the current state
    #[arg(long, hide = true)]
    pub as_now: Option<Id>,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct RestoreFileArgs {
    #[arg(value_name = "VM[@CHECKPOINT]:/PATH")]
    pub file: FileRef,
    /// File or folder on this host, or VM:/PATH in a running guest [default: the current folder]
    #[arg(value_name = "DEST")]
    pub to: Option<OsString>,
    /// Replace a file that exists on this host
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[arg(long, hide = true)]
    pub quiet: bool,
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// Seconds, with a fraction or without, as long as file systems may be frozen.
fn parse_freeze_timeout(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| (FREEZE_TIMEOUT_MIN..=FREEZE_TIMEOUT_MAX).contains(time)).ok_or_else(|| {
        format!(
            "must be between {} and {} seconds",
            FREEZE_TIMEOUT_MIN.as_secs_f64(),
            FREEZE_TIMEOUT_MAX.as_secs_f64()
        )
    })
}

/// A type that a checkpoint can have, which not every setting names.
fn parse_made_type(text: &str) -> Result<CheckpointType, String> {
    match text.parse()? {
        CheckpointType::Disabled => {
            Err("`disabled` is a setting, not a checkpoint type: use standard, production or production-only"
                .into())
        }
        kind => Ok(kind),
    }
}

/// What can be put into a path as it is: an id is nothing else.
fn parse_job(text: &str) -> Result<String, String> {
    if text.bytes().all(|b| b.is_ascii_hexdigit()) && (MIN_PREFIX..=32).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "use a job's id, or at least its first {MIN_PREFIX} digits: `piton checkpoint jobs VM` lists the jobs"
    ))
}
