//! Merging layers while the guest runs.
//!
//! The VM's owner decides and writes down; what takes long (checking, copying, syncing) a thread
//! does meanwhile, so that every request is served at once. One pair of layers is merged at a
//! time. A pair whose upper layer the guest writes to comes about in rounds: a fresh overlay goes
//! on top and what is below it is merged, until the overlay that is left holds so little that the
//! guest's requests can wait while it is folded down.
//!
//! Whatever needs the layers for itself (going back, deleting, a reset, the VM's end) parks the
//! merge: the thread stops, and what it has moved changes nothing that is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Vmm;
use super::series::{Begun, MOST_ROUNDS, Outcome, Running, Series, Tell, Way, small};
use crate::control::jobs::JobKind;
use crate::control::{Reply, RequestError};
use crate::disk::DiskError;
use crate::disk::live::LiveDisk;
use crate::disk::merge::Merge;
use crate::folder::What;
use crate::history::disks::{new_layer_path, remove_layers};
use crate::history::merge::Settler;
use crate::history::pair::{Checked, GoOn, Pair};
use crate::history::{Catalog, CheckpointError, sealing};
use crate::id::Id;
use crate::progress::{Cancelled, Progress};

impl Vmm {
    /// Begins to merge what nothing needs apart, or goes on with it. Returns the job, if there is
    /// anything to do.
    pub(super) fn merge_layers(&mut self) -> Option<Id> {
        if self.merging.is_none() {
            match self.next_pair() {
                Ok(None) => return None,
                Ok(Some(_)) => {}
                Err(e) => {
                    log::warn!("layers could not be merged yet: {e}");
                    return None;
                }
            }
            let job = self.jobs.add(None, JobKind::Merge, String::new()).ok()?;
            job.begin();
            let (rounds, sound) = (BTreeMap::new(), None);
            self.merging = Some(Series { job, running: None, rounds, sound, threads: 0 });
        }
        let id = self.merging.as_ref().map(|series| series.job.id());
        self.advance();
        id
    }

    /// A thread has come to its end.
    pub(super) fn merge_goes_on(&mut self, number: u64) {
        if let Some(series) = &mut self.merging
            && let Some(running) = series.running.take_if(|running| running.number == number)
        {
            self.conclude(running, false);
        }
        self.advance();
    }

    /// After a pause in which the layers were needed.
    pub(super) fn merge_on(&mut self) {
        self.advance();
    }

    /// Stops the thread. The layers are nobody's until [`Vmm::merge_layers`].
    pub(super) fn park_merge(&mut self) {
        let running = self.merging.as_mut().and_then(|series| series.running.take());
        if let Some(running) = running {
            running.stop.store(true, Ordering::SeqCst);
            self.conclude(running, true);
        }
    }

    /// Parks it for good: the VM ends.
    pub(super) fn end_merge(&mut self) {
        self.park_merge();
        self.finish_series(Err("cancelled: the VM is stopping, and merges the remaining layers then"));
    }

    fn finish_series(&mut self, result: Result<(), &str>) {
        let Some(Series { job, .. }) = self.merging.take() else { return };
        job.finish(&match result {
            Ok(()) => Ok(Reply::Done {}),
            Err(why) => Err(RequestError::Cancelled(why.into())),
        });
    }

    /// It failed; the guest is not touched by that, and it is tried again another time.
    fn put_off(&mut self, error: &CheckpointError) {
        let why = format!("layers could not be merged yet: {error}");
        log::warn!("{why}");
        self.tell(What::MergeFailed, why.clone());
        if let Some(Series { job, .. }) = self.merging.take() {
            job.finish(&Err(RequestError::Failed(why)));
        }
    }

    /// Does what there is to do up to where it takes long.
    fn advance(&mut self) {
        while let Some(series) = &self.merging
            && series.running.is_none()
        {
            if series.job.progress().is_cancelled() {
                return self
                    .finish_series(Err("cancelled: the remaining layers will be merged when the VM stops"));
            }
            let step = match self.next_pair() {
                Ok(Some(pair)) if pair.upper_is_top => self.shorten(pair),
                Ok(Some(pair)) => self.start_check(pair, false),
                Ok(None) => {
                    if let Err(e) = self.with_settler(|settler| settler.prune_sums()) {
                        log::warn!("{e}");
                    }
                    return self.finish_series(Ok(()));
                }
                Err(e) => Err(e),
            };
            if let Err(e) = step {
                return self.put_off(&e);
            }
        }
    }

