//! The socket device as its driver sees it: three rings, and what may be put into them.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::Epoll;

use super::driver::{
    DRIVER_OK, Driver, FEATURES_OK, HOLE, INDIRECT, NEEDS_RESET, NEXT, VERSION_1, WRITE, desc, memory, used,
};
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::vsock::host::Host;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;
const SIZE: u16 = 128;
const HEADER: usize = 44;
const DATA: u16 = 5;
const RESET: u16 = 3;

struct Guest {
    driver: Driver<Vsock>,
    avail: [u16; 3],
    used: [u16; 3],
    heap: u64,
    // The last to be dropped.
    _dir: tempfile::TempDir,
}

/// A packet of the guest's port 5 to port 999, which nobody has.
fn packet(op: u16, len: u32) -> Vec<u8> {
    let mut bytes = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    for word in [5, 999, len, 1 | u32::from(op) << 16, 0, 1 << 16, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(Host::listen(&dir.path().join("s")).unwrap());
        let device = Vsock::new(host, Arc::new(Epoll::new().unwrap())).unwrap();
        let driver = Driver::new(device, memory());
        let mut guest = Self { driver, avail: [0; 3], used: [0; 3], heap: 0, _dir: dir };
        guest.start();
        guest
    }

    fn start(&mut self) {
        let driver = &self.driver;
        driver.write(0x70, 0);
        driver.memory.write_slice(&[0; 0xd000], GuestAddress(0x1000)).unwrap();
        (self.avail, self.used, self.heap) = ([0; 3], [0; 3], 0x10_0000);
        driver.add_status(3);
        // Without event indexes, what is wanted is in the rings' flags.
        driver.accept(VERSION_1 | 1);
        assert_ne!(driver.add_status(FEATURES_OK) & FEATURES_OK, 0);
        for (queue, size) in [(TO_GUEST, SIZE), (FROM_GUEST, SIZE), (EVENTS, 16)] {
            driver.enable(queue, size);
        }
        assert_eq!(driver.add_status(DRIVER_OK) & NEEDS_RESET, 0);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let size = if queue == EVENTS { 16 } else { SIZE };
        self.driver.offer_to(queue, size, &mut self.avail[queue], head);
    }

    /// Of one descriptor each.
    fn give(&mut self, queue: usize, len: usize, flags: u16, content: &[u8]) {
        let (at, head) = (self.heap, self.avail[queue] % if queue == EVENTS { 16 } else { SIZE });
        self.heap += 4096;
        self.driver.memory.write_slice(content, GuestAddress(at)).unwrap();
        self.driver.put_desc(desc(queue), head, (at, len as u32, flags, 0));
        self.offer(queue, head);
    }

    fn says(&mut self, packet: &[u8]) {
        self.give(FROM_GUEST, packet.len(), 0, packet);
    }

    fn serve(&self) {
        self.driver.kick();
        self.driver.serve();
    }

    /// How many buffers came back since the last call.
    fn used(&mut self, queue: usize) -> u16 {
        let index: u16 = self.driver.memory.read_obj(GuestAddress(used(queue) + 2)).unwrap();
        index.wrapping_sub(std::mem::replace(&mut self.used[queue], index))
    }

    fn may_be_silent(&self, queue: usize) -> bool {
        self.driver.memory.read_obj::<u16>(GuestAddress(used(queue))).unwrap() == 1
    }

    fn is_broken(&self) -> bool {
        self.driver.status() & NEEDS_RESET != 0
    }

    /// Whatever came before, after a reset a packet of no connection is answered.
    fn assert_alive(&mut self) {
        self.start();
        self.give(TO_GUEST, HEADER, WRITE, &[]);
        let answer = self.heap - 4096;
        self.says(&packet(DATA, 0));
        self.serve();
        assert_eq!((self.used(FROM_GUEST), self.used(TO_GUEST)), (1, 1));
        let op: u16 = self.driver.memory.read_obj(GuestAddress(answer + 30)).unwrap();
        assert_eq!(op, RESET);
    }
}

