//! A small virtio driver: it knows the device only by its registers, its rings and its interrupt.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::disk::MemDisk;
use crate::bus::BusDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::{Backend, Device};
use crate::memory::GuestMemory;

/// Two pieces of RAM with nothing between and above them; 16 MiB in all.
pub const RAM: [(GuestAddress, usize); 2] = [(GuestAddress(0), 8 << 20), (GuestAddress(16 << 20), 8 << 20)];
pub const HOLE: u64 = 8 << 20;

pub const DESC: u64 = 0x1000;
pub const AVAIL: u64 = 0x3000;
pub const USED: u64 = 0x4000;
/// Buffers and indirect tables.
const HEAP: u64 = 0x1_0000;
const HEAP_END: u64 = 0x20_0000;

/// Where the rings of a device with several queues lie, of each 128 at the most.
pub fn desc(queue: usize) -> u64 {
    DESC + queue as u64 * 0x4000
}

pub fn avail(queue: usize) -> u64 {
    desc(queue) + 0x1000
}

pub fn used(queue: usize) -> u64 {
    desc(queue) + 0x2000
}

pub const SECTOR: usize = 512;
pub const DISK_LEN: usize = 4 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// One descriptor's worth of a request.
#[derive(Debug, Clone)]
pub enum Piece {
    Readable(Vec<u8>),
    Writable(usize),
}

/// Address, length and flags of a descriptor.
type Buffer = (u64, u32, u16);

/// A request in the rings, and where its answer goes.
#[derive(Debug, Clone)]
pub struct Posted {
    pub head: u32,
    answers: Vec<(u64, usize)>,
}

pub struct Driver<D> {
    pub memory: GuestMemory,
    pub backend: Arc<Backend<D>>,
    pub transport: Transport<D>,
    irq: EventFd,
    pub size: u16,
    next_desc: u16,
    pub avail: u16,
    used: u16,
    heap: u64,
}

pub fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&RAM).unwrap()
}

impl<D: Device> Driver<D> {
    pub fn new(device: D, memory: GuestMemory) -> Self {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let backend = Arc::new(Backend::new(device, memory.clone(), irq.try_clone().unwrap()).unwrap());
        backend.resume();
        let transport = Transport::new(backend.clone(), memory.clone());
        Self { memory, backend, transport, irq, size: 64, next_desc: 0, avail: 0, used: 0, heap: HEAP }
    }

    /// The same driver, in the same place, above a device that took the place of the first.
    pub fn moved_to<E: Device>(self, device: E) -> Driver<E> {
        let Self { memory, size, next_desc, avail, used, heap, .. } = self;
        Driver { size, next_desc, avail, used, heap, ..Driver::new(device, memory) }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    pub fn add_status(&self, bits: u32) -> u32 {
        self.write(0x70, self.status() | bits);
        self.status()
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(0x14, select);
            u64::from(self.read(0x10))
        };
        half(0) | half(1) << 32
    }

