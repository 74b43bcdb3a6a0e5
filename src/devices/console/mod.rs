//! The console behind COM1: what the guest prints goes to console.log and to everyone attached,
//! what they type goes to the guest. It outlives the machine, so a reboot keeps it.
//!
//! vCPU threads only append to a bounded buffer; a thread of its own does the writing, so a slow
//! disk or terminal never stalls the guest.

mod log_file;
mod reader;
pub mod times;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::{sandbox, seccomp};
use log_file::Log;
use reader::Outlet;

pub use reader::Reader;

/// Most bytes that wait to be written out; beyond it output is dropped, and says so.
const OUTPUT_LIMIT: usize = 1 << 20;
/// Most typed bytes that wait for the guest.
const INPUT_LIMIT: usize = 64 << 10;
/// How much of the past is kept for those who attach, in bytes.
pub const BACKLOG: usize = 16 << 10;
/// Pause between two writes.
const GATHER: Duration = Duration::from_millis(1);

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    lost: u64,
    input: VecDeque<u8>,
    /// Of those who wait for room in `input`.
    typists: Vec<Waker>,
    backlog: VecDeque<u8>,
    outlets: Vec<Outlet>,
    on_input: Option<EventFd>,
    writing: bool,
    closed: bool,
}

impl State {
    /// To the readers of now and the backlog of later ones in one step, so that nobody who
    /// attaches meanwhile gets it twice.
    fn hand_out(&mut self, chunk: &[u8]) {
        self.outlets.retain(|outlet| outlet.give(chunk));
        self.backlog.extend(&chunk[chunk.len().saturating_sub(BACKLOG)..]);
        let excess = self.backlog.len().saturating_sub(BACKLOG);
        self.backlog.drain(..excess);
    }

    /// For typed bytes; a closed console takes them for nobody.
    fn has_room(&self) -> bool {
        self.closed || self.input.len() < INPUT_LIMIT
    }

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
        std::thread::Builder::new().name("console".into()).spawn(move || {
            // It begins before the thread that starts it is bound.
            sandbox::enter_thread();
            seccomp::confine(seccomp::Thread::Console);
            writer.write_out(log);
        })?;
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

    /// All output from now on, after the last bytes of the past, `past` at most. A reader that
    /// falls far behind misses output; the log has it.
    pub fn attach(&self, past: usize) -> Reader {
        let mut state = self.state();
        let skipped = state.backlog.len().saturating_sub(past);
        let (outlet, reader) = Reader::new(state.backlog.iter().copied().skip(skipped).collect());
        if state.closed {
            outlet.end();
        } else {
            // A quiet guest gives no chance to forget those who have left.
            state.outlets.retain(|outlet| !outlet.is_left());
            state.outlets.push(outlet);
        }
        reader
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
        while !state.has_room() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.input.extend(bytes);
        state.announce_input();
    }

    /// The same for those who cannot wait in a thread of their own.
    pub fn poll_input(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<()> {
        let mut state = self.state();
        if !state.has_room() {
            state.typists.push(context.waker().clone());
            return Poll::Pending;
        }
        state.input.extend(bytes);
        state.announce_input();
        Poll::Ready(())
    }

    /// Takes up to `most` typed bytes for the guest.
    pub fn take_input(&self, most: usize) -> Vec<u8> {
        let mut state = self.state();
        let was_full = !state.has_room();
        let count = most.min(state.input.len());
        let taken = state.input.drain(..count).collect();
        if was_full && state.has_room() {
            self.let_typists_on(state);
        }
        taken
    }

    fn let_typists_on(&self, mut state: MutexGuard<'_, State>) {
        let typists = std::mem::take(&mut state.typists);
        drop(state);
        self.changed.notify_all();
        typists.into_iter().for_each(Waker::wake);
    }

    /// Waits until everything printed so far is in the log and handed to the readers.
    pub fn flush(&self) {
        let mut state = self.state();
        while (!state.pending.is_empty() || state.writing) && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes out what is left; every reader sees the end behind what it has not read yet.
    pub fn close(&self) {
        self.flush();
        let mut state = self.state();
        state.closed = true;
        state.outlets.drain(..).for_each(|outlet| outlet.end());
        self.let_typists_on(state);
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
                    b"\r\n[piton: the guest printed faster than its output could be written; some of it \
                     is lost]\r\n",
                );
            }
            state.writing = true;
            drop(state);
            log.append(&bytes);
            self.state().hand_out(&bytes);
            // A guest prints byte by byte; what comes within this time is written at once.
            std::thread::sleep(GATHER);
            state = self.state();
        }
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
        let reader = console.attach(BACKLOG);
        console.output(b"after");
        console.close();
        let seen: Vec<u8> = reader.flatten().collect();
        assert_eq!(String::from_utf8_lossy(&seen), "before after");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
    }

    #[test]
    fn a_slow_reader_misses_nothing_that_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        let reader = console.attach(BACKLOG);
        let printed: Vec<u8> = (0..400u32).map(|at| at as u8).collect();
        for byte in printed.chunks(1) {
            console.output(byte);
            console.flush();
        }
        console.close();
        let seen: Vec<u8> = reader.flatten().collect();
        assert!(seen == printed, "{} of {} bytes", seen.len(), printed.len());
    }

    #[test]
    fn a_reader_that_reads_nothing_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let console = Console::start(&path).unwrap();
        let (deaf, other) = (console.attach(BACKLOG), console.attach(BACKLOG));
        let listening = std::thread::spawn(move || other.flatten().count());
        for _ in 0..100 {
            console.output(&[b'x'; 10_000]);
            console.flush();
        }
        let waiting: Vec<usize> = console.state().outlets.iter().map(Outlet::waiting).collect();
        console.close();
        assert!((10_000..300_000).contains(&waiting[0]), "{waiting:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1_000_000);
        assert!(listening.join().unwrap() >= 300_000, "the other reader got more than the deaf one can");
        drop(deaf);
    }

    #[test]
    fn who_attaches_chooses_how_much_of_the_past_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        console.output(b"one two");
        console.flush();
        let readers = [0, 3, BACKLOG].map(|past| console.attach(past));
        console.output(b" three");
        console.close();
        let past = readers.each_ref().map(Reader::past);
        let seen = readers.map(|reader| String::from_utf8(reader.flatten().collect()).unwrap());
        assert_eq!((past, seen), ([0, 3, 7], [" three", "two three", "one two three"].map(String::from)));
        assert_eq!(console.attach(3).flatten().collect::<Vec<u8>>(), b"ree", "after the end, too");
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
    fn who_types_too_much_waits_and_is_woken() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        struct Woken(AtomicUsize);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        console.input(&[b'x'; INPUT_LIMIT]);
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert_eq!(console.poll_input(&mut context, b"y"), Poll::Pending);
        assert_eq!(console.take_input(1), b"x");
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(console.poll_input(&mut context, b"y"), Poll::Ready(()));
        assert_eq!(console.poll_input(&mut context, b"z"), Poll::Pending);
        console.close();
        assert_eq!(woken.0.load(Ordering::SeqCst), 2, "nobody waits for a guest that is gone");
        assert_eq!(console.poll_input(&mut context, b"z"), Poll::Ready(()));
    }

    #[test]
    fn a_reader_that_left_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::start(&dir.path().join("log")).unwrap();
        for _ in 0..100 {
            drop(console.attach(BACKLOG));
        }
        // Without a word of the guest, too.
        assert_eq!(console.state().outlets.len(), 1);
        console.output(b"x");
        console.flush();
        assert!(console.state().outlets.is_empty());
        console.close();
    }
}