/// Each notification that a driver need not send is an exit spared.
#[test]
fn a_driver_is_told_when_it_may_be_silent() {
    let mut guest = Guest::new();
    guest.serve();
    assert!(!guest.may_be_silent(FROM_GUEST) && !guest.may_be_silent(TO_GUEST));
    for _ in 0..3 {
        guest.give(TO_GUEST, 256, WRITE, &[]);
    }
    guest.says(&packet(DATA, 0));
    guest.serve();
    assert_eq!((guest.used(FROM_GUEST), guest.used(TO_GUEST)), (1, 1));
    // More buffers are no news while there are some; of packets it is told.
    assert!(guest.may_be_silent(TO_GUEST) && !guest.may_be_silent(FROM_GUEST));
    for _ in 0..3 {
        guest.says(&packet(DATA, 0));
    }
    guest.serve();
    assert_eq!((guest.used(FROM_GUEST), guest.used(TO_GUEST)), (3, 2));
    assert!(!guest.may_be_silent(TO_GUEST), "an answer waits for a buffer");
    guest.give(TO_GUEST, 256, WRITE, &[]);
    guest.serve();
    assert_eq!(guest.used(TO_GUEST), 1);
    assert!(!guest.may_be_silent(FROM_GUEST));
}

/// Nobody reads the answers.
#[test]
fn a_flood_of_packets_waits_in_the_guest() {
    let mut guest = Guest::new();
    for _ in 0..SIZE {
        guest.says(&packet(DATA, 0));
    }
    guest.serve();
    let taken = guest.used(FROM_GUEST);
    assert!((32..SIZE).contains(&taken), "{taken}");
    guest.serve();
    assert_eq!(guest.used(FROM_GUEST), 0);
    for _ in 0..SIZE {
        guest.give(TO_GUEST, HEADER, WRITE, &[]);
    }
    guest.serve();
    assert_eq!((guest.used(FROM_GUEST), guest.used(TO_GUEST)), (SIZE - taken, SIZE));
}

#[test]
fn packets_and_buffers_that_cannot_be_break_the_device_alone() {
    let long = packet(DATA, 1000);
    let too_long = packet(DATA, (64 << 10) + 1);
    let endless = packet(DATA, u32::MAX);
    let cases: [(usize, usize, u16, &[u8]); 8] = [
        (FROM_GUEST, 0, 0, &[]),
        (FROM_GUEST, HEADER - 1, 0, &packet(DATA, 0)),
        (FROM_GUEST, HEADER, WRITE, &packet(DATA, 0)),
        // It says that more follows than does.
        (FROM_GUEST, HEADER, 0, &long),
        (FROM_GUEST, HEADER + 999, 0, &long),
        (FROM_GUEST, 4096, 0, &too_long),
        (FROM_GUEST, 4096, 0, &endless),
        (TO_GUEST, HEADER - 1, WRITE, &[]),
    ];
    let mut guest = Guest::new();
    for (n, (queue, len, flags, content)) in cases.into_iter().enumerate() {
        if queue == TO_GUEST {
            guest.says(&packet(DATA, 0));
        }
        guest.give(queue, len, flags, content);
        guest.serve();
        assert!(guest.is_broken(), "{n}");
        guest.assert_alive();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_descriptors(
        descriptors in prop::collection::vec((
            0..3usize,
            0..SIZE,
            prop_oneof![6 => 0x10_0000..0x20_0000u64, 2 => 0x1000..0xd000u64, 1 => HOLE - 64..HOLE + 64, 1 => any::<u64>()],
            prop_oneof![4 => 0..200u32, 2 => 0..70_000u32, 1 => any::<u32>(), 1 => (0..70u32).prop_map(|n| n * 16)],
            prop_oneof![4 => Just(0), 4 => Just(WRITE), 3 => Just(NEXT), 3 => Just(NEXT | WRITE), 1 => Just(INDIRECT), 1 => any::<u16>()],
            prop_oneof![8 => 0..SIZE, 1 => any::<u16>()],
        ), 1..40),
        heads in prop::collection::vec((0..3usize, prop_oneof![9 => 0..SIZE, 1 => any::<u16>()]), 1..30),
        op in 0..9u16,
        len in prop_oneof![3 => 0..100u32, 1 => any::<u32>()],
        goes_back in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        for at in (0x10_0000..0x20_0000).step_by(0x1000) {
            guest.driver.memory.write_slice(&packet(op, len), GuestAddress(at)).unwrap();
        }
        for (queue, index, address, len, flags, next) in descriptors {
            guest.driver.put_desc(desc(queue), index, (address, len, flags, next));
        }
        if goes_back {
            let mut active = guest.driver.backend.lock();
            let state = active.device.save();
            active.device.restore(state);
        }
        for (queue, head) in heads {
            guest.offer(queue, head);
            guest.serve();
        }
        guest.assert_alive();
    }
}
