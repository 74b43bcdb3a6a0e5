//! Running a command in a guest that has a shell, with its three streams apart and as they come.
//!
//! An agent tells what a command printed only at its end, and takes no more input than came with the
//! request. Files it reads and writes at any time, so the streams go through files of a bounded length
//! in a folder of the guest; `wrapper.sh` runs there and is their other end. Nothing is kept here, or
//! there, beyond a few pieces: who is read too slowly waits.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::{Guest, InsideError, SHELL, is_missing, meanwhile};
use crate::id::Id;
use crate::qga::{self, CallError, Why};

const WRAPPER: &str = include_str!("wrapper.sh");
/// Between two looks at a command: shortly after something moved, and after a while.
const SOON: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_millis(250);
const LONG_QUIET: Duration = Duration::from_secs(5);
/// Streams that are still open so long after the command's end and its last word belong to programs
/// that it left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// Most bytes of input that are put into one file.
const PIECE: usize = 256 << 10;
/// Pieces of input that may lie in the guest.
const PIECES: u64 = 2;
/// How long a command has between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(5);
const WHAT: &str = "the command was running";

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Program and arguments.
    pub words: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    pub user: Option<String>,
    pub folder: Option<String>,
    pub timeout: Option<Duration>,
}

/// A signal as `kill` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Hangup,
    Interrupt,
    Terminate,
    Pipe,
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Hangup => "HUP",
            Self::Interrupt => "INT",
            Self::Terminate => "TERM",
            Self::Pipe => "PIPE",
            Self::Kill => "KILL",
        }
    }
}

/// The host's ends of the streams.
pub trait Host {
    /// False: nobody reads it any more.
    fn print(&mut self, stream: Stream, bytes: &[u8]) -> bool;
    /// A signal that is meant for the command.
    fn signal(&mut self) -> Option<Signal>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// What comes from the host's standard input; closed at its end.
pub type Input = Receiver<Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// As a shell has it: 127 not found, 128 + n ended by signal n.
    pub code: u8,
    pub timed_out: bool,
}

/// One stream of the command: the file that is read now.
struct Reader {
    stream: Stream,
    number: u64,
    handle: Option<i64>,
    /// Bytes of this file that were read.
    read: u64,
    ended: bool,
}

impl Reader {
    fn new(stream: Stream) -> Self {
        Self { stream, number: 0, handle: None, read: 0, ended: false }
    }

    fn path(&self, dir: &str, part: impl std::fmt::Display) -> String {
        let stream = match self.stream {
            Stream::Out => 1,
            Stream::Err => 2,
        };
        format!("{dir}/{stream}.{part}")
    }

    /// Takes what there is, up to a chunk; `over`: the command has ended, so it may be the last.
    fn take(&mut self, guest: &mut Guest, dir: &str, over: bool) -> Result<Vec<u8>, InsideError> {
        if self.ended {
            return Ok(Vec::new());
        }
        let handle = match self.handle {
            Some(handle) => handle,
            None => match guest.open_if_there(&self.path(dir, self.number))? {
                Some(handle) => *self.handle.insert(handle),
                None => return Ok(Vec::new()),
            },
        };
        let bytes = guest.read(handle)?;
        self.read += bytes.len() as u64;
        if !bytes.is_empty() {
            return Ok(bytes);
        }
        let next = if self.read > 0 { guest.open_if_there(&self.path(dir, self.number + 1))? } else { None };
        let end = match next {
            None if over => guest.open_if_there(&self.path(dir, "end"))?,
            _ => None,
        };
        if next.is_none() && end.is_none() {
            return Ok(bytes);
        }
        // It is complete, but may have grown between the read and the look.
        let bytes = guest.read(handle)?;
        if !bytes.is_empty() {
            self.read += bytes.len() as u64;
            for handle in next.into_iter().chain(end) {
                guest.close(handle)?;
            }
            return Ok(bytes);
        }
        guest.close(handle)?;
        self.handle = None;
        if let Some(end) = end {
            guest.close(end)?;
            self.ended = true;
            return Ok(bytes);
        }
        guest.put(&format!("{}.ok", self.path(dir, self.number)), b"")?;
        (self.number, self.handle, self.read) = (self.number + 1, next, 0);
        guest.read(next.unwrap_or_default())
    }
}

