//! A client's connection with bounds on how long it may take for what it has begun.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::seats::Seat;

/// How long a client may take for the whole handshake, or for one request from its first byte on.
const MESSAGE: Duration = Duration::from_secs(10);
/// How long it may take nothing of an answer.
const STALL: Duration = Duration::from_secs(30);

pub struct Line<'a> {
    stream: UnixStream,
    seat: &'a Seat,
    /// When what the client has begun has to be there; none: it has begun nothing.
    deadline: Option<Instant>,
}

impl<'a> Line<'a> {
    pub fn new(stream: UnixStream, seat: &'a Seat) -> io::Result<Self> {
        stream.set_write_timeout(Some(STALL))?;
        Ok(Self { stream, seat, deadline: Some(Instant::now() + MESSAGE) })
    }

    /// The client may be silent until it begins a request.
    pub fn rest(&mut self) {
        self.deadline = None;
    }
}

impl Read for Line<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        let count = self.stream.read(bytes)?;
        self.deadline.get_or_insert_with(|| Instant::now() + MESSAGE);
        self.seat.heard();
        Ok(count)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.seat.heard();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
