//! What can be typed about taking back.

use clap::{Args, Subcommand};

use crate::folder::VmName;

#[derive(Debug, Args)]
pub struct UndoArgs {
    pub name: VmName,
    /// Do not keep the current state if it is replaced
    #[arg(long)]
    pub no_undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// Show what is in the trash of a VM, its size, and how long it is kept
    #[command(visible_alias = "ls")]
    List { name: VmName },
    /// Restore an entry
    Restore {
        name: VmName,
        /// Entry, or its first digits, or the name of a deleted checkpoint
        entry: String,
        /// Do not keep the current state if it is replaced
        #[arg(long)]
        no_undo: bool,
    },
    /// Permanently delete everything in the trash, or one entry
    Empty {
        name: VmName,
        entry: Option<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}
