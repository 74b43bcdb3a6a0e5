//! The agent's port as a driver sees it, and the same driver when it means ill.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::driver::{DESC, Driver, NEXT, WRITE, memory};
use crate::devices::virtio::console::{Console, ConsoleState};
use crate::devices::virtio::console_port::{Port, Received};

const MULTIPORT: u64 = 1 << 1;
const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;

const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// Where queue `queue` lies: descriptors, available ring, used ring; its buffers come behind.
fn place(queue: usize) -> [u64; 3] {
    let start = DESC + queue as u64 * 0x1_0000;
    [start, start + 0x1000, start + 0x2000]
}

fn buffer(queue: usize, index: u16) -> u64 {
    place(queue)[0] + 0x4000 + u64::from(index) * 0x800
}

struct Guest {
    driver: Driver<Console>,
    port: Arc<Port>,
    contacts: Arc<AtomicUsize>,
    next: [u16; 4],
    seen: [u16; 4],
}

impl Guest {
    fn new() -> Self {
        let port = Arc::new(Port::default());
        let driver = Driver::new(Console::new(port.clone()), memory());
        let contacts = Arc::new(AtomicUsize::new(0));
        let count = contacts.clone();
        let doorbell = driver.backend.doorbell.try_clone().unwrap();
        port.connect(doorbell, Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        let mut guest = Self { driver, port, contacts, next: [0; 4], seen: [0; 4] };
        guest.start(MULTIPORT | VERSION_1);
        guest
    }

    fn start(&mut self, features: u64) {
        let driver = &self.driver;
        (self.next, self.seen) = ([0; 4], [0; 4]);
        driver.write(0x70, 0);
        driver.add_status(3);
        driver.accept(features);
        driver.add_status(8);
        for queue in 0..4 {
            driver.memory.write_slice(&[0; 0x3000], GuestAddress(place(queue)[0])).unwrap();
            driver.write(0x30, queue as u32);
            driver.write(0x38, SIZE.into());
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(place(queue)) {
                driver.write(register, address as u32);
                driver.write(register + 4, 0);
            }
            driver.write(0x44, 1);
        }
        assert_eq!(driver.add_status(4) & 64, 0);
    }

    /// Offers a buffer, with what is in it or for what comes.
    fn offer(&mut self, queue: usize, bytes: &[u8], room: u32) {
        let index = self.next[queue] % SIZE;
        let at = buffer(queue, index);
        self.driver.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let desc = if bytes.is_empty() { (at, room, WRITE, 0) } else { (at, bytes.len() as u32, 0, 0) };
        self.driver.put_desc(place(queue)[0], index, desc);
        self.avail(queue, index);
    }

    fn avail(&mut self, queue: usize, head: u16) {
        let ring = place(queue)[1];
        let slot = u64::from(self.next[queue] % SIZE);
        self.driver.memory.write_obj(head, GuestAddress(ring + 4 + slot * 2)).unwrap();
        self.next[queue] = self.next[queue].wrapping_add(1);
        self.driver.memory.write_obj(self.next[queue], GuestAddress(ring + 2)).unwrap();
    }

    fn serve(&self) {
        while self.driver.serve() {}
    }

    /// What came back on a queue since the last call.
    fn used(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let ring = place(queue)[2];
        let index: u16 = self.driver.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut all = Vec::new();
        while self.seen[queue] != index {
            let at = ring + 4 + u64::from(self.seen[queue] % SIZE) * 8;
            let head: u32 = self.driver.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.driver.memory.read_obj(GuestAddress(at + 4)).unwrap();
            let mut bytes = vec![0; len as usize];
            self.driver.memory.read_slice(&mut bytes, GuestAddress(buffer(queue, head as u16))).unwrap();
            all.push(bytes);
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        all
    }

    fn control(&mut self, event: u16, value: u16) {
        let message = [&[0; 4][..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.offer(CONTROL_FROM_GUEST, &message, 0);
        self.driver.kick();
        self.serve();
    }

    fn open(&mut self) {
        self.control(PORT_OPEN, 1);
        assert!(self.port.is_open());
    }
}

#[test]
fn a_driver_finds_the_port_and_its_name() {
    let mut guest = Guest::new();
    let driver = &guest.driver;
    assert_eq!((driver.read(0x08), driver.read(0x104), driver.offered() & MULTIPORT), (3, 1, MULTIPORT));
    for _ in 0..3 {
        guest.offer(CONTROL_TO_GUEST, &[], 100);
    }
    guest.driver.kick();
    guest.serve();
    assert_eq!(guest.used(CONTROL_TO_GUEST), [[0; 0]; 0], "it waits for a driver that is ready");
    guest.control(DEVICE_READY, 1);
    assert_eq!(guest.used(CONTROL_TO_GUEST), [[0, 0, 0, 0, 1, 0, 1, 0]]);
    guest.control(PORT_READY, 1);
    let name = [&[0, 0, 0, 0, 7, 0, 1, 0], &b"org.qemu.guest_agent.0"[..]].concat();
    assert_eq!(guest.used(CONTROL_TO_GUEST), [name, vec![0, 0, 0, 0, 6, 0, 1, 0]]);
    assert!(!guest.port.is_open());
    guest.open();
    guest.control(PORT_OPEN, 0);
    assert!(!guest.port.is_open());
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::new();
    guest.open();
    guest.offer(FROM_GUEST, b"to nobody", 0);
    guest.driver.kick();
    guest.serve();
    guest.port.listen();
    guest.offer(TO_GUEST, &[], 4);
    guest.offer(TO_GUEST, &[], 100);
    guest.driver.kick();
    guest.serve();
    assert_eq!(guest.used(TO_GUEST), [[0; 0]; 0]);
    guest.port.send(b"hello agent");
    guest.serve();
    assert_eq!(guest.used(TO_GUEST), [b"hell".to_vec(), b"o agent".to_vec()]);
    guest.offer(FROM_GUEST, b"hello host", 0);
    guest.driver.kick();
    guest.serve();
    assert_eq!(guest.port.receive(Duration::ZERO), Received::Bytes(b"hello host".to_vec()));
    assert_eq!(guest.port.receive(Duration::ZERO), Received::Nothing);
    // What was not taken when we hung up is nobody's later.
    guest.port.send(b"stale");
    guest.port.hang_up();
    guest.offer(TO_GUEST, &[], 100);
    guest.driver.kick();
    guest.serve();
    assert_eq!(guest.used(TO_GUEST), [[0; 0]; 0]);
    guest.control(PORT_OPEN, 0);
    assert_eq!(guest.port.receive(Duration::from_secs(60)), Received::Closed);
}

#[test]
fn a_flood_is_held_back_and_goes_on_when_it_is_taken() {
    let mut guest = Guest::new();
    guest.open();
    guest.port.listen();
    let mut sent = 0;
    for _ in 0..4 * 64 {
        if guest.next[FROM_GUEST].wrapping_sub(guest.seen[FROM_GUEST]) < SIZE {
            guest.offer(FROM_GUEST, &[b'x'; 0x800], 0);
            sent += 0x800;
        }
        guest.driver.kick();
        guest.serve();
        guest.used(FROM_GUEST);
    }
    let mut received = 0;
    while let Received::Bytes(bytes) = guest.port.receive(Duration::ZERO) {
        assert!(bytes.len() <= 128 << 10, "{} bytes were kept", bytes.len());
        received += bytes.len();
        guest.serve();
    }
    assert!(sent > 64 << 10);
    assert_eq!(received, sent, "nothing is lost");
}

#[test]
fn a_request_of_all_memory_costs_little() {
    let mut guest = Guest::new();
    guest.open();
    guest.port.listen();
    // Each of 16 descriptors is all of the first region.
    for index in 0..SIZE {
        let flags = if index + 1 < SIZE { NEXT } else { 0 };
        guest.driver.put_desc(place(FROM_GUEST)[0], index, (0, 8 << 20, flags, index + 1));
    }
    guest.avail(FROM_GUEST, 0);
    guest.driver.kick();
    guest.serve();
    let Received::Bytes(bytes) = guest.port.receive(Duration::ZERO) else { panic!() };
    assert!(bytes.len() <= 64 << 10);
}

#[test]
fn a_reset_closes_the_port() {
    let mut guest = Guest::new();
    guest.open();
    guest.driver.write(0x70, 0);
    assert!(!guest.port.is_open());
    guest.start(MULTIPORT | VERSION_1);
    guest.open();
    // Without ports there is no agent, and what is written there goes nowhere.
    guest.start(VERSION_1);
    guest.port.listen();
    guest.offer(FROM_GUEST, b"early console", 0);
    guest.driver.kick();
    guest.serve();
    assert_eq!(guest.used(FROM_GUEST).len(), 1);
    assert_eq!(guest.port.receive(Duration::ZERO), Received::Closed);
}

#[test]
fn a_thaw_that_is_due_is_remembered_and_told() {
    let mut guest = Guest::new();
    guest.open();
    assert_eq!(guest.contacts.load(Ordering::SeqCst), 0);
    guest.port.set_thaw_due(true);
    guest.control(PORT_OPEN, 1);
    assert_eq!(guest.contacts.load(Ordering::SeqCst), 0, "it was open");
    let saved: ConsoleState = guest.driver.backend.lock().device.save();
    let json = serde_json::to_vec(&saved).unwrap();
    let other = Guest::new();
    other.driver.backend.lock().device.restore(&serde_json::from_slice(&json).unwrap());
    assert!(other.port.is_open() && other.port.is_thaw_due());
    assert_eq!(other.driver.backend.lock().device.save(), saved);
    guest.control(PORT_OPEN, 0);
    guest.open();
    assert_eq!(guest.contacts.load(Ordering::SeqCst), 1);
    // As often as it likes.
    for _ in 0..100 {
        guest.control(PORT_OPEN, 0);
        guest.open();
    }
    assert_eq!(guest.contacts.load(Ordering::SeqCst), 3);
    guest.port.set_thaw_due(false);
    guest.control(PORT_OPEN, 0);
    guest.open();
    assert_eq!(guest.contacts.load(Ordering::SeqCst), 3);
}

#[test]
fn a_doorbell_of_its_own_is_needed_by_nobody() {
    // A port that no device has yet can be asked all the same.
    let port = Port::default();
    port.listen();
    port.send(b"x");
    assert_eq!(port.receive(Duration::from_secs(60)), Received::Closed);
    port.connect(EventFd::new(libc::EFD_NONBLOCK).unwrap(), Box::new(|| ()));
    port.hang_up();
}

proptest! {
    /// Whatever is said on the control queue and the port: no panic, and at most one message of
    /// each kind waits.
    #[test]
    fn control_messages_of_any_kind(
        messages in prop::collection::vec((any::<u8>(), 0..9u16, 0..3u16, 0..12usize), 0..40),
        rooms in prop::collection::vec(0..40u32, 0..16),
    ) {
        let mut guest = Guest::new();
        for (id, event, value, len) in messages {
            let message =
                [&u32::from(id % 2).to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes(), &[0; 4]].concat();
            guest.offer(CONTROL_FROM_GUEST, &message[..len.max(1)], 0);
            guest.driver.kick();
            guest.serve();
        }
        let count = rooms.len();
        for room in rooms {
            guest.offer(CONTROL_TO_GUEST, &[], room.max(1));
        }
        guest.driver.kick();
        guest.serve();
        let told = guest.used(CONTROL_TO_GUEST);
        prop_assert!(told.len() <= 3.min(count), "{told:?}");
    }
}
