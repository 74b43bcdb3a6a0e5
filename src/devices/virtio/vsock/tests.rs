//! Connections, with a guest made of packets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use super::connection::ROOM;
use super::host::{Host, HostError, check_path};
use super::packet::{self, Header};
use super::sockets::{FIRST_PORT, GUEST_CID, HOST_CID, Sockets};

struct Lab {
    dir: tempfile::TempDir,
    epoll: Arc<Epoll>,
    sockets: Sockets,
    now: Instant,
}

/// What the guest is sent.
type Packet = (Header, Vec<u8>);

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(Host::listen(&dir.path().join("s")).unwrap());
        let epoll = Arc::new(Epoll::new().unwrap());
        let sockets = Sockets::new(host, epoll.clone()).unwrap();
        Self { dir, epoll, sockets, now: Instant::now() }
    }

    /// Lets the sockets say what happened to them.
    fn look(&mut self) {
        let mut events = [EpollEvent::default(); 64];
        while let Ok(count @ 1..) = self.epoll.wait(0, &mut events) {
            for event in &events[..count] {
                self.sockets.note(event.data(), event.event_set());
            }
        }
        self.sockets.expire(self.now);
        self.sockets.accept(self.now);
    }

    /// What the guest gets, if it offers buffers with room for `room` bytes of data.
    fn packets_of(&mut self, room: usize) -> Vec<Packet> {
        let mut all = Vec::new();
        let mut buffer = vec![0; room];
        self.look();
        while self.sockets.has_packet() {
            let Some(header) = self.sockets.next_packet(&mut buffer, self.now) else { break };
            all.push((header, buffer[..header.len as usize].to_vec()));
        }
        all
    }

    fn packets(&mut self) -> Vec<Packet> {
        self.packets_of(4096)
    }

    fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    fn hear(&mut self, header: &Header, data: &[u8]) {
        self.sockets.hear(header, data, self.now);
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("s")).unwrap()
    }

    fn listener(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("s_{port}"))).unwrap()
    }

    /// An open connection that the host asked for.
    fn open(&mut self) -> (UnixStream, Guest) {
        let mut client = self.client();
        client.write_all(b"CONNECT 5\n").unwrap();
        let packets = self.packets();
        let [(request, _)] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!((request.op, request.dst_port, request.dst_cid), (packet::REQUEST, 5, GUEST_CID));
        let guest = Guest { host: request.src_port, port: 5, room: 1 << 20, used: 0 };
        self.hear(&guest.packet(packet::RESPONSE, 0, 0), &[]);
        let mut line = [0; 14];
        client.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8_lossy(&line), format!("OK {}\n", request.src_port));
        (client, guest)
    }
}

/// The guest's end of a connection.
#[derive(Clone, Copy)]
struct Guest {
    host: u32,
    port: u32,
    room: u32,
    used: u32,
}

impl Guest {
    fn packet(&self, op: u16, flags: u32, len: usize) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: self.port,
            dst_port: self.host,
            len: len as u32,
            kind: packet::STREAM,
            op,
            flags,
            buf_alloc: self.room,
            fwd_cnt: self.used,
        }
    }

    fn says(&self, lab: &mut Lab, data: &[u8]) {
        lab.hear(&self.packet(packet::DATA, 0, data.len()), data);
    }
}

fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let mut lab = Lab::new();
    let (mut client, guest) = lab.open();
    client.write_all(b"to the guest").unwrap();
    let packets = lab.packets();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (packet::DATA, &b"to the guest"[..]));

    client.shutdown(Shutdown::Write).unwrap();
    let packets = lab.packets();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (packet::SHUTDOWN, packet::NO_MORE_WRITING));
    guest.says(&mut lab, b"to the host");
    lab.hear(&guest.packet(packet::SHUTDOWN, packet::BOTH, 0), &[]);
    assert_eq!(lab.ops(), [packet::RESET]);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "to the host");
    // Of what is over, a packet is a stray.
    guest.says(&mut lab, b"x");
    assert_eq!(lab.ops(), [packet::RESET]);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut lab = Lab::new();
    let (mut client, mut guest) = lab.open();
    guest.room = 10;
    lab.hear(&guest.packet(packet::CREDIT_UPDATE, 0, 0), &[]);
    client.write_all(&[7; 25]).unwrap();
    let packets = lab.packets();
    let sizes: Vec<_> = packets.iter().map(|(header, data)| (header.op, data.len())).collect();
    assert_eq!(sizes, [(packet::DATA, 10), (packet::CREDIT_REQUEST, 0)]);
    assert!(lab.packets().is_empty(), "it is asked once");
    guest.used = 6;
    lab.hear(&guest.packet(packet::CREDIT_UPDATE, 0, 0), &[]);
    let packets = lab.packets();
    assert_eq!((packets[0].0.op, packets[0].1.len()), (packet::DATA, 6));
    // One that takes back what it said gets nothing, and harms nobody.
    (guest.room, guest.used) = (1, u32::MAX);
    lab.hear(&guest.packet(packet::CREDIT_UPDATE, 0, 0), &[]);
    assert_eq!(lab.ops(), [packet::CREDIT_REQUEST]);
}

