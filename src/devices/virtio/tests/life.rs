//! Notifications, pauses, resets, and a device that goes on in another's place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::disk::{MemDisk, Op};
use super::driver::*;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::SaveTransport;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{Chain, Device, NotServed, Worker};
use crate::events::MachineEvent;
use crate::memory::GuestMemory;

fn disk() -> Arc<MemDisk> {
    MemDisk::new(DISK_LEN, false)
}

fn post_read(driver: &mut Driver<Block>, sector: u64) -> Posted {
    driver.post(&block_request(IN, sector, &[Piece::Writable(SECTOR)]), false)
}

/// Writes `used_event`, after which entry of the used ring the driver wants an interrupt.
fn want_interrupt_after<D>(driver: &Driver<D>, entry: u16) {
    let at = AVAIL + 4 + u64::from(driver.size) * 2;
    driver.memory.write_obj(entry, GuestAddress(at)).unwrap();
}

/// Reads `avail_event`, after which entry of the available ring the device wants a kick.
fn wants_kick_after<D>(driver: &Driver<D>) -> u16 {
    driver.memory.read_obj(GuestAddress(USED + 4 + u64::from(driver.size) * 8)).unwrap()
}

#[test]
fn event_idx_keeps_both_sides_quiet() {
    let mut driver = Driver::ready(&disk(), 0);
    driver.take_interrupts();
    want_interrupt_after(&driver, 2);
    for _ in 0..2 {
        post_read(&mut driver, 0);
        driver.kick();
        driver.serve();
    }
    assert_eq!((driver.take_interrupts(), driver.read(0x60)), (0, 0));
    assert_eq!(driver.take_used().len(), 2, "served all the same");
    assert_eq!(wants_kick_after(&driver), 2, "the next one is wanted");
    post_read(&mut driver, 0);
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_interrupts(), driver.acknowledge(), driver.read(0x60)), (1, 1, 0));
    // A batch that passes the wanted entry tells of it once.
    want_interrupt_after(&driver, 5);
    (0..6).for_each(|_| drop(post_read(&mut driver, 0)));
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_interrupts(), driver.take_used().len()), (1, 7));
}

#[test]
fn without_event_idx_every_answer_interrupts() {
    let mut driver = Driver::ready(&disk(), EVENT_IDX);
    (0..3).for_each(|_| drop(post_read(&mut driver, 0)));
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_interrupts(), driver.take_used().len()), (3, 3));
}

#[test]
fn rings_wrap_around() {
    for without in [0, EVENT_IDX] {
        let disk = disk();
        let mut driver = Driver::block(&disk);
        driver.size = 4;
        let features = driver.offered() & !without;
        driver.start(features);
        for round in 0..66_000 {
            let posted = post_read(&mut driver, round % 8);
            driver.kick();
            driver.serve();
            assert_eq!(driver.take_used(), [(posted.head, 513)]);
        }
    }
}

#[test]
fn nothing_is_served_while_paused_and_nothing_lost() {
    let disk = disk();
    let mut driver = Driver::ready(&disk, 0);
    driver.backend.pause();
    let posted: Vec<_> = (0..5).map(|sector| post_read(&mut driver, sector)).collect();
    driver.kick();
    driver.serve();
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_used(), disk.take_ops()), (vec![], vec![]));
    driver.backend.resume();
    assert!(driver.serve(), "resuming rings the doorbell");
    let heads: Vec<_> = posted.iter().map(|posted| (posted.head, 513)).collect();
    assert_eq!(driver.take_used(), heads);
}

#[test]
fn a_reset_forgets_everything() {
    let disk = disk();
    let mut driver = Driver::ready(&disk, 0);
    post_read(&mut driver, 1);
    driver.kick();
    driver.serve();
    post_read(&mut driver, 2);
    driver.kick();
    driver.write(0x70, 0);
    disk.take_ops();
    driver.serve();
    assert_eq!(disk.take_ops(), [], "what was posted before is not served");
    assert_eq!([0x70, 0x60, 0x44].map(|at| driver.read(at)), [0; 3]);
    driver.assert_alive(&disk);
}

#[test]
fn a_broken_device_waits_for_its_reset() {
    let disk = disk();
    let mut driver = Driver::ready(&disk, 0);
    driver.take_interrupts();
    driver.post(&[Piece::Readable(vec![0; 16])], false);
    let good = post_read(&mut driver, 0);
    driver.kick();
    driver.serve();
    assert_ne!(driver.status() & NEEDS_RESET, 0, "no place for the status");
    assert_eq!((driver.take_interrupts(), driver.acknowledge()), (1, 2));
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_used(), driver.reply(&good, 0).status), (vec![], 0xee));
    driver.assert_alive(&disk);
}

