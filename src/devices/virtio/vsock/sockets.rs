//! All connections between programs of the host and the guest.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Connection;
use super::greeting::{Greeting, Heard};
use super::host::Host;
use super::packet::{self, Header};

/// The host's address, and that of every guest: each has a device of its own.
pub const HOST_CID: u64 = 2;
pub const GUEST_CID: u64 = 3;

/// Connections at a time, those whose last bytes are still passed on among them.
const MOST: usize = 512;
/// Programs of the host that have not yet said what they want.
const MOST_GREETINGS: usize = 64;
/// How long they have.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// Packets that belong to no connection and are still to be answered. While there are so many the
/// guest's next packets wait.
const MOST_STRAYS: usize = 64;

/// Ports of the host's programs that call the guest: those below are for them to listen on.
pub const FIRST_PORT: u32 = 1 << 30;

/// What the sockets of the host are known by when they tell of something: the doorbell, the socket
/// that is listened on, and then streams, one after the other.
pub const DOORBELL: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_STREAM: u64 = 2;

/// Both ends of a connection, by port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    host: u32,
    guest: u32,
}

struct Entry {
    ends: Ends,
    connection: Connection,
    /// It is among the `ready`.
    queued: bool,
}

pub struct Sockets {
    host: Arc<Host>,
    epoll: Arc<Epoll>,
    next_token: u64,
    next_port: u32,
    /// Somebody may have connected.
    knocked: bool,
    greetings: HashMap<u64, (Greeting, Instant)>,
    entries: HashMap<u64, Entry>,
    /// Those that the guest has not done with.
    tokens: HashMap<Ends, u64>,
    /// Those that may have a packet for the guest, in the order of their turns.
    ready: VecDeque<u64>,
    strays: VecDeque<Header>,
}

impl Sockets {
    /// `epoll` tells of what happens to the sockets; it is for [`Sockets::note`].
    pub fn new(host: Arc<Host>, epoll: Arc<Epoll>) -> std::io::Result<Self> {
        let sockets = Self {
            host,
            epoll,
            next_token: FIRST_STREAM,
            next_port: FIRST_PORT,
            knocked: true,
            greetings: HashMap::new(),
            entries: HashMap::new(),
            tokens: HashMap::new(),
            ready: VecDeque::new(),
            strays: VecDeque::new(),
        };
        sockets.watch(sockets.host.fd(), LISTENER)?;
        Ok(sockets)
    }