#[test]
fn what_the_host_does_not_read_is_kept_and_bounded() {
    let mut lab = Lab::new();
    let (mut client, guest) = lab.open();
    let chunk = vec![1; 64 << 10];
    let mut said = 0;
    // What each packet tells of the room bounds what an honest guest sends.
    let mut used = 0;
    while said + chunk.len() as u32 - used <= ROOM {
        guest.says(&mut lab, &chunk);
        said += chunk.len() as u32;
        for (header, _) in lab.packets() {
            assert_eq!((header.op, header.buf_alloc), (packet::CREDIT_UPDATE, ROOM));
            used = header.fwd_cnt;
        }
    }
    lab.hear(&guest.packet(packet::CREDIT_REQUEST, 0, 0), &[]);
    let packets = lab.packets();
    assert!(packets[0].0.fwd_cnt < said, "nothing is kept");
    // Reading makes room, and the guest is told.
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut got = vec![0; said as usize];
    let mut at = 0;
    while at < got.len() {
        at += client.read(&mut got[at..]).unwrap();
        lab.look();
    }
    let told: Vec<_> = lab.packets();
    assert_eq!(told.last().map(|(header, _)| header.fwd_cnt), Some(said));

    // One that sends more than there is room for loses the connection.
    for _ in 0..2 * ROOM as usize / chunk.len() + 8 {
        guest.says(&mut lab, &chunk);
    }
    assert!(lab.ops().contains(&packet::RESET));
}

#[test]
fn a_host_that_hangs_up_is_told_of() {
    let mut lab = Lab::new();
    let (mut client, guest) = lab.open();
    client.write_all(b"last words").unwrap();
    drop(client);
    let packets = lab.packets();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (packet::SHUTDOWN, packet::BOTH));
    assert!(lab.sockets.deadline().is_some());
    guest.says(&mut lab, b"too late");
    assert!(lab.packets().is_empty());
    // A guest that does not end it is not waited for.
    lab.now += Duration::from_secs(60);
    assert_eq!(lab.ops(), [packet::RESET]);
    assert!(lab.sockets.deadline().is_none());
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"CONNECT 5\n").unwrap();
    assert_eq!(lab.ops(), [packet::REQUEST]);
    assert!(!is_closed(&mut client));
    lab.now += Duration::from_secs(60);
    assert_eq!(lab.ops(), [packet::RESET]);
    assert!(is_closed(&mut client));
}

#[test]
fn a_host_that_goes_before_the_answer_is_no_connection() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"CONNECT 5\n").unwrap();
    lab.look();
    drop(client);
    assert!(lab.packets().is_empty(), "the guest was asked for nothing");

    let mut client = lab.client();
    client.write_all(b"CONNECT 5\n").unwrap();
    assert_eq!(lab.ops(), [packet::REQUEST]);
    drop(client);
    assert_eq!(lab.ops(), [packet::RESET]);
}

#[test]
fn the_guest_calls() {
    let mut lab = Lab::new();
    let guest = Guest { host: 80, port: 1000, room: 1 << 20, used: 0 };
    let refused = |lab: &mut Lab| lab.ops() == [packet::RESET];
    lab.hear(&guest.packet(packet::REQUEST, 0, 0), &[]);
    assert!(refused(&mut lab), "nobody listens there");
    let listener = lab.listener(80);
    lab.hear(&guest.packet(packet::REQUEST, 0, 0), &[]);
    assert_eq!(lab.ops(), [packet::RESPONSE]);
    let (mut program, _) = listener.accept().unwrap();
    program.write_all(b"hello").unwrap();
    assert_eq!(lab.packets()[0].1, b"hello");
    guest.says(&mut lab, b"hi");
    let mut heard = [0; 2];
    program.read_exact(&mut heard).unwrap();
    // The same ends cannot be asked for twice.
    lab.hear(&guest.packet(packet::REQUEST, 0, 0), &[]);
    assert!(refused(&mut lab));
    assert!(is_closed(&mut program));
    // Who does not accept is not waited for: the backlog of a listener is bounded.
    for port in 2000..12_000 {
        lab.hear(&Guest { port, ..guest }.packet(packet::REQUEST, 0, 0), &[]);
        match lab.packets()[0].0.op {
            packet::RESPONSE => {}
            packet::RESET => return,
            other => panic!("{other}"),
        }
    }
    panic!("connections without end");
}

