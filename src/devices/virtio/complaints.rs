//! Warnings that a guest can provoke, as often as it likes: few of them reach the log, which is a
//! file on the host.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two warnings from one place.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Complaints(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Complaints {
    pub fn warn(&self, text: impl Display) {
        match self.admit(Instant::now()) {
            Some(0) => log::warn!("{text}"),
            Some(more) => log::warn!("{text} ({more} similar warnings were suppressed)"),
            None => {}
        }
    }

    /// How many were held back since the last that was let through, if this one may pass.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle() {
        let (complaints, start) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.admit(start), Some(0));
        for milliseconds in 0..1000 {
            assert_eq!(complaints.admit(start + Duration::from_millis(milliseconds)), None);
        }
        assert_eq!(complaints.admit(start + INTERVAL), Some(1000));
        assert_eq!(complaints.admit(start + 2 * INTERVAL), Some(0));
    }
}
