//! Events that are to be recorded, as long as they are not.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::folder::{Happened, VmFolder, VmLock, What};

/// Events that wait until the file can be written to again.
const WAITING_MAX: usize = 64;
/// Events of one kind in this time; what a guest can provoke must not push out all others.
const MOST: u32 = 10;
const SPAN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Diary {
    waiting: VecDeque<Happened>,
    /// When counting began, and how many there were since.
    told: BTreeMap<What, (Option<Instant>, u32)>,
}

impl Diary {
    /// Whether one more of what nobody asked for is to be recorded.
    pub fn may(&mut self, what: What) -> bool {
        let now = Instant::now();
        let (since, count) = self.told.entry(what).or_default();
        if since.is_none_or(|since| now.duration_since(since) > SPAN) {
            (*since, *count) = (Some(now), 0);
        }
        *count += 1;
        *count <= MOST
    }

    pub fn add(&mut self, event: Happened) {
        self.waiting.push_back(event);
        if self.waiting.len() > WAITING_MAX {
            self.waiting.pop_front();
        }
    }

    /// Writes what can be written now.
    pub fn write(&mut self, folder: &VmFolder, lock: &VmLock) {
        while let Some(event) = self.waiting.front() {
            if let Err(e) = folder.record(lock, event) {
                return log::debug!("an event cannot be recorded yet: {e}");
            }
            self.waiting.pop_front();
        }
    }
}
