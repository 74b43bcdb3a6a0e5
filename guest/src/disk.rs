//! A block device as the commands and the journal see it.

use crate::apic;
use crate::cpu::tsc;
use crate::memory::{Dma, DmaPart};
use crate::time;
use crate::virtio::{self, Queue, Slot};
use core::fmt;

pub const SECTOR: u64 = 512;
const SPIN_US: u64 = 60;
const ROUND_US: u64 = 10_000;
/// Rounds of waiting until a request counts as lost. Only time in which the
/// guest ran is counted, so a pause of any length does not end a request.
const ROUNDS: u32 = 3000;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    Io,
    Unsupported,
    Status(u8),
    Timeout,
    Range,
    ReadOnly,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("reason=io the device reports an I/O error"),
            Self::Unsupported => f.write_str("reason=unsupported the device does not offer this"),
            Self::Status(s) => write!(f, "reason=status unknown request status {s}"),
            Self::Timeout => f.write_str("reason=timeout no answer from the device"),
            Self::Range => f.write_str("reason=range beyond the end, or not of whole sectors"),
            Self::ReadOnly => f.write_str("reason=readonly the device is read-only"),
        }
    }
}

#[derive(Clone, Copy)]
pub enum Op {
    Read,
    Write,
    Flush,
}

pub struct Disk {
    queue: Queue,
    vector: u8,
    acknowledged: u64,
    small: Dma,
    pub sectors: u64,
    pub read_only: bool,
}

impl Disk {
    /// `small` is for request payloads of the driver's own, 64 bytes.
    pub fn open(addr: u64, index: usize, small: Dma) -> Option<Self> {
        let queue = Queue::open(addr, index)?;
        let sectors = queue.capacity_sectors();
        let read_only = queue.features & virtio::F_RO != 0;
        let vector = apic::FIRST_DISK + index as u8;
        Some(Self { queue, vector, acknowledged: 0, small, sectors, read_only })
    }

    pub fn vector(&self) -> u8 {
        self.vector
    }

    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR
    }

    pub fn has_flush(&self) -> bool {
        self.queue.features & virtio::F_FLUSH != 0
    }

    pub fn check_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        match offset.checked_add(len) {
            Some(end) if whole && end <= self.bytes() => Ok(()),
            _ => Err(Error::Range),
        }
    }

    /// Queues a request without telling the device; None if all slots are in use.
    pub fn submit(&mut self, op: Op, offset: u64, part: DmaPart) -> Option<usize> {
        match op {
            Op::Read => self.queue.submit(READ, offset / SECTOR, Some(part)),
            Op::Write => self.queue.submit(WRITE, offset / SECTOR, Some(part)),
            Op::Flush => self.queue.submit(FLUSH, 0, None),
        }
    }

    pub fn kick(&self) {
        self.queue.kick();
    }

    pub fn depth(&self) -> usize {
        self.queue.depth()
    }

    /// If the request is done: frees its slot and tells (latency, outcome).
    pub fn take(&mut self, slot: usize) -> Option<(u64, Result<(), Error>)> {
        let Slot::Done { status, since, at } = self.queue.slots[slot] else { return None };
        self.queue.slots[slot] = Slot::Free;
        let outcome = match status {
            0 => Ok(()),
            1 => Err(Error::Io),
            2 => Err(Error::Unsupported),
            other => Err(Error::Status(other)),
        };
        Some((at.wrapping_sub(since), outcome))
    }

    fn any_done(&self, of: &[usize]) -> bool {
        of.iter().any(|&s| !matches!(self.queue.slots[s], Slot::Busy { .. }))
    }

    fn poll(&mut self) {
        let count = apic::count(self.vector);
        if count != self.acknowledged {
            // Before the ring is looked at: a completion after this raises the line anew.
            self.acknowledged = count;
            self.queue.acknowledge();
        }
        self.queue.drain();
    }

    /// Waits until one of the slots is done: polls for a moment, then halts. After
    /// a timeout the device has been reset and all that was in flight is lost.
    pub fn wait_any(&mut self, of: &[usize]) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            self.queue.want_interrupts(false);
            let start = tsc();
            let patience = time::ticks(SPIN_US);
            for _ in 0..100_000 {
                self.queue.drain();
                if self.any_done(of) {
                    return Ok(());
                }
                if tsc().wrapping_sub(start) > patience {
                    break;
                }
                core::hint::spin_loop();
            }
            self.queue.want_interrupts(true);
            let timer = apic::count(apic::TIMER);
            while apic::count(apic::TIMER) == timer {
                let seen = apic::total();
                self.poll();
                if self.any_done(of) {
                    return Ok(());
                }
                apic::idle(seen, ROUND_US);
            }
        }
        self.poll();
        if self.any_done(of) {
            return Ok(());
        }
        self.queue.start();
        Err(Error::Timeout)
    }

    pub fn finish(&mut self, slot: usize) -> Result<(), Error> {
        loop {
            if let Some((_, outcome)) = self.take(slot) {
                return outcome;
            }
            if self.queue.slots[slot] == Slot::Free {
                return Err(Error::Timeout);
            }
            self.wait_any(&[slot])?;
        }
    }

    fn run(&mut self, kind: u32, sector: u64, data: Option<DmaPart>) -> Result<(), Error> {
        let slot = self.queue.submit(kind, sector, data).ok_or(Error::Timeout)?;
        self.queue.kick();
        self.finish(slot)
    }

    pub fn read(&mut self, offset: u64, part: DmaPart) -> Result<(), Error> {
        self.check_range(offset, part.len as u64)?;
        self.run(READ, offset / SECTOR, Some(part))
    }

    pub fn write(&mut self, offset: u64, part: DmaPart) -> Result<(), Error> {
        self.check_range(offset, part.len as u64)?;
        self.run(WRITE, offset / SECTOR, Some(part))
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        if !self.has_flush() {
            return Err(Error::Unsupported);
        }
        self.run(FLUSH, 0, None)
    }

    /// Discards a range, or writes zeroes to it, in as many requests as it takes.
    pub fn clear(&mut self, offset: u64, len: u64, discard: bool) -> Result<(), Error> {
        let (feature, kind, limit_at) = if discard {
            (virtio::F_DISCARD, DISCARD, 36)
        } else {
            (virtio::F_WRITE_ZEROES, WRITE_ZEROES, 48)
        };
        if self.queue.features & feature == 0 {
            return Err(Error::Unsupported);
        }
        self.check_range(offset, len)?;
        let limit = match self.queue.config(limit_at) {
            0 => u64::from(u32::MAX),
            n => u64::from(n),
        };
        let (mut sector, mut left) = (offset / SECTOR, len / SECTOR);
        while left > 0 {
            let n = left.min(limit);
            self.small.words(0, 16).copy_from_slice(&[sector, n]);
            self.run(kind, 0, Some(self.small.part(0, 16)))?;
            sector += n;
            left -= n;
        }
        Ok(())
    }

    pub fn id(&mut self) -> Result<[u8; 20], Error> {
        self.small.words(0, 24).fill(0);
        self.run(GET_ID, 0, Some(self.small.part(0, 20)))?;
        let mut id = [0; 20];
        for (out, w) in id.chunks_mut(8).zip(self.small.words(0, 24)) {
            let bytes = w.to_le_bytes();
            out.copy_from_slice(&bytes[..out.len()]);
        }
        Ok(id)
    }
}