    fn with_settler<T>(&mut self, f: impl FnOnce(&mut Settler) -> T) -> T {
        let catalog = Catalog::new(&self.folder, &self.definition);
        let definition = &mut self.definition;
        f(&mut Settler { catalog: &catalog, lock: &self.lock, definition, running: true })
    }

    fn next_pair(&mut self) -> Result<Option<Pair>, CheckpointError> {
        // One that went wrong at its very end is brought to it when nobody has the layers open.
        if self.definition.now.merging.is_some() {
            return Ok(None);
        }
        self.with_settler(|settler| {
            for disk in settler.disks() {
                if let Some(pair) = settler.next(&disk)? {
                    return Ok(Some(pair));
                }
            }
            Ok(None)
        })
    }

    /// The layer that the guest writes to is to go: down if it holds little, else under a fresh one.
    fn shorten(&mut self, pair: Pair) -> Result<(), CheckpointError> {
        let id = &pair.disk.id;
        let Some(disk) = self.disks.live.get(id).cloned() else {
            return Err(CheckpointError::Refused(format!("disk `{id}` is not open")));
        };
        let Some(series) = &mut self.merging else { return Ok(()) };
        let round = series.rounds.entry(id.clone()).or_default();
        let bytes = disk.overlay_bytes().map_err(|e| pair.failed(e))?;
        if bytes <= small(*round) && !disk.top_is_larger() {
            // What is damaged is not written to as if it were good.
            if pair.lower_id().is_some_and(|lower| series.sound != Some(lower)) {
                return self.start_check(pair, true);
            }
            series.sound = None;
            return self.fold(&pair, &disk);
        }
        if *round >= MOST_ROUNDS {
            return Err(CheckpointError::Refused(format!(
                "the guest writes to disk `{id}` faster than it can be merged"
            )));
        }
        *round += 1;
        self.freeze(&pair, &disk)
    }

    fn freeze(&mut self, pair: &Pair, disk: &LiveDisk) -> Result<(), CheckpointError> {
        let id = &pair.disk.id;
        let path = new_layer_path(&self.folder, id)?;
        let overlay = disk.prepare(self.folder.storage(), &path).map_err(|e| pair.failed(e))?;
        let layer = overlay.spec();
        // Named before it is used; empty, it changes nothing that is read.
        let mut next = self.definition.clone();
        next.now.unsealed.extend(next.now.tops.get(id).copied());
        next.now.tops.insert(id.clone(), layer.id);
        if let Err(e) = self.with_settler(|settler| settler.save(next)) {
            if self.folder.load().is_ok_and(|found| found == self.definition) {
                remove_layers(&self.folder, [&layer]);
            }
            return Err(e);
        }
        disk.push(self.folder.storage(), overlay).map_err(|e| pair.failed(e))?;
        Ok(())
    }

    fn fold(&mut self, pair: &Pair, disk: &LiveDisk) -> Result<(), CheckpointError> {
        self.with_settler(|settler| settler.thaw(pair))?;
        let storage = self.folder.storage().clone();
        disk.fold(&storage, || self.with_settler(|settler| settler.folded(pair)))?;
        self.with_settler(|settler| settler.remove_orphans())?;
        sealing::remove_strays(&self.folder, &self.definition);
        Ok(())
    }

    fn start_check(&mut self, pair: Pair, upper_is_written: bool) -> Result<(), CheckpointError> {
        let check = self.with_settler(|settler| settler.check(&pair, upper_is_written))?;
        let (live, both) = (self.live(&pair), pair.lower_id().into_iter().chain([pair.upper.id]));
        self.spawn(pair, None, move |progress, go_on| {
            progress.phase("verify", 0);
            // Its first checksums may be taken; and it is not waited for when the merge begins.
            let durable = match live {
                Way::Live(disk) => both.into_iter().try_for_each(|layer| disk.sync_layer(layer)),
                Way::Aside => Ok(()),
            };
            let checked = durable.and_then(|()| {
                check.run(&|bytes| {
                    progress.add(bytes);
                    go_on()
                })
            });
            checked.map_or_else(Outcome::Stopped, Outcome::Verified)
        })
    }

    /// How to get at the layers of a pair.
    fn live(&self, pair: &Pair) -> Way {
        match self.disks.live.get(&pair.disk.id) {
            Some(disk) if disk.is_frozen_here(pair.upper.id) => Way::Live(disk.clone()),
            _ => Way::Aside,
        }
    }