#[test]
fn nobody_else_is_reached() {
    let mut lab = Lab::new();
    let (mut client, guest) = lab.open();
    for wrong in [
        Header { src_cid: 7, ..guest.packet(packet::DATA, 0, 1) },
        Header { dst_cid: 7, ..guest.packet(packet::DATA, 0, 1) },
        Header { kind: 2, ..guest.packet(packet::DATA, 0, 1) },
        Header { dst_port: 9, ..guest.packet(packet::DATA, 0, 1) },
    ] {
        lab.hear(&wrong, b"x");
        let packets = lab.packets();
        assert_eq!((packets.len(), packets[0].0.op), (1, packet::RESET), "{wrong:?}");
        assert_eq!(packets[0].0.dst_cid, wrong.src_cid);
        lab.hear(&Header { op: packet::RESET, ..wrong }, &[]);
        assert!(lab.packets().is_empty(), "a reset is not answered");
    }
    assert!(!is_closed(&mut client));
    lab.hear(&guest.packet(77, 0, 0), &[]);
    assert_eq!(lab.ops(), [packet::RESET]);
    assert!(is_closed(&mut client));
}

#[test]
fn strays_make_the_guest_wait() {
    let mut lab = Lab::new();
    for port in 0..10_000 {
        if lab.sockets.is_full() {
            assert!(port <= 64);
            assert!(!lab.packets().is_empty());
            assert!(!lab.sockets.is_full());
            return;
        }
        lab.hear(&Guest { host: 9, port, room: 0, used: 0 }.packet(packet::DATA, 0, 0), &[]);
    }
    panic!("strays without end");
}

#[test]
fn silent_callers_are_bounded_and_let_go() {
    let mut lab = Lab::new();
    let mut silent: Vec<UnixStream> = (0..80).map(|_| lab.client()).collect();
    lab.look();
    assert!(lab.packets().is_empty());
    lab.now += Duration::from_secs(60);
    lab.look();
    assert!(silent[..64].iter_mut().all(is_closed));
    assert!(!is_closed(&mut silent[79]));
    lab.now += Duration::from_secs(60);
    lab.look();
    lab.open();
}

#[test]
fn ports_are_not_used_again_at_once() {
    let mut lab = Lab::new();
    let (first, guest) = lab.open();
    assert_eq!(guest.host, FIRST_PORT);
    drop(first);
    lab.packets();
    lab.hear(&guest.packet(packet::RESET, 0, 0), &[]);
    let (_second, other) = lab.open();
    assert_eq!(other.host, FIRST_PORT + 1);
    // Nor after going back.
    let saved = lab.sockets.next_port();
    let mut next = Lab::new();
    next.sockets.set_next_port(saved);
    let mut open = Vec::new();
    let mut port = |next: &mut Lab| {
        let (client, guest) = next.open();
        open.push(client);
        guest.host
    };
    assert_eq!(port(&mut next), FIRST_PORT + 2);
    next.sockets.set_next_port(u32::MAX);
    assert_eq!(port(&mut next), u32::MAX);
    assert_eq!(port(&mut next), FIRST_PORT);
    next.sockets.set_next_port(FIRST_PORT + 2);
    assert_eq!(port(&mut next), FIRST_PORT + 3, "one that is in use is passed over");
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let path = |len: usize| std::path::PathBuf::from(format!("/{}", "x".repeat(len - 1)));
    assert!(check_path(&path(96)).is_ok());
    assert!(matches!(check_path(&path(97)), Err(HostError::TooLong(_))));
}

proptest! {
    /// Whatever the guest says: nobody panics, what is kept is bounded, and each packet for the
    /// guest fits its buffer.
    #[test]
    fn any_guest(packets in prop::collection::vec(
        (0..10_u16, 0..4_u32, 0..4_u32, 0..3_u32, any::<u32>(), any::<u32>(), 0..70_000_usize), 1..60)
    ) {
        let mut lab = Lab::new();
        let _listener = lab.listener(1);
        let (mut client, _) = lab.open();
        let _ = client.write_all(&[1; 5000]);
        for (op, flags, src_port, dst, buf_alloc, fwd_cnt, len) in packets {
            let header = Header {
                src_cid: GUEST_CID,
                dst_cid: HOST_CID,
                src_port: src_port + 3,
                dst_port: [1, 2, FIRST_PORT][dst as usize],
                len: len as u32,
                kind: packet::STREAM,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            };
            if !lab.sockets.is_full() {
                lab.hear(&header, &vec![3; len]);
            }
            for (header, data) in lab.packets_of(100) {
                prop_assert!(data.len() <= 100);
                prop_assert_eq!(header.dst_cid, GUEST_CID);
            }
        }
    }
}
