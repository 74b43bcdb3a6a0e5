//! What a VM's process does by itself when its time has come.

use std::time::{Duration, Instant};

use crate::folder::{Definition, VmFolder};
use crate::history::{Catalog, trash};
use crate::moment::Moment;

/// Between two looks at most: the host may sleep meanwhile, or its clock be set.
const LONGEST: Duration = Duration::from_secs(3600);
/// Before what was due and could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A start is not held up by what has waited for long.
const CALM: Duration = Duration::from_secs(1);

/// When there is something to do next.
pub struct Chores {
    /// None: not known. Inside: there is nothing.
    next: Option<Option<Instant>>,
    /// Not before.
    pause: Instant,
}

impl Default for Chores {
    fn default() -> Self {
        Self { next: None, pause: Instant::now() + CALM }
    }
}

impl Chores {
    pub fn next(&mut self, folder: &VmFolder, definition: &Definition) -> Option<Instant> {
        if self.next.is_none() {
            let manifests = Catalog::new(folder, definition).manifests().unwrap_or_default();
            let left = trash::next_end(&manifests, definition, &Moment::now());
            let at = left.map(|left| Instant::now() + Duration::from_secs(left).min(LONGEST));
            self.next = Some(at.map(|at| at.max(self.pause)));
        }
        self.next.flatten()
    }

    /// Something changed.
    pub fn look_again(&mut self) {
        self.next = None;
    }

    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.flatten().is_some_and(|at| now >= at);
        if due {
            self.next = None;
            self.pause = now + AGAIN;
        }
        due
    }
}
