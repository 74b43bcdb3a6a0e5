//! What can be typed.

mod checkpoint;
mod depot;
mod image;
mod refs;
mod seconds;
mod seed;
mod shell;
mod trash;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, DiskArg, Forward, NetArg, parse_cpus, parse_disk_size, parse_memory};
use crate::control::State;
use crate::folder::{CheckpointType, Counts, VmName};
use crate::history::disk_changes::NewSize;
use crate::id::Id;
use crate::manager::Address;
use crate::moment::parse_span;
use crate::vm::Clock;

pub use checkpoint::{
    ApplyArgs, BootArgs, CheckpointCommand, CloneArgs, DiffArgs, ExportArgs, ExportCheckpointArgs, FindArgs,
    FitArgs, GuardArgs, ImportArgs, PlaceArgs, RestoreFileArgs, ServeArgs,
};
pub use depot::{DepotArgs, DepotCommand, PullArgs, PushArgs};
pub use image::{ImageArgs, ImageCommand};
pub use refs::{CheckpointRef, FileRef, Since, StateRef};
use seconds::parse_seconds;
pub use seed::SeedArgs;
pub use shell::Shell;
pub use trash::{TrashCommand, UndoArgs};
pub use watch::{ApiArgs, EventsArgs, LogsArgs, MetricsArgs, WaitArgs, WaitFor};

#[derive(Debug, Parser)]
#[command(name = "piton", version, about = "A small hypervisor with live checkpoints", max_term_width = 100)]
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
    /// Create a VM and boot it
    Run(Box<RunArgs>),
    /// Boot stopped VMs
    Start(StartArgs),
    /// Shut down VMs
    Stop(StopArgs),
    /// Cut the power of VMs
    Kill {
        #[arg(required = true, value_name = "VM")]
        names: Vec<VmName>,
    },
    /// Pause VMs
    Pause {
        #[arg(required = true, value_name = "VM")]
        names: Vec<VmName>,
    },
    /// Resume paused VMs
    Resume {
        #[arg(required = true, value_name = "VM")]
        names: Vec<VmName>,
    },
    /// Attach to the console of a VM
    Console(ConsoleArgs),
    /// Run a command in a VM's guest, through its agent
    Exec(ExecArgs),
    /// Log in to a VM's guest with ssh, through the forward to its port 22
    Ssh(SshArgs),
    /// Print a VM's console output
    Logs(LogsArgs),
    /// Wait until a VM reaches a state
    Wait(WaitArgs),
    /// Copy a file or folder into a VM's guest or out of it, through its agent
    Copy(CopyArgs),
    /// Show the definition and state of a VM
    #[command(visible_alias = "inspect")]
    Show {
        #[arg(value_name = "VM")]
        name: VmName,
    },
    /// Remove stopped VMs and everything in their folders
    #[command(visible_alias = "delete")]
    Rm(RmArgs),
    /// Rename a stopped VM
    Rename {
        #[arg(value_name = "VM")]
        name: VmName,
        new_name: VmName,
    },
    /// List VMs
    #[command(visible_aliases = ["ls", "ps"])]
    List(ListArgs),
    /// Change settings of running or stopped VMs
    Set(SetArgs),
    /// Manage the checkpoints of a VM
    #[command(subcommand, visible_alias = "cp")]
    Checkpoint(CheckpointCommand),
    /// Show what VMs take on disk, by what it is for
    Df,
    /// Undo the last delete, apply or revert of a VM, or restore a removed VM
    Undo(UndoArgs),
    /// Manage the trash of a VM, and removed VMs
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Manage the disk images of a VM
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Inspect disk images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Create VMs that start at a checkpoint
    Clone(CloneArgs),
    /// Export the current state of a VM to a self-contained folder
    Export(ExportArgs),
    /// Create a VM from an export
    Import(ImportArgs),
    /// Copy a checkpoint to a depot
    Push(PushArgs),
    /// Create a VM from a checkpoint in a depot
    Pull(PullArgs),
    /// Manage depots, which hold checkpoints outside this host
    #[command(subcommand)]
    Depot(DepotCommand),
    /// Print what happened to VMs
    Events(EventsArgs),
    /// Print or serve the metrics of VMs for Prometheus
    Metrics(MetricsArgs),
    /// Show all VMs and their checkpoints in a browser
    Manager(ManagerArgs),
    /// Serve an API for all VMs on a Unix socket
    Api(ApiArgs),
    /// Start commands for the manager whose process is at the other end of standard input
    #[command(hide = true)]
    StartCommands,
    /// Print the script that completes command lines in a shell
    Completions { shell: Shell },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man { dir: PathBuf },
    /// Start passt for the VM whose process is at the other end of standard input
    #[command(hide = true)]
    KeepNetwork,
    /// Check a VM for damage and for leftovers of a crash
    Doctor {
        #[arg(value_name = "VM")]
        name: VmName,
        /// Repair what was found
        #[arg(long)]
        repair: bool,
        /// Accept layers that lost their checksums as they are, and compute new ones
        #[arg(long, requires = "repair")]
        accept_unchecked: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Add a disk to a stopped VM
    Add {
        #[arg(value_name = "VM")]
        name: VmName,
        /// PATH[,id=NAME][,format=raw|qcow2][,readonly][,passthrough][,overlay[,size=SIZE]]; double any comma
        /// in PATH
        #[arg(value_name = "DISK")]
        disk: DiskArg,
        /// Backing file that a qcow2 image may use; may be repeated
        #[arg(long, value_name = "FILE")]
        backing: Vec<PathBuf>,
    },
    /// Remove a disk from a stopped VM; its image and its checkpoints stay
    #[command(visible_alias = "rm")]
    Remove {
        #[arg(value_name = "VM")]
        name: VmName,
        /// The disk's id
        #[arg(value_name = "ID")]
        disk: String,
        /// Also if its overlay has data that is in no checkpoint
        #[arg(long)]
        discard: bool,
    },
    /// Make a disk of a stopped VM larger
    Resize {
        #[arg(value_name = "VM")]
        name: VmName,
        /// The disk's id
        #[arg(value_name = "ID")]
        disk: String,
        /// New size, such as 20G, or how much more, such as +5G
        #[arg(value_parser = parse_new_size)]
        size: NewSize,
    },
    /// Record the new path of a base image that was moved, for a stopped VM and all its checkpoints
    Relocate {
        #[arg(value_name = "VM")]
        name: VmName,
        /// The disk's id
        #[arg(value_name = "ID")]
        disk: String,
        /// New path of the image; its contents must be unchanged
        path: PathBuf,
    },
}

