//! The network device, with a driver that it knows by its rings and a back-end made of lists.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{
    DRIVER_OK, Driver, FEATURES_OK, HOLE, INDIRECT, NEEDS_RESET, NEXT, VERSION_1, WRITE, avail, desc, memory,
    used,
};
use crate::config::{NetArg, NetConfig, networks};
use crate::devices::virtio::mmio::SaveTransport;
use crate::devices::virtio::net::Net;
use crate::net::{Backend, HEADER, Incoming, Link, Lost, SavedFlow};

const RX: usize = 0;
pub(super) const TX: usize = 1;
const CTRL: usize = 2;
const SIZE: u16 = 16;

const GUEST_CSUM: u64 = 1 << 1;
const MERGE: u64 = 1 << 15;
const ANNOUNCE: u64 = 1 << 21;

/// The outside.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Ends>>);

#[derive(Default)]
pub(super) struct Ends {
    to_guest: VecDeque<Vec<u8>>,
    pub(super) from_guest: Vec<Vec<u8>>,
    /// Takes so many more, then waits.
    pub(super) room: usize,
    /// So many it takes once it is told to pass on what waits.
    pub(super) drains: usize,
    ended: Vec<SavedFlow>,
    lost: bool,
    pub(super) gone: bool,
    offloads: u64,
}

pub(super) struct Plug {
    wire: Wire,
    socket: UnixStream,
    shown: Vec<u8>,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Ends { room: usize::MAX, ..Ends::default() })))
    }

    pub(super) fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap()
    }

    pub(super) fn plug(&self) -> Box<Plug> {
        Box::new(Plug { wire: self.clone(), socket: UnixStream::pair().unwrap().0, shown: Vec::new() })
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.wire.ends().gone = true;
    }
}

impl Backend for Plug {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn peek(&mut self) -> Result<Option<Incoming<'_>>, Lost> {
        if self.wire.ends().lost {
            return Err(Lost("cut".into()));
        }
        let Some(frame) = self.wire.ends().to_guest.front().cloned() else { return Ok(None) };
        self.shown = frame;
        Ok(Some(Incoming { header: [0; HEADER], frame: &self.shown }))
    }
    fn drop_frame(&mut self) {
        self.wire.ends().to_guest.pop_front();
    }
    fn has_frame(&self) -> bool {
        let ends = self.wire.ends();
        ends.lost || !ends.to_guest.is_empty()
    }
    fn is_blocked(&self) -> bool {
        self.wire.ends().room == 0
    }
    fn send(&mut self, packet: &mut [u8]) -> Result<(), Lost> {
        let mut ends = self.wire.ends();
        ends.from_guest.push(packet[HEADER..].to_vec());
        ends.room -= 1;
        Ok(())
    }
    fn flush(&mut self) -> Result<(), Lost> {
        let mut ends = self.wire.ends();
        ends.room = ends.room.saturating_add(std::mem::take(&mut ends.drains));
        Ok(())
    }
    fn set_offloads(&mut self, features: u64) -> Result<(), Lost> {
        self.wire.ends().offloads = features;
        Ok(())
    }
    fn end_flows(&mut self, former: Vec<SavedFlow>) {
        self.wire.ends().ended = former;
    }
}

pub(super) struct Card {
    pub(super) driver: Driver<Net>,
    pub(super) link: Arc<Link>,
    avail: [u16; 3],
    used: [u16; 3],
    next: [u16; 3],
    heap: u64,
}

fn config() -> NetConfig {
    networks(&[NetArg::USER], &[], &[[1, 2, 3]]).unwrap().remove(0)
}

impl Card {
    fn new() -> Self {
        let link = Arc::new(Link::new().unwrap());
        let driver = Driver::new(Net::new(config(), link.clone()), memory());
        Self { driver, link, avail: [0; 3], used: [0; 3], next: [0; 3], heap: 0x10_0000 }
    }

    /// A card that serves, with all that is offered but `without`, and a back-end.
    pub(super) fn ready(without: u64) -> (Self, Wire) {
        let mut card = Self::new();
        card.start(without);
        let wire = Wire::new();
        card.plug(&wire);
        card.driver.take_interrupts();
        card.driver.acknowledge();
        (card, wire)
    }

