//! What the pages may ask for. [`words`](super::words) makes a command line of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointName;
use crate::checkpoint::manifest::Mode;
use crate::config::Forward;
use crate::control::upkeep::{RetentionChange, ScheduleChange};
use crate::folder::{CheckpointType, VmName};

/// Body of `POST /api/actions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Deed {
    /// A new VM, which boots.
    Run {
        vm: VmName,
        cpus: Option<u32>,
        /// In bytes.
        memory: Option<u64>,
        kernel: Option<PathBuf>,
        initrd: Option<PathBuf>,
        cmdline: Option<String>,
        /// The disk that it boots, with the kernel in it; instead of `kernel`.
        image: Option<PathBuf>,
        /// Appended to the image's own.
        cmdline_extra: Option<String>,
        /// Files with public keys, for cloud-init.
        #[serde(default)]
        ssh_keys: Vec<PathBuf>,
        hostname: Option<String>,
        #[serde(default)]
        disks: Vec<Image>,
        /// Through this host's network.
        #[serde(default)]
        network: bool,
        #[serde(default)]
        forwards: Vec<Forward>,
    },
    Start {
        vm: VmName,
    },
    Stop {
        vm: VmName,
        /// Cut the power if the guest is not off in time.
        #[serde(default)]
        force: bool,
        /// In seconds.
        timeout: Option<u32>,
    },
    /// Cut the power at once.
    Kill {
        vm: VmName,
    },
    Pause {
        vm: VmName,
    },
    Resume {
        vm: VmName,
    },
    Remove {
        vm: VmName,
    },
    RenameVm {
        vm: VmName,
        name: VmName,
    },
    /// What is left out stays.
    Set {
        vm: VmName,
        checkpoint_type: Option<CheckpointType>,
        auto_checkpoint: Option<bool>,
        checkpoint_dir: Option<PathBuf>,
        trash_seconds: Option<u64>,
        #[serde(default)]
        retention: RetentionChange,
        #[serde(default)]
        schedule: ScheduleChange,
        /// In bytes.
        memory: Option<u64>,
        cpus: Option<u32>,
        cmdline: Option<String>,
        #[serde(default)]
        forward: Vec<Forward>,
        #[serde(default)]
        no_forward: Vec<Forward>,
    },
    Create {
        vm: VmName,
        name: Option<CheckpointName>,
        #[serde(default)]
        note: String,
        #[serde(rename = "type")]
        kind: Option<CheckpointType>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        compress: bool,
        #[serde(default)]
        pause_after: bool,
    },
    /// What becomes of the current state has to be said.
    Apply {
        vm: VmName,
        checkpoint: String,
        current: Current,
        /// Of the checkpoint that the current state is saved as.
        name: Option<CheckpointName>,
        #[serde(default)]
        run: bool,
        #[serde(default)]
        force: bool,
        /// Without the checkpoint's memory.
        #[serde(default)]
        cold: bool,
    },
    Revert {
        vm: VmName,
        #[serde(default)]
        run: bool,
        #[serde(default)]
        force: bool,
        /// Without the checkpoint's memory.
        #[serde(default)]
        cold: bool,
    },
    Delete {
        vm: VmName,
        checkpoint: String,
        #[serde(default)]
        subtree: bool,
        /// Only tell what would go.
        #[serde(default)]
        dry_run: bool,
    },
    Rename {
        vm: VmName,
        checkpoint: String,
        name: CheckpointName,
    },
    Note {
        vm: VmName,
        checkpoint: String,
        note: String,
    },
    Pin {
        vm: VmName,
        checkpoint: String,
    },
    Unpin {
        vm: VmName,
        checkpoint: String,
    },
    /// Take back what was deleted or discarded last.
    Undo {
        vm: VmName,
    },
    /// An entry of the trash; without one a VM that was removed, by its name or id.
    Restore {
        vm: VmName,
        entry: Option<String>,
        /// Another name for the VM.
        name: Option<VmName>,
    },
    /// Of the trash, for good; without an entry all. Of a VM that was removed, the VM.
    Empty {
        vm: VmName,
        entry: Option<String>,
    },
    /// Delete what no rule keeps.
    Prune {
        vm: VmName,
        /// Only tell what would go.
        #[serde(default)]
        dry_run: bool,
    },
    /// Against its checksums.
    Verify {
        vm: VmName,
        checkpoint: String,
    },
    /// In a temporary clone; if nothing else is asked of it, it has to run for a while.
    VerifyBoot {
        vm: VmName,
        checkpoint: String,
        /// A regular expression that its console has to match.
        wait_for: Option<String>,
        /// A shell command that has to succeed in it, through its agent.
        exec: Option<String>,
        /// Its agent has to answer.
        #[serde(default)]
        agent: bool,
        /// In seconds.
        timeout: Option<u32>,
    },
    /// What `with`, or the current state, has that the checkpoint has not.
    Diff {
        vm: VmName,
        checkpoint: String,
        with: Option<String>,
        /// Of a VM that runs, through a temporary checkpoint.
        #[serde(default)]
        live: bool,
        /// Also which files.
        #[serde(default)]
        files: bool,
    },
    Clone {
        vm: VmName,
        checkpoint: String,
        new: VmName,
        /// So many, named NEW-1, NEW-2 and so on.
        count: Option<u32>,
        #[serde(default)]
        run: bool,
    },
    /// Of a checkpoint, or of the VM as it is.
    Export {
        vm: VmName,
        checkpoint: Option<String>,
        dir: PathBuf,
        /// Only what changed since this checkpoint.
        since: Option<String>,
        #[serde(default)]
        live: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Current {
    Save,
    Discard,
}

/// A disk's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub path: PathBuf,
    #[serde(default)]
    pub overlay: bool,
    #[serde(default)]
    pub readonly: bool,
}

