//! Checkpoints that a VM's process makes by itself, and deletes by its rules.

use std::sync::PoisonError;
use std::time::Instant;

use super::chores::{Chore, Chores, Facts};
use super::{State, Vmm};
use crate::capture::guest::CaptureError;
use crate::checkpoint::Manifest;
use crate::control::jobs::JobKind;
use crate::control::upkeep::PrunedInfo;
use crate::control::{CheckpointInfo, CreateBody, Reply, RequestError, happened};
use crate::folder::{CheckpointType, Definition, What};
use crate::history::create::Origin;
use crate::history::{Catalog, CheckpointError, prune, trash};
use crate::moment::{Moment, shown};
use crate::progress::Progress;

/// A guest that changed no more than this part of its memory did nothing.
const IDLE: u64 = 64;

impl Vmm {
    fn runs(&self) -> bool {
        self.state() == State::Running
    }

    pub(super) fn next_chore(&self, chores: &mut Chores) -> Option<Instant> {
        let now = Moment::now();
        chores.wait(&now, self.runs(), || self.facts(&now)).map(|left| Instant::now() + left)
    }

    fn facts(&self, now: &Moment) -> Facts {
        let every = self.definition.schedule.every_seconds;
        let Ok(manifests) = Catalog::new(&self.folder, &self.definition).manifests() else {
            return Facts { every, unreadable: true, ..Facts::default() };
        };
        self.measure_checkpoints(&manifests);
        Facts {
            trash: trash::next_end(&manifests, &self.definition, now),
            every,
            made: prune::last_scheduled(&manifests).and_then(|last| last.keeping.made.clone()),
            unreadable: false,
        }
    }

    /// Does what is due, one thing.
    pub(super) fn do_chores(&mut self, chores: &mut Chores) {
        let due = chores.due(&Moment::now(), self.runs());
        if due.is_some() {
            self.counted = None;
        }
        match due {
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
            Ok(false) => {
                return log::info!("no scheduled checkpoint: nothing has changed since the last one");
            }
            Err(e) => log::warn!("{e}"),
        }
        let mut failed = Vec::new();
        match self.create_scheduled() {
            Ok(manifest) => {
                log::info!("scheduled checkpoint `{}` was created", manifest.name);
                self.note(happened::created(&CheckpointInfo::from(&manifest)));
            }
            Err(e) => failed.push(format!("the scheduled checkpoint could not be created: {e}")),
        }
        if !self.definition.retention.is_none() {
            match self.prune(false) {
                Ok(info) => happened::pruned(&info).into_iter().for_each(|event| self.note(event)),
                Err(e) => failed.push(format!("checkpoints that no rule keeps could not be deleted: {e}")),
            }
        }
        self.overdue = None;
        if !failed.is_empty() {
            let why = failed.join("; ");
            log::warn!("{why}");
            self.overdue = Some(format!("{}: {why}", shown(&Moment::now().at)));
            self.tell(What::ScheduleFailed, why);
        }
        if self.machine.is_some() {
            self.merge_layers();
        }
    }

    /// As a job, which can be seen and cancelled as any other.
    fn create_scheduled(&mut self) -> Result<Manifest, CheckpointError> {
        let body = CreateBody { kind: self.definition.schedule.kind, ..CreateBody::default() };
        let origin = Origin { scheduled: true, ..Origin::default() };
        let job = self.jobs.add(None, JobKind::Create, String::new()).ok();
        let progress = job.as_ref().map_or_else(Progress::default, |job| {
            job.begin();
            job.progress().clone()
        });
        let made = self.create_as(&body, origin, &progress);
        if let Some(job) = job {
            job.finish(&match &made {
                Ok(manifest) => Ok(Reply::of(manifest)),
                Err(e) => Err(RequestError::Failed(e.to_string())),
            });
        }
        made
    }

    /// Whether there is something that a checkpoint would hold and the last one does not: of memory
    /// more than what a guest writes that does nothing, if it would be held.
    fn has_changed(&self) -> Result<bool, CheckpointError> {
        let Definition { schedule, checkpoint_type, .. } = &self.definition;
        let with_memory = schedule.kind.unwrap_or(*checkpoint_type) == CheckpointType::Standard;
        if !schedule.only_if_changed || (self.disks.live.is_empty() && !with_memory) {
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
        if with_memory { self.has_written_memory() } else { Ok(false) }
    }

    fn has_written_memory(&self) -> Result<bool, CheckpointError> {
        let Some(machine) = &self.machine else { return Ok(false) };
        let parent = Catalog::new(&self.folder, &self.definition).with_memory(self.definition.now.parent)?;
        let tracker = machine.tracker();
        let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
        if parent.is_none() || tracker.parent() != parent {
            return Ok(true);
        }
        let most = tracker.vm().pages() / IDLE;
        // What is not known may have changed.
        Ok(tracker.count_changed().map_err(CaptureError::from)?.is_none_or(|pages| pages > most))
    }

    pub(super) fn prune(&mut self, dry_run: bool) -> Result<PrunedInfo, CheckpointError> {
        if !dry_run {
            self.park_merge();
        }
        self.deleting(|folder, lock, definition| prune::prune(folder, lock, definition, dry_run))
    }
}
