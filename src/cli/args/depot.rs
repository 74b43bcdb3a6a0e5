//! What can be typed of depots.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CheckpointRef, FitArgs, GuardArgs};
use crate::config::parse_rate;
use crate::depot::location::Location;
use crate::folder::VmName;

/// How a depot is used.
#[derive(Debug, Args)]
pub struct DepotArgs {
    /// File with the key of a depot that is encrypted
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Send and receive at most so much each second, such as 10M
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub bandwidth: Option<u64>,
    #[command(flatten)]
    pub guard: GuardArgs,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    #[arg(value_name = "VM@CHECKPOINT")]
    pub checkpoint: CheckpointRef,
    /// The depot: s3://BUCKET/PREFIX or a folder, followed by /VM@CHECKPOINT for another name there
    #[arg(value_name = "URL")]
    pub url: Location,
    #[command(flatten)]
    pub depot: DepotArgs,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The checkpoint: s3://BUCKET/PREFIX/VM@CHECKPOINT, or the same below a folder
    #[arg(value_name = "URL")]
    pub url: Location,
    /// Name of the new VM [default: as in the depot]
    #[arg(value_name = "VM")]
    pub name: Option<VmName>,
    /// Give the checkpoint a new id
    #[arg(long)]
    pub new_id: bool,
    /// Do not pull; only report what would prevent it
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub fit: FitArgs,
    #[command(flatten)]
    pub depot: DepotArgs,
}

#[derive(Debug, Subcommand)]
pub enum DepotCommand {
    /// List the checkpoints in a depot
    List {
        #[arg(value_name = "URL")]
        url: Location,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Show a depot, or a checkpoint in it
    Show {
        #[arg(value_name = "URL[/VM@CHECKPOINT]")]
        url: Location,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Read all that the checkpoints in a depot need, and check it
    Verify {
        #[arg(value_name = "URL[/VM@CHECKPOINT]")]
        url: Location,
        /// Check only whether all of it is there
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Remove what no checkpoint in a depot needs
    Prune {
        #[arg(value_name = "URL")]
        url: Location,
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Nobody pushes to the depot meanwhile: do not wait a day before removing something
        #[arg(long)]
        alone: bool,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Copy checkpoints to another depot
    Copy {
        #[arg(value_name = "URL[/VM@CHECKPOINT]")]
        from: Location,
        #[arg(value_name = "URL")]
        to: Location,
        /// File with the key of the other depot
        #[arg(long, value_name = "FILE")]
        to_key_file: Option<PathBuf>,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Delete a checkpoint from a depot; prune frees what only it needed
    Rm {
        #[arg(value_name = "URL/VM@CHECKPOINT")]
        url: Location,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        depot: DepotArgs,
    },
    /// Make a key for an encrypted depot
    Key {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