impl Deed {
    /// The VM, or the one that is to be.
    pub fn vm(&self) -> &VmName {
        match self {
            Self::Run { vm, .. }
            | Self::Start { vm, .. }
            | Self::Stop { vm, .. }
            | Self::Kill { vm, .. }
            | Self::Pause { vm, .. }
            | Self::Resume { vm, .. }
            | Self::Remove { vm, .. }
            | Self::RenameVm { vm, .. }
            | Self::Set { vm, .. }
            | Self::Create { vm, .. }
            | Self::Apply { vm, .. }
            | Self::Revert { vm, .. }
            | Self::Delete { vm, .. }
            | Self::Rename { vm, .. }
            | Self::Note { vm, .. }
            | Self::Pin { vm, .. }
            | Self::Unpin { vm, .. }
            | Self::Undo { vm, .. }
            | Self::Restore { vm, .. }
            | Self::Empty { vm, .. }
            | Self::Prune { vm, .. }
            | Self::Verify { vm, .. }
            | Self::VerifyBoot { vm, .. }
            | Self::Diff { vm, .. }
            | Self::Clone { vm, .. }
            | Self::Export { vm, .. } => vm,
        }
    }

    /// The checkpoint that it is about, as it was named.
    pub fn checkpoint(&self) -> Option<&str> {
        match self {
            Self::Apply { checkpoint, .. }
            | Self::Delete { checkpoint, .. }
            | Self::Rename { checkpoint, .. }
            | Self::Note { checkpoint, .. }
            | Self::Pin { checkpoint, .. }
            | Self::Unpin { checkpoint, .. }
            | Self::Verify { checkpoint, .. }
            | Self::VerifyBoot { checkpoint, .. }
            | Self::Diff { checkpoint, .. }
            | Self::Clone { checkpoint, .. } => Some(checkpoint),
            Self::Export { checkpoint, .. } => checkpoint.as_deref(),
            _ => None,
        }
    }

    /// As `do` says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Kill { .. } => "kill",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Remove { .. } => "remove",
            Self::RenameVm { .. } => "rename-vm",
            Self::Set { .. } => "set",
            Self::Create { .. } => "create",
            Self::Apply { .. } => "apply",
            Self::Revert { .. } => "revert",
            Self::Delete { .. } => "delete",
            Self::Rename { .. } => "rename",
            Self::Note { .. } => "note",
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Undo { .. } => "undo",
            Self::Restore { .. } => "restore",
            Self::Empty { .. } => "empty",
            Self::Prune { .. } => "prune",
            Self::Verify { .. } => "verify",
            Self::VerifyBoot { .. } => "verify-boot",
            Self::Diff { .. } => "diff",
            Self::Clone { .. } => "clone",
            Self::Export { .. } => "export",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_no_deed() {
        for json in [
            r#"{"do":"start"}"#,
            r#"{"do":"start","vm":"../x"}"#,
            r#"{"do":"start","vm":"--help"}"#,
            r#"{"do":"start","vm":"demo","surely":1}"#,
            r#"{"do":"start","vm":"demo","force":true}"#,
            r#"{"do":"apply","vm":"demo","checkpoint":"a"}"#,
            r#"{"do":"rename","vm":"demo","checkpoint":"a","name":"x@y"}"#,
            r#"{"do":"set","vm":"demo","retention":{"keep":{"secondly":1}}}"#,
            r#"{"do":"shell","vm":"demo"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Deed>(json).is_err(), "{json}");
        }
    }
}
