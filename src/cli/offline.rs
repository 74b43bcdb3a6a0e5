//! A VM that is worked on without asking it: its folder, under its lock, or only looked at.

use super::manage::{in_use, lock};
use crate::checkpoint::Manifest;
use crate::control::GoBack;
use crate::control::client::ClientError;
use crate::folder::{Definition, Happened, VmFolder, VmLock};
use crate::history::{Catalog, apply, recover, trash};
use crate::id::Id;

pub fn find(folder: &VmFolder, reference: &str) -> anyhow::Result<Manifest> {
    let definition = folder.load()?;
    Ok(Catalog::new(folder, &definition).resolve(&definition, reference)?)
}

/// What a stopped VM is worked on with: nobody else works on it meanwhile, and what a crash left
/// is mended.
pub struct Offline<'a> {
    pub folder: &'a VmFolder,
    pub lock: VmLock,
    pub definition: Definition,
}

impl<'a> Offline<'a> {
    /// And what was in the trash long enough is gone.
    pub fn open(folder: &'a VmFolder) -> anyhow::Result<Self> {
        let mut vm = Self::open_as_it_is(folder)?;
        if let Err(e) = trash::expire(folder, &vm.lock, &mut vm.definition) {
            log::warn!("cannot empty the trash: {e}");
        }
        Ok(vm)
    }

    /// To go to a checkpoint, which can be gone to. Recovery may have changed what it lies on.
    pub fn open_to_go_to(folder: &'a VmFolder, checkpoint: Id, how: GoBack) -> anyhow::Result<Self> {
        let vm = Self::open(folder)?;
        let manifest = Catalog::new(folder, &vm.definition).store.load(checkpoint)?;
        apply::check(folder, &vm.definition, &manifest, how)?;
        Ok(vm)
    }

    /// With all that is in the trash.
    pub fn open_as_it_is(folder: &'a VmFolder) -> anyhow::Result<Self> {
        let lock = lock(folder).map_err(|e| in_use(folder, e))?;
        let mut definition = folder.load()?;
        for finding in recover(folder, &lock, &mut definition, true)? {
            log::warn!("{}", finding.text);
        }
        Ok(Self { folder, lock, definition })
    }

    /// Records what happened.
    pub fn tell(&self, events: impl IntoIterator<Item = Happened>) {
        self.folder.tell(&self.lock, events);
    }
}

/// The running VM's answer, or none if it does not run.
pub fn answer<T>(answer: Result<T, ClientError>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
