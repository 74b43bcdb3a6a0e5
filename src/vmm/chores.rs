//! What a VM's process does by itself when its time has come.

use std::time::{Duration, Instant};

use crate::folder::{Definition, VmFolder};
use crate::history::{Catalog, prune, trash};
use crate::moment::Moment;

/// Between two looks at most: the host may sleep meanwhile, or its clock be set.
const LONGEST: Duration = Duration::from_secs(3600);
/// Before what was due and could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A start is not held up by what has waited for long.
const CALM: Duration = Duration::from_secs(1);

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Things in the trash have had their time.
    Trash,
    /// A checkpoint.
    Checkpoint,
}

/// When there is something to do next, and what.
pub struct Chores {
    /// None: not known. Inside: there is nothing.
    next: Option<Option<(Instant, Option<Chore>)>>,
    /// Not before.
    pause: Instant,
    /// When a checkpoint was last tried, or a schedule was set.
    tried: Option<Moment>,
    /// The VM had a schedule when it was looked at last.
    was_scheduled: bool,
}

impl Default for Chores {
    fn default() -> Self {
        Self { next: None, pause: Instant::now() + CALM, tried: None, was_scheduled: true }
    }
}

impl Chores {
    /// `runs`: the guest does. What is due while it does not is made once it does.
    pub fn next(&mut self, folder: &VmFolder, definition: &Definition, runs: bool) -> Option<Instant> {
        if self.next.is_none() {
            let (now, manifests) =
                (Moment::now(), Catalog::new(folder, definition).manifests().unwrap_or_default());
            let trash = trash::next_end(&manifests, definition, &now).map(|left| (left, Chore::Trash));
            let every = definition.schedule.every_seconds;
            if every > 0 && !self.was_scheduled {
                // From when it was set.
                self.tried = Some(now.clone());
            }
            self.was_scheduled = every > 0;
            let made = prune::last_scheduled(&manifests).and_then(|last| last.keeping.made.as_ref());
            // One that failed just now is not tried again at once.
            let past = [made, self.tried.as_ref()].into_iter().flatten();
            let since = past.map(|past| now.since(past)).min().unwrap_or(u64::MAX);
            let checkpoint = (every > 0 && runs).then(|| (every.saturating_sub(since), Chore::Checkpoint));
            let first = trash.into_iter().chain(checkpoint).min_by_key(|(left, _)| *left);
            self.next = Some(first.map(|(left, chore)| {
                let left = Duration::from_secs(left);
                let at = Instant::now() + left.min(LONGEST);
                // Otherwise it is only looked at again.
                (at.max(self.pause), Some(chore).filter(|_| left <= LONGEST))
            }));
        }
        self.next.flatten().map(|(at, _)| at)
    }

    /// Something changed.
    pub fn look_again(&mut self) {
        self.next = None;
    }

    /// What is to be done now.
    pub fn due(&mut self, now: Instant) -> Option<Chore> {
        let (_, chore) = self.next.flatten().filter(|(at, _)| now >= *at)?;
        self.next = None;
        match chore {
            Some(Chore::Trash) => self.pause = now + AGAIN,
            Some(Chore::Checkpoint) => self.tried = Some(Moment::now()),
            None => {}
        }
        chore
    }
}