#[test]
fn another_device_goes_on_where_the_first_stood() {
    for without in [0, EVENT_IDX] {
        let disk = disk();
        let mut driver = Driver::ready(&disk, without | 1 << 9);
        driver.take_interrupts();
        (0..7).for_each(|sector| drop(post_read(&mut driver, sector)));
        driver.kick();
        driver.serve();
        driver.take_used();
        driver.backend.pause();
        let waiting = post_read(&mut driver, 40);
        driver.kick();
        driver.serve();
        driver.write(0x30, 3);
        let saved = driver.transport.save();
        let text = serde_json::to_string(&saved).unwrap();

        let mut driver = driver.moved_to(Block::new("disk-id".into(), disk.clone(), Arc::new(|_| {})));
        driver.backend.pause();
        driver.transport.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(driver.transport.save(), saved);
        assert_eq!(driver.take_interrupts(), 0, "a restored state can be saved again as it is");
        driver.transport.interrupt_again();
        assert_eq!(driver.take_interrupts(), 1, "one that KVM may not have had is raised again");
        assert_eq!(driver.acknowledge(), 1);
        driver.serve();
        assert_eq!(driver.take_used(), [], "still paused");
        driver.backend.resume();
        assert!(driver.serve());
        assert_eq!(driver.take_used(), [(waiting.head, 513)]);
        assert_eq!(driver.reply(&waiting, 513).data, disk.contents(40 * SECTOR..41 * SECTOR));
        disk.take_ops();
        driver.request(OUT, 0, &[Piece::Readable(vec![7; 512])]);
        assert_eq!(disk.take_ops(), [Op::Write(0, 512), Op::Flush], "what was negotiated still holds");
    }
}

#[test]
fn what_finds_no_room_waits_for_it_also_across_a_restore() {
    let disk = disk();
    let write = |sector, byte| block_request(OUT, sector, &[Piece::Readable(vec![byte; 512])]);
    let mut driver = Driver::ready(&disk, 0);
    driver.take_interrupts();
    let before = driver.transport.save();
    disk.full.store(true, Ordering::SeqCst);
    let requests = [
        driver.post(&write(3, 3), false),
        driver.post(&block_request(FLUSH, 0, &[]), true),
        driver.post(&write(5, 5), true),
    ];
    driver.kick();
    driver.serve();
    assert_eq!(disk.take_told(), [MachineEvent::Stuck]);
    assert_eq!(driver.backend.stuck().unwrap(), "disk disk-id: no space left for /images/root.raw");
    // A notification does not wake it, and nothing was answered.
    driver.kick();
    driver.serve();
    assert_eq!((driver.take_used(), driver.take_interrupts()), (vec![], 0));
    assert_eq!(disk.take_told(), []);
    // Resumed too early it says so again.
    driver.backend.resume();
    driver.serve();
    assert_eq!(disk.take_told(), [MachineEvent::Stuck]);
    driver.backend.pause();
    let saved = driver.transport.save();
    assert_eq!(saved, before, "the device took nothing out of the ring");

    disk.full.store(false, Ordering::SeqCst);
    let mut driver = driver.moved_to(Block::new("disk-id".into(), disk.clone(), Arc::new(|_| {})));
    driver.backend.pause();
    driver.transport.restore(&saved).unwrap();
    assert_eq!(driver.backend.stuck(), None);
    disk.take_ops();
    driver.backend.resume();
    assert!(driver.serve());
    assert_eq!(driver.take_used(), requests.each_ref().map(|request| (request.head, 1)));
    assert_eq!(disk.take_ops(), [Op::Write(3 * 512, 512), Op::Flush, Op::Write(5 * 512, 512)]);
}

#[test]
fn a_reset_ends_the_wait_for_room() {
    let disk = disk();
    let mut driver = Driver::ready(&disk, 0);
    disk.full.store(true, Ordering::SeqCst);
    driver.post(
        &block_request(WRITE_ZEROES, 0, &[Piece::Readable([[0; 8], [8, 0, 0, 0, 0, 0, 0, 0]].concat())]),
        false,
    );
    driver.kick();
    driver.serve();
    assert!(driver.backend.stuck().is_some());
    disk.full.store(false, Ordering::SeqCst);
    driver.start(VERSION_1);
    assert_eq!(driver.backend.stuck(), None);
    driver.assert_alive(&disk);
}

#[test]
fn a_fresh_device_and_a_broken_one_are_restored_as_they_are() {
    let fresh = Driver::block(&disk());
    let mut broken = Driver::ready(&disk(), 0);
    broken.post(&[Piece::Writable(1)], false);
    broken.kick();
    broken.serve();
    broken.acknowledge();
    for driver in [fresh, broken] {
        let saved = driver.transport.save();
        let mut driver = driver.moved_to(Block::new("disk-id".into(), disk(), Arc::new(|_| {})));
        driver.transport.restore(&saved).unwrap();
        assert_eq!((driver.transport.save(), driver.take_interrupts()), (saved, 0));
        driver.assert_alive(&disk());
    }
}

