//! A guest that says anything to programs of the host: packets of any kind in chains of any shape,
//! buffers of any size, and programs that come and go meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use piton::devices::virtio::vsock::host::Host;
use piton::devices::virtio::vsock::{Vsock, VsockState};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use crate::driver::Driver;
use crate::{Shape, Target};

const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
const EVENTS: u16 = 2;
const HEADER: usize = 44;

/// A record of an input: what is done, two small numbers, a length, and a packet's header.
const RECORD: usize = 4 + HEADER;
const PACKET: u8 = 0;
const BUFFER_FOR_GUEST: u8 = 1;
const EVENT_BUFFER: u8 = 2;
const CLIENT: u8 = 3;
const PROGRAM_READS: u8 = 4;
const PROGRAM_ENDS: u8 = 5;
const GO_BACK: u8 = 6;

struct Guest {
    driver: Driver<Vsock>,
    epoll: Arc<Epoll>,
    path: std::path::PathBuf,
    clients: Vec<UnixStream>,
    listener: UnixListener,
    // The last to be dropped.
    _dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(dir.path().join("s_7")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        let host = Arc::new(Host::listen(&path).unwrap());
        let driver = Driver::new(Vsock::new(host, epoll.clone()).unwrap());
        let mut guest = Self { driver, epoll, path, clients: Vec::new(), listener, _dir: dir };
        guest.driver.start(1);
        guest
    }

    /// What the device's thread does.
    fn serve(&self) {
        let mut events = [EpollEvent::default(); 16];
        let count = self.epoll.wait(0, &mut events).unwrap();
        self.driver.rig.backend.lock().device.note_all(&events[..count]);
        self.driver.rig.backend.ring();
        self.driver.rig.serve();
    }

    fn obey(&mut self, record: &[u8]) {
        let [what, a, b, c] = [record[0] % 7, record[1], record[2], record[3]];
        let length = u32::from(a) << 4;
        match what {
            PACKET => {
                let mut lengths = vec![HEADER as u32, length];
                if b & 1 == 1 {
                    lengths = vec![HEADER as u32 + length];
                }
                if b & 2 == 2 {
                    lengths[0] = lengths[0].saturating_sub(c.into());
                }
                self.driver.give(FROM_GUEST, &lengths, b & 4 == 4, &record[4..]);
            }
            BUFFER_FOR_GUEST => self.driver.give(TO_GUEST, &[u32::from(b) + 1, length], b & 7 != 7, &[]),
            EVENT_BUFFER => self.driver.give(EVENTS, &[a.into()], true, &[]),
            CLIENT if self.clients.len() < 32 => {
                let mut client = UnixStream::connect(&self.path).unwrap();
                client.set_nonblocking(true).unwrap();
                let _ = client.write(if b & 1 == 1 { &record[4..] } else { b"CONNECT 5\nhello" });
                self.clients.push(client);
            }
            PROGRAM_READS => {
                if let Ok((program, _)) = self.listener.accept() {
                    program.set_nonblocking(true).unwrap();
                    self.clients.push(program);
                }
                for client in &mut self.clients {
                    let _ = client.read(&mut [0; 4096]);
                    let _ = client.write(&record[4..]);
                }
            }
            PROGRAM_ENDS if !self.clients.is_empty() => {
                drop(self.clients.remove(usize::from(a) % self.clients.len()));
            }
            GO_BACK => {
                let state: VsockState = self.driver.rig.backend.lock().device.save();
                self.driver.rig.backend.lock().device.restore(state);
            }
            _ => {}
        }
        self.serve();
    }

    /// A device that was reset answers a packet of no connection.
    fn is_alive(&mut self) -> bool {
        self.driver.start(1);
        self.driver.give(TO_GUEST, &[HEADER as u32], true, &[]);
        self.driver.give(FROM_GUEST, &[HEADER as u32], false, &packet(5, 999, 0));
        self.serve();
        self.driver.used(TO_GUEST) == 1 && self.driver.used(FROM_GUEST) == 1
    }
}

/// A header of operation `op`, of the guest's port 5, with room for much.
fn packet(op: u16, host_port: u32, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&3_u64.to_le_bytes());
    bytes.extend_from_slice(&2_u64.to_le_bytes());
    for word in [5, host_port, len, 1 | u32::from(op) << 16, 3, 1 << 16, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn record(what: u8, a: u8, b: u8, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![what, a, b, 0];
    bytes.extend_from_slice(packet);
    bytes.resize(RECORD, 0);
    bytes
}

pub fn target() -> Target {
    const CALLER: u32 = 1 << 30;
    let buffers = || [record(BUFFER_FOR_GUEST, 200, 43, &[]), record(BUFFER_FOR_GUEST, 9, 43, &[])].concat();
    let say = |op, port| record(PACKET, 4, 0, &packet(op, port, if op == 5 { 64 } else { 0 }));
    let called = [buffers(), record(CLIENT, 0, 0, &[]), say(2, CALLER), say(5, CALLER), say(4, CALLER)];
    let calls = [buffers(), say(1, 7), record(PROGRAM_READS, 0, 0, b"some bytes"), say(5, 7), say(7, 7)];
    let ends =
        [buffers(), say(1, 7), record(PROGRAM_READS, 0, 0, &[]), record(PROGRAM_ENDS, 0, 0, &[]), say(5, 7)];
    let back = [
        buffers(),
        record(GO_BACK, 0, 0, &[]),
        record(EVENT_BUFFER, 8, 0, &[]),
        record(EVENT_BUFFER, 8, 0, &[]),
        say(1, 7),
    ];
    Target {
        name: "vsock",
        shape: Shape::Bytes,
        seeds: vec![called.concat(), calls.concat(), ends.concat(), back.concat()],
        mend: Box::new(|_| {}),
        run: Box::new(|input| {
            let mut guest = Guest::new();
            for record in input.chunks_exact(RECORD).take(256) {
                guest.obey(record);
            }
            let accepted = guest.driver.used(FROM_GUEST) > 0;
            assert!(guest.is_alive(), "a reset device does not serve");
            accepted
        }),
    }
}