    pub fn accept(&self, features: u64) {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, half);
        }
    }

    pub fn place_queue(&self, desc: u64, avail: u64, used: u64) {
        self.write(0x30, 0);
        self.write(0x38, self.size.into());
        for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
    }

    /// Reset and the whole way to a device that serves; returns its status.
    pub fn start(&mut self, features: u64) -> u32 {
        self.write(0x70, 0);
        assert_eq!(self.status(), 0);
        (self.next_desc, self.avail, self.used, self.heap) = (0, 0, 0, HEAP);
        self.memory.write_slice(&[0; 0x4000], GuestAddress(DESC)).unwrap();
        self.add_status(ACKNOWLEDGE | DRIVER);
        self.accept(features);
        assert_ne!(self.add_status(FEATURES_OK) & FEATURES_OK, 0, "the features were refused");
        self.place_queue(DESC, AVAIL, USED);
        self.write(0x44, 1);
        assert_eq!(self.read(0x44), 1);
        self.add_status(DRIVER_OK)
    }

    pub fn alloc(&mut self, len: usize) -> u64 {
        if self.heap + len as u64 > HEAP_END {
            self.heap = HEAP;
        }
        let at = self.heap;
        self.heap = (at + len as u64 + 64).next_multiple_of(64);
        at
    }

    pub fn put_desc(&self, table: u64, index: u16, (address, len, flags, next): (u64, u32, u16, u16)) {
        let at = |offset| GuestAddress(table + u64::from(index) * 16 + offset);
        self.memory.write_obj(address, at(0)).unwrap();
        self.memory.write_obj(len, at(8)).unwrap();
        self.memory.write_obj(flags, at(12)).unwrap();
        self.memory.write_obj(next, at(14)).unwrap();
    }

    /// Tells the device of one of several queues.
    pub fn enable(&self, queue: usize, size: u16) {
        self.write(0x30, queue as u32);
        self.write(0x38, size.into());
        for (register, address) in [(0x80, desc(queue)), (0x90, avail(queue)), (0xa0, used(queue))] {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
        self.write(0x44, 1);
    }

    /// Puts a head into the available ring of one of several queues, after `count` others.
    pub fn offer_to(&self, queue: usize, size: u16, count: &mut u16, head: u16) {
        let slot = avail(queue) + 4 + u64::from(*count % size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *count = count.wrapping_add(1);
        self.memory.write_obj(*count, GuestAddress(avail(queue) + 2)).unwrap();
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + u64::from(self.avail % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory.write_obj(self.avail, GuestAddress(AVAIL + 2)).unwrap();
    }

    /// Copies the pieces into guest memory; returns their descriptors, and where answers go.
    fn lay_out(&mut self, pieces: &[Piece]) -> (Vec<Buffer>, Vec<(u64, usize)>) {
        let mut descriptors = Vec::new();
        let mut answers = Vec::new();
        for piece in pieces {
            let (len, flags) = match piece {
                Piece::Readable(bytes) => (bytes.len(), 0),
                Piece::Writable(len) => (*len, WRITE),
            };
            let at = self.alloc(len);
            match piece {
                Piece::Readable(bytes) => self.memory.write_slice(bytes, GuestAddress(at)).unwrap(),
                Piece::Writable(_) => {
                    self.memory.write_slice(&vec![0xee; len], GuestAddress(at)).unwrap();
                    answers.push((at, len));
                }
            }
            descriptors.push((at, len as u32, flags));
        }
        (descriptors, answers)
    }

    pub fn post(&mut self, pieces: &[Piece], indirect: bool) -> Posted {
        let (descriptors, answers) = self.lay_out(pieces);
        let count = descriptors.len() as u16;
        let needed = if indirect { 1 } else { count };
        if self.next_desc + needed > self.size {
            self.next_desc = 0;
        }
        let head = self.next_desc;
        self.next_desc += needed;
        let (table, first) = if indirect { (self.alloc(descriptors.len() * 16), 0) } else { (DESC, head) };
        for (index, (address, len, flags)) in (0..).zip(descriptors) {
            let link = if index + 1 < count { NEXT } else { 0 };
            self.put_desc(table, first + index, (address, len, flags | link, first + index + 1));
        }
        if indirect {
            self.put_desc(DESC, head, (table, u32::from(count) * 16, INDIRECT, 0));
        }
        self.offer(head);
        Posted { head: head.into(), answers }
    }

    pub fn kick(&self) {
        self.write(0x50, 0);
    }

    /// What the serving thread does: waits for the doorbell, then serves. False if it never rang.
    pub fn serve(&self) -> bool {
        let rang = self.backend.doorbell.read().is_ok();
        if rang {
            assert!(self.backend.serve());
        }
        rang
    }

    /// What the device used since the last call: head and length.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let mut used = Vec::new();
        while self.used != index {
            let at = USED + 4 + u64::from(self.used % self.size) * 8;
            let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
            used.push((read(at), read(at + 4)));
            self.used = self.used.wrapping_add(1);
        }
        used
    }

    /// Interrupts since the last call.
    pub fn take_interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    /// What an interrupt handler does first.
    pub fn acknowledge(&self) -> u32 {
        let status = self.read(0x60);
        self.write(0x64, status);
        status
    }

    pub fn answer(&self, posted: &Posted) -> Vec<u8> {
        let mut all = Vec::new();
        for &(at, len) in &posted.answers {
            let start = all.len();
            all.resize(start + len, 0);
            self.memory.read_slice(&mut all[start..], GuestAddress(at)).unwrap();
        }
        all
    }
}

/// Pieces of a block request; the data may be split.
pub fn block_request(kind: u32, sector: u64, data: &[Piece]) -> Vec<Piece> {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let mut pieces = vec![Piece::Readable(header)];
    pieces.extend_from_slice(data);
    pieces.push(Piece::Writable(1));
    pieces
}

/// How a block request came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u8,
    pub data: Vec<u8>,
    pub used_len: u32,
}

impl Driver<Block> {
    pub fn block(disk: &Arc<MemDisk>) -> Self {
        let told = disk.clone();
        let events = Arc::new(move |event| told.told(event));
        Self::new(Block::new("disk-id".into(), disk.clone(), events), memory())
    }

    /// A device that serves, with all features but those of `without`.
    pub fn ready(disk: &Arc<MemDisk>, without: u64) -> Self {
        let mut driver = Self::block(disk);
        let features = driver.offered() & !without;
        driver.start(features);
        driver
    }

    pub fn reply(&self, posted: &Posted, used_len: u32) -> Reply {
        let mut data = self.answer(posted);
        let status = data.pop().unwrap();
        Reply { status, data, used_len }
    }

    /// One request from its posting to its answer.
    pub fn submit(&mut self, pieces: &[Piece], indirect: bool) -> Reply {
        let posted = self.post(pieces, indirect);
        self.kick();
        assert!(self.serve());
        let used = self.take_used();
        assert_eq!(used.len(), 1, "status {:#x}", self.status());
        assert_eq!(used[0].0, posted.head);
        self.reply(&posted, used[0].1)
    }

    pub fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> Reply {
        self.submit(&block_request(kind, sector, data), false)
    }

    /// Resets, starts again and reads: nothing that came before may matter.
    pub fn assert_alive(&mut self, disk: &MemDisk) {
        self.size = 64;
        let features = self.offered();
        assert_eq!(self.start(features) & NEEDS_RESET, 0);
        self.take_interrupts();
        self.acknowledge();
        let reply = self.request(IN, 9, &[Piece::Writable(SECTOR)]);
        assert_eq!(reply, Reply { status: OK, data: disk.contents(9 * SECTOR..10 * SECTOR), used_len: 513 });
        assert_eq!((self.take_interrupts(), self.acknowledge()), (1, 1));
    }
}
