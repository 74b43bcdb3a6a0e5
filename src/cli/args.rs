//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::checkpoint::CheckpointName;
use crate::checkpoint::manifest::Mode;
use crate::config::{DiskArg, parse_cpus, parse_memory};
use crate::control::jobs::MIN_PREFIX;
use crate::folder::{CheckpointType, NameError, VmName};
use crate::history::production::{FREEZE_TIMEOUT_MAX, FREEZE_TIMEOUT_MIN};
use crate::id::Id;
use crate::transfer::format::FileFormat;
use crate::vm::Clock;

#[derive(Debug, Parser)]
#[command(
    name = "piton",
    version,
    about = "A minimal hypervisor whose VMs can go back",
    max_term_width = 100
)]
pub struct Cli {
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// This process is the background one
    #[arg(long, hide = true)]
    pub background: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a VM and boot it
    Run(RunArgs),
    /// Boot a VM from its saved definition
    Start(StartArgs),
    /// Ask a VM's guest to shut down
    Stop(StopArgs),
    /// Let a VM stand still
    Pause { name: VmName },
    /// Let a paused VM go on
    Resume { name: VmName },
    /// Attach this terminal to a running VM's console
    Console { name: VmName },
    /// Show a VM's definition and state
    Show { name: VmName },
    /// Remove a stopped VM with everything in its folder
    Rm(RmArgs),
    /// List all VMs
    List,
    /// Change settings of VMs, running or off
    Set(SetArgs),
    /// Work with a VM's checkpoints
    #[command(subcommand, visible_alias = "cp")]
    Checkpoint(CheckpointCommand),
    /// Make new VMs that begin at a checkpoint
    Clone(CloneArgs),
    /// Write a VM as it is now to a folder that needs nothing else
    Export(ExportArgs),
    /// Make a VM of an export
    Import(ImportArgs),
    /// Find what a crash left, and mend it
    Doctor {
        name: VmName,
        /// Mend what was found
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Make a checkpoint of a VM as it is now
    Create {
        name: VmName,
        /// Name of the checkpoint; without it the time
        checkpoint: Option<CheckpointName>,
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        /// Leave the VM paused
        #[arg(long)]
        pause_after: bool,
        /// standard, production or production-only; without it as `piton set` says
        #[arg(long = "type", value_name = "TYPE", value_parser = parse_made_type)]
        kind: Option<CheckpointType>,
        /// Longest time that the guest's file systems may be frozen [default: 2]
        #[arg(long, value_name = "SECONDS", value_parser = parse_freeze_timeout)]
        freeze_timeout: Option<Duration>,
        /// Copy memory while the guest runs, or while it stands still
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Store all of memory, not only what changed since the checkpoint before
        #[arg(long)]
        full: bool,
        /// Compress memory (zstd), once the guest runs again
        #[arg(long)]
        compress: bool,
        /// Longest time, in milliseconds, that the guest may stand still for its memory [default: 10]
        #[arg(long, value_name = "MS")]
        max_pause: Option<u32>,
        /// Do not wait for it: print the job and return
        #[arg(long)]
        no_wait: bool,
    },
    /// Show a VM's checkpoints as a tree
    #[command(visible_alias = "ls")]
    List {
        name: VmName,
        /// One line each, by age
        #[arg(long)]
        flat: bool,
    },
    /// Show all about a checkpoint
    Show { checkpoint: CheckpointRef },
    /// Give a checkpoint another name
    Rename { checkpoint: CheckpointRef, new_name: CheckpointName },
    /// Replace a checkpoint's note
    Note { checkpoint: CheckpointRef, text: String },
    /// Make a checkpoint the active state; lands paused, or off if it holds no memory
    Apply(ApplyArgs),
    /// Go back to the checkpoint that the VM descends from; what came after it is lost
    Revert {
        name: VmName,
        /// Resume at once
        #[arg(long)]
        run: bool,
        /// Even if a base image was changed since the checkpoint
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Forget a checkpoint; what others need of it stays
    #[command(visible_alias = "rm")]
    Delete {
        checkpoint: CheckpointRef,
        /// And all that descends from it
        #[arg(long)]
        subtree: bool,
        /// Only tell what would go
        #[arg(long)]
        dry_run: bool,
        /// Do not wait until the layers are merged
        #[arg(long)]
        no_wait: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Read all of a checkpoint against its checksums
    Verify {
        checkpoint: CheckpointRef,
        #[command(flatten)]
        guard: GuardArgs,
    },
    /// Write a checkpoint to a folder that needs nothing else: a backup
    Export(ExportCheckpointArgs),
    /// Tell in what two checkpoints differ: ranges of disks, pages of memory
    Diff(DiffArgs),
    /// Let others read a checkpoint's disks over a socket (NBD), without starting it
    Serve(ServeArgs),
    /// List what a running VM is at work on, and what it did last
    Jobs { name: VmName },
    /// Call a job of a running VM off
    Cancel {
        name: VmName,
        /// Its id, or the start of it
        #[arg(value_parser = parse_job)]
        job: String,
    },
}

/// A checkpoint as NAME@CHECKPOINT.
#[derive(Debug, Clone)]
pub struct CheckpointRef {
    pub vm: VmName,
    pub checkpoint: String,
}

impl std::str::FromStr for CheckpointRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vm, checkpoint) = text
            .split_once('@')
            .filter(|(_, checkpoint)| !checkpoint.is_empty())
            .ok_or_else(|| format!("name the checkpoint as VM@CHECKPOINT, not `{}`", text.escape_debug()))?;
        Ok(Self { vm: vm.parse().map_err(|e: NameError| e.to_string())?, checkpoint: checkpoint.to_owned() })
    }
}