    fn start(&mut self, without: u64) {
        let driver = &self.driver;
        driver.write(0x70, 0);
        driver.memory.write_slice(&[0; 0xd000], GuestAddress(0x1000)).unwrap();
        (self.avail, self.used, self.next) = ([0; 3], [0; 3], [0; 3]);
        driver.add_status(3);
        // Without event indexes every use is told of.
        driver.accept(driver.offered() & !(1 << 29) & !without);
        assert_ne!(driver.add_status(FEATURES_OK) & FEATURES_OK, 0);
        for queue in [RX, TX, CTRL] {
            driver.enable(queue, SIZE);
        }
        assert_eq!(driver.add_status(DRIVER_OK) & NEEDS_RESET, 0);
    }

    fn plug(&self, wire: &Wire) {
        self.link.plug(wire.plug(), Box::new(|_| {}));
        self.follow(true);
    }

    /// What the thread does when the cable was touched.
    pub(super) fn follow(&self, seen: bool) {
        let mut active = self.driver.backend.lock();
        active.device.follow_link(seen, Instant::now());
        self.driver.backend.publish_config(&active.device);
    }

    fn put(&mut self, queue: usize, index: u16, (address, len, flags, next): (u64, u32, u16, u16)) {
        self.driver.put_desc(desc(queue), index, (address, len, flags, next));
    }

    fn offer(&mut self, queue: usize, head: u16) {
        self.driver.offer_to(queue, SIZE, &mut self.avail[queue], head);
    }

    fn alloc(&mut self, len: usize) -> u64 {
        let at = self.heap;
        self.heap += len as u64 + 64;
        if self.heap > 0x70_0000 {
            self.heap = 0x10_0000;
        }
        at
    }

    /// A buffer of the guest; returns where it is.
    fn buffer(&mut self, len: usize) -> u64 {
        let (at, head) = (self.alloc(len), self.next[RX] % SIZE);
        self.next[RX] += 1;
        self.put(RX, head, (at, len as u32, WRITE, 0));
        self.offer(RX, head);
        at
    }

    pub(super) fn send(&mut self, frame: &[u8]) {
        let packet = [&[0; HEADER][..], frame].concat();
        let (at, head) = (self.alloc(packet.len()), self.next[TX] % SIZE);
        self.next[TX] += 1;
        self.driver.memory.write_slice(&packet, GuestAddress(at)).unwrap();
        self.put(TX, head, (at, packet.len() as u32, 0, 0));
        self.offer(TX, head);
    }

    pub(super) fn serve(&self) {
        self.driver.kick();
        self.driver.serve();
    }

    pub(super) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let index: u16 = self.driver.memory.read_obj(GuestAddress(used(queue) + 2)).unwrap();
        let mut all = Vec::new();
        while self.used[queue] != index {
            let at = used(queue) + 4 + u64::from(self.used[queue] % SIZE) * 8;
            let read = |at| self.driver.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
            all.push((read(at), read(at + 4)));
            self.used[queue] = self.used[queue].wrapping_add(1);
        }
        all
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// MAC address, status, MTU.
    fn config(&self) -> (Vec<u8>, u16, u16) {
        use crate::bus::BusDevice;
        let mut config = [0; 12];
        self.driver.transport.read(0x100, &mut config);
        let word = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
        (config[..6].to_vec(), word(6), word(10))
    }

    fn command(&mut self, command: &[u8]) -> Option<u8> {
        let (at, answer) = (self.alloc(command.len()), self.alloc(1));
        self.driver.memory.write_slice(command, GuestAddress(at)).unwrap();
        self.driver.memory.write_obj(0xeeu8, GuestAddress(answer)).unwrap();
        self.put(CTRL, 0, (at, command.len() as u32, NEXT, 1));
        self.put(CTRL, 1, (answer, 1, WRITE, 0));
        self.offer(CTRL, 0);
        self.serve();
        let used = self.used(CTRL);
        (used == [(0, 1)]).then(|| self.bytes(answer, 1)[0])
    }

    /// Whatever came before, after a reset it serves.
    fn assert_alive(&mut self, wire: &Wire) {
        self.start(0);
        self.used = [0; 3];
        self.plug(wire);
        self.buffer(2048);
        wire.ends().to_guest = VecDeque::from([frame(60, 5)]);
        wire.ends().from_guest.clear();
        self.send(&frame(60, 4));
        self.serve();
        assert_eq!(self.used(TX).len(), 1);
        assert_eq!(wire.ends().from_guest, [frame(60, 4)]);
        assert_eq!(self.used(RX), [(0, 60 + HEADER as u32)]);
    }
}

pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

#[test]
fn frames_go_both_ways_unchanged() {
    let (mut card, wire) = Card::ready(0);
    assert_eq!(card.config(), (config().mac.0.to_vec(), 1 | 2, 65520));
    card.send(&frame(14, 1));
    card.send(&frame(65535 + 14, 2));
    card.serve();
    assert_eq!(card.used(TX), [(0, 0), (1, 0)]);
    assert_eq!(wire.ends().from_guest, [frame(14, 1), frame(65535 + 14, 2)]);
    assert_eq!(card.link.info().sent, (2, 14 + 65535 + 14));

    let at = card.buffer(2048);
    wire.ends().to_guest.push_back(frame(100, 3));
    card.serve();
    assert_eq!(card.used(RX), [(0, 112)]);
    assert_eq!(card.bytes(at, 112), [&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &frame(100, 3)].concat());
    assert_eq!(card.driver.acknowledge(), 1);
    assert_ne!(card.driver.take_interrupts(), 0);
    assert_eq!(wire.ends().offloads & GUEST_CSUM, GUEST_CSUM);
}

/// One that knows no event indexes: each notification that it need not send is an exit spared, and
/// each interrupt that it does not want another.
#[test]
fn a_driver_is_told_when_it_may_be_silent_and_is_left_alone_when_it_wants_to_be() {
    let (mut card, wire) = Card::ready(0);
    let is_silent =
        |card: &Card, queue| card.driver.memory.read_obj::<u16>(GuestAddress(used(queue))).unwrap();
    assert_eq!((is_silent(&card, RX), is_silent(&card, TX)), (0, 0));
    for _ in 0..3 {
        card.buffer(2048);
    }
    wire.ends().to_guest.push_back(frame(60, 1));
    card.serve();
    // More buffers are no news while there are some.
    assert_eq!((card.used(RX).len(), is_silent(&card, RX)), (1, 1));
    wire.ends().to_guest.extend((0..3).map(|n| frame(60, n)));
    card.serve();
    assert_eq!((card.used(RX).len(), is_silent(&card, RX)), (2, 0), "a frame waits for one");
    card.buffer(2048);
    card.serve();
    assert_eq!((card.used(RX).len(), wire.ends().to_guest.len()), (1, 0));

    // What is to be sent is waited for, unless the outside is.
    wire.ends().room = 1;
    card.send(&frame(60, 2));
    card.send(&frame(60, 3));
    card.serve();
    assert_eq!((card.used(TX).len(), is_silent(&card, TX)), (1, 1));
    wire.ends().drains = 10;
    card.serve();
    assert_eq!((card.used(TX).len(), is_silent(&card, TX)), (1, 0));

    card.driver.take_interrupts();
    for (wish, raised) in [(1u16, false), (0, true)] {
        card.driver.memory.write_obj(wish, GuestAddress(avail(TX))).unwrap();
        card.send(&frame(60, 4));
        card.serve();
        assert_eq!((card.used(TX).len(), card.driver.take_interrupts() > 0), (1, raised));
    }
}

