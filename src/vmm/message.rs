//! What can happen to a VM, and how its run ends.

use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::control::jobs::Jobs;
use crate::control::server::{Asked, ServerError};
use crate::devices::virtio::vsock::host::HostError;
use crate::events::MachineEvent;
use crate::folder::FolderError;
use crate::history::CheckpointError;
use crate::history::disks::DisksError;
use crate::history::networks::MacInUse;
use crate::image::ImageError;
use crate::machine::MachineError;
use crate::net::{News, PortError, SetupError};
use crate::sandbox::SandboxError;

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot open the console log {}: {error}", path.display())]
    Console { path: std::path::PathBuf, error: std::io::Error },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Network(#[from] SetupError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Address(#[from] MacInUse),
    /// A network of a checkpoint is not to be had here.
    #[error(
        "{error}; or go there with another network: `piton checkpoint apply {checkpoint} --net none` (or `user`, or `tap=NAME`)"
    )]
    Elsewhere { error: Box<VmmError>, checkpoint: String },
    #[error(transparent)]
    Vsock(#[from] HostError),
    #[error("nothing can be booted from disk `{disk}` ({}): {error}", path.display())]
    Image { disk: String, path: std::path::PathBuf, error: Box<ImageError> },
    #[error("cannot start the thread that talks to the guest agent: {0}")]
    Desk(std::io::Error),
}

/// What can happen to a VM while it runs.
pub enum Message {
    Request(Asked),
    Machine {
        /// Counts the machine's boots: what an earlier one still had to say is no news.
        boot: u64,
        event: MachineEvent,
    },
    /// The thread of this number that merges layers has come to its end.
    Merged(u64),
    /// The thread that takes checksums of a base image has come to its end.
    Sealed,
    /// Something became of a network.
    Network(News),
    /// Layers that only the state before a restore needed are to go.
    ForgetFormer,
    /// End the VM at once: the user left its console, or a second signal came.
    End(&'static str),
    /// Press the power button, and end the VM if its guest is not off after this time.
    ShutDown {
        by: &'static str,
        patience: Duration,
    },
}

/// Ends a VM from any thread.
#[derive(Clone)]
pub struct Ender {
    pub(super) sender: Sender<Message>,
    pub(super) jobs: Jobs,
}

impl Ender {
    /// What the VM's owner is busy with is called off first: it would be in the way.
    pub fn end(&self, by: &'static str) {
        self.jobs.cancel_all();
        // After the VM's end there is nothing left to end.
        let _ = self.sender.send(Message::End(by));
    }

    /// Lets the guest shut down first, which it has so long for. A paused guest cannot.
    pub fn shut_down(&self, by: &'static str, patience: Duration) {
        self.jobs.cancel_all();
        let _ = self.sender.send(Message::ShutDown { by, patience });
    }
}

/// How a VM's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// It was told to end; the text says by whom.
    Ended(&'static str),
    /// The guest cannot go on; the text says why.
    Crashed(String),
}
