//! What can be typed about images.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::checkpoint::GuardArgs;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show the contents of an image: partitions, file systems, operating systems, kernels
    Show(ImageArgs),
    /// Copy kernel and initrd from an image, and print the command line
    Extract {
        #[command(flatten)]
        image: ImageArgs,
        /// Existing folder for `kernel` and `initrd` [default: the current one]
        dir: Option<PathBuf>,
        /// Number of the entry in `piton image show` [default: the one that the image boots]
        #[arg(long, value_name = "N")]
        entry: Option<usize>,
    },
}

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Disk image, raw or qcow2
    pub file: PathBuf,
    /// Backing file that a qcow2 image may use; may be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    #[command(flatten)]
    pub guard: GuardArgs,
}