/// The command's input: pieces, each said to be whole by a second file.
struct Writer {
    input: Option<Input>,
    number: u64,
    /// Of the pieces, those that are known to be read.
    taken: u64,
    ended: bool,
}

impl Writer {
    /// Whether something was put.
    fn give(&mut self, guest: &mut Guest, dir: &str) -> Result<bool, InsideError> {
        let Some(input) = &self.input else { return Ok(false) };
        if self.ended {
            return Ok(false);
        }
        while self.number >= self.taken + PIECES {
            match guest.open_if_there(&format!("{dir}/0.{}", self.taken))? {
                None => self.taken += 1,
                Some(handle) => {
                    guest.close(handle)?;
                    return Ok(false);
                }
            }
        }
        let mut piece = Vec::new();
        let mut over = false;
        while piece.len() < PIECE {
            match input.try_recv() {
                Ok(bytes) => piece.extend(bytes),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    over = true;
                    break;
                }
            }
        }
        if !piece.is_empty() {
            let path = format!("{dir}/0.{}", self.number);
            guest.put(&path, &piece)?;
            guest.put(&format!("{path}.ok"), b"")?;
            self.number += 1;
        }
        if over {
            guest.put(&format!("{dir}/0.{}.ok", self.number), b"")?;
            self.ended = true;
        }
        Ok(over || !piece.is_empty())
    }
}

fn shell(script: &str, arguments: Vec<String>) -> qga::Exec {
    let arg = [vec!["-c".to_owned(), script.to_owned(), "piton".to_owned()], arguments].concat();
    qga::Exec { path: SHELL.into(), arg, capture: true, ..qga::Exec::default() }
}

/// Runs it to its end. Without input it reads nothing.
pub fn run(
    guest: &mut Guest,
    command: &Command,
    input: Option<Input>,
    host: &mut dyn Host,
) -> Result<Ended, InsideError> {
    let mark =
        Id::random().map_err(|e| InsideError::Host { what: "cannot get random bytes".into(), error: e })?;
    let dir = format!("/tmp/.piton-{mark}");
    let head = [
        dir.clone(),
        if input.is_some() { "pipe" } else { "none" }.into(),
        command.user.clone().unwrap_or_default(),
        command.folder.clone().unwrap_or_default(),
        command.env.len().to_string(),
    ];
    let arguments = [&head[..], &command.env, &command.words].concat();
    let pid = guest.exec(shell(WRAPPER, arguments))?;
    let deadline = command.timeout.map(|time| Instant::now() + time);
    Running { guest, dir, pid, begun: false, deadline, host }.follow(input).map_err(|e| match e {
        InsideError::Call(CallError { why: Why::Refused, text }) if is_missing(&text) => {
            let text = "its folder below /tmp was removed in the guest".into();
            InsideError::Lost { what: WHAT, text }
        }
        e => meanwhile(WHAT, e),
    })
}

struct Running<'a> {
    guest: &'a mut Guest,
    dir: String,
    /// The wrapper's.
    pid: i64,
    /// The wrapper's folder is there: nothing can be put into it before.
    begun: bool,
    deadline: Option<Instant>,
    host: &'a mut dyn Host,
}

