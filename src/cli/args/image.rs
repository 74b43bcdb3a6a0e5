//! What can be typed about images.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::checkpoint::GuardArgs;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show what is in an image: partitions, file systems, systems, kernels
    Show(ImageArgs),
    /// Copy the kernel and the initrd out of an image, and print the command line
    Extract {
        #[command(flatten)]
        image: ImageArgs,
        /// Folder for `kernel` and `initrd`; it must exist [default: this one]
        dir: Option<PathBuf>,
        /// Entry by its number in `piton image show` [default: what the image boots]
        #[arg(long, value_name = "N")]
        entry: Option<usize>,
    },
}

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Disk image, raw or qcow2
    pub file: PathBuf,
    /// Allowed backing file of a qcow2 image; can be repeated
    #[arg(long, value_name = "FILE")]
    pub backing: Vec<PathBuf>,
    #[command(flatten)]
    pub guard: GuardArgs,
}