    /// Both layers are sound: now they may change.
    fn begin(&mut self, pair: Pair, checked: Checked) -> Result<(), CheckpointError> {
        self.with_settler(|settler| settler.nobody_reads())?;
        let storage = self.folder.storage().clone();
        let (way, outlook) = (self.live(&pair), checked.outlook);
        let merge = match &way {
            Way::Live(disk) => disk.begin_merge(&storage, pair.upper.id, checked.upper, outlook.as_ref()),
            Way::Aside => pair.open(&self.folder, &checked),
        };
        let merge = merge.map_err(|e| pair.failed(e))?;
        let announced = self.with_settler(|settler| settler.announce(&pair, merge.direction(), &checked));
        let merging = match announced {
            Ok(merging) => merging,
            Err(e) => {
                way.cancel(merge);
                return Err(e);
            }
        };
        let begun = Begun { merging, outlook };
        self.spawn(pair, Some(begun), move |progress, go_on| way.copy(merge, progress, go_on))
    }

    /// All is in one layer: now who lies on the other can be moved.
    fn finish(&mut self, pair: Pair, begun: Begun, merge: Merge) -> Result<(), CheckpointError> {
        let way = self.live(&pair);
        if let Err(e) = self.with_settler(|settler| settler.copied(&begun.merging)) {
            way.cancel(merge);
            self.with_settler(|settler| settler.give_up())?;
            return Err(e);
        }
        let (storage, children) = (self.folder.storage().clone(), pair.children.clone());
        let outlook = begun.outlook;
        self.spawn(pair, Some(begun), move |_, _| way.finish(&storage, merge, &children, outlook.as_ref()))
    }

    fn spawn(
        &mut self,
        pair: Pair,
        begun: Option<Begun>,
        work: impl FnOnce(&Progress, &dyn Fn() -> GoOn) -> Outcome + Send + 'static,
    ) -> Result<(), CheckpointError> {
        let Some(series) = &mut self.merging else { return Ok(()) };
        series.job.set_subject(&pair.disk.id);
        let (progress, sender) = (series.job.progress().clone(), self.sender.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        series.threads += 1;
        let number = series.threads;
        let thread = std::thread::Builder::new().name("merge".into()).spawn(move || {
            let _tell = Tell { sender, number };
            work(&progress, &|| match told.load(Ordering::SeqCst) {
                true => Err(Cancelled.into()),
                false => Ok(progress.check()?),
            })
        });
        match thread {
            Ok(thread) => {
                series.running = Some(Running { number, pair, begun, stop, thread });
                Ok(())
            }
            Err(error) => {
                // What was begun went with the closure; the layers are opened anew.
                if let Err(e) = self.with_settler(|settler| settler.give_up()) {
                    log::warn!("{e}");
                }
                Err(CheckpointError::Thread(error))
            }
        }
    }

    /// Takes note of what a thread came to; waits for it if need be. Nothing new begins if it is to
    /// `park`.
    fn conclude(&mut self, running: Running, park: bool) {
        let Running { pair, begun, thread, .. } = running;
        // One that panicked may have been anywhere.
        let outcome = thread.join().unwrap_or(Outcome::Halfway(DiskError::Broken));
        let concluded = match (outcome, begun) {
            // Whoever stopped it goes on from here another time.
            (Outcome::Stopped(DiskError::Cancelled(_)), _) => self.with_settler(|settler| settler.give_up()),
            (Outcome::Verified(_), _) if park => Ok(()),
            (Outcome::Verified(_), _) if pair.upper_is_top => {
                if let Some(series) = &mut self.merging {
                    series.sound = pair.lower_id();
                }
                Ok(())
            }
            (Outcome::Verified(checked), _) => self.begin(pair, checked),
            (Outcome::Copied(merge), Some(begun)) if !park => self.finish(pair, begun, *merge),
            (Outcome::Copied(merge), _) => {
                self.live(&pair).cancel(*merge);
                self.with_settler(|settler| settler.give_up())
            }
            (Outcome::Merged, Some(begun)) => self.with_settler(|settler| settler.done(pair, &begun.merging)),
            (Outcome::Merged, None) => Ok(()),
            (Outcome::Stopped(e), _) => {
                let given_up = self.with_settler(|settler| settler.give_up());
                given_up.and(Err(pair.failed(e).into()))
            }
            (Outcome::Halfway(e), _) => Err(pair.failed(e).into()),
        };
        if let Err(e) = concluded {
            self.put_off(&e);
        }
    }
}
