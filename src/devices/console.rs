//! The console behind COM1: what the guest prints goes to console.log and to everyone attached,
//! what they type goes to the guest. It outlives the machine, so a reboot keeps it.
//!
//! vCPU threads only append to a bounded buffer; a thread of its own does the writing, so a slow
//! disk or terminal never stalls the guest.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::seccomp;

/// Most bytes that wait to be written out; beyond it output is dropped, and says so.
const OUTPUT_LIMIT: usize = 1 << 20;
/// Most typed bytes that wait for the guest.
const INPUT_LIMIT: usize = 64 << 10;
/// What somebody who attaches is shown of the past.
const BACKLOG: usize = 4 << 10;
/// Pause between two writes.
const GATHER: Duration = Duration::from_millis(1);
/// Chunks on their way to one reader. Guests print byte by byte, so a chunk can be a few bytes.
const READER_CHUNKS: usize = 16;
/// Bytes that wait for a slow reader beside those.
const READER_LIMIT: usize = 256 << 10;
/// How often a slow reader is looked at.
const READER_RETRY: Duration = Duration::from_millis(10);
/// How long the end waits for slow readers.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// console.log is renamed to console.log.1 when it has grown to this, in bytes.
const LOG_LIMIT: u64 = 16 << 20;

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    lost: u64,
    input: VecDeque<u8>,
    backlog: VecDeque<u8>,
    readers: Vec<Reader>,
    on_input: Option<EventFd>,
    writing: bool,
    closed: bool,
}

impl State {
    fn slow_readers(&self) -> bool {
        self.readers.iter().any(|reader| !reader.waiting.is_empty())
    }

    fn give_to_readers(&mut self, chunk: &Arc<[u8]>) {
        self.readers.retain_mut(|reader| reader.give(chunk));
    }

    /// To the readers of now and the backlog of later ones in one step, so that nobody who
    /// attaches meanwhile gets it twice.
    fn hand_out(&mut self, chunk: &Arc<[u8]>) {
        self.give_to_readers(chunk);
        self.backlog.extend(&chunk[chunk.len().saturating_sub(BACKLOG)..]);
        let excess = self.backlog.len().saturating_sub(BACKLOG);
        self.backlog.drain(..excess);
    }

    fn announce_input(&self) {
        if let Some(event) = &self.on_input
            && let Err(e) = event.write(1)
        {
            log::debug!("console input event: {e}");
        }
    }
}

/// Somebody attached.
struct Reader {
    sender: SyncSender<Arc<[u8]>>,
    waiting: Vec<u8>,
    /// When to offer again what waits: it is copied for that.
    retry_at: Instant,
}

impl Reader {
    fn new(sender: SyncSender<Arc<[u8]>>) -> Self {
        Self { sender, waiting: Vec::new(), retry_at: Instant::now() }
    }

    /// Passes on what waits and then `chunk`, which may be empty. False if the reader has left.
    fn give(&mut self, chunk: &Arc<[u8]>) -> bool {
        let now = Instant::now();
        let next = if self.waiting.is_empty() {
            chunk.clone()
        } else {
            self.keep(chunk);
            if now < self.retry_at {
                return true;
            }
            Arc::from(self.waiting.as_slice())
        };
        if next.is_empty() {
            return true;
        }
        match self.sender.try_send(next) {
            Ok(()) => self.waiting.clear(),
            Err(TrySendError::Disconnected(_)) => return false,
            Err(TrySendError::Full(next)) => {
                self.retry_at = now + READER_RETRY;
                if self.waiting.is_empty() {
                    self.keep(&next);
                }
            }
        }
        true
    }

    fn keep(&mut self, chunk: &[u8]) {
        if self.waiting.len() + chunk.len() <= READER_LIMIT {
            self.waiting.extend_from_slice(chunk);
        }
    }
}

pub struct Console {
    state: Mutex<State>,
    /// Signalled when there is output, when all of it was written, when input was taken, and on close.
    changed: Condvar,
}

