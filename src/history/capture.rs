//! The part of making a checkpoint that the guest notices: its memory is copied while it runs,
//! then it stands still while the rest is copied, state is read and disks switch to overlays.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::overlay::{Frozen, Staged, switch};
use super::shadow::Shadow;
use super::{Catalog, CheckpointError, Result};
use crate::capture::chain::MemoryChain;
use crate::capture::guest::{self, CaptureError, Touched};
use crate::capture::image::{ImageInfo, ImageWriter};
use crate::capture::live::{self, Limits, Report};
use crate::capture::staging::Staging;
use crate::capture::tracker::Tracker;
use crate::checkpoint::manifest::{CaptureInfo, Mode};
use crate::control::CreateBody;
use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::machine::{Machine, MachineState, Standstill, Stood};
use crate::progress::Progress;
use crate::storage::Storage;

/// Times that the guest is stopped in vain because it wrote too much just before.
const TRIES: u32 = 8;
/// Of these, that it is stopped in vain though the pause would not be longer than allowed.
const PATIENCE: u32 = 4;

/// What a machine gave. Its memory is not in the image yet as a whole.
pub struct Captured {
    pub state: MachineState,
    /// How long the guest stood still, stops in vain included.
    pub pause: Option<Duration>,
    pub info: CaptureInfo,
    /// The image that this one lies on.
    pub parent: Option<Id>,
    pub shadow: Option<Shadow>,
    image: ImageWriter,
    staging: Staging,
}

/// What has to be known to capture a machine.
pub struct Plan<'a> {
    pub storage: &'a Storage,
    pub id: Id,
    /// The nearest checkpoint with memory that Now descends from.
    pub parent: Option<Id>,
    /// Where memory that the machine does not have yet is read from.
    pub pending: Option<Arc<MemoryChain>>,
    pub image: &'a Path,
    pub body: &'a CreateBody,
    pub progress: &'a Progress,
}

/// What goes to the thread that does the capture, and back.
struct Work {
    storage: Storage,
    tracker: Arc<Mutex<Tracker>>,
    image: ImageWriter,
    staging: Staging,
    /// Pages that may be copied in the pause.
    most: u64,
    report: Report,
    progress: Progress,
    staged: BTreeMap<String, Staged>,
    mode: Mode,
    /// Of a capture of all memory.
    touched: Option<Touched>,
    shadow: Option<Shadow>,
    pending: Option<Arc<MemoryChain>>,
}

enum Outcome {
    Done(Box<MachineState>),
    /// Too much changed just before.
    TooMuch,
    Failed(CheckpointError),
}

fn lock(tracker: &Mutex<Tracker>) -> MutexGuard<'_, Tracker> {
    tracker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Captures a machine. After an error it goes on; `frozen` are the disks that write to their
/// overlays all the same.
pub fn machine(
    plan: &Plan,
    machine: &mut Machine,
    staged: BTreeMap<String, Staged>,
    frozen: &mut BTreeMap<String, Frozen>,
) -> Result<Captured> {
    let tracker = machine.tracker();
    let ranges = guest::ranges(lock(&tracker).vm().memory());
    let parent = lock(&tracker).parent().filter(|id| !plan.body.full && Some(*id) == plan.parent);
    let image = match parent {
        Some(parent) => ImageWriter::create_delta(plan.storage, plan.image, plan.id, parent, &ranges)?,
        None => ImageWriter::create(plan.storage, plan.image, plan.id, &ranges)?,
    };
    let image = if plan.body.compress { image } else { image.streamed() };
    let touched = match parent {
        Some(_) => None,
        None => {
            // A vCPU's thread, which writes all of memory with `--mode stop`, may neither open the one
            // nor begin the other.
            lock(&tracker).vm().start_dirty_log().map_err(CaptureError::from)?;
            Some(Touched::open()?)
        }
    };
    let limits = Limits::new(plan.body.max_pause(), ranges.iter().map(|(_, len)| len).sum());
    let mut work = Work {
        storage: plan.storage.clone(),
        staging: Staging::new(limits.staging),
        tracker,
        image,
        most: limits.rest(),
        report: Report::default(),
        progress: plan.progress.clone(),
        staged,
        mode: plan.body.mode,
        touched,
        shadow: None,
        pending: plan.pending.clone(),
    };
    if work.mode == Mode::Live {
        work.write_first()?;
    }
    let mut paused: Option<Duration> = None;
    for attempt in 0..TRIES {
        if work.mode == Mode::Live {
            let Work { tracker, image, staging, progress, report, .. } = &mut work;
            let nap = |time| {
                if let Err(e) = machine.nap(time) {
                    log::warn!("cannot throttle the guest: {e}");
                }
            };
            let left = live::copy_rounds(&mut lock(tracker), image, staging, &limits, progress, report, nap)?;
            work.most = if attempt < PATIENCE { limits.rest_without_burst(left) } else { limits.rest() };
        }
        let Stood { value: (back, outcome, switched), pause } =
            machine.stand_still(move |still| work.run(still))?;
        work = back;
        frozen.extend(switched);
        paused = pause.map(|pause| pause + paused.unwrap_or_default());
        match outcome {
            Outcome::TooMuch => continue,
            Outcome::Failed(e) => return Err(e),
            Outcome::Done(state) => {
                lock(&work.tracker).captured(plan.id).map_err(CaptureError::from)?;
                let Report { rounds, slowed, rest } = work.report;
                let info = CaptureInfo { mode: work.mode, rounds, slowed, rest_bytes: rest * PAGE_SIZE };
                let Work { image, staging, shadow, .. } = work;
                return Ok(Captured { state: *state, pause: paused, info, parent, shadow, image, staging });
            }
        }
    }
    let allowed = plan.body.max_pause();
    Err(CaptureError::TooFast { needed: allowed * 2, allowed }.into())
}

