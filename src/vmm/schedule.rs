//! Checkpoints that a VM's process makes by itself, and deletes by its rules.

use std::time::Instant;

use super::chores::{Chore, Chores, Facts};
use super::{State, Vmm};
use crate::control::CreateBody;
use crate::control::upkeep::PrunedInfo;
use crate::history::create::Origin;
use crate::history::{Catalog, CheckpointError, prune, trash};
use crate::moment::Moment;
use crate::progress::Progress;

impl Vmm {
    fn runs(&self) -> bool {
        self.state() == State::Running
    }

    pub(super) fn next_chore(&self, chores: &mut Chores) -> Option<Instant> {
        let now = Moment::now();
        chores.wait(&now, self.runs(), || self.facts(&now)).map(|left| Instant::now() + left)
    }

    fn facts(&self, now: &Moment) -> Option<Facts> {
        let manifests = Catalog::new(&self.folder, &self.definition).manifests().ok()?;
        Some(Facts {
            trash: trash::next_end(&manifests, &self.definition, now),
            every: self.definition.schedule.every_seconds,
            made: prune::last_scheduled(&manifests).and_then(|last| last.keeping.made.clone()),
        })
    }

    /// Does what is due, one thing.
    pub(super) fn do_chores(&mut self, chores: &mut Chores) {
        match chores.due(&Moment::now(), self.runs()) {
            Some(Chore::Trash) => {
                let all = self.empty_expired();
                chores.emptied(&Moment::now(), all);
            }
            Some(Chore::Checkpoint) => self.make_scheduled(),
            None => {}
        }
    }

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
