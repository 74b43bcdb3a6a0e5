//! How far a long piece of work is, for whoever waits for it; and the way to call it off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by who works and who watches; a clone is the same work.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
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
        *phase = name;
        self.0.total.store(total, Ordering::Relaxed);
        self.0.done.store(0, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        let phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            phase: *phase,
            done: self.0.done.load(Ordering::Relaxed),
            total: self.0.total.load(Ordering::Relaxed),
        }
    }

    /// Asks the work to stop and undo what it did. It may be too late for that.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
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
        assert!(!work.is_cancelled());
        watcher.cancel();
        assert!(work.is_cancelled());
    }
}
