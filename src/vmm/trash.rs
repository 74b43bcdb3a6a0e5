//! The trash of a VM that has a process: what a going back discards, undo, and emptying.

use super::{State, Vmm};
use crate::capture::lazy::Filling;
use crate::checkpoint::Trashed;
use crate::checkpoint::manifest::Mode;
use crate::control::jobs::Job;
use crate::control::trash::{EmptiedInfo, UndoBody};
use crate::control::{Answer, ApplyBody, CreateBody, Reply, UndoneInfo};
use crate::folder::{CheckpointType, Definition, VmFolder, VmLock};
use crate::history::capture::Below;
use crate::history::create::{Origin, Subject, create};
use crate::history::trash::{self, Entry};
use crate::history::{Catalog, CheckpointError};
use crate::machine::Machine;
use crate::progress::Progress;

impl Vmm {
    /// How the current state comes into the trash if something else takes its place; none: it does
    /// not.
    pub(super) fn how_kept(&self, why: String, no_undo: bool) -> Result<Option<Trashed>, CheckpointError> {
        let can = self.machine.is_some() && self.definition.checkpoint_type != CheckpointType::Disabled;
        if !can || !trash::is_on(&self.definition, no_undo) {
            return Ok(None);
        }
        trash::next(&Catalog::new(&self.folder, &self.definition), why).map(Some)
    }

    /// Puts the current state into the trash. The guest stands still from then on: to the instant
    /// that it comes back at, if it does.
    pub(super) fn keep_now(
        &mut self,
        how: Option<Trashed>,
        progress: &Progress,
    ) -> Result<(), CheckpointError> {
        let Some(how) = how else { return Ok(()) };
        self.park_merge();
        self.machine.as_mut().map_or(Ok(()), Machine::pause)?;
        let body = CreateBody { mode: Mode::Stop, ..CreateBody::default() };
        loop {
            let subject = Subject {
                folder: &self.folder,
                lock: &self.lock,
                definition: &mut self.definition,
                disks: &self.disks.live,
                machine: self.machine.as_mut(),
                pending: self.filling.as_ref().and_then(Filling::pending),
                origin: Origin { trash: Some(how.clone()), ..Origin::default() },
            };
            match create(subject, &body, progress) {
                Ok(_) => return Ok(()),
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) if e.is_full() && self.drop_oldest() => {}
                Err(e) => return Err(CheckpointError::NotKept(Box::new(e))),
            }
        }
    }

    /// Does what may delete checkpoints for good, and tells the machine what its memory lies on then.
    pub(super) fn deleting<T>(
        &mut self,
        act: impl FnOnce(&VmFolder, &VmLock, &mut Definition) -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        let catalog = Catalog::new(&self.folder, &self.definition);
        let below = Below::of(&catalog, self.machine.as_ref());
        let done = act(&self.folder, &self.lock, &mut self.definition);
        let catalog = Catalog::new(&self.folder, &self.definition);
        // What cannot be known makes the next one a full one.
        let parent = catalog.with_memory(self.definition.now.parent).unwrap_or_default();
        below.follow(self.machine.as_ref(), parent);
        done
    }

    /// A state of the trash that Now goes on from has come back.
    pub(super) fn consume(&mut self) {
        let consumed = self.deleting(trash::consume);
        if let Err(e) = consumed {
            log::warn!("cannot remove a restored entry from the trash yet: {e}");
        }
    }

    /// False: some whose time is over are there still.
    pub(super) fn empty_expired(&mut self) -> bool {
        self.park_merge();
        let all = self.deleting(trash::expire).unwrap_or_else(|e| {
            log::warn!("cannot empty the trash: {e}");
            false
        });
        if self.machine.is_some() {
            self.merge_layers();
        }
        all
    }

    /// The trash keeps to its share.
    pub(super) fn bound_trash(&mut self) {
        if let Err(e) = self.deleting(trash::bound) {
            log::warn!("cannot limit the size of the trash: {e}");
        }
    }

    /// Gives up the oldest of the trash for room that is needed now; false if there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.park_merge();
        let dropped = self.deleting(trash::drop_oldest);
        dropped.unwrap_or_else(|e| {
            log::warn!("{e}");
            false
        })
    }

    /// Takes an entry back.
    pub(super) fn take_back(
        &mut self,
        entry: Entry,
        by_undo: bool,
        body: UndoBody,
        job: Option<&Job>,
        progress: &Progress,
    ) -> Answer {
        if let Some(job) = job {
            job.set_subject(trash::subject(&entry));
        }
        let info =
            trash::entry_info(&Catalog::new(&self.folder, &self.definition), &self.definition, &entry)?;
        match entry.state() {
            None => trash::restore(&self.folder, &self.definition, &entry)?,
            Some(manifest) => {
                let why = if by_undo { "undo" } else { "restore from the trash" };
                let how = self.how_kept(why.into(), body.no_undo)?.map(|how| Trashed { by_undo, ..how });
                let run = entry.how.ran;
                let body = ApplyBody { discard_current: true, run, ..ApplyBody::default() };
                self.apply_checkpoint(manifest, &body, how, progress)?;
            }
        }
        Ok(Reply::Undone(Box::new(UndoneInfo { entry: info, vm: self.info() })))
    }

    pub(super) fn empty_trash(&mut self, reference: Option<&str>) -> Answer {
        self.park_merge();
        let reference = reference.map(ToOwned::to_owned);
        let EmptiedInfo { entries, bytes } = self.deleting(move |folder, lock, definition| {
            trash::empty(folder, lock, definition, reference.as_deref())
        })?;
        Ok(Reply::Emptied(EmptiedInfo { entries, bytes }))
    }

    /// A write of the guest found no room: the trash gives some.
    pub(super) fn make_room(&mut self) -> bool {
        let made = self.state() == State::Running && self.drop_oldest();
        if let Some(machine) = self.machine.as_ref().filter(|_| made) {
            machine.retry_requests();
        }
        made
    }
}
