//! Requests that take long: whoever waits for the device waits for a step of one, not for all of it.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::disk::{MemDisk, Op};
use super::driver::*;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::SaveTransport;
use crate::devices::virtio::{Backend, Worker};
use crate::disk::{Backing, Disk, Result};

/// A disk that says when a step begins and waits until it may be done.
struct Gated {
    disk: Arc<MemDisk>,
    began: Sender<()>,
    may: Mutex<Receiver<()>>,
}

impl Gated {
    fn pass(&self) {
        let _ = self.began.send(());
        // An error: all may be done.
        let _ = self.may.lock().unwrap().recv();
    }
}

impl Backing for Gated {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pass();
        self.disk.read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }
}

impl Disk for Gated {
    fn is_read_only(&self) -> bool {
        false
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.pass();
        self.disk.write_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.pass();
        self.disk.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass();
        self.disk.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the request, which are four steps.
const LEN: usize = 1 << 20;

struct Trial {
    driver: Driver<Block>,
    disk: Arc<MemDisk>,
    began: Receiver<()>,
    let_on: Sender<()>,
    posted: Posted,
    _worker: Worker,
}

/// A device at the first step of `request`.
fn trial(request: &[Piece]) -> Trial {
    let disk = MemDisk::new(DISK_LEN, false);
    let (began_sender, began) = channel();
    let (let_on, may) = channel();
    let gated = Gated { disk: disk.clone(), began: began_sender, may: Mutex::new(may) };
    let mut driver = Driver::new(Block::new("id".into(), Arc::new(gated), Arc::new(|_| ())), memory());
    let features = driver.offered();
    driver.start(features);
    let worker = Worker::spawn("test".into(), driver.backend.clone()).unwrap();
    let posted = driver.post(request, false);
    driver.kick();
    began.recv_timeout(PATIENCE).unwrap();
    Trial { driver, disk, began, let_on, posted, _worker: worker }
}

/// `wait` has to come to its end though only the step that is under way may be done.
fn waits_for_one_step(trial: &Trial, wait: impl FnOnce(&Backend<Block>) + Send + 'static) {
    let backend = trial.driver.backend.clone();
    let (sender, waited) = channel();
    let waiter = std::thread::spawn(move || {
        wait(&backend);
        let _ = sender.send(());
    });
    while !trial.driver.backend.is_awaited() {
        std::thread::yield_now();
    }
    trial.let_on.send(()).unwrap();
    waited.recv_timeout(PATIENCE).expect("it waited for more than a step");
    waiter.join().unwrap();
}

fn pattern() -> Vec<u8> {
    (0..LEN).map(|at| (at / 4096) as u8 ^ 0x3c).collect()
}

#[test]
fn a_pause_comes_in_the_middle_of_a_write_and_nothing_is_done_twice() {
    let mut trial = trial(&block_request(OUT, 8, &[Piece::Readable(pattern())]));
    waits_for_one_step(&trial, Backend::pause);
    assert_eq!(trial.disk.take_ops().len(), 1);
    assert_eq!(trial.driver.take_used(), []);
    trial.driver.backend.resume();
    (0..3).for_each(|_| trial.let_on.send(()).unwrap());
    (0..3).for_each(|_| trial.began.recv_timeout(PATIENCE).unwrap());
    trial.driver.backend.pause();
    let used = trial.driver.take_used();
    assert_eq!(used.len(), 1);
    assert_eq!(trial.driver.reply(&trial.posted, used[0].1).status, OK);
    let steps: Vec<Op> = trial.disk.take_ops();
    let step = LEN as u64 / 4;
    assert_eq!(steps, [1, 2, 3].map(|index| Op::Write(8 * 512 + index * step, step)));
    assert!(trial.disk.contents(8 * 512..8 * 512 + LEN) == pattern());
}

#[test]
fn a_read_goes_on_where_it_was_interrupted() {
    let mut trial = trial(&block_request(IN, 0, &[Piece::Writable(LEN)]));
    waits_for_one_step(&trial, Backend::pause);
    trial.driver.backend.resume();
    (0..3).for_each(|_| trial.let_on.send(()).unwrap());
    (0..3).for_each(|_| trial.began.recv_timeout(PATIENCE).unwrap());
    trial.driver.backend.pause();
    let used = trial.driver.take_used();
    let reply = trial.driver.reply(&trial.posted, used[0].1);
    assert_eq!((reply.status, reply.used_len), (OK, LEN as u32 + 1));
    assert!(reply.data == trial.disk.contents(0..LEN));
    assert_eq!(trial.disk.take_ops().len(), 4);
}

#[test]
fn a_reset_comes_in_the_middle_and_what_was_begun_is_forgotten() {
    let mut trial = trial(&block_request(OUT, 0, &[Piece::Readable(pattern())]));
    waits_for_one_step(&trial, |backend| {
        backend.registers.status.store(0, std::sync::atomic::Ordering::SeqCst);
        backend.lock().reset();
    });
    // A driver that starts again with the same descriptor is served from the beginning.
    drop(trial.let_on);
    trial.disk.take_ops();
    let features = trial.driver.offered();
    trial.driver.start(features);
    let posted = trial.driver.post(&block_request(OUT, 0, &[Piece::Readable(pattern())]), false);
    assert_eq!(posted.head, trial.posted.head);
    trial.driver.kick();
    (0..4).for_each(|_| trial.began.recv_timeout(PATIENCE).unwrap());
    trial.driver.backend.pause();
    assert_eq!(trial.disk.take_ops().len(), 4);
    assert!(trial.disk.contents(0..LEN) == pattern());
}

/// What a checkpoint has of a request in the middle: all of it is done by the device that goes on.
#[test]
fn who_takes_the_place_of_an_interrupted_device_does_all_of_the_request() {
    let trial = trial(&block_request(OUT, 0, &[Piece::Readable(pattern())]));
    waits_for_one_step(&trial, Backend::pause);
    let Trial { driver, disk, posted, .. } = trial;
    let state = driver.transport.save();
    disk.take_ops();
    let mut driver = driver.moved_to(Block::new("id".into(), disk.clone(), Arc::new(|_| ())));
    driver.transport.restore(&state).unwrap();
    driver.backend.resume();
    assert!(driver.serve());
    let used = driver.take_used();
    assert_eq!(driver.reply(&posted, used[0].1).status, OK);
    assert_eq!(disk.take_ops().len(), 4);
    assert!(disk.contents(0..LEN) == pattern());
}

/// Four GiB of zeroes in one request, on a disk that is no longer than the request needs.
#[test]
fn zeroes_without_end_are_written_in_steps() {
    let disk = MemDisk::new(130 << 20, false);
    let mut driver = Driver::ready(&disk, 0);
    let segment = |sector: u64, sectors: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &0u32.to_le_bytes()].concat()
    };
    let segments = [segment(8, (130 << 11) - 16), segment(0, 8)].concat();
    let reply = driver.request(WRITE_ZEROES, 0, &[Piece::Readable(segments)]);
    assert_eq!(reply.status, OK);
    let mib = 1 << 20;
    let end = 130 * mib - 4096;
    assert_eq!(
        disk.take_ops(),
        [
            Op::Zero(4096, 64 * mib - 4096),
            Op::Zero(64 * mib, 64 * mib),
            Op::Zero(128 * mib, end - 128 * mib),
            Op::Zero(0, 4096)
        ]
    );
}
