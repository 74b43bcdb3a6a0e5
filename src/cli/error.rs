//! Exit codes: 0 done; 1 failed; 2 the words of the command line are wrong, which nothing but they
//! tell; 3 refused, nothing was tried.

use crate::config::{ConfigError, NetError};
use crate::control::client::ClientError;
use crate::control::{RequestError, State};
use crate::depot::DepotError;
use crate::devices::virtio::vsock::host::HostError;
use crate::folder::FolderError;
use crate::history::CheckpointError;
use crate::history::disks::DisksError;
use crate::history::networks::MacInUse;
use crate::inside::InsideError;
use crate::machine::MachineError;
use crate::memory::MemoryError;
use crate::nbd::NbdError;
use crate::net::{PortError, SetupError, TapError};
use crate::search::SearchError;
use crate::transfer::TransferError;
use crate::vm::VmError;
use crate::vmm::VmmError;

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const REFUSED: u8 = 3;

/// Marks an error of the command line's own as "nothing was tried".
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The words of the command line contradict each other, or one of them cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Another process has the VM for itself.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct InUse {
    pub text: String,
    /// None: another command works on it.
    pub state: Option<State>,
}

/// What went wrong has been said: by another process of this command, or in its output.
#[derive(Debug, thiserror::Error)]
#[error("the background process failed")]
pub struct Told {
    pub code: u8,
}

/// For `return Err(...)`: a sentence that refuses.
pub fn refused(text: impl Into<String>) -> anyhow::Error {
    Refused(text.into()).into()
}

/// For `return Err(...)` and `map_err`: a sentence about the words of the command line.
pub fn usage(text: impl ToString) -> anyhow::Error {
    Usage(text.to_string()).into()
}

/// The chain of causes as one sentence. An error that tells its cause itself is not told twice.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.contains(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

pub fn exit_code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(Told { code }) => *code,
        None if error.is::<Usage>() => USAGE,
        None if error.chain().any(is_refusal) => REFUSED,
        None => FAILED,
    }
}

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    if error.is::<Refused>() || error.is::<InUse>() || error.is::<ConfigError>() || error.is::<MemoryError>()
    {
        return true;
    }
    if let Some(error) = error.downcast_ref::<FolderError>() {
        return !matches!(error, FolderError::Storage(_));
    }
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return matches!(
            error,
            ClientError::NotRunning
                | ClientError::Request(RequestError::Refused(_) | RequestError::Missing(_))
        );
    }
    if error.is::<DisksError>()
        || error.is::<NetError>()
        || error.is::<PortError>()
        || error.is::<MacInUse>()
        || error.is::<TapError>()
    {
        return true;
    }
    if let Some(error) = error.downcast_ref::<CheckpointError>() {
        return error.is_refusal();
    }
    if let Some(error) = error.downcast_ref::<InsideError>() {
        return error.is_refusal();
    }
    if let Some(error) = error.downcast_ref::<TransferError>() {
        return error.is_refusal();
    }
    if let Some(error) = error.downcast_ref::<DepotError>() {
        return error.is_refusal();
    }
    if let Some(error) = error.downcast_ref::<SearchError>() {
        return error.is_refusal();
    }
    if let Some(error) = error.downcast_ref::<NbdError>() {
        return !matches!(error, NbdError::Setup { .. });
    }
    if let Some(error) = error.downcast_ref::<HostError>() {
        return !matches!(error, HostError::Listen(..));
    }
    match error.downcast_ref::<VmmError>() {
        // What a VM is made of is looked at before anything is done with it.
        Some(VmmError::Machine(error)) => match error {
            MachineError::Vm(error) => !matches!(error, VmError::Kvm { .. }),
            MachineError::Memory(_) | MachineError::Boot(_) => true,
            _ => false,
        },
        Some(VmmError::Folder(error)) => !matches!(error, FolderError::Storage(_)),
        Some(
            VmmError::Disks(_)
            | VmmError::Port(_)
            | VmmError::Address(_)
            | VmmError::Elsewhere { .. }
            | VmmError::Image { .. },
        ) => true,
        Some(VmmError::Vsock(error)) => !matches!(error, HostError::Listen(..)),
        Some(VmmError::Network(error)) => !matches!(error, SetupError::Failed(_)),
        Some(VmmError::Checkpoint(error)) => error.is_refusal(),
        _ => false,
    }
}
