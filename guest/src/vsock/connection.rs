//! One end of a stream, with what has come and was not yet taken.

use crate::vsock::packet::{self, Header};

/// Bytes that are kept for a connection.
pub const ROOM: usize = 16 << 10;
/// The peer is told of room when it may think that less than this is left.
const LOW: u32 = ROOM as u32 / 2;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Free,
    Asking,
    Open,
    /// Ended, as both sides wanted or not.
    Ended,
    Reset,
}

/// What the peer has to be told.
#[derive(Clone, Copy, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit: bool,
    ask: bool,
    shutdown: u32,
}

pub struct Connection {
    pub state: State,
    pub local: u32,
    pub peer: u32,
    /// It is the device's to send back what comes.
    pub echo: bool,
    owed: Owed,
    inbox: &'static mut [u8],
    /// Bytes received, and of those taken out of the inbox, and the latter as the peer knows it.
    received: u32,
    taken: u32,
    told: u32,
    sent: u32,
    peer_room: u32,
    peer_used: u32,
    asked: bool,
    /// The peer will send no more, or read no more.
    peer_ended: bool,
    peer_deaf: bool,
    ended: bool,
}

impl Connection {
    pub fn free(inbox: &'static mut [u8]) -> Self {
        Self {
            state: State::Free,
            local: 0,
            peer: 0,
            echo: false,
            owed: Owed::default(),
            inbox,
            received: 0,
            taken: 0,
            told: 0,
            sent: 0,
            peer_room: 0,
            peer_used: 0,
            asked: false,
            peer_ended: false,
            peer_deaf: false,
            ended: false,
        }
    }

    fn begin(&mut self, local: u32, peer: u32, state: State, owed: Owed) {
        (self.local, self.peer, self.state, self.owed) = (local, peer, state, owed);
        (self.received, self.taken, self.told, self.sent) = (0, 0, 0, 0);
        (self.peer_room, self.peer_used) = (0, 0);
        (self.asked, self.peer_ended, self.peer_deaf, self.ended) = (false, false, false, false);
    }

    pub fn call(&mut self, local: u32, peer: u32) {
        self.echo = false;
        self.begin(local, peer, State::Asking, Owed { request: true, ..Owed::default() });
    }

    pub fn answer(&mut self, request: &Header) {
        self.echo = true;
        let owed = Owed { response: true, ..Owed::default() };
        self.begin(request.to.1, request.from.1, State::Open, owed);
        self.learn(request);
    }

    pub fn is_between(&self, local: u32, peer: u32) -> bool {
        matches!(self.state, State::Asking | State::Open)
            && (self.local, self.peer) == (local, peer)
    }

    fn learn(&mut self, header: &Header) {
        self.asked &= (self.peer_room, self.peer_used) == (header.room, header.used);
        (self.peer_room, self.peer_used) = (header.room, header.used);
    }

    fn waiting(&self) -> usize {
        self.received.wrapping_sub(self.taken) as usize
    }

    /// A packet for this connection; false if it breaks the rules.
    pub fn hear(&mut self, header: &Header, data: &[u8]) -> bool {
        self.learn(header);
        match (header.op, self.state) {
            (packet::RESPONSE, State::Asking) => self.state = State::Open,
            (packet::RESET, _) => {
                let clean = self.peer_ended || self.ended;
                self.state = if clean { State::Ended } else { State::Reset };
            }
            (packet::DATA, State::Open) => {
                if self.waiting() + data.len() > ROOM {
                    return false;
                }
                for &byte in data {
                    self.inbox[self.received as usize % ROOM] = byte;
                    self.received = self.received.wrapping_add(1);
                }
            }
            (packet::CREDIT_UPDATE, State::Open) => {}
            (packet::CREDIT_REQUEST, State::Open) => self.owed.credit = true,
            (packet::SHUTDOWN, State::Open) => {
                self.peer_ended |= header.flags & packet::NO_MORE_WRITING != 0;
                self.peer_deaf |= header.flags & packet::NO_MORE_READING != 0;
            }
            _ => return false,
        }
        true
    }

    /// The bytes that have come, up to where the inbox ends.
    pub fn inbox(&self) -> &[u8] {
        let start = self.taken as usize % ROOM;
        &self.inbox[start..ROOM.min(start + self.waiting())]
    }

    pub fn consume(&mut self, count: usize) {
        self.taken = self.taken.wrapping_add(count as u32);
        let seen = ROOM as u32 - self.received.wrapping_sub(self.told);
        self.owed.credit |= self.taken != self.told && seen < LOW;
    }

    /// Nothing more will come.
    pub fn is_at_end(&self) -> bool {
        self.waiting() == 0 && (self.peer_ended || self.state == State::Ended)
    }

    pub fn peer_is_deaf(&self) -> bool {
        self.peer_deaf
    }

    /// How many bytes the peer has room for. If none, it is asked.
    pub fn credit(&mut self) -> usize {
        let on_its_way = self.sent.wrapping_sub(self.peer_used);
        let credit = self.peer_room.saturating_sub(on_its_way);
        if credit == 0 && !self.asked && self.state == State::Open && !self.owed.response {
            self.asked = true;
            self.owed.ask = true;
        }
        credit as usize
    }

    /// Sends no more; and reads no more either, if `both`.
    pub fn shut_down(&mut self, both: bool) {
        let flags = if both { packet::NO_MORE_READING } else { 0 } | packet::NO_MORE_WRITING;
        if self.state == State::Open && (both || !self.ended) {
            self.owed.shutdown |= flags;
            self.ended = true;
        }
    }

    /// The operation and flags of the next packet without data, if one is due.
    pub fn control(&mut self) -> Option<(u16, u32)> {
        let take = core::mem::take::<bool>;
        if !matches!(self.state, State::Asking | State::Open) {
            return None;
        }
        if take(&mut self.owed.request) {
            return Some((packet::REQUEST, 0));
        }
        if take(&mut self.owed.response) {
            return Some((packet::RESPONSE, 0));
        }
        if take(&mut self.owed.credit) {
            return Some((packet::CREDIT_UPDATE, 0));
        }
        if take(&mut self.owed.ask) {
            return Some((packet::CREDIT_REQUEST, 0));
        }
        match core::mem::take(&mut self.owed.shutdown) {
            0 => None,
            flags => Some((packet::SHUTDOWN, flags)),
        }
    }

    /// The header of a packet of this connection.
    pub fn header(&mut self, cid: u64, op: u16, flags: u32, len: usize) -> Header {
        self.sent = self.sent.wrapping_add(len as u32);
        self.told = self.taken;
        Header {
            from: (cid, self.local),
            to: (packet::HOST, self.peer),
            len: len as u32,
            op,
            flags,
            room: ROOM as u32,
            used: self.taken,
        }
    }
}
