//! How far a long piece of work is, for whoever waits for it; and the way to call it off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The work was called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was cancelled")]
pub struct Cancelled;

/// Shared by who works and who watches; a clone is the same work.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: Mutex<Phase>,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct Phase {
    name: &'static str,
    began: Option<Instant>,
}

/// What work says of itself at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub phase: &'static str,
    /// Bytes done of this phase.
    pub done: u64,
    /// Bytes of this phase in all; 0: not known.
    pub total: u64,
}

impl Progress {
    /// Begins a phase of `total` bytes.
    pub fn phase(&self, name: &'static str, total: u64) {
        let mut phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        *phase = Phase { name, began: Some(Instant::now()) };
        self.0.total.store(total, Ordering::Relaxed);
        self.0.done.store(0, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        let phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            phase: phase.name,
            done: self.0.done.load(Ordering::Relaxed),
            total: self.0.total.load(Ordering::Relaxed),
        }
    }

    /// Bytes a second since this phase began.
    pub fn rate(&self) -> u64 {
        let phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = phase.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let done = self.0.done.load(Ordering::Relaxed);
        // In the first moments it would mean nothing.
        if seconds < 0.01 { 0 } else { (done as f64 / seconds) as u64 }
    }

    /// Asks the work to stop and undo what it did. It may be too late for that.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// For work to ask between its steps.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_see_the_phase_and_can_cancel() {
        let work = Progress::default();
        let watcher = work.clone();
        work.phase("memory", 10);
        work.add(3);
        work.add(4);
        assert_eq!(watcher.snapshot(), Snapshot { phase: "memory", done: 7, total: 10 });
        work.phase("disks", 2);
        assert_eq!(watcher.snapshot(), Snapshot { phase: "disks", done: 0, total: 2 });
        assert_eq!(work.check(), Ok(()));
        watcher.cancel();
        assert!(work.is_cancelled());
        assert_eq!(work.check(), Err(Cancelled));
    }
}
