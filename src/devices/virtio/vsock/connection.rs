//! One connection: a stream socket of the host, and the guest's socket behind packets.
//!
//! The guest may have at most [`ROOM`] bytes on their way to a host program that does not read them;
//! they are kept here. In the other direction nothing is kept: what the guest has no room for stays
//! in the host's socket.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::mem::replace;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::packet::{self, Header};

/// Bytes of the guest that are kept for the host's end.
pub const ROOM: u32 = 256 << 10;
/// The guest is told of room when it may think that less than this is left.
const LOW: u32 = ROOM / 2;
/// How long the guest has to answer a request, and to end what has ended here.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host asks, the guest has not answered.
    Asking,
    Open,
    /// There is nothing more to tell the guest.
    Over,
}

/// What the guest has to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    credit: bool,
    reset: bool,
    /// Flags of a shutdown that it was not told of.
    shutdown: u32,
}

pub struct Connection {
    stream: UnixStream,
    state: State,
    owed: Owed,
    /// The host's socket may have something to read, or room to write: it said so, and has not
    /// said otherwise since.
    readable: bool,
    writable: bool,
    /// What the host's end will do no more.
    host_ended: bool,
    host_gone: bool,
    /// Its socket is closed in both directions; there may be something left to read.
    hung_up: bool,
    /// What the guest will do no more.
    guest_ended: bool,
    guest_deaf: bool,
    /// The host's socket was told so.
    closed_for_writing: bool,
    closed_for_reading: bool,
    /// Flags of the shutdowns that it was told of.
    ended: u32,
    /// Bytes sent to the guest; how many it has used up, and how many it has room for.
    sent: u32,
    guest_used: u32,
    guest_room: u32,
    /// It was asked how much room it has.
    asked: bool,
    /// Bytes of the guest that the host's end has not taken.
    kept: VecDeque<u8>,
    /// Bytes received of the guest, and how many used-up ones it was told of.
    received: u32,
    told: u32,
    deadline: Option<Instant>,
}

