//! A guest's driver as a program: records of registers written and read, descriptors, heads,
//! bytes in memory and doorbells.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use piton::bus::BusDevice;
use piton::devices::virtio::block::Block;
use piton::devices::virtio::mmio::{SaveTransport, Transport, TransportState};
use piton::devices::virtio::rng::Rng;
use piton::devices::virtio::{Backend, Device};
use piton::disk::{Backing, Disk, Result};
use piton::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::{Shape, Target};

/// Nobody may reach beyond its end.
struct Ram(Mutex<Vec<u8>>);

fn range(offset: u64, len: u64) -> Range<usize> {
    offset as usize..offset.checked_add(len).expect("beyond the end") as usize
}

impl Backing for Ram {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[range(offset, buf.len() as u64)]);
        Ok(())
    }
    fn next_data(&self, _: u64) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
}

impl Disk for Ram {
    fn is_read_only(&self) -> bool {
        false
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.lock().unwrap()[range(offset, buf.len() as u64)].copy_from_slice(buf);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.lock().unwrap()[range(offset, len)].fill(0);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        assert!(range(offset, len).end as u64 <= self.len());
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
const TABLES: [u64; 3] = [DESC, 0x6000, 0x8000];
/// Two pieces with a hole between them, and one between that the device is never told of.
const HALF: usize = 1 << 20;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), HALF), (GuestAddress(2 * HALF as u64), HALF)]).unwrap()
}

pub struct Rig<D> {
    pub memory: GuestMemory,
    pub backend: Arc<Backend<D>>,
    transport: Transport<D>,
}

impl<D: Device> Rig<D> {
    pub fn new(device: D) -> Self {
        let (memory, irq) = (memory(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let backend = Arc::new(Backend::new(device, memory.clone(), irq).unwrap());
        backend.resume();
        let transport = Transport::new(backend.clone(), memory.clone());
        Self { memory, backend, transport }
    }

    pub fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub fn serve(&self) {
        if self.backend.doorbell.read().is_ok() {
            assert!(self.backend.serve());
        }
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

const RECORD: usize = 24;
const REGISTER: u8 = 0;
const READ: u8 = 1;
const DESCRIPTOR: u8 = 2;
const OFFER: u8 = 3;
const KICK: u8 = 4;
const BYTES: u8 = 5;

fn record(op: u8, a: u8, reg: u16, value: u32, desc: (u64, u32, u16, u16)) -> Vec<u8> {
    let (address, len, flags, next) = desc;

    let mut bytes = vec![op, a];
    bytes.extend_from_slice(&reg.to_le_bytes());
    bytes.extend_from_slice(&value.to_le_bytes());
    bytes.extend_from_slice(&address.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&next.to_le_bytes());
    bytes
}

/// Whether the device used anything.
fn play<D: Device>(rig: &Rig<D>, program: &[u8]) -> bool {
    let mut offered = 0u16;
    let mut served = false;
    for r in program.chunks_exact(RECORD).take(256) {
        let half = |at: usize| u16::from_le_bytes([r[at], r[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let address = u64::from(word(8)) | u64::from(word(12)) << 32;
        match r[0] % 6 {
            REGISTER => rig.write(half(2).into(), word(4)),
            READ => rig.transport.read(half(2).into(), &mut vec![0; usize::from(r[1] % 9)]),
            DESCRIPTOR => {
                let at = TABLES[usize::from(r[1]) % 3] + u64::from(half(2) % 512) * 16;
                rig.memory.write_slice(&r[8..24], GuestAddress(at)).unwrap();
            }
            OFFER => {
                let slot = AVAIL + 4 + u64::from(offered % 16) * 2;
                rig.memory.write_obj(half(2), GuestAddress(slot)).unwrap();
                offered = offered.wrapping_add(1);
                rig.memory.write_obj(offered, GuestAddress(AVAIL + 2)).unwrap();
            }
            KICK => {
                rig.write(0x50, half(2).into());
                rig.serve();
                served |= rig.used() != 0;
            }
            _ => drop(rig.memory.write_slice(&r[16..24], GuestAddress(address % (3 * HALF as u64)))),
        }
    }
    served
}

/// A driver that does it right, to one request of `kind`.
fn seed(kind: u32, data_flags: u16, indirect: bool) -> Vec<u8> {
    let mut program = Vec::new();
    let mut set = |register, value| program.extend(record(REGISTER, 0, register, value, (0, 0, 0, 0)));
    for (register, value) in [(0x70, 0), (0x70, 3), (0x24, 0), (0x20, 0x3000_0200), (0x24, 1), (0x20, 1)] {
        set(register, value);
    }
    for (register, value) in [(0x70, 11), (0x30, 0), (0x38, 16), (0x80, DESC as u32), (0x90, AVAIL as u32)] {
        set(register, value);
    }
    for (register, value) in [(0xa0, USED as u32), (0x44, 1), (0x70, 15)] {
        set(register, value);
    }
    let table = u8::from(indirect);
    let mut put = |table, index, at, len, flags, next| {
        program.extend(record(DESCRIPTOR, table, index, 0, (at, len, flags, next)));
    };
    put(table, 0, 0x1_0000, 16, 1, 1);
    put(table, 1, 0x1_1000, 1024, data_flags | 1, 2);
    put(table, 2, 0x1_2000, 1, 2, 0);
    if indirect {
        put(0, 0, TABLES[1], 48, 4, 0);
    }
    let header = record(BYTES, 0, 0, 0, (0x1_0000, kind, 0, 0));
    program.extend(header);
    program.extend(record(READ, 4, 0x60, 0, (0, 0, 0, 0)));
    program.extend(record(OFFER, 0, 0, 0, (0, 0, 0, 0)));
    program.extend(record(KICK, 0, 0, 0, (0, 0, 0, 0)));
    program
}

fn alive<D: Device>(rig: &Rig<D>, seed: &[u8]) {
    rig.write(0x70, 0);
    let mut status = [0; 4];
    rig.transport.read(0x70, &mut status);
    assert_eq!(status, [0; 4], "a reset did not reset");
    rig.memory.write_slice(&[0; 0x4000], GuestAddress(DESC)).unwrap();
    rig.memory.write_slice(&[0; 16], GuestAddress(0x1_0000)).unwrap();
    assert!(play(rig, seed), "a reset device does not serve");
}

fn block() -> Rig<Block> {
    let disk = Arc::new(Ram(Mutex::new(vec![0x5a; 256 << 10])));
    Rig::new(Block::new("disk-id".into(), disk, Arc::new(|_| {})))
}

/// States of transports as a file could hold them: a device takes one and serves, or refuses it.
pub fn restore(states: &[TransportState]) {
    for state in states {
        let rig = block();
        if rig.transport.restore(state).is_ok() {
            rig.transport.interrupt_again();
            rig.backend.ring();
            rig.serve();
            alive(&rig, &seed(0, 2, false));
        }
    }
}

pub fn target() -> Target {
    let good = seed(0, 2, false);
    let seeds = vec![
        good.clone(),
        seed(0, 2, true),
        seed(1, 0, false),
        seed(4, 0, false),
        seed(8, 2, true),
        seed(11, 0, false),
    ];
    Target {
        name: "virtio",
        shape: Shape::Bytes,
        seeds,
        mend: Box::new(|_| {}),
        run: Box::new(move |program| {
            let rig = block();
            let served = play(&rig, program);
            alive(&rig, &good);
            let rng = Rig::new(Rng);
            play(&rng, program);
            served
        }),
    }
}
