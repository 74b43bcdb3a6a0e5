//! Which checkpoint or state is meant.

use crate::folder::{NameError, VmName};

/// A checkpoint as NAME@CHECKPOINT.
#[derive(Debug, Clone)]
pub struct CheckpointRef {
    pub vm: VmName,
    pub checkpoint: String,
}

impl std::str::FromStr for CheckpointRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vm, checkpoint) = text
            .split_once('@')
            .filter(|(_, checkpoint)| !checkpoint.is_empty())
            .ok_or_else(|| format!("name the checkpoint as VM@CHECKPOINT, not `{}`", text.escape_debug()))?;
        Ok(Self { vm: vm.parse().map_err(|e: NameError| e.to_string())?, checkpoint: checkpoint.to_owned() })
    }
}

/// A checkpoint, or the current state of a VM.
#[derive(Debug, Clone)]
pub enum StateRef {
    Checkpoint(CheckpointRef),
    Now(VmName),
}

impl std::str::FromStr for StateRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            return Ok(Self::Checkpoint(text.parse()?));
        }
        text.parse().map(Self::Now).map_err(|e: NameError| e.to_string())
    }
}

/// An earlier checkpoint of the VM that is spoken of; its name may stand before it all the same.
#[derive(Debug, Clone)]
pub struct Since {
    vm: Option<VmName>,
    checkpoint: String,
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('@') {
            return Ok(Self { vm: None, checkpoint: text.to_owned() });
        }
        let CheckpointRef { vm, checkpoint } = text.parse()?;
        Ok(Self { vm: Some(vm), checkpoint })
    }
}

impl Since {
    pub fn of(&self, vm: &VmName) -> Result<&str, String> {
        match &self.vm {
            Some(other) if other != vm => {
                Err(format!("--since names the VM `{other}`, but the VM to export is `{vm}`"))
            }
            _ => Ok(&self.checkpoint),
        }
    }
}

/// A file in a checkpoint, or in the current state of a VM.
#[derive(Debug, Clone)]
pub struct FileRef {
    pub state: StateRef,
    /// Absolute.
    pub path: String,
}

impl std::str::FromStr for FileRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name may have a colon in it, and none has a slash.
        let at = text
            .find(":/")
            .ok_or_else(|| format!("name the file as VM@CHECKPOINT:/PATH, not `{}`", text.escape_debug()))?;
        Ok(Self { state: text[..at].parse()?, path: parse_path(&text[at + 1..])? })
    }
}

/// A path in a file system of a guest.
pub fn parse_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err("a path in the guest begins with /".into())
}