/// Of commands that read what others may have written.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Do not restrict the system calls of this command
    #[arg(long)]
    pub no_seccomp: bool,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    pub checkpoint: CheckpointRef,
    /// Make a checkpoint of the current state first
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, conflicts_with = "discard_current")]
    pub save_current: Option<Option<String>>,
    /// The current state is lost
    #[arg(long)]
    pub discard_current: bool,
    /// Resume at once
    #[arg(long)]
    pub run: bool,
    /// Even if a base image was changed since the checkpoint
    #[arg(long)]
    pub force: bool,
    /// What the guest's clock goes on from
    #[arg(long, value_enum, default_value_t = Clock::Saved)]
    pub clock: Clock,
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    pub checkpoint: CheckpointRef,
    /// Name of the new VM
    pub new: VmName,
    /// Make this many, called NEW-1, NEW-2 and so on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: Option<u32>,
    /// Let them run at once
    #[arg(long)]
    pub run: bool,
}

#[derive(Debug, Args)]
pub struct ExportCheckpointArgs {
    pub checkpoint: CheckpointRef,
    /// Folder to make
    pub dir: PathBuf,
    /// Only what changed since this checkpoint, to go with an export of that one
    #[arg(long, value_name = "CHECKPOINT")]
    pub since: Option<String>,
    /// How disks are written; changes always are layers of piton
    #[arg(long, value_enum, default_value_t)]
    pub format: FileFormat,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    pub name: VmName,
    /// Folder to make
    pub dir: PathBuf,
    /// Of a VM that runs: make a checkpoint, export it, delete it
    #[arg(long)]
    pub live: bool,
    /// Only what changed since this checkpoint, to go with an export of that one
    #[arg(long, value_name = "CHECKPOINT")]
    pub since: Option<String>,
    /// How disks are written; changes always are layers of piton
    #[arg(long, value_enum, default_value_t)]
    pub format: FileFormat,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder of an export, and of those with the changes since, in order
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Name of the new VM; without it the exported one's
    #[arg(long)]
    pub name: Option<VmName>,
    /// Give its checkpoint another id than the exported one has
    #[arg(long)]
    pub new_id: bool,
    /// Only tell what is in the way
    #[arg(long)]
    pub check: bool,
    /// Image of a disk that is not in the export; may be repeated
    #[arg(long = "disk", value_name = "ID=PATH", value_parser = parse_disk_path)]
    pub disks: Vec<(String, PathBuf)>,
    /// File that such an image may read as its backing file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    /// Boot this kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// With this initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Take the disks alone
    #[arg(long)]
    pub without_memory: bool,
    #[command(flatten)]
    pub guard: GuardArgs,
}