fn parse_new_size(text: &str) -> Result<NewSize, ConfigError> {
    match text.strip_prefix('+') {
        Some(more) => parse_disk_size(more).map(NewSize::By),
        None => parse_disk_size(text).map(NewSize::To),
    }
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the new VM
    pub name: VmName,
    /// Kernel image: ELF (vmlinux) or bzImage (vmlinuz) [default: the bundled guest]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "")]
    pub cmdline: String,
    /// Boot this disk image with the kernel in it: PATH[,id=NAME][,format=raw|qcow2]; it is the first disk,
    /// and writes go to an overlay
    #[arg(long, value_name = "DISK", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    pub image: Option<DiskArg>,
    /// Size of the image's disk for the guest, such as 20G, if it is to be larger than the image
    #[arg(long, value_name = "SIZE", requires = "image", value_parser = parse_disk_size)]
    pub disk_size: Option<u64>,
    /// Append this to the image's kernel command line
    #[arg(long, value_name = "STRING", requires = "image")]
    pub cmdline_extra: Option<String>,
    /// Guest memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    pub memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_cpus)]
    pub cpus: u32,
    /// Disk image, raw or qcow2: PATH[,id=NAME][,format=raw|qcow2][,readonly][,passthrough][,overlay[,size=SIZE]];
    /// may be repeated; double any comma in PATH
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskArg>,
    /// Backing file that a qcow2 image may use; may be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    /// Compute checksums of base images (disks with overlay or readonly) in the background, and check
    /// them from then on
    #[arg(long)]
    pub seal_base: bool,
    /// Network: user|tap=NAME|none[,mac=ADDRESS][,mtu=BYTES][,isolated][,shared-mac]; may be repeated [default: none, or user with --forward]
    #[arg(long = "net", value_name = "NET")]
    pub nets: Vec<NetArg>,
    /// Forward a port of this host to the guest: [udp:][ADDRESS:]PORT:GUESTPORT; may be repeated
    #[arg(long = "forward", value_name = "FORWARD")]
    pub forwards: Vec<Forward>,
    /// Block all network traffic of the guest except connections through a forward
    #[arg(long)]
    pub isolated: bool,
    /// Add a vsock device: programs on this host reach the guest through vsock.sock in the VM's folder
    #[arg(long)]
    pub vsock: bool,
    /// Run in the background; `piton console` attaches to it
    #[arg(long, visible_short_alias = 'd')]
    pub detach: bool,
    /// Stay in the foreground, attached to the VM's console (the default)
    #[arg(long, conflicts_with = "detach")]
    pub attach: bool,
    /// Time the guest has to shut down after SIGTERM, SIGINT or SIGHUP
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub stop_timeout: Duration,
    /// Do not restrict the system calls of the VM's process
    #[arg(long)]
    pub no_seccomp: bool,
    /// Do not restrict the files that the VM's process can reach
    #[arg(long)]
    pub no_landlock: bool,
    // Last: its heading is that of all that follows.
    #[command(flatten)]
    pub seed: SeedArgs,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[arg(required = true, value_name = "VM")]
    pub names: Vec<VmName>,
    /// Stay in the foreground, attached to the VM's console
    #[arg(long)]
    pub attach: bool,
    /// Run in the background (the default)
    #[arg(long, conflicts_with = "attach")]
    pub detach: bool,
    /// Time the guest has to shut down after SIGTERM, SIGINT or SIGHUP
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub stop_timeout: Duration,
    /// Start although a flush of a disk failed and writes may be lost
    #[arg(long)]
    pub accept_lost_writes: bool,
    /// Start although a base image has changed since the latest checkpoint
    #[arg(long)]
    pub force: bool,
    /// Do not restrict the system calls of the VM's process
    #[arg(long)]
    pub no_seccomp: bool,
    /// Do not restrict the files that the VM's process can reach
    #[arg(long)]
    pub no_landlock: bool,
    /// Go back to this checkpoint instead of booting
    #[arg(long, hide = true)]
    pub restore: Option<Id>,
    /// And let it run
    #[arg(long, hide = true)]
    pub resume: bool,
    #[arg(long, hide = true, value_enum, default_value_t = Clock::Saved)]
    pub clock: Clock,
    #[arg(long = "net", hide = true, requires = "restore")]
    pub nets: Vec<NetArg>,
    #[arg(long, hide = true)]
    pub share: bool,
}

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Show this many lines of earlier output first; console.log has all of it [default: 10 at a terminal, else 0]
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,
    /// Show no earlier output
    #[arg(long, conflicts_with = "tail")]
    pub no_log: bool,
    /// With input from a pipe or file: exit once it has ended and the guest has been quiet this long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "1")]
    pub linger: Duration,
    /// Takes the place of the option that all other commands have.
    #[arg(id = "json", long = "json", hide = true)]
    pub no_json: bool,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// User to run it as [default: the agent's user, usually root]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Folder to run it in
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set an environment variable; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// End it after this time
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SshArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// User in the guest [default: as configured for ssh]
    #[arg(long, short = 'l', value_name = "USER")]
    pub user: Option<String>,
    /// Private key
    #[arg(long, short, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Passed to ssh after the address, such as a command to run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub words: Vec<std::ffi::OsString>,
    /// Takes the place of the option that all other commands have.
    #[arg(id = "json", long = "json", hide = true)]
    pub no_json: bool,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What to copy: a path on this host, or VM:/PATH. If it is a symbolic link, what it leads to is copied; links
    /// in a folder are copied as links
    #[arg(value_name = "FROM")]
    pub from: std::ffi::OsString,
    /// Where to copy it: an existing folder, or the new name
    #[arg(value_name = "TO")]
    pub to: std::ffi::OsString,
}

