//! What can be typed about taking back.

use clap::{Args, Subcommand};

use crate::folder::VmName;

#[derive(Debug, Args)]
pub struct UndoArgs {
    pub name: VmName,
    /// Do not keep the current state, if another one comes back
    #[arg(long)]
    pub no_undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// Show what is in the trash of a VM, how large it is, and how long it stays
    #[command(visible_alias = "ls")]
    List { name: VmName },
    /// Take something back
    Restore {
        name: VmName,
        /// Entry, or the start of it, or the name of a deleted checkpoint
        entry: String,
        /// Do not keep the current state, if another one comes back
        #[arg(long)]
        no_undo: bool,
    },
    /// Delete all in the trash for good, or one entry of it
    Empty {
        name: VmName,
        entry: Option<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}