fn parse_disk_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok((id.to_owned(), path.into())),
        _ => Err(format!("name the disk as ID=PATH, not `{text}`")),
    }
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The one to compare with
    pub a: CheckpointRef,
    /// The one whose changes are told
    pub b: CheckpointRef,
    /// Write what B has in the changed ranges to this file
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    pub checkpoint: CheckpointRef,
    /// This disk alone
    #[arg(long, value_name = "ID")]
    pub disk: Option<String>,
    /// Unix socket to make
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the new VM
    pub name: VmName,
    /// Kernel image: ELF (vmlinux) or bzImage (vmlinuz); without it the bundled guest boots
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "")]
    pub cmdline: String,
    /// Guest memory, as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    pub memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_cpus)]
    pub cpus: u32,
    /// Disk image, raw or qcow2: PATH[,id=NAME][,readonly][,passthrough][,overlay]; may be repeated;
    /// a comma in PATH is written twice
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskArg>,
    /// File that a qcow2 image may read as its backing file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    /// Run in the background; `piton console` attaches
    #[arg(long)]
    pub detach: bool,
    /// Do not restrict the system calls of the VM's process
    #[arg(long)]
    pub no_seccomp: bool,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    pub name: VmName,
    /// Stay in the foreground with the VM's console
    #[arg(long)]
    pub attach: bool,
    /// Do not restrict the system calls of the VM's process
    #[arg(long)]
    pub no_seccomp: bool,
    /// Go back to this checkpoint instead of booting
    #[arg(long, hide = true)]
    pub restore: Option<Id>,
    /// And let it run
    #[arg(long, hide = true)]
    pub resume: bool,
    #[arg(long, hide = true)]
    pub force: bool,
    #[arg(long, hide = true, value_enum, default_value_t = Clock::Saved)]
    pub clock: Clock,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    pub name: VmName,
    /// End the VM if its guest has not shut down by the deadline
    #[arg(long)]
    pub force: bool,
    /// Deadline in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("setting").required(true).multiple(true)))]
pub struct SetArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<VmName>,
    /// What checkpoints are made: disabled, standard, production (standard where the guest cannot)
    /// or production-only
    #[arg(long, value_name = "TYPE", group = "setting")]
    pub checkpoint_type: Option<CheckpointType>,
    /// Put checkpoints into this folder; there must be none yet
    #[arg(long, value_name = "DIR", group = "setting")]
    pub checkpoint_dir: Option<PathBuf>,
    /// Make a checkpoint at every start if there is none, and remove it at a clean shutdown
    #[arg(long, value_name = "on|off", group = "setting")]
    pub auto_checkpoint: Option<Switch>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl Switch {
    pub fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

/// Seconds, with a fraction or without, as long as file systems may be frozen.
fn parse_freeze_timeout(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| (FREEZE_TIMEOUT_MIN..=FREEZE_TIMEOUT_MAX).contains(time)).ok_or_else(|| {
        format!(
            "give it in seconds, from {} to {}",
            FREEZE_TIMEOUT_MIN.as_secs_f64(),
            FREEZE_TIMEOUT_MAX.as_secs_f64()
        )
    })
}

/// A type that a checkpoint can have, which not every setting names.
fn parse_made_type(text: &str) -> Result<CheckpointType, String> {
    match text.parse()? {
        CheckpointType::Disabled => {
            Err("`disabled` is a setting: give standard, production or production-only".into())
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
        "give a job's id, or at least {MIN_PREFIX} digits of its start: `piton checkpoint jobs` shows them"
    ))
}

#[derive(Debug, Args)]
pub struct RmArgs {
    pub name: VmName,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}
