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
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// Most bytes that wait to be written out; beyond it output is dropped, and says so.
const OUTPUT_LIMIT: usize = 1 << 20;
/// Most typed bytes that wait for the guest.
const INPUT_LIMIT: usize = 64 << 10;
/// What somebody who attaches is shown of the past.
const BACKLOG: usize = 4 << 10;
/// Chunks that wait for one slow reader.
const READER_CHUNKS: usize = 256;
/// Pause between two writes.
const GATHER: Duration = Duration::from_millis(1);
/// console.log is renamed to console.log.1 when it has grown to this, in bytes.
const LOG_LIMIT: u64 = 16 << 20;

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    lost: u64,
    input: VecDeque<u8>,
    backlog: VecDeque<u8>,
    readers: Vec<SyncSender<Arc<[u8]>>>,
    on_input: Option<EventFd>,
    writing: bool,
    closed: bool,
}

impl State {
    fn announce_input(&self) {
        if let Some(event) = &self.on_input
            && let Err(e) = event.write(1)
        {
            log::debug!("console input event: {e}");
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
        std::thread::Builder::new().name("console".into()).spawn(move || writer.write_out(log))?;
        Ok(console)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            state.readers.push(sender);
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

    /// Waits until everything printed so far is in the log and with the readers.
    pub fn flush(&self) {
        let mut state = self.state();
        while (!state.pending.is_empty() || state.writing) && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes out what is left and lets every reader see the end.
    pub fn close(&self) {
        self.flush();
        let mut state = self.state();
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
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let mut bytes = std::mem::take(&mut state.pending);
            if std::mem::take(&mut state.lost) > 0 {
                bytes.extend_from_slice(
                    b"\r\n[piton: the guest printed faster than could be written; some output is lost]\r\n",
                );
            }
            state.writing = true;
            let keep_from = bytes.len().saturating_sub(BACKLOG);
            state.backlog.extend(&bytes[keep_from..]);
            let excess = state.backlog.len().saturating_sub(BACKLOG);
            state.backlog.drain(..excess);
            drop(state);
            log.append(&bytes);
            let chunk: Arc<[u8]> = bytes.into();
            self.state().readers.retain(|reader| match reader.try_send(chunk.clone()) {
                Ok(()) | Err(TrySendError::Full(_)) => true,
                Err(TrySendError::Disconnected(_)) => false,
            });
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