impl Console {
    /// Opens `log` for appending and starts the writing thread.
    pub fn start(log: &Path) -> io::Result<Arc<Self>> {
        let log = Log::open(log)?;
        let console = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let writer = console.clone();
        std::thread::Builder::new().name("console".into()).spawn(move || {
            seccomp::confine(seccomp::Thread::Console);
            writer.write_out(log);
        })?;
        Ok(console)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, time: Duration, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes what the guest printed; never blocks on anything slow.
    pub fn output(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.pending.len() + bytes.len() > OUTPUT_LIMIT {
            state.lost += bytes.len() as u64;
            return;
        }
        if state.pending.is_empty() {
            self.changed.notify_all();
        }
        state.pending.extend_from_slice(bytes);
    }

    /// A receiver of all output from now on, beginning with the last few lines. A reader that
    /// falls far behind misses output; the log has it.
    pub fn attach(&self) -> Receiver<Arc<[u8]>> {
        let (sender, receiver) = sync_channel(READER_CHUNKS);
        let mut state = self.state();
        if !state.backlog.is_empty() {
            let backlog: Vec<u8> = state.backlog.iter().copied().collect();
            // The channel is new, so there is room.
            let _ = sender.try_send(backlog.into());
        }
        // After close nobody would ever send: without a sender the receiver ends at once.
        if !state.closed {
            state.readers.push(Reader::new(sender));
        }
        receiver
    }

    /// Sets the event that is signalled when input waits for the guest.
    pub fn on_input(&self, event: Option<EventFd>) {
        let mut state = self.state();
        state.on_input = event;
        if !state.input.is_empty() {
            state.announce_input();
        }
    }

    /// Hands typed bytes to the guest; waits while too many are waiting already.
    pub fn input(&self, bytes: &[u8]) {
        let mut state = self.state();
        while state.input.len() >= INPUT_LIMIT && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.input.extend(bytes);
        state.announce_input();
    }

    /// Takes up to `most` typed bytes for the guest.
    pub fn take_input(&self, most: usize) -> Vec<u8> {
        let mut state = self.state();
        if state.input.len() >= INPUT_LIMIT {
            self.changed.notify_all();
        }
        let count = most.min(state.input.len());
        state.input.drain(..count).collect()
    }

    /// Waits until everything printed so far is in the log and handed to the readers.
    pub fn flush(&self) {
        let mut state = self.state();
        while (!state.pending.is_empty() || state.writing) && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes out what is left and lets every reader see the end.
    pub fn close(&self) {
        self.flush();
        let deadline = Instant::now() + LAST_OUTPUT;
        let mut state = self.state();
        while state.slow_readers() && Instant::now() < deadline {
            state = self.wait_for(READER_RETRY, state);
        }
        state.closed = true;
        state.readers.clear();
        self.changed.notify_all();
    }

    fn write_out(&self, mut log: Log) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            if state.pending.is_empty() {
                state.writing = false;
                self.changed.notify_all();
                if state.slow_readers() {
                    state = self.wait_for(READER_RETRY, state);
                    state.give_to_readers(&Arc::default());
                } else {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            }
            let mut bytes = std::mem::take(&mut state.pending);
            if std::mem::take(&mut state.lost) > 0 {
                bytes.extend_from_slice(
                    b"\r\n[piton: the guest printed faster than could be written; some output is lost]\r\n",
                );
            }
            state.writing = true;
            drop(state);
            log.append(&bytes);
            let chunk: Arc<[u8]> = bytes.into();
            self.state().hand_out(&chunk);
            // A guest prints byte by byte; what comes within this time is written at once.
            std::thread::sleep(GATHER);
            state = self.state();
        }
    }
}

struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    failed: bool,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, failed: false })
    }

    /// The guest goes on without a log rather than stop for a full disk.
    fn append(&mut self, bytes: &[u8]) {
        match self.try_append(bytes) {
            Ok(()) => self.failed = false,
            Err(e) if !self.failed => {
                self.failed = true;
                log::warn!("{} cannot be written: {e}", self.path.display());
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= LOG_LIMIT {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_log_get_what_the_guest_prints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let console = Console::start(&path).unwrap();
        console.output(b"before ");
        console.flush();
        let reader = console.attach();
        console.output(b"after");
        console.close();
        let seen: Vec<u8> = reader.iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert_eq!(String::from_utf8_lossy(&seen), "before after");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
    }

    #[test]
    fn a_slow_reader_misses_nothing_that_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        let reader = console.attach();
        let printed: Vec<u8> = (0..400u32).map(|at| at as u8).collect();
        for byte in printed.chunks(1) {
            console.output(byte);
            console.flush();
        }
        let closing = console.clone();
        let closer = std::thread::spawn(move || closing.close());
        let seen: Vec<u8> = reader.iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert!(seen == printed, "{} of {} bytes", seen.len(), printed.len());
        closer.join().unwrap();
    }

    #[test]
    fn a_reader_that_reads_nothing_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let console = Console::start(&path).unwrap();
        let reader = console.attach();
        for _ in 0..100 {
            console.output(&[b'x'; 10_000]);
            console.flush();
        }
        let waiting = console.state().readers[0].waiting.len();
        assert!((1..=READER_LIMIT).contains(&waiting), "{waiting}");
        console.close();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1_000_000);
        drop(reader);
    }

    #[test]
    fn input_waits_for_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        console.input(b"hello");
        assert_eq!(console.take_input(2), b"he");
        assert_eq!(console.take_input(100), b"llo");
        assert_eq!(console.take_input(100), b"");
        console.close();
    }

    #[test]
    fn a_reader_that_left_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        drop(console.attach());
        console.output(b"x");
        console.flush();
        assert!(console.state().readers.is_empty());
        console.close();
    }
}
