//! A VM goes to one of its checkpoints: while it is there, or out of nothing.

use super::{Message, State, Vmm, VmmError};
use crate::checkpoint::Manifest;
use crate::control::{ApplyBody, CreateBody, GoBack};
use crate::devices::virtio::vsock::host::HostError;
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::recover::NamesBeingSynced;
use crate::history::{Catalog, CheckpointError, apply};
use crate::id::Id;
use crate::machine::{Bare, Machine};
use crate::net::SetupError;
use crate::progress::Progress;

/// What was begun before a VM goes to a checkpoint.
struct Begun {
    /// KVM's side of the machine.
    bare: Option<Bare>,
    names: NamesBeingSynced,
}

impl Vmm {
    /// One of a VM that was off, at a checkpoint, standing still.
    pub fn restore(
        folder: VmFolder,
        definition: Definition,
        lock: VmLock,
        checkpoint: Id,
        how: GoBack,
    ) -> Result<Self, VmmError> {
        let manifest = Catalog::new(&folder, &definition).store.load(checkpoint);
        let manifest = manifest.map_err(CheckpointError::from)?;
        // It takes longer than all else, and needs none of it.
        let bare = manifest.memory.is_some().then(|| Bare::begin(&manifest.config));
        let (mut vmm, names) = Self::recovering(folder, definition, lock)?;
        // What the checkpoint has is what is needed.
        vmm.start_network_for(&manifest.config.nets)?;
        vmm.open_vsock(&manifest.config)?;
        let body = ApplyBody { discard_current: true, how, ..Default::default() };
        vmm.go_to(&manifest, &body, Some(Begun { bare, names }), &Progress::default())?;
        // Nobody has to wait for that.
        let _ = vmm.sender.send(Message::ForgetFormer);
        Ok(vmm)
    }

    /// Goes to a checkpoint; a machine comes out of it standing still unless `run` is asked for.
    pub(super) fn apply_checkpoint(
        &mut self,
        manifest: &Manifest,
        body: &ApplyBody,
        progress: &Progress,
    ) -> Result<(), CheckpointError> {
        self.go_to(manifest, body, None, progress)?;
        apply::forget_former(&self.folder, &self.definition);
        Ok(())
    }

    /// The layers that only the former state needed are left.
    fn go_to(
        &mut self,
        manifest: &Manifest,
        body: &ApplyBody,
        begun: Option<Begun>,
        progress: &Progress,
    ) -> Result<(), CheckpointError> {
        if body.save_current == body.discard_current {
            return Err(CheckpointError::Refused(
                "what becomes of the current state: set either save_current or discard_current".into(),
            ));
        }
        self.park_merge();
        // A merge may have put it on another layer, or changed the base below it.
        let manifest = &Catalog::new(&self.folder, &self.definition).store.load(manifest.id)?;
        if body.save_current {
            // Not saved for an apply that is refused.
            apply::check(&self.folder, manifest, body.how)?;
            let body = CreateBody { name: body.name.clone(), ..Default::default() };
            self.create_checkpoint(&body, progress)?;
        }
        if self.vsock.is_none() && manifest.config.vsock && manifest.memory.is_some() {
            return Err(CheckpointError::Refused(HostError::TooLate.to_string()));
        }
        if self.network.is_none() && !manifest.config.nets.is_empty() && manifest.memory.is_some() {
            return Err(CheckpointError::Refused(SetupError::TooLate.to_string()));
        }

        let boot = self.boot + 1;
        let reuse = self.disks.reuse();
        let idle = self.machine.is_none() && self.disks.machine.is_empty();
        let (bare, names) = begun.map_or((None, None), |begun| (begun.bare, Some(begun.names)));
        let ready = apply::prepare(
            &self.folder,
            &self.definition,
            manifest,
            apply::Around { reuse: &reuse, idle, bare },
            body.how,
            Some(&|config, disks| self.parts(boot, config, disks)),
            progress,
        )?;
        let was_running = self.state() == State::Running;
        let committed = self
            .machine
            .as_mut()
            .map_or(Ok(()), Machine::pause)
            .map_err(CheckpointError::from)
            // Until here nothing was built on them that would be missed.
            .and_then(|()| names.map_or(Ok(()), NamesBeingSynced::wait))
            .and_then(|()| ready.commit(&self.folder, &self.lock, &mut self.definition));
        if let Err(e) = committed {
            ready.discard(&self.folder, &self.definition);
            if was_running {
                self.resume()?;
            }
            return Err(e);
        }
        self.boot = boot;
        self.machine = ready.machine;
        self.filling = ready.filling;
        self.disks = ready.disks;
        self.plug_over();
        if let Some(machine) = &self.machine
            && let Err(e) = machine.take_console(&self.console)
        {
            log::warn!("input does not reach the guest: {e}");
        }
        if body.run {
            self.resume()?;
        }
        Ok(())
    }
}
