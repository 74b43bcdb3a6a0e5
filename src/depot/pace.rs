//! How fast bytes may go to and fro.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by all that is under way at once.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes a second.
    rate: Option<u64>,
    /// When the line is free again.
    free: Mutex<Option<Instant>>,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, free: Mutex::new(None) }
    }

    pub fn is_limited(&self) -> bool {
        self.rate.is_some()
    }

    /// Bytes that may go at once so that something moves all the time: `most`, or fewer.
    pub fn step(&self, most: usize) -> usize {
        self.rate.map_or(most, |rate| usize::try_from(rate / 4).unwrap_or(most).clamp(1, most))
    }

    /// Takes the time of these bytes; returns how long to wait before they may go.
    pub fn take(&self, bytes: u64) -> Duration {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let from = free.map_or(now, |free| free.max(now));
        *free = Some(from + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        from - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them() {
        let (pace, now) = (Pace::new(Some(1000)), Instant::now());
        assert_eq!(pace.take_at(500, now), Duration::ZERO);
        assert_eq!(pace.take_at(250, now), Duration::from_millis(500));
        assert_eq!(pace.take_at(1, now + Duration::from_millis(700)), Duration::from_millis(50));
        // What was not used is gone.
        assert_eq!(pace.take_at(1, now + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(Pace::new(None).take(u64::MAX), Duration::ZERO);
    }
}
