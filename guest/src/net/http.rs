//! The web server that `net serve` starts. It answers with what tells one state of the machine from
//! another, and goes on in the background.

use crate::hash;
use crate::text::Text;
use core::fmt::Write;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;

/// Connections at a time.
pub const CONNECTIONS: usize = 8;
/// Longest request.
const HEAD: usize = 1024;
/// The seed of what `/bytes/N` gives.
const SEED: u64 = 1;
/// A client that says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// That a connection of before a going back is dead is found out by asking.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What an answer tells of the machine.
pub struct Facts {
    pub boot: u64,
    pub generation: Option<[u8; 16]>,
}

pub struct Server {
    port: Option<u16>,
    /// Requests answered since the machine booted.
    answered: u64,
    connections: [Connection; CONNECTIONS],
}

struct Connection {
    socket: SocketHandle,
    head: [u8; HEAD],
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// So much of the request has come.
    Request { len: usize },
    /// What is left of the body that is sent.
    Body { at: u64, end: u64 },
}

impl Server {
    pub fn new(sockets: [SocketHandle; CONNECTIONS]) -> Self {
        let connections = sockets.map(|socket| Connection {
            socket,
            head: [0; HEAD],
            state: State::Request { len: 0 },
        });
        Self { port: None, answered: 0, connections }
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }

    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Serves on another port, which is not 0, or no more.
    pub fn set_port(&mut self, sockets: &mut SocketSet<'static>, port: Option<u16>) {
        self.port = port;
        for connection in &self.connections {
            sockets.get_mut::<tcp::Socket>(connection.socket).abort();
        }
    }

    pub fn poll(&mut self, sockets: &mut SocketSet<'static>, facts: &Facts) {
        let Some(port) = self.port else { return };
        for connection in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket>(connection.socket);
            // Waiting for stray segments is not worth a connection.
            if matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) {
                socket.abort();
                socket.set_timeout(Some(PATIENCE));
                socket.set_keep_alive(Some(KEEP_ALIVE));
                // It fails for port 0 and for an open socket only.
                let _ = socket.listen(port);
                connection.state = State::Request { len: 0 };
            } else if !matches!(socket.state(), tcp::State::Listen | tcp::State::SynReceived) {
                connection.serve(socket, &mut self.answered, facts);
            }
        }
    }
}

impl Connection {
    fn serve(&mut self, socket: &mut tcp::Socket<'static>, answered: &mut u64, facts: &Facts) {
        if let State::Request { len } = &mut self.state {
            *len += socket.recv_slice(&mut self.head[*len..]).unwrap_or(0);
            let head = &self.head[..*len];
            if head.windows(4).any(|end| end == b"\r\n\r\n") {
                *answered += 1;
                let end = answer(socket, head, *answered, facts);
                self.state = State::Body { at: 0, end };
            } else if *len == HEAD {
                let _ = socket.send_slice(b"HTTP/1.0 431 Request Header Fields Too Large\r\n\r\n");
                self.state = State::Body { at: 0, end: 0 };
            } else if !socket.may_recv() {
                self.state = State::Body { at: 0, end: 0 };
            }
        }
        let State::Body { at, end } = &mut self.state else { return };
        // Nothing that still comes is of interest, but it must not keep the end from being seen.
        while socket.recv(|more| (more.len(), more.len())).is_ok_and(|len| len > 0) {}
        while at < end && socket.can_send() {
            let sent = socket.send(|room| {
                let len = (room.len() as u64).min(*end - *at) as usize;
                hash::bytes(&mut room[..len], SEED, *at);
                (len, len as u64)
            });
            *at += sent.unwrap_or(0);
        }
        if at == end {
            socket.close();
        }
    }
}

/// Sends all but a long body, of which it tells the length.
fn answer(socket: &mut tcp::Socket<'static>, head: &[u8], seq: u64, facts: &Facts) -> u64 {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or(head);
    let mut words = core::str::from_utf8(line).unwrap_or("").split(' ');
    let mut body = Text::<128>::new();
    let (status, long) = match (words.next(), words.next()) {
        (Some("GET"), Some("/")) => {
            let _ = write!(body, "seq={seq} boot={:016x} generation=", facts.boot);
            let _ = match facts.generation {
                Some(id) => writeln!(body, "{:032x}", u128::from_be_bytes(id)),
                None => writeln!(body, "none"),
            };
            ("200 OK", 0)
        }
        (Some("GET"), Some(path)) => {
            match path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
                Some(count) => ("200 OK", count),
                None => ("404 Not Found", 0),
            }
        }
        _ => ("501 Not Implemented", 0),
    };
    let mut text = Text::<384>::new();
    let _ = write!(
        text,
        "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{}",
        body.as_bytes().len() as u64 + long,
        body.as_str()
    );
    // A fresh connection has room for it.
    let _ = socket.send_slice(text.as_bytes());
    long
}
