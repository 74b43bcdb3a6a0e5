//! A guest that says anything to programs of the host: packets of any kind in chains of any shape,
//! buffers of any size, and programs that come and go meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use piton::devices::virtio::vsock::host::Host;
use piton::devices::virtio::vsock::{Vsock, VsockState};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use crate::virtio::Rig;
use crate::{Shape, Target};

/// Of each queue: descriptors, available ring, used ring, in this order; and its buffers.
const QUEUES: u64 = 0x1000;
const QUEUE: u64 = 0x1000;
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 0x1000;
const SIZE: u16 = 16;
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
    rig: Rig<Vsock>,
    epoll: Arc<Epoll>,
    given: [u16; 3],
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
        let rig = Rig::new(Vsock::new(host, epoll.clone()).unwrap());
        let mut guest = Self { rig, epoll, given: [0; 3], path, clients: Vec::new(), listener, _dir: dir };
        guest.start();
        guest
    }

    fn place(queue: u16, part: u64) -> u64 {
        QUEUES + u64::from(queue) * QUEUE + part * 0x400
    }

    fn start(&mut self) {
        let rig = &self.rig;
        rig.write(0x70, 0);
        rig.memory.write_slice(&[0; 3 * QUEUE as usize], GuestAddress(QUEUES)).unwrap();
        for (register, value) in [(0x70, 3), (0x24, 0), (0x20, 1), (0x24, 1), (0x20, 1), (0x70, 11)] {
            rig.write(register, value);
        }
        for queue in [TO_GUEST, FROM_GUEST, EVENTS] {
            rig.write(0x30, queue.into());
            rig.write(0x38, SIZE.into());
            for (register, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
                rig.write(register, Self::place(queue, part) as u32);
            }
            rig.write(0x44, 1);
        }
        rig.write(0x70, 15);
        self.given = [0; 3];
    }

    fn used(&self, queue: u16) -> u16 {
        self.rig.memory.read_obj(GuestAddress(Self::place(queue, 2) + 2)).unwrap()
    }

    /// Gives a chain: pieces by length, all of them written or read by the device.
    fn give(&mut self, queue: u16, lengths: &[u32], writable: bool, bytes: &[u8]) {
        let given = self.given[usize::from(queue)];
        let head = given * 2 % SIZE;
        let mut at = BUFFERS + (u64::from(queue) * u64::from(SIZE) + u64::from(head)) * BUFFER;
        self.rig.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        for (n, length) in (0_u16..).zip(lengths) {
            let last = usize::from(n) + 1 == lengths.len();
            let flags = u16::from(!last) | if writable { 2 } else { 0 };
            let desc = GuestAddress(Self::place(queue, 0) + u64::from(head + n) * 16);
            let low = u64::from(*length) | u64::from(flags) << 32 | u64::from(head + n + 1) << 48;
            self.rig.memory.write_obj(at, desc).unwrap();
            self.rig.memory.write_obj(low, GuestAddress(desc.0 + 8)).unwrap();
            at += u64::from(*length);
        }
        let slot = Self::place(queue, 1) + 4 + u64::from(given % SIZE) * 2;
        self.rig.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.given[usize::from(queue)] = given.wrapping_add(1);
        self.rig.memory.write_obj(given.wrapping_add(1), GuestAddress(Self::place(queue, 1) + 2)).unwrap();
        self.rig.write(0x50, queue.into());
    }

    /// What the device's thread does.
    fn serve(&self) {
        let mut events = [EpollEvent::default(); 16];
        let count = self.epoll.wait(0, &mut events).unwrap();
        self.rig.backend.lock().device.note_all(&events[..count]);
        self.rig.backend.ring();
        self.rig.serve();
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
                self.give(FROM_GUEST, &lengths, b & 4 == 4, &record[4..]);
            }
            BUFFER_FOR_GUEST => self.give(TO_GUEST, &[u32::from(b) + 1, length], b & 7 != 7, &[]),
            EVENT_BUFFER => self.give(EVENTS, &[a.into()], true, &[]),
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
                let state: VsockState = self.rig.backend.lock().device.save();
                self.rig.backend.lock().device.restore(state);
            }
            _ => {}
        }
        self.serve();
    }

    /// A device that was reset answers a packet of no connection.
    fn is_alive(&mut self) -> bool {
        self.start();
        self.give(TO_GUEST, &[HEADER as u32], true, &[]);
        self.give(FROM_GUEST, &[HEADER as u32], false, &packet(5, 999, 0));
        self.serve();
        self.used(TO_GUEST) == 1 && self.used(FROM_GUEST) == 1
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
            let accepted = guest.used(FROM_GUEST) > 0;
            assert!(guest.is_alive(), "a reset device does not serve");
            accepted
        }),
    }
}
