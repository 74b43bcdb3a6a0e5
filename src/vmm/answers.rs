//! What is asked of a VM over its control socket, one request after another.

use std::sync::PoisonError;
use std::time::Duration;

use super::{Message, Vmm, confined};
use crate::capture::lazy::Filling;
use crate::checkpoint::Manifest;
use crate::control::jobs::Job;
use crate::control::{
    Answer, ApplyBody, CreateBody, GoBack, Reply, Request, RequestError, RevertBody, State, StopBody,
};
use crate::folder::CheckpointType;
use crate::history::create::{Origin, Subject};
use crate::history::{self, Catalog, CheckpointError, policy, trash};
use crate::machine::{Machine, MachineError};
use crate::progress::Progress;

/// How long a guest has to shut down before a forced stop cuts its power, unless it is said.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

impl Vmm {
    pub(super) fn answer(&mut self, request: Request, job: Option<&Job>) -> Answer {
        let (changes, creates) = (request.job().is_some(), matches!(request, Request::CreateCheckpoint(_)));
        let throws_away = matches!(
            request,
            Request::ApplyCheckpoint(..)
                | Request::Revert(_)
                | Request::DeleteCheckpoint(..)
                | Request::Undo(_)
                | Request::RestoreTrash(..)
        );
        let mut answer = self.do_request(request, job);
        if throws_away && answer.is_ok() {
            self.bound_trash();
        }
        // It may have left layers that nothing needs apart; only a checkpoint that was made has not.
        if changes && self.machine.is_some() && !(creates && answer.is_ok()) {
            let merge_job = self.merge_layers();
            if let Ok(Reply::Deleted(deleted)) = &mut answer
                && !deleted.dry_run
            {
                deleted.merge_job = merge_job;
                deleted.merge_later = merge_job.is_some();
            }
        }
        answer
    }

