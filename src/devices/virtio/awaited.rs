use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads wait for a device to come to the end of a request; a clone is the same count.
#[derive(Clone, Default)]
pub struct Awaited(Arc<AtomicUsize>);

impl Awaited {
    pub fn is_true(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// Counts the caller while it waits.
    pub(super) fn during<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::SeqCst);
        let got = wait();
        self.0.fetch_sub(1, Ordering::SeqCst);
        got
    }
}