#[test]
fn a_state_of_another_device_is_refused() {
    let driver = Driver::ready(&disk(), 0);
    let saved = driver.transport.save();
    let rng = Driver::new(Rng, memory());
    assert!(rng.transport.restore(&saved).is_err());
    let read_only = Driver::block(&MemDisk::new(DISK_LEN, true));
    assert!(read_only.transport.restore(&saved).is_err(), "features that it does not have");
    let mut changed = saved.clone();
    changed.queues[0].max_size = 512;
    assert!(driver.transport.restore(&changed).is_err());
    let mut changed = saved.clone();
    changed.queues[0].size = 3;
    assert!(driver.transport.restore(&changed).is_err());
    driver.transport.restore(&saved).unwrap();
}

#[test]
fn a_worker_misses_no_doorbell() {
    let disk = disk();
    let mut driver = Driver::ready(&disk, 0);
    let worker = Worker::spawn("test".into(), driver.backend.clone()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    for round in 0..2000u16 {
        want_interrupt_after(&driver, round);
        let wanted = wants_kick_after(&driver);
        let posted = post_read(&mut driver, u64::from(round % 64));
        std::sync::atomic::fence(Ordering::SeqCst);
        // As a real driver: a kick only if the device asked for one, before or just now.
        if wanted == round || wants_kick_after(&driver) == round {
            driver.kick();
        }
        if round % 97 == 0 {
            driver.backend.pause();
            driver.backend.resume();
        }
        let used = loop {
            let used = driver.take_used();
            if !used.is_empty() {
                break used;
            }
            assert!(Instant::now() < deadline, "request {round} is lost");
            std::thread::yield_now();
        };
        assert_eq!(used, [(posted.head, 513)]);
    }
    drop(worker);
}

/// A device whose every request takes its time.
struct Slow(Duration, mpsc::Sender<()>);

impl Device for Slow {
    fn device_type(&self) -> u32 {
        99
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[256]
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn activate(&mut self, _: u64) {}
    fn reset(&mut self) {}
    fn serve(&mut self, _: usize, _: &GuestMemory, _: Chain<'_>) -> Result<u32, NotServed> {
        let _ = self.1.send(());
        std::thread::sleep(self.0);
        Ok(0)
    }
}

fn slow(requests: usize, time: Duration) -> (Driver<Slow>, mpsc::Receiver<()>) {
    let (sender, began) = mpsc::channel();
    let mut driver = Driver::new(Slow(time, sender), memory());
    driver.size = 256;
    let features = driver.offered();
    driver.start(features);
    (0..requests).for_each(|_| drop(driver.post(&[Piece::Writable(1)], false)));
    (driver, began)
}

#[test]
fn whoever_waits_waits_for_one_request_only() {
    type Wait = (&'static str, fn(&Driver<Slow>));
    let waits: [Wait; 3] = [
        ("pause", |driver| driver.backend.pause()),
        ("reset", |driver| driver.write(0x70, 0)),
        ("register", |driver| assert_eq!(driver.read(0x44), 1)),
    ];
    for (what, wait) in waits {
        let (driver, began) = slow(100, Duration::from_millis(5));
        let worker = Worker::spawn("slow".into(), driver.backend.clone()).unwrap();
        driver.kick();
        began.recv().unwrap();
        wait(&driver);
        let started = 1 + began.try_iter().count();
        // After a register access the device goes on, and this thread may be late to look.
        let most = if what == "register" { 20 } else { 3 };
        assert!(started <= most, "{what}: {started} requests went first");
        let before = Instant::now();
        drop(worker);
        assert!(before.elapsed() < Duration::from_millis(250), "{what}: the end waits for the queue");
    }
}

#[test]
fn interrupt_registers_do_not_wait_for_a_request() {
    let (driver, began) = slow(1, Duration::from_millis(300));
    let worker = Worker::spawn("slow".into(), driver.backend.clone()).unwrap();
    driver.kick();
    began.recv().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Another vCPU waits for the request; it holds the transport's own lock.
        scope.spawn(|| {
            driver.read(0x44);
            done.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(20));
        let _ = (driver.read(0x60), driver.read(0x70));
        driver.write(0x64, 3);
        driver.kick();
        assert!(!done.load(Ordering::SeqCst), "the other one should still be waiting");
    });
    drop(worker);
}

#[test]
fn a_busy_device_lets_others_on_its_thread_go() {
    /// Posts a request for every one that it serves, as a guest with another vCPU can.
    struct Endless;
    impl Device for Endless {
        fn device_type(&self) -> u32 {
            99
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[64]
        }
        fn config(&self) -> Vec<u8> {
            Vec::new()
        }
        fn activate(&mut self, _: u64) {}
        fn reset(&mut self) {}
        fn serve(&mut self, _: usize, memory: &GuestMemory, _: Chain<'_>) -> Result<u32, NotServed> {
            let index: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap();
            memory.write_obj(index.wrapping_add(1), GuestAddress(AVAIL + 2)).unwrap();
            Ok(0)
        }
    }
    let mut driver = Driver::new(Endless, memory());
    let features = driver.offered();
    driver.start(features);
    driver.post(&[Piece::Writable(1)], false);
    driver.kick();
    for _ in 0..3 {
        assert!(driver.serve(), "it returns, and rings for itself");
    }
}
