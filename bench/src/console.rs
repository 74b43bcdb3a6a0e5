//! The bundled guest's console: commands in, lines with their time of arrival out.

use std::io::{self, Read, Write};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What the guest prints when all of it is set up.
pub const READY: &str = "evt piton guest ready";
/// Longer than filling 8 GiB of fresh memory takes.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct Console {
    input: Box<dyn Write + Send>,
    chunks: Receiver<(Instant, Vec<u8>)>,
    unread: Vec<u8>,
}

/// One line `ok name=value ..` of the guest, and when its end came.
pub struct Answer {
    pub line: String,
    pub at: Instant,
}

impl Answer {
    pub fn number(&self, name: &str) -> io::Result<f64> {
        self.line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            .ok_or_else(|| {
                io::Error::other(format!("the guest's answer `{}` has no {name}", self.line))
            })
    }
}

impl Console {
    pub fn of(child: &mut Child) -> io::Result<Self> {
        let none = || io::Error::other("a child without pipes");
        let input = child.stdin.take().ok_or_else(none)?;
        let output = child.stdout.take().ok_or_else(none)?;
        Ok(Self::over(input, output))
    }

    pub fn over(input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Self {
        Self { input: Box::new(input), chunks: read_in_thread(output), unread: Vec::new() }
    }

    /// Sends a command whose answer is asked for later.
    pub fn send(&mut self, command: &str) -> io::Result<()> {
        self.input.write_all(format!("{command}\n").as_bytes())?;
        self.input.flush()
    }

    pub fn ask(&mut self, command: &str) -> io::Result<Answer> {
        self.send(command)?;
        self.answer(command)
    }

    /// Waits for the answer to a command that was sent.
    pub fn answer(&mut self, command: &str) -> io::Result<Answer> {
        // Echo and prompt may come before it on the same line.
        let found = self.line(|line| line.starts_with("ok") || line.starts_with("err"))?;
        if found.line.starts_with("ok") {
            return Ok(found);
        }
        Err(io::Error::other(format!("the guest answers `{command}` with `{}`", found.line)))
    }

    pub fn ready(&mut self) -> io::Result<Answer> {
        self.line(|line| line.starts_with(READY))
    }

    fn line(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        let mut arrived = Instant::now();
        loop {
            while let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim().trim_start_matches("> ");
                if wanted(line) {
                    return Ok(Answer { line: line.into(), at: arrived });
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok((at, chunk)) => {
                    arrived = at;
                    self.unread.extend(chunk);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(io::Error::other("the guest does not answer"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the guest's console ended"));
                }
            }
        }
    }
}

/// Timestamps what comes as soon as it comes; goes on reading, so that nobody's pipe fills.
pub fn read_in_thread(mut output: impl Read + Send + 'static) -> Receiver<(Instant, Vec<u8>)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let at = Instant::now();
            let _ = sender.send((at, buffer[..count].to_vec()));
        }
    });
    receiver
}
