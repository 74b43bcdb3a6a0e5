//! Where the vCPUs of a machine meet to stand still together.
//!
//! The last to arrive does what there is to do, on its own thread: no other has to be woken for
//! it, so that the guest's pause has nothing in it but the work itself.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is done while all stand still; it gets all who came, and the time since the first came.
pub type Job<T> = Box<dyn FnOnce(&[&T], Duration) + Send>;

pub struct Rendezvous<T> {
    inner: Mutex<Inner<T>>,
    over: Condvar,
}

struct Inner<T> {
    here: Vec<Option<T>>,
    missing: usize,
    first: Option<Instant>,
    /// Taken by the last to come.
    job: Option<Job<T>>,
    over: bool,
}

impl<T> Rendezvous<T> {
    pub fn new(count: usize, job: Job<T>) -> Self {
        let here = std::iter::repeat_with(|| None).take(count).collect();
        let inner = Inner { here, missing: count, first: None, job: Some(job), over: false };
        Self { inner: Mutex::new(inner), over: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes, as number `index`, and leaves when the job is done. Nothing: `index` is not expected.
    pub fn arrive(&self, index: usize, me: T) -> Option<T> {
        let mut inner = self.lock();
        let first = *inner.first.get_or_insert_with(Instant::now);
        *inner.here.get_mut(index)? = Some(me);
        inner.missing = inner.missing.saturating_sub(1);
        if inner.missing == 0 && !inner.over {
            if let Some(job) = inner.job.take() {
                let all: Vec<&T> = inner.here.iter().flatten().collect();
                job(&all, first.elapsed());
            }
            inner.over = true;
            self.over.notify_all();
        }
        while !inner.over {
            inner = self.over.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.here.get_mut(index)?.take()
    }

    /// Lets go of all who came: not everybody can.
    pub fn call_off(&self) {
        let mut inner = self.lock();
        inner.job = None;
        inner.over = true;
        self.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_last_does_the_job_and_all_go_on() {
        let (told, done) = channel();
        let job = Box::new(move |all: &[&u32], _| told.send(all.iter().map(|n| **n).sum::<u32>()).unwrap());
        let meeting = Arc::new(Rendezvous::new(3, job));
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let meeting = meeting.clone();
                std::thread::spawn(move || meeting.arrive(n as usize, n + 10))
            })
            .collect();
        let back: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(back, [Some(10), Some(11), Some(12)]);
        assert_eq!(done.recv().unwrap(), 33);
    }

    #[test]
    fn a_meeting_that_is_called_off_holds_nobody() {
        let (told, done) = channel::<()>();
        let meeting = Arc::new(Rendezvous::new(2, Box::new(move |_: &[&u8], _| told.send(()).unwrap())));
        let waiting = std::thread::spawn({
            let meeting = meeting.clone();
            move || meeting.arrive(0, 7)
        });
        meeting.call_off();
        assert_eq!(waiting.join().unwrap(), Some(7));
        // Who comes late does nothing and is not held.
        assert_eq!(meeting.arrive(1, 8), Some(8));
        assert!(done.try_recv().is_err());
    }
}