fn parse_variable(text: &str) -> Result<String, String> {
    let name = text.split_once('=').map_or("", |(name, _)| name);
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(text.to_owned())
    } else {
        Err("a variable is NAME=VALUE".into())
    }
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[arg(required = true, value_name = "VM")]
    pub names: Vec<VmName>,
    /// Cut the power if the guest has not shut down in time
    #[arg(long)]
    pub force: bool,
    /// Time the guest has to shut down
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u32,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// List only VMs in this state
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub state: Option<State>,
    /// Print names only
    #[arg(long, short)]
    pub quiet: bool,
    /// List all VMs (the default)
    #[arg(long, short, hide = true)]
    pub all: bool,
}

fn parse_state(text: &str) -> Result<State, String> {
    serde_json::from_value(text.into()).map_err(|_| "use running, paused, stopped or unresponsive".into())
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("setting").required(true).multiple(true)))]
#[command(override_usage = "piton set [OPTIONS] <VM>...")]
pub struct SetArgs {
    #[arg(required = true, value_name = "VM")]
    pub names: Vec<VmName>,
    /// Checkpoint type: disabled, standard, production (standard if the guest cannot) or
    /// production-only
    #[arg(long, value_name = "TYPE", group = "setting")]
    pub checkpoint_type: Option<CheckpointType>,
    /// Keep checkpoints in this folder; only possible while the VM has none
    #[arg(long, value_name = "DIR", group = "setting")]
    pub checkpoint_dir: Option<PathBuf>,
    /// Guest memory, such as 512M or 2G; only while the VM is stopped
    #[arg(long, value_name = "SIZE", group = "setting", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// Number of vCPUs; only while the VM is stopped
    #[arg(long, value_name = "N", group = "setting", value_parser = parse_cpus)]
    pub cpus: Option<u32>,
    /// Kernel command line, or what is appended to the image's for a VM created with --image; only while
    /// the VM is stopped
    #[arg(long, value_name = "STRING", group = "setting", visible_alias = "cmdline-extra")]
    pub cmdline: Option<String>,
    /// Forward a port of this host to the guest: [udp:][ADDRESS:]PORT:GUESTPORT; may be repeated
    #[arg(long = "forward", value_name = "FORWARD", group = "setting")]
    pub forwards: Vec<Forward>,
    /// Remove a forward, written as `piton show` prints it; may be repeated
    #[arg(long = "no-forward", value_name = "FORWARD", group = "setting")]
    pub no_forwards: Vec<Forward>,
    /// Create a checkpoint at every start if there is none, and delete it after a clean shutdown
    #[arg(long, value_name = "on|off", group = "setting")]
    pub auto_checkpoint: Option<Switch>,
    /// How long `piton undo` can restore what was deleted or discarded, such as 24h or 3d;
    /// 0 turns the trash off
    #[arg(long, value_name = "TIME", group = "setting", value_parser = parse_span)]
    pub trash: Option<u64>,
    /// Checkpoints that a prune keeps: last=5,hourly=24,daily=7,weekly=4,monthly=12,yearly=3, or some
    /// of these, or none
    #[arg(long, value_name = "RULE", group = "setting")]
    pub keep: Option<Counts>,
    /// Also keep checkpoints from the last hours or days before the newest one, such as 3d; 0: no
    #[arg(long, value_name = "TIME", group = "setting", value_parser = parse_span)]
    pub keep_within: Option<u64>,
    /// Delete the oldest checkpoints while all of them together take more than this, such as 20G; 0: no limit
    #[arg(long, value_name = "SIZE", group = "setting", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Apply these rules to all checkpoints, and not only to those of --every
    #[arg(long, value_name = "on|off", group = "setting")]
    pub keep_all: Option<Switch>,
    /// Create a checkpoint this often while the VM runs, such as 1h, and prune; 0: never
    #[arg(long, value_name = "TIME", group = "setting", value_parser = parse_span)]
    pub every: Option<u64>,
    /// Type of the checkpoints of --every: standard, production or production-only
    #[arg(long, value_name = "TYPE", group = "setting")]
    pub every_type: Option<CheckpointType>,
    /// Skip a checkpoint of --every if the guest has changed nothing since the last checkpoint
    #[arg(long, value_name = "on|off", group = "setting")]
    pub only_if_changed: Option<Switch>,
    /// Try the newest checkpoint this often in a temporary clone, such as 1d, when `piton checkpoint verify-due`
    /// runs, which piton-verify.timer does; 0: never
    #[arg(long, value_name = "TIME", group = "setting", value_parser = parse_span)]
    pub verify_every: Option<u64>,
    /// It works if its console output matches this regular expression
    #[arg(long, value_name = "REGEX", requires = "verify_every", conflicts_with_all = ["exec", "agent"])]
    pub wait_for: Option<String>,
    /// It works if this shell command succeeds in the guest, through its agent
    #[arg(long, value_name = "COMMAND", requires = "verify_every", conflicts_with = "agent")]
    pub exec: Option<String>,
    /// It works if the guest's agent answers
    #[arg(long, requires = "verify_every")]
    pub agent: bool,
    /// How long the guest has for it [default: 120]
    #[arg(long, value_name = "SECONDS", requires = "verify_every")]
    pub timeout: Option<u64>,
    /// Compute checksums of base images (disks with overlay or readonly) once, and check them from then on
    #[arg(long, group = "setting")]
    pub seal_base: bool,
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

/// Bytes, as of memory; 0 is one, too.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{}` is not a size: write it as 500M or 20G, or 0", text.escape_debug());
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" if digits == "0" => 0,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[derive(Debug, Args)]
pub struct ManagerArgs {
    /// Where to listen: [ADDRESS:]PORT, ADDRESS or unix:PATH [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<Address>,
    /// Another name by which browsers may know this host; may be repeated
    #[arg(long, value_name = "NAME")]
    pub allowed_host: Vec<String>,
    /// Do not open a browser
    #[arg(long)]
    pub no_open: bool,
    /// Do not restrict the system calls of this command
    #[arg(long)]
    pub no_seccomp: bool,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[arg(required = true, value_name = "VM")]
    pub names: Vec<VmName>,
    /// Delete permanently instead of moving to the trash
    #[arg(long)]
    pub no_undo: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}