/// The guest broke the rules of the connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl Connection {
    fn new(stream: UnixStream, state: State, owed: Owed) -> Self {
        Self {
            stream,
            state,
            owed,
            readable: true,
            writable: true,
            host_ended: false,
            host_gone: false,
            hung_up: false,
            guest_ended: false,
            guest_deaf: false,
            closed_for_writing: false,
            closed_for_reading: false,
            ended: 0,
            sent: 0,
            guest_used: 0,
            guest_room: 0,
            asked: false,
            kept: VecDeque::new(),
            received: 0,
            told: 0,
            deadline: None,
        }
    }

    /// A program of the host wants to talk to the guest.
    pub fn of_host(stream: UnixStream, now: Instant) -> Self {
        let owed = Owed { request: true, ..Owed::default() };
        Self { deadline: Some(now + PATIENCE), ..Self::new(stream, State::Asking, owed) }
    }

    /// The guest wants to talk to a program of the host, which is at the other end of `stream`.
    pub fn of_guest(stream: UnixStream, request: &Header) -> Self {
        let owed = Owed { response: true, ..Owed::default() };
        let mut connection = Self::new(stream, State::Open, owed);
        connection.learn(request);
        connection
    }

    /// Whether the guest has nothing to do with it any more.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether it can be forgotten: what the guest said last has been passed on, or cannot be.
    pub fn is_done(&self) -> bool {
        self.is_over() && (self.kept.is_empty() || self.host_gone)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_over())
    }

    /// Gives up waiting for the guest.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.owed = Owed { reset: true, ..Owed::default() };
            self.host_gone = true;
            self.deadline = None;
        }
    }

    fn learn(&mut self, header: &Header) {
        if (self.guest_room, self.guest_used) != (header.buf_alloc, header.fwd_cnt) {
            self.asked = false;
        }
        (self.guest_room, self.guest_used) = (header.buf_alloc, header.fwd_cnt);
    }

    /// How many bytes the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_used))
    }

    /// How many bytes of the guest are used up.
    fn used(&self) -> u32 {
        // At most ROOM are kept.
        self.received.wrapping_sub(self.kept.len() as u32)
    }

    /// A packet of the guest that belongs to this connection. `port` is the host's end.
    pub fn hear(&mut self, header: &Header, data: &[u8], port: u32, now: Instant) -> Result<(), Broken> {
        self.learn(header);
        match (header.op, self.state) {
            (_, State::Over) => {}
            (packet::RESPONSE, State::Asking) => {
                // A fresh socket has room for this.
                if self.stream.write_all(format!("OK {port}\n").as_bytes()).is_err() {
                    return Err(Broken);
                }
                self.state = State::Open;
                self.deadline = None;
            }
            (packet::RESET, _) => {
                self.state = State::Over;
                // Who says no more after saying all is not cut short.
                if !self.guest_ended {
                    self.host_gone = true;
                }
            }
            (packet::DATA, State::Open) => return self.take(data),
            (packet::CREDIT_UPDATE, State::Open) => {}
            (packet::CREDIT_REQUEST, State::Open) => self.owed.credit = true,
            (packet::SHUTDOWN, State::Open) => {
                self.guest_ended |= header.flags & packet::NO_MORE_WRITING != 0;
                self.guest_deaf |= header.flags & packet::NO_MORE_READING != 0;
                if self.guest_ended && self.guest_deaf {
                    self.owed = Owed { reset: true, ..Owed::default() };
                } else if self.host_ended {
                    self.deadline.get_or_insert(now + PATIENCE);
                }
                self.pass_on();
            }
            _ => return Err(Broken),
        }
        Ok(())
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Broken> {
        let free = ROOM as usize - self.kept.len();
        if self.guest_ended || data.len() > free {
            return Err(Broken);
        }
        // At most ROOM.
        self.received = self.received.wrapping_add(data.len() as u32);
        self.kept.extend(data);
        self.pass_on();
        Ok(())
    }

    /// Gives the host's end what it takes of what was kept.
    fn pass_on(&mut self) {
        while self.writable && !self.host_gone && !self.kept.is_empty() {
            match self.stream.write(self.kept.as_slices().0) {
                Ok(0) => self.writable = false,
                Ok(count) => drop(self.kept.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose_host(),
            }
        }
        if self.host_gone {
            self.kept.clear();
        }
        // Once each: the socket tells of it. It fails where the host's end is gone already.
        if self.guest_ended && self.kept.is_empty() && !replace(&mut self.closed_for_writing, true) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_deaf && !replace(&mut self.closed_for_reading, true) {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.owed.credit |= self.state == State::Open
            && self.used() != self.told
            && ROOM.saturating_sub(self.received.wrapping_sub(self.told)) < LOW;
    }

    /// The host's end neither reads nor writes any more.
    fn lose_host(&mut self) {
        (self.host_gone, self.host_ended) = (true, true);
        self.kept.clear();
        self.owed.shutdown |= packet::BOTH & !self.ended;
    }

    /// The host's socket said that this has changed.
    pub fn note(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.hung_up |= hung_up;
        if hung_up && self.state == State::Asking {
            // The guest need not know if it was not asked.
            match self.owed.request {
                true => self.state = State::Over,
                false => self.owed.reset = true,
            }
            self.host_gone = true;
        } else if hung_up && self.host_ended {
            self.lose_host();
        }
        if writable {
            self.writable = true;
            self.pass_on();
        }
    }

    /// Whether there may be a packet for the guest.
    pub fn has_packet(&self) -> bool {
        let Owed { request, response, credit, reset, shutdown } = self.owed;
        let owes = request || response || credit || reset || shutdown != 0;
        !self.is_over() && (owes || self.may_read() && (self.credit() > 0 || !self.asked))
    }

    fn may_read(&self) -> bool {
        self.state == State::Open && self.readable && !self.host_ended && !self.guest_deaf
    }

    /// The next packet for the guest: its operation, flags, and how much of `room` its data is.
    pub fn next_packet(&mut self, room: &mut [u8], now: Instant) -> Option<(u16, u32, usize)> {
        let take = std::mem::take::<bool>;
        let control = |op| Some((op, 0, 0));
        if self.is_over() {
            return None;
        }
        if take(&mut self.owed.reset) {
            self.state = State::Over;
            return control(packet::RESET);
        }
        if take(&mut self.owed.request) {
            return control(packet::REQUEST);
        }
        if take(&mut self.owed.response) {
            return control(packet::RESPONSE);
        }
        if take(&mut self.owed.credit) {
            return control(packet::CREDIT_UPDATE);
        }
        if self.may_read()
            && let Some(found) = self.read(room)
        {
            return Some(found);
        }
        match std::mem::take(&mut self.owed.shutdown) {
            0 => None,
            flags => {
                self.ended |= flags;
                if self.guest_ended || self.ended == packet::BOTH {
                    self.deadline = Some(now + PATIENCE);
                }
                Some((packet::SHUTDOWN, self.ended, 0))
            }
        }
    }

    fn read(&mut self, room: &mut [u8]) -> Option<(u16, u32, usize)> {
        let most = room.len().min(self.credit() as usize);
        if most == 0 {
            return (!replace(&mut self.asked, true)).then_some((packet::CREDIT_REQUEST, 0, 0));
        }
        loop {
            match self.stream.read(&mut room[..most]) {
                Ok(0) if self.hung_up => {
                    self.lose_host();
                    return None;
                }
                Ok(0) => {
                    self.host_ended = true;
                    self.owed.shutdown |= packet::NO_MORE_WRITING;
                    return None;
                }
                Ok(count) => {
                    // At most what the guest has room for.
                    self.sent = self.sent.wrapping_add(count as u32);
                    return Some((packet::DATA, 0, count));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.lose_host();
                    return None;
                }
            }
        }
    }

    /// What every packet tells of the room here.
    pub fn room(&mut self) -> (u32, u32) {
        self.told = self.used();
        (ROOM, self.told)
    }
}
