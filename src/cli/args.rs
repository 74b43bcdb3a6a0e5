//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{DiskArg, parse_memory};
use crate::folder::VmName;

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
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Disk image, raw or qcow2: PATH[,id=NAME][,readonly][,passthrough][,overlay]; may be repeated
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<String>,
    /// Run in the background; `piton console` attaches
    #[arg(long)]
    pub detach: bool,
    /// This process is the background one
    #[arg(long, hide = true)]
    pub background: bool,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    pub name: VmName,
    /// Stay in the foreground with the VM's console
    #[arg(long)]
    pub attach: bool,
    /// This process is the background one
    #[arg(long, hide = true)]
    pub background: bool,
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
pub struct RmArgs {
    pub name: VmName,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

impl RunArgs {
    pub fn memory_bytes(&self) -> Result<u64, crate::config::ConfigError> {
        parse_memory(&self.memory)
    }

    pub fn parsed_disks(&self) -> Result<Vec<DiskArg>, crate::config::ConfigError> {
        self.disks.iter().map(|text| text.parse()).collect()
    }
}
