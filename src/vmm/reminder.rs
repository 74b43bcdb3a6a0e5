//! When a guest that did not do its part is asked again: less and less often.

use std::time::{Duration, Instant};

pub struct Reminder {
    first: Duration,
    longest: Duration,
    next: Option<Instant>,
    pause: Duration,
}

impl Reminder {
    /// `first`: before the first reminder; `longest`: between two at most.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: None, pause: first }
    }

    /// None: there is nothing to be reminded of, and the next time begins anew.
    pub fn next(&mut self, wanted: bool) -> Option<Instant> {
        if !wanted {
            self.next = None;
        } else if self.next.is_none() {
            self.pause = self.first;
            self.next = Some(Instant::now() + self.first);
        }
        self.next
    }

    /// Whether it is time; then the next one is later.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|at| now >= at);
        if due {
            self.pause = (self.pause * 2).min(self.longest);
            self.next = Some(now + self.pause);
        }
        due
    }
}
