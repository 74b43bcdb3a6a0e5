//! What can be typed about taking back.

use clap::{Args, Subcommand};

use crate::folder::VmName;

#[derive(Debug, Args)]
pub struct UndoArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Do not keep the current state if it is replaced
    #[arg(long)]
    pub no_undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// Show what is in the trash of a VM, its size, and how long it is kept; without a name: removed VMs
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_name = "VM")]
        name: Option<VmName>,
    },
    /// Restore an entry, or a removed VM
    Restore {
        /// Name of the VM; of a removed one, or its id in the list, or its first digits
        #[arg(value_name = "VM")]
        name: VmName,
        /// Entry, or its first digits, or the name of a deleted checkpoint
        entry: Option<String>,
        /// Do not keep the current state if it is replaced
        #[arg(long)]
        no_undo: bool,
        /// New name for a removed VM
        #[arg(long = "name", value_name = "NAME", conflicts_with_all = ["entry", "no_undo"])]
        new_name: Option<VmName>,
    },
    /// Permanently delete everything in the trash, or one entry
    Empty {
        /// Name of the VM; of a removed one, or its id in the list; without: all removed VMs
        #[arg(value_name = "VM")]
        name: Option<VmName>,
        /// Delete only this entry
        entry: Option<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}