impl Work {
    fn write_first(&mut self) -> Result<()> {
        let tracker = &mut lock(&self.tracker);
        Ok(match &self.touched {
            None => live::write_changed(tracker, &mut self.image, &self.progress),
            Some(touched) => {
                live::write_all(tracker, &mut self.image, touched, self.pending.as_deref(), &self.progress)
            }
        }?)
    }

    /// Everything between the guest's last instruction before the checkpoint and its first after
    /// it.
    fn run(mut self, still: &Standstill<'_>) -> (Self, Outcome, BTreeMap<String, Frozen>) {
        let mut frozen = BTreeMap::new();
        let outcome = match self.capture(still, &mut frozen) {
            Ok(Some(state)) => Outcome::Done(Box::new(state)),
            Ok(None) => Outcome::TooMuch,
            Err(e) => Outcome::Failed(e),
        };
        (self, outcome, frozen)
    }

    fn capture(
        &mut self,
        still: &Standstill<'_>,
        frozen: &mut BTreeMap<String, Frozen>,
    ) -> Result<Option<MachineState>> {
        if self.mode == Mode::Stop {
            self.write_first()?;
        }
        // Before memory: KVM may still write there while state is read.
        let state = still.save()?;
        let rest = live::copy_rest(&mut lock(&self.tracker), &mut self.staging, self.most, &mut self.report)?;
        if !rest {
            return Ok(None);
        }
        self.shadow = Shadow::take(lock(&self.tracker).vm().memory())?;
        switch(&self.storage, std::mem::take(&mut self.staged), frozen)?;
        Ok(Some(state))
    }
}

/// What the memory of the checkpoint that a machine is tracked since lies on. Looked at before
/// checkpoints are deleted: that one may be among them.
pub struct Below(Option<MemoryChain>);

impl Below {
    pub fn of(catalog: &Catalog, machine: Option<&Machine>) -> Self {
        let parent = machine.and_then(|machine| lock(&machine.tracker()).parent());
        let chain = parent.map(|id| {
            let specs = catalog.store.memory_chain(&catalog.store.load(id)?)?;
            Ok::<_, CheckpointError>(MemoryChain::open(catalog.folder.storage(), &specs)?)
        });
        // What cannot be read will not be known.
        Self(chain.and_then(Result::ok))
    }

    /// `parent` is the nearest checkpoint with memory that Now descends from: the machine is tracked
    /// since that one from here on.
    pub fn follow(&self, machine: Option<&Machine>, parent: Option<Id>) {
        let (Some(machine), Some(chain)) = (machine, &self.0) else { return };
        let tracker = machine.tracker();
        let tracker = &mut lock(&tracker);
        if tracker.parent() != parent
            && let Err(e) = tracker.go_up(parent, chain)
        {
            log::warn!("the next checkpoint will store all memory: {e}");
        }
    }
}

impl Captured {
    /// Writes what is left to the image. The guest runs.
    pub fn finish(self, compress: bool, progress: &Progress) -> Result<(MachineState, ImageInfo)> {
        let Self { state, mut image, mut staging, .. } = self;
        progress.phase("changes", staging.bytes());
        staging.write_out(&mut image, |bytes| progress.add(bytes))?;
        if compress {
            image.compress_all(progress)?;
        }
        progress.phase("sync", 0);
        Ok((state, image.finish()?))
    }
}