    fn do_request(&mut self, request: Request, job: Option<&Job>) -> Answer {
        let progress = &job.map(|job| job.progress().clone()).unwrap_or_default();
        progress.check().map_err(CheckpointError::from)?;
        if let Some(job) = job {
            job.begin();
        }
        let about = |manifest: &Manifest| {
            if let Some(job) = job {
                job.set_subject(&manifest.name);
            }
        };
        let failed = |e: MachineError| RequestError::Failed(e.to_string());
        let catalog = Catalog::new(&self.folder, &self.definition);
        match (request, self.state()) {
            (Request::Pause, State::Running) => {
                self.machine.as_mut().map_or(Ok(()), Machine::pause).map_err(failed)?;
            }
            (Request::Resume, State::Paused) => self.resume().map_err(failed)?,
            (Request::Stop(StopBody { force: true, timeout }), _) => {
                let patience = timeout.map_or(STOP_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
                // Its turn is next: the answer comes first, as that of a stop without force does.
                let _ = self.sender.send(Message::ShutDown { by: "piton stop --force", patience });
            }
            (Request::Stop(_), State::Paused) => {
                let name = self.folder.name();
                return Err(RequestError::Refused(format!(
                    "the VM `{name}` is paused, so its guest cannot shut down: resume it with `piton \
                     resume {name}`, or cut its power with `piton kill {name}`"
                )));
            }
            (Request::Stop(_), _) => {
                self.machine.as_ref().map_or(Ok(()), Machine::press_power_button).map_err(failed)?;
            }
            // The owner's loop ends with it.
            (Request::Kill, _) => {}
            // Pausing what is paused and resuming what runs are done already.
            (Request::Pause | Request::Resume, _) => {}
            (Request::Show, _) => return Ok(self.look().into()),
            (Request::Set(body), _) if body.changes_hardware() => {
                let name = self.folder.name();
                return Err(RequestError::Refused(format!(
                    "memory, CPUs and command line can only be changed while the VM is off: `piton stop {name}` \
                     shuts it down"
                )));
            }
            (Request::Set(body), _) => {
                confined::can_reach(&self.folder, &self.definition, &body)?;
                let (before, forwards) =
                    (self.definition.forwards.clone(), policy::forwards(&self.definition, &body)?);
                self.set_forwards(&before, &forwards)?;
                if let Err(e) = policy::set(&self.folder, &self.lock, &mut self.definition, &body) {
                    self.set_forwards(&forwards, &before)?;
                    return Err(e.into());
                }
                self.seal_bases();
                if self.definition.checkpoint_type == CheckpointType::Disabled
                    && let Some(machine) = &self.machine
                    && let Err(e) = machine.tracker().lock().unwrap_or_else(PoisonError::into_inner).stop()
                {
                    log::warn!("cannot stop logging the guest's writes: {e}");
                }
            }
            (Request::Checkpoints, _) => return Ok(Reply::Tree(history::tree(&catalog, &self.definition)?)),
            (Request::Checkpoint(reference), _) => {
                let manifest = catalog.resolve(&self.definition, &reference)?;
                let details = history::details(&catalog, &self.definition, &manifest)?;
                return Ok(Reply::Details(Box::new(details)));
            }
            (Request::ChangeCheckpoint(reference, body), _) => {
                return Ok(Reply::of(&catalog.change(&self.definition, &reference, &body)?));
            }
            (Request::CreateCheckpoint(body), _) => {
                let manifest = self.create_checkpoint(&body, progress)?;
                about(&manifest);
                let catalog = Catalog::new(&self.folder, &self.definition);
                return Ok(Reply::of(&catalog.as_shown(&self.definition, manifest)));
            }
            (Request::ApplyCheckpoint(reference, body), _) => {
                let manifest = catalog.resolve(&self.definition, &reference)?;
                about(&manifest);
                let how = self.how_kept(format!("apply of `{}`", manifest.name), body.no_undo)?;
                self.apply_checkpoint(&manifest, &body, how, progress)?;
            }
            (Request::DeleteCheckpoint(reference, body), _) => {
                let (id, name) = catalog.resolve_any(&self.definition, &reference)?;
                if let Some(job) = job {
                    job.set_subject(name);
                }
                if !body.dry_run {
                    self.park_merge();
                }
                let deleted = self
                    .deleting(|folder, lock, definition| trash::delete(folder, lock, definition, id, body))?;
                return Ok(Reply::Deleted(deleted));
            }
            (Request::CloneCheckpoint(reference, body), _) => {
                // What is shared is never written.
                self.park_merge();
                let catalog = Catalog::new(&self.folder, &self.definition);
                let manifest = catalog.resolve(&self.definition, &reference)?;
                about(&manifest);
                history::clone::make(&self.folder, &self.definition, manifest.id, &body, progress)?;
            }
            (Request::Revert(RevertBody { run, force, no_undo, cold }), _) => {
                let manifest = catalog.parent_of_now(&self.definition)?;
                about(&manifest);
                let how = GoBack { force, cold, ..Default::default() };
                let body = ApplyBody { discard_current: true, run, how, ..Default::default() };
                let how = self.how_kept(format!("revert to `{}`", manifest.name), no_undo)?;
                self.apply_checkpoint(&manifest, &body, how, progress)?;
            }
            (Request::Trash, _) => return Ok(Reply::Trash(trash::info(&catalog, &self.definition)?)),
            (Request::Undo(body), _) => {
                let entry = trash::last(&catalog, &self.definition)?;
                return self.take_back(entry, true, body, job, progress);
            }
            (Request::RestoreTrash(reference, body), _) => {
                let entry = trash::find(&catalog, &self.definition, &reference)?;
                return self.take_back(entry, false, body, job, progress);
            }
            (Request::Prune(body), _) => return Ok(Reply::Pruned(self.prune(body.dry_run)?)),
            (Request::EmptyTrash(reference), _) => return self.empty_trash(reference.as_deref()),
        }
        Ok(self.info().into())
    }

    pub(super) fn create_checkpoint(
        &mut self,
        body: &CreateBody,
        progress: &Progress,
    ) -> Result<Manifest, CheckpointError> {
        self.create_as(body, Origin::default(), progress)
    }

    pub(super) fn create_as(
        &mut self,
        body: &CreateBody,
        origin: Origin,
        progress: &Progress,
    ) -> Result<Manifest, CheckpointError> {
        let made = loop {
            let subject = Subject {
                folder: &self.folder,
                lock: &self.lock,
                definition: &mut self.definition,
                disks: &self.disks.live,
                machine: self.machine.as_mut(),
                origin: origin.clone(),
                pending: self.filling.as_ref().and_then(Filling::pending),
            };
            match policy::create(subject, body, progress) {
                // What was thrown away is in nobody's way.
                Err(e) if e.is_full() && self.drop_oldest() => {}
                made => break made,
            }
        };
        // It may have taken the room that a guest's write needed, and has given it back.
        if made.is_err()
            && let Some(machine) = self.machine.as_ref().filter(|machine| machine.is_running())
        {
            machine.retry_requests();
        }
        let manifest = made?;
        self.metrics.captured(&manifest);
        if body.pause_after {
            self.machine.as_mut().map_or(Ok(()), Machine::pause)?;
        }
        Ok(manifest)
    }
}