    /// Edge-triggered, so that what cannot be served now does not keep the thread busy.
    fn watch(&self, fd: RawFd, token: u64) -> std::io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// The port that the next caller from the host gets. They are not used again before all others
    /// were, so that neither end takes a new connection for an old one.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    pub fn set_next_port(&mut self, port: u32) {
        self.next_port = port.max(FIRST_PORT);
    }

    /// Ends all connections.
    pub fn clear(&mut self) {
        self.greetings.clear();
        self.entries.clear();
        self.tokens.clear();
        self.ready.clear();
        self.strays.clear();
        self.knocked = true;
    }

    /// A socket has told of something.
    pub fn note(&mut self, token: u64, events: EventSet) {
        if token == LISTENER {
            self.knocked = true;
        } else if let Some(entry) = self.entries.get_mut(&token) {
            let has = |event| events.contains(event);
            let hung_up = has(EventSet::HANG_UP) || has(EventSet::ERROR);
            let readable = has(EventSet::IN) || has(EventSet::READ_HANG_UP);
            entry.connection.note(readable, has(EventSet::OUT), hung_up);
            self.settle(token);
        } else if self.greetings.contains_key(&token) {
            self.listen_to(token, Instant::now());
        }
    }

    /// Takes in those who have connected, as long as there is room for them.
    pub fn accept(&mut self, now: Instant) {
        while self.knocked
            && self.greetings.len() < MOST_GREETINGS
            && self.greetings.len() + self.entries.len() < MOST
        {
            match self.host.accept() {
                Ok(stream) => {
                    let token = self.next_token;
                    self.next_token += 1;
                    if self.watch(stream.as_raw_fd(), token).is_ok() {
                        self.greetings.insert(token, (Greeting::new(stream), now + GREETING_PATIENCE));
                        self.listen_to(token, now);
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.knocked = false,
                // There may be a file descriptor for it later.
                Err(_) => return,
            }
        }
    }

    fn listen_to(&mut self, token: u64, now: Instant) {
        let Some((greeting, _)) = self.greetings.get_mut(&token) else { return };
        let heard = greeting.hear();
        if heard == Heard::Part {
            return;
        }
        let Some((greeting, _)) = self.greetings.remove(&token) else { return };
        if let Heard::Port(guest) = heard
            && let Some(host) = self.free_port(guest)
        {
            let connection = Connection::of_host(greeting.into_stream(), now);
            self.add(token, Ends { host, guest }, connection);
        }
    }

    /// A port of the host that has no connection to `guest`.
    fn free_port(&mut self, guest: u32) -> Option<u32> {
        for _ in 0..=MOST {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.tokens.contains_key(&Ends { host, guest }) {
                return Some(host);
            }
        }
        None
    }

    fn add(&mut self, token: u64, ends: Ends, connection: Connection) {
        self.tokens.insert(ends, token);
        self.entries.insert(token, Entry { ends, connection, queued: false });
        self.settle(token);
    }

    /// Puts a connection where it belongs after something happened to it.
    fn settle(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if entry.connection.has_packet() && !entry.queued {
            entry.queued = true;
            self.ready.push_back(token);
        }
        if entry.connection.is_over() && self.tokens.get(&entry.ends) == Some(&token) {
            self.tokens.remove(&entry.ends);
        }
        if entry.connection.is_done() {
            self.entries.remove(&token);
        }
    }

    /// Whether the guest's packets have to wait.
    pub fn is_full(&self) -> bool {
        self.strays.len() >= MOST_STRAYS
    }

    /// A packet of the guest.
    pub fn hear(&mut self, header: &Header, data: &[u8], now: Instant) {
        // Nobody else is behind this device, and the guest's address is none that it may choose.
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID || header.kind != packet::STREAM {
            return self.refuse(header);
        }
        let ends = Ends { host: header.dst_port, guest: header.src_port };
        let token = self.tokens.get(&ends).copied();
        let Some((token, entry)) = token.and_then(|token| Some((token, self.entries.get_mut(&token)?)))
        else {
            return match header.op {
                packet::REQUEST => self.call(ends, header),
                _ => self.refuse(header),
            };
        };
        if entry.connection.hear(header, data, ends.host, now).is_err() {
            self.tokens.remove(&ends);
            self.entries.remove(&token);
            return self.refuse(header);
        }
        self.settle(token);
    }

    /// The guest calls a program of the host.
    fn call(&mut self, ends: Ends, request: &Header) {
        let room = self.greetings.len() + self.entries.len() < MOST;
        let stream = room.then(|| self.host.call(ends.host).ok()).flatten();
        let Some(stream) = stream else { return self.refuse(request) };
        let token = self.next_token;
        self.next_token += 1;
        match self.watch(stream.as_raw_fd(), token) {
            Ok(()) => self.add(token, ends, Connection::of_guest(stream, request)),
            Err(_) => self.refuse(request),
        }
    }

    /// Answers a packet of no connection with a reset; one that is a reset itself is not answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != packet::RESET {
            self.strays.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: packet::RESET,
                ..Header::default()
            });
        }
    }

    pub fn has_packet(&self) -> bool {
        !self.strays.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, with its data in `room`. Each connection in turn.
    pub fn next_packet(&mut self, room: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reset) = self.strays.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.queued = false;
            let found = entry.connection.next_packet(room, now).map(|(op, flags, len)| {
                let (buf_alloc, fwd_cnt) = entry.connection.room();
                Header {
                    src_cid: HOST_CID,
                    dst_cid: GUEST_CID,
                    src_port: entry.ends.host,
                    dst_port: entry.ends.guest,
                    // No longer than `room`.
                    len: len as u32,
                    kind: packet::STREAM,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                }
            });
            self.settle(token);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// When somebody's patience ends.
    pub fn deadline(&self) -> Option<Instant> {
        let greetings = self.greetings.values().map(|(_, deadline)| *deadline);
        let connections = self.entries.values().filter_map(|entry| entry.connection.deadline());
        greetings.chain(connections).min()
    }

    /// Gives up those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.greetings.retain(|_, (_, deadline)| *deadline > now);
        let late = |entry: &Entry| entry.connection.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| late(entry)).map(|(token, _)| *token).collect();
        for token in late {
            if let Some(entry) = self.entries.get_mut(&token) {
                entry.connection.expire(now);
            }
            self.settle(token);
        }
    }
}