#[test]
fn a_frame_may_lie_in_several_buffers_which_are_told_of_at_once() {
    let (mut card, wire) = Card::ready(0);
    wire.ends().to_guest.push_back(frame(1000, 9));
    let first = card.buffer(512);
    card.serve();
    // One is not enough: it is used for nothing, and the frame waits.
    assert_eq!((card.used(RX), wire.ends().to_guest.len()), (vec![], 1));
    let second = card.buffer(512);
    card.serve();
    assert_eq!(card.used(RX), [(0, 512), (1, 1012 - 512)]);
    let all = [card.bytes(first, 512), card.bytes(second, 500)].concat();
    assert_eq!(all[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(all[12..], frame(1000, 9));
}

#[test]
fn a_driver_of_whole_frames_gets_no_part_of_one() {
    let (mut card, wire) = Card::ready(MERGE);
    let at = card.buffer(512);
    card.buffer(512);
    wire.ends().to_guest.extend([frame(1000, 1), frame(100, 2)]);
    card.serve();
    assert_eq!(card.used(RX), [(0, 112)], "the long one is lost, and takes no buffer");
    assert_eq!(card.bytes(at + 12, 100), frame(100, 2));
}

#[test]
fn buffers_that_can_never_do_hold_nothing_up() {
    let (mut card, wire) = Card::ready(0);
    wire.ends().to_guest.extend([frame(2000, 1), frame(20, 2)]);
    for _ in 0..SIZE {
        card.buffer(16);
    }
    card.serve();
    assert_eq!(card.used(RX), [(0, 16), (1, 16)]);
    assert!(wire.ends().to_guest.is_empty());
}

#[test]
fn what_the_outside_cannot_take_waits_in_the_guest() {
    let (mut card, wire) = Card::ready(0);
    wire.ends().room = 2;
    (0..5).for_each(|n| card.send(&frame(60, n)));
    card.serve();
    assert_eq!(card.used(TX).len(), 2);
    wire.ends().room = 9;
    card.serve();
    assert_eq!(card.used(TX).len(), 3);
    let sent: Vec<_> = (0..5).map(|n| frame(60, n)).collect();
    assert_eq!(wire.ends().from_guest, sent);
}

/// The outside takes frames again, which the thread sees, and the guest has said all it has to say.
#[test]
fn what_waited_is_sent_as_soon_as_it_can_be() {
    let (mut card, wire) = Card::ready(0);
    wire.ends().room = 2;
    (0..5).for_each(|n| card.send(&frame(60, n)));
    card.serve();
    assert_eq!(card.used(TX).len(), 2);
    wire.ends().drains = 9;
    card.serve();
    assert_eq!(card.used(TX).len(), 3);
}

#[test]
fn without_a_cable_frames_are_lost_and_nobody_waits() {
    let mut card = Card::new();
    card.start(0);
    card.send(&frame(60, 1));
    card.serve();
    assert_eq!(card.used(TX).len(), 1);
    assert_eq!(card.config().1, 0);
}

#[test]
fn another_back_end_is_a_link_that_goes_down_and_up() {
    let (mut card, first) = Card::ready(0);
    // It may be announced from the first time on.
    assert_eq!(card.command(&[3, 0]), Some(0));
    card.follow(true);
    assert_eq!(card.config().1, 1);
    let (interrupts, second) = (card.driver.take_interrupts(), Wire::new());
    assert_ne!(interrupts, 0);
    card.driver.acknowledge();
    card.link.plug(second.plug(), Box::new(|_| {}));
    card.follow(false);
    assert!(first.ends().gone, "the former one ends at once");
    assert!(!card.driver.backend.is_config_seen());
    assert_eq!((card.driver.acknowledge(), card.config().1), (2, 0));
    assert!(card.driver.backend.is_config_seen());
    assert!(!card.link.info().up);
    card.follow(true);
    assert_eq!((card.driver.acknowledge(), card.config().1), (2, 1 | 2), "up, and to announce itself");
    assert!(card.link.info().up);
    assert_eq!(card.command(&[3, 0]), Some(0));
    card.follow(true);
    assert_eq!(card.config().1, 1);
    card.send(&frame(60, 7));
    card.serve();
    assert_eq!(second.ends().from_guest, [frame(60, 7)]);
}

#[test]
fn a_driver_that_does_not_look_is_not_waited_for_without_end() {
    let (card, _) = Card::ready(ANNOUNCE);
    let second = Wire::new();
    card.link.plug(second.plug(), Box::new(|_| {}));
    let begin = Instant::now();
    let mut active = card.driver.backend.lock();
    active.device.follow_link(false, begin);
    assert!(!card.link.info().up);
    active.device.follow_link(false, begin + Duration::from_secs(2));
    assert!(card.link.info().up);
    card.driver.backend.publish_config(&active.device);
    drop(active);
    assert_eq!(card.config().1, 1, "it was not to announce itself");
}

#[test]
fn a_back_end_that_fails_is_told_of_once() {
    let (card, wire) = Card::ready(0);
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    let next = Wire::new();
    card.link.plug(
        next.plug(),
        Box::new(move |lost| {
            assert_eq!(lost.0, "cut");
            *count.lock().unwrap() += 1;
        }),
    );
    card.follow(true);
    next.ends().lost = true;
    card.serve();
    card.serve();
    card.follow(true);
    assert_eq!((*told.lock().unwrap(), card.config().1 & 1), (1, 0));
    assert!(wire.ends().gone && next.ends().gone);
}

#[test]
fn a_restored_driver_finds_the_link_down_first() {
    let (card, _) = Card::ready(0);
    let state = card.driver.transport.save();
    let saved = card.driver.backend.lock().device.save();
    let restored = Card::new();
    restored.driver.memory.write_slice(&card.bytes(0x1000, 0xd000), GuestAddress(0x1000)).unwrap();
    restored.driver.transport.restore(&state).unwrap();
    restored.driver.backend.lock().device.restore(saved.clone());
    restored.driver.backend.owe_config();
    assert_eq!(restored.driver.backend.lock().device.save(), saved);
    assert_eq!(restored.driver.take_interrupts(), 0, "nothing happens before it runs");
    restored.driver.transport.interrupt_again();
    assert_ne!(restored.driver.take_interrupts(), 0);
    let wire = Wire::new();
    restored.link.plug(wire.plug(), Box::new(|_| {}));
    restored.follow(restored.driver.backend.is_config_seen());
    assert_eq!(restored.driver.acknowledge() & 2, 2);
    assert_eq!(restored.config().1 & 1, 0);
    restored.follow(restored.driver.backend.is_config_seen());
    assert_eq!(restored.config().1 & 1, 1);
}

#[test]
fn commands_that_are_not_known_fail() {
    let (mut card, _) = Card::ready(0);
    for command in [&[3u8, 1][..], &[0, 0, 1], &[4, 0, 2, 0], &[255; 300], &[3], &[1, 1, 2, 2, 2, 2, 2, 2]] {
        assert_eq!(card.command(command), Some(1), "{command:?}");
    }
    // Without a place for the answer it makes no sense at all.
    card.put(CTRL, 0, (0x10_0000, 2, 0, 0));
    card.offer(CTRL, 0);
    card.serve();
    assert_ne!(card.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn frames_that_cannot_be_are_lost_alone() {
    let (mut card, wire) = Card::ready(0);
    for (n, len) in [0usize, 1, 11, 12, 25, 12 + 14 + 65535 + 1, 1 << 20].into_iter().enumerate() {
        let at = 0x10_0000;
        card.put(TX, n as u16, (at, len as u32, 0, 0));
        card.offer(TX, n as u16);
    }
    card.next[TX] = 7;
    card.send(&frame(60, 3));
    card.serve();
    assert_eq!(card.used(TX).len(), 8);
    assert_eq!(wire.ends().from_guest, [frame(60, 3)]);
}

/// Of a queue, at an index.
type Placed = (usize, u16, (u64, u32, u16, u16));

fn descriptors() -> impl Strategy<Value = Vec<Placed>> {
    let address = prop_oneof![
        6 => 0x10_0000..0x20_0000u64,
        2 => 0x1000..0xd000u64,
        1 => HOLE - 64..HOLE + 64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0..200u32, 2 => 0..70_000u32, 1 => any::<u32>(), 1 => (0..70u32).prop_map(|n| n * 16)];
    let flags = prop_oneof![4 => Just(0), 4 => Just(WRITE), 3 => Just(NEXT), 3 => Just(NEXT | WRITE), 1 => Just(INDIRECT), 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    prop::collection::vec((0..3usize, 0..SIZE, (address, length, flags, next)), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_descriptors(
        descriptors in descriptors(),
        heads in prop::collection::vec((0..3usize, prop_oneof![9 => 0..SIZE, 1 => any::<u16>()]), 1..30),
        lengths in prop::collection::vec(prop_oneof![0..200usize, 60_000..65_550usize], 0..8),
        without in prop_oneof![Just(0), Just(MERGE), Just(!VERSION_1)],
    ) {
        let (mut card, wire) = Card::ready(without);
        wire.ends().to_guest.extend(lengths.into_iter().map(|len| frame(len, 1)));
        for (queue, index, descriptor) in descriptors {
            card.put(queue, index, descriptor);
        }
        for (queue, head) in heads {
            card.offer(queue, head);
            card.serve();
        }
        let wire = Wire::new();
        card.assert_alive(&wire);
    }
}
