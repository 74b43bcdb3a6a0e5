//! The VMs that a command names.

use super::error::refused;
use crate::folder::{FolderError, Home, VmFolder, VmName};
use crate::history::removed;
use crate::storage::Storage;

pub fn home() -> Result<Home, FolderError> {
    Home::from_env(Storage::os())
}

/// A VM that exists; whether it runs is for the request to find out.
pub fn existing(name: &VmName) -> anyhow::Result<VmFolder> {
    let folder = home()?.folder(name);
    must_exist(&folder)?;
    Ok(folder)
}

/// Refuses a VM that is not there, with the name that was meant if one is near.
pub fn must_exist(folder: &VmFolder) -> anyhow::Result<()> {
    match folder.must_exist() {
        Err(e @ FolderError::Missing { .. }) => {
            let name = folder.name();
            if removed::find(&home()?, name.as_str())?.is_some_and(|removed| removed.name() == name) {
                return Err(refused(format!(
                    "the VM `{name}` has been removed: `piton undo {name}` restores it"
                )));
            }
            let names = home()?.all()?;
            let near = names
                .iter()
                .map(|vm| {
                    (strsim::damerau_levenshtein(vm.name().as_str(), folder.name().as_str()), vm.name())
                })
                .filter(|(distance, name)| *distance <= (name.as_str().len() / 3).max(1))
                .min();
            match near {
                Some((_, meant)) => {
                    Err(refused(format!("there is no VM `{}`: did you mean `{meant}`?", folder.name())))
                }
                None => Err(e.into()),
            }
        }
        exists => Ok(exists?),
    }
}
