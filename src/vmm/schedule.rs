//! Checkpoints that a VM's process makes by itself, and deletes by its rules.

use super::{State, Vmm};
use crate::control::CreateBody;
use crate::control::upkeep::PrunedInfo;
use crate::history::create::Origin;
use crate::history::{Catalog, CheckpointError, prune};
use crate::progress::Progress;

impl Vmm {
    /// Its time has come: a checkpoint, and what the rules do not keep goes. One that fails is told of,
    /// and the next one is made when its time has come.
    pub(super) fn make_scheduled(&mut self) {
        if self.state() != State::Running {
            return;
        }
        match self.has_changed() {
            Ok(true) => {}
            Ok(false) => return log::info!("no scheduled checkpoint: no disk has been written to"),
            Err(e) => log::warn!("{e}"),
        }
        let body = CreateBody { kind: self.definition.schedule.kind, ..CreateBody::default() };
        let origin = Origin { scheduled: true, ..Origin::default() };
        match self.create_as(&body, origin, &Progress::default()) {
            Ok(manifest) => log::info!("scheduled checkpoint `{}` was created", manifest.name),
            Err(e) => log::warn!("the scheduled checkpoint could not be created: {e}"),
        }
        if !self.definition.retention.is_none()
            && let Err(e) = self.prune(false)
        {
            log::warn!("checkpoints that no rule keeps are not deleted: {e}");
        }
        if self.machine.is_some() {
            self.merge_layers();
        }
    }

    /// Whether there is something that a checkpoint would hold and the last one does not. Memory always
    /// changes; of a VM with disks these decide.
    fn has_changed(&self) -> Result<bool, CheckpointError> {
        if !self.definition.schedule.only_if_changed || self.disks.live.is_empty() {
            return Ok(true);
        }
        let (_, parent) = Catalog::new(&self.folder, &self.definition).shown(&self.definition)?;
        if parent.is_none() {
            return Ok(true);
        }
        for disk in self.disks.live.values() {
            if disk.overlay_bytes()? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn prune(&mut self, dry_run: bool) -> Result<PrunedInfo, CheckpointError> {
        if !dry_run {
            self.park_merge();
        }
        self.deleting(|folder, lock, definition| prune::prune(folder, lock, definition, dry_run))
    }
}
