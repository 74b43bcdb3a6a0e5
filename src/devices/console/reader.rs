//! Output on its way to one who is attached. It waits in a buffer of that reader alone, so one who
//! reads nothing costs nobody else anything; who falls far behind misses output.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Bytes that wait for a slow reader.
const WAITING_LIMIT: usize = 256 << 10;

#[derive(Default)]
struct Shared {
    flow: Mutex<Flow>,
    /// Signalled when there is something to read, and at the end.
    changed: Condvar,
}

#[derive(Default)]
struct Flow {
    waiting: Vec<u8>,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    left: bool,
    waker: Option<Waker>,
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, mut flow: MutexGuard<'_, Flow>) {
        let waker = flow.waker.take();
        drop(flow);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The console's end.
pub struct Outlet(Arc<Shared>);

impl Outlet {
    /// False if the reader has left.
    pub fn give(&self, chunk: &[u8]) -> bool {
        let mut flow = self.0.flow();
        if flow.left {
            return false;
        }
        if flow.waiting.len() + chunk.len() <= WAITING_LIMIT {
            flow.waiting.extend_from_slice(chunk);
        }
        self.0.announce(flow);
        true
    }

    /// Nothing more comes; what waits can still be read.
    pub fn end(&self) {
        let mut flow = self.0.flow();
        flow.ended = true;
        self.0.announce(flow);
    }

    pub fn is_left(&self) -> bool {
        self.0.flow().left
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.0.flow().waiting.len()
    }
}

/// All output since somebody attached, as an iterator that blocks or as something to be polled.
/// It ends when the console is closed.
pub struct Reader {
    shared: Arc<Shared>,
    past: usize,
}

impl Reader {
    /// With `past`, which was printed before, to be read first.
    pub fn new(past: Vec<u8>) -> (Outlet, Self) {
        let shared = Arc::new(Shared::default());
        let reader = Self { shared: shared.clone(), past: past.len() };
        shared.flow().waiting = past;
        (Outlet(shared), reader)
    }

    /// How many of the first bytes were printed before.
    pub fn past(&self) -> usize {
        self.past
    }

    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let mut flow = self.shared.flow();
        match flow.take() {
            Some(next) => Poll::Ready(next),
            None => {
                flow.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Flow {
    /// None: it is too early to tell.
    fn take(&mut self) -> Option<Option<Vec<u8>>> {
        match self.waiting.is_empty() {
            false => Some(Some(std::mem::take(&mut self.waiting))),
            true => self.ended.then_some(None),
        }
    }
}

impl Iterator for Reader {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut flow = self.shared.flow();
        loop {
            if let Some(next) = flow.take() {
                return next;
            }
            flow = self.shared.changed.wait(flow).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut flow = self.shared.flow();
        flow.left = true;
        flow.waiting = Vec::new();
    }
}
