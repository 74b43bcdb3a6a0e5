//! What the process of a VM is kept to: the files that its VM needs, and what its threads may ask of
//! the kernel.

use crate::config::VmConfig;
use crate::control::{RequestError, SandboxInfo, SetBody};
use crate::folder::{Definition, VmFolder};
use crate::history::inventory::Inventory;
use crate::history::reach;
use crate::{sandbox, seccomp};

/// Decides which files this process will reach: what it needs to start, and for all that it may be
/// asked for later. Threads that begin before the others can be bound by it from now on.
pub(super) fn plan(
    folder: &VmFolder,
    definition: &Definition,
    inventory: Option<&Inventory>,
    also: Option<&VmConfig>,
) {
    if let Err(e) = sandbox::prepare(|| reach::rules(folder, definition, inventory, also)) {
        log::warn!("{e}: it runs without");
    }
}

pub(super) fn info() -> SandboxInfo {
    SandboxInfo { seccomp: seccomp::in_force(), landlock: sandbox::in_force() }
}

/// A folder for checkpoints that this process cannot reach has to wait.
pub(super) fn can_reach(
    folder: &VmFolder,
    definition: &Definition,
    body: &SetBody,
) -> Result<(), RequestError> {
    let dir = body.checkpoint_dir.as_ref().filter(|dir| dir.is_dir());
    if dir.is_some() && dir != definition.checkpoint_dir.as_ref() && sandbox::in_force().is_some() {
        let name = folder.name();
        return Err(RequestError::Refused(format!(
            "the checkpoint folder can only be changed while the VM is off, as its process reaches no other \
             files than it needed at its start: `piton stop {name}` shuts it down (or start it with \
             --no-landlock)"
        )));
    }
    Ok(())
}