impl Running<'_> {
    fn follow(mut self, input: Option<Input>) -> Result<Ended, InsideError> {
        let mut readers = [Reader::new(Stream::Out), Reader::new(Stream::Err)];
        let mut writer = Writer { input, number: 0, taken: 0, ended: false };
        let mut timed_out = false;
        let mut kill_at: Option<Instant> = None;
        let mut code: Option<u8> = None;
        let mut moved_at = Instant::now();
        loop {
            let mut moved = false;
            for reader in &mut readers {
                let bytes = reader.take(self.guest, &self.dir, code.is_some())?;
                moved |= !bytes.is_empty();
                if !bytes.is_empty() && !self.host.print(reader.stream, &bytes) {
                    self.send(Signal::Pipe)?;
                    kill_at = kill_at.or(Some(Instant::now() + GRACE));
                }
            }
            if code.is_none() && self.has_begun()? {
                moved |= writer.give(self.guest, &self.dir)?;
                if let Some(signal) = self.host.signal() {
                    self.send(signal)?;
                    moved = true;
                }
                let now = Instant::now();
                if self.deadline.take_if(|deadline| now >= *deadline).is_some() {
                    timed_out = true;
                    kill_at = Some(now + GRACE);
                    self.send(Signal::Terminate)?;
                }
                if kill_at.take_if(|at| now >= *at).is_some() {
                    self.send(Signal::Kill)?;
                }
            }
            if moved {
                moved_at = Instant::now();
                continue;
            }
            if code.is_none() {
                code = self.code()?;
                if code.is_some() {
                    moved_at = Instant::now();
                    continue;
                }
            }
            let quiet = moved_at.elapsed();
            if let Some(code) = code
                && (readers.iter().all(|reader| reader.ended) || quiet >= LEFT_BEHIND)
            {
                for handle in readers.iter_mut().filter_map(|reader| reader.handle.take()) {
                    self.guest.close(handle)?;
                }
                // The wrapper takes its folder away. Where that is gone, so is what was not read.
                let told = self.guest.put(&format!("{}/done", self.dir), b"");
                if !readers.iter().all(|reader| reader.ended) {
                    told?;
                }
                return Ok(Ended { code, timed_out });
            }
            std::thread::sleep(match quiet {
                _ if quiet >= LONG_QUIET => LATEST,
                _ => (quiet / 4).clamp(SOON, LATE),
            });
        }
    }

    fn has_begun(&mut self) -> Result<bool, InsideError> {
        if !self.begun
            && let Some(handle) = self.guest.open_if_there(&format!("{}/begun", self.dir))?
        {
            self.guest.close(handle)?;
            self.begun = true;
        }
        Ok(self.begun)
    }

    /// The command's exit code, once it has ended.
    fn code(&mut self) -> Result<Option<u8>, InsideError> {
        if let Some(handle) = self.guest.open_if_there(&format!("{}/code", self.dir))? {
            let text = self.guest.read(handle)?;
            self.guest.close(handle)?;
            let code = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
            return code
                .map(Some)
                .ok_or_else(|| InsideError::NotBegun("it did not report how the command ended".into()));
        }
        let status = self.guest.exec_status(self.pid)?;
        if !status.exited {
            return Ok(None);
        }
        let said = status.err.and_then(|err| qga::decode(&err)).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if self.begun {
            return Err(InsideError::Lost { what: WHAT, text: "its shell was killed in the guest".into() });
        }
        let said = said.lines().next().unwrap_or("its shell exited").chars().take(200).collect();
        Err(InsideError::NotBegun(said))
    }

    /// Sends the command, and what it started, a signal; one that has not begun gets it when it has.
    fn send(&mut self, signal: Signal) -> Result<(), InsideError> {
        const KILL: &str = "until [ -e \"$1/pid\" ] || [ -e \"$1/code\" ] || [ ! -e \"$1\" ]; do sleep 0.05 || sleep 1; done; \
            read p <\"$1/pid\" && { kill -s $2 -- -$p || kill -s $2 $p; } 2>/dev/null";
        let arguments = vec![self.dir.clone(), signal.name().into()];
        self.guest.exec(shell(KILL, arguments)).map(|_| ())
    }
}
