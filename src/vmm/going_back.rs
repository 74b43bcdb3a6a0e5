//! A VM goes to one of its checkpoints: while it is there, or out of nothing.

use super::{Message, State, Vmm, VmmError};
use crate::checkpoint::{Manifest, Trashed};
use crate::control::{ApplyBody, CreateBody};
use crate::devices::virtio::vsock::host::HostError;
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::inventory::Inventory;
use crate::history::recover::NamesBeingSynced;
use crate::history::{Catalog, CheckpointError, apply, networks};
use crate::id::Id;
use crate::machine::{Bare, Machine};
use crate::progress::Progress;
use crate::sandbox;

/// What was begun before a VM goes to a checkpoint.
struct Begun {
    /// KVM's side of the machine.
    bare: Option<Bare>,
    names: NamesBeingSynced,
    inventory: Option<Inventory>,
    runs: bool,
}

/// Gives the copy of a checkpoint that is gone to the networks that were asked for.
fn rename_networks(manifest: &mut Manifest, body: &ApplyBody) -> Result<(), CheckpointError> {
    let config = &mut manifest.config;
    config.nets = networks::renamed(&body.net, &config.nets, manifest.memory.is_some())?;
    Ok(())
}

impl Vmm {
    /// One of a VM that was off, at a checkpoint, standing still; with `runs` it is to be resumed next.
    pub fn restore(
        folder: VmFolder,
        definition: Definition,
        lock: VmLock,
        checkpoint: Id,
        body: &ApplyBody,
        runs: bool,
    ) -> Result<Self, VmmError> {
        let manifest = Catalog::new(&folder, &definition).store.load(checkpoint);
        let mut manifest = manifest.map_err(CheckpointError::from)?;
        rename_networks(&mut manifest, body)?;
        // It takes longer than all else, and needs none of it. Its thread ends before the guest runs.
        let bare = manifest.memory.is_some().then(|| Bare::begin(&manifest.config));
        let (mut vmm, names, inventory) = Self::recovering(folder, definition, lock, Some(&manifest.config))?;
        vmm.counted = inventory.as_ref().map(Inventory::count);
        // What the checkpoint has is what is needed.
        vmm.start_network_for(&manifest.config.nets).map_err(|e| vmm.with_a_way_out(e, &manifest))?;
        sandbox::enter()?;
        vmm.open_vsock(&manifest.config)?;
        // What was there is in the trash already, if that was wanted.
        vmm.go_to(&manifest, body, Some(Begun { bare, names, inventory, runs }), &Progress::default())?;
        // Nobody has to wait for that.
        let _ = vmm.sender.send(Message::ForgetFormer);
        Ok(vmm)
    }

    /// Goes to a checkpoint; a machine comes out of it standing still unless `run` is asked for. The
    /// state that is discarded can be taken back, `how` if it is to be.
    pub(super) fn apply_checkpoint(
        &mut self,
        manifest: &Manifest,
        body: &ApplyBody,
        how: Option<Trashed>,
        progress: &Progress,
    ) -> Result<(), CheckpointError> {
        let ran = self.state() == State::Running;
        let how = how.filter(|_| body.discard_current && !body.save_current);
        // Not kept for an apply that is refused.
        let gone = self
            .can_go_to(manifest.id, body)
            .and_then(|()| self.keep_now(how.map(|how| Trashed { was_now: true, ran, ..how }), progress))
            .and_then(|()| self.go_to(manifest, body, None, progress));
        if gone.is_err() {
            if ran && self.state() == State::Paused {
                self.resume()?;
            }
            self.consume();
        }
        gone?;
        apply::forget_former(&self.folder, &self.definition);
        self.consume();
        Ok(())
    }

    fn can_go_to(&mut self, checkpoint: Id, body: &ApplyBody) -> Result<(), CheckpointError> {
        // One into a base changes it, and its end the manifest.
        self.park_merge();
        let manifest = Catalog::new(&self.folder, &self.definition).store.load(checkpoint)?;
        apply::check(&self.folder, &self.definition, &manifest, body.how)
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
            return Err(CheckpointError::Refused("set either save_current or discard_current".into()));
        }
        self.park_merge();
        if body.how.cold && body.how.share {
            return Err(CheckpointError::Refused("with cold there is no memory to share".into()));
        }
        // A merge may have put it on another layer, or changed the base below it.
        let manifest = Catalog::new(&self.folder, &self.definition).store.load(manifest.id)?;
        let mut manifest = apply::seen_as(manifest, body.how);
        rename_networks(&mut manifest, body)?;
        let manifest = &manifest;
        // Of a VM that was off, this waits until the process that starts passt is there: until its program
        // begins it has this one's files, and the locks of disks that are opened and closed meanwhile.
        self.reserve_networks(manifest)?;
        let done = self.go_there(manifest, body, begun, progress);
        if done.is_err() {
            self.keep_networks();
        }
        done
    }

    fn go_there(
        &mut self,
        manifest: &Manifest,
        body: &ApplyBody,
        begun: Option<Begun>,
        progress: &Progress,
    ) -> Result<(), CheckpointError> {
        if body.save_current {
            // Not saved for an apply that is refused.
            apply::check(&self.folder, &self.definition, manifest, body.how)?;
            let body = CreateBody { name: body.name.clone(), ..Default::default() };
            self.create_checkpoint(&body, progress)?;
        }
        if self.vsock.is_none() && manifest.config.vsock && manifest.memory.is_some() {
            return Err(CheckpointError::Refused(HostError::TooLate.to_string()));
        }

        let boot = self.boot + 1;
        let reuse = self.disks.reuse();
        let idle = self.machine.is_none() && self.disks.machine.is_empty();
        let (around, names) = match begun {
            Some(Begun { bare, names, inventory, runs }) => {
                (apply::Around { reuse: &reuse, idle, bare, inventory, runs }, Some(names))
            }
            None => {
                (apply::Around { reuse: &reuse, idle, bare: None, inventory: None, runs: body.run }, None)
            }
        };
        let mut ready = apply::prepare(
            &self.folder,
            &self.lock,
            &self.definition,
            manifest,
            around,
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
        self.desk.set(ready.machine.as_ref().map(Machine::agent), "went back to a checkpoint");
        self.machine = ready.machine;
        self.filling = ready.filling;
        self.disks = ready.disks;
        self.plug_over();
        if let Some(machine) = &self.machine
            && let Err(e) = machine.take_console(&self.console)
        {
            log::warn!("cannot pass console input to the guest: {e}");
        }
        if body.run {
            self.resume()?;
        }
        Ok(())
    }
}
