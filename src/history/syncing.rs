//! Syncs that are made while other work goes on. Nothing may be built on what they make durable before
//! they were waited for.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::{CheckpointError, Result};

type Step = Box<dyn FnOnce() -> Result<()> + Send>;

/// A thread that makes one sync after another. To drop it waits for the end of them, too.
#[must_use]
pub struct Syncing {
    queue: Option<Sender<Step>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Syncing {
    pub fn begin() -> Result<Self> {
        let (queue, steps) = channel::<Step>();
        let thread = std::thread::Builder::new().name("sync".into());
        let thread = thread.spawn(move || steps.into_iter().try_for_each(|step| step()));
        Ok(Self { queue: Some(queue), thread: Some(thread.map_err(CheckpointError::Thread)?) })
    }

    pub fn add(&self, step: impl FnOnce() -> Result<()> + Send + 'static) {
        if let Some(queue) = &self.queue {
            // The thread is gone only after an error, which is told at the end.
            let _ = queue.send(Box::new(step));
        }
    }

    /// All of them are done.
    pub fn wait(&mut self) -> Result<()> {
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let failed = |_| CheckpointError::Thread(std::io::Error::other("its thread exited unexpectedly"));
        thread.join().map_err(failed)?
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        // Whoever wants to know how they went has waited.
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_error_ends_it_and_is_told() {
        let done = Arc::new(AtomicUsize::new(0));
        let mut syncing = Syncing::begin().unwrap();
        for n in 0..3 {
            let done = done.clone();
            syncing.add(move || {
                done.fetch_add(1, Ordering::Relaxed);
                if n == 1 { Err(CheckpointError::Refused("full".into())) } else { Ok(()) }
            });
        }
        assert_eq!(syncing.wait().unwrap_err().to_string(), "full");
        assert_eq!(done.load(Ordering::Relaxed), 2);
        assert!(syncing.wait().is_ok());
    }
}
