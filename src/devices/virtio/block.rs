//! Block device (virtio 1.2, section 5.2) in front of a [`Disk`].
//!
//! The cache is write-back: a driver that accepts FLUSH decides when data must survive a power
//! cut; for one that does not, every write is flushed before it is answered.
//!
//! A change that fails because the host has no room left is not answered: the owner hears of it,
//! the guest waits, and the request is tried again once room was made. Every change may be done
//! twice with the same result. Other errors of the host are the guest's I/O errors.
//!
//! A request can be huge: nothing bounds it but the memory that the guest has for descriptors. It is
//! done in steps, and between two of them whoever waits for the device gets it.

use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::complaints::Complaints;
use super::counts::DiskCounts;
use super::request::{Input, Output, Parsed, Request, SECTOR, next_segment};
use super::{Awaited, Chain, Device, NotServed, Violation};
use crate::disk::{Disk, DiskError};
use crate::events::{EventSink, MachineEvent};
use crate::memory::GuestMemory;

const QUEUE_SIZE: u16 = 256;
/// Header and status take two descriptors of a request.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Physical blocks of 4096 bytes: 2^3 logical ones.
const PHYSICAL_BLOCK_EXP: u8 = 3;
/// Most sectors and ranges of one discard or write-zeroes request.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
const MAX_SEGMENTS: u32 = 64;
/// Discards are best aligned to the block of an overlay.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
/// Data pass through a buffer of at most this many bytes.
const BUFFER: usize = 256 << 10;
/// Discards and zeroes are done in steps of this many bytes, and end where one of the disk does.
const CLEAR_STEP: u64 = 64 << 20;

/// How a request ended, as its status byte says it.
enum Outcome {
    Done {
        written: u32,
    },
    Failed,
    Unsupported,
    /// There is no room for it on the host; the text says where.
    NoRoom(String),
    /// Somebody waits; so many bytes are done.
    Interrupted {
        done: u64,
    },
}

/// A request of which a part is done. It is not saved: whoever takes the device's place begins
/// again, which has the same result.
struct Begun {
    head: u16,
    done: u64,
}

pub struct Block {
    id: String,
    disk: Arc<dyn Disk>,
    buffer: Vec<u8>,
    flush_each_write: bool,
    events: EventSink,
    complaints: Complaints,
    awaited: Awaited,
    begun: Option<Begun>,
    counts: Arc<DiskCounts>,
}

impl Block {
    pub fn new(id: String, disk: Arc<dyn Disk>, events: EventSink) -> Self {
        let complaints = Complaints::default();
        let awaited = Awaited::default();
        Self {
            id,
            disk,
            buffer: Vec::new(),
            flush_each_write: false,
            events,
            complaints,
            awaited,
            begun: None,
            counts: Arc::default(),
        }
    }

    /// What is asked of it is counted here from now on.
    pub fn counting(self, counts: Arc<DiskCounts>) -> Self {
        Self { counts, ..self }
    }

    /// `bytes`: that were asked for.
    fn count(&self, request: &Request, bytes: usize, outcome: &Outcome) {
        match (outcome, request) {
            (Outcome::NoRoom(_) | Outcome::Interrupted { .. }, _) => {}
            (Outcome::Failed | Outcome::Unsupported, _) => self.counts.failed(),
            (_, Request::Read { .. }) => self.counts.read(bytes as u64),
            (_, Request::Write { .. }) => self.counts.wrote(bytes as u64),
            (_, Request::Flush) => self.counts.flushed(),
            (_, Request::Discard { .. } | Request::WriteZeroes { .. }) => self.counts.discarded(),
            (_, Request::Id { .. } | Request::Unknown(_)) => {}
        }
    }

    fn failure(&self, what: &str, error: &DiskError) -> Outcome {
        if let Some(path) = error.file_without_room() {
            return Outcome::NoRoom(format!("disk {}: no space left for {}", self.id, path.display()));
        }
        self.complaints.warn(format_args!("disk {}: a guest's {what} failed: {error}", self.id));
        Outcome::Failed
    }

    /// Whether `len` bytes at `offset` are whole sectors inside the disk.
    fn fits(&self, offset: u64, len: u64) -> bool {
        len.is_multiple_of(SECTOR) && offset.checked_add(len).is_some_and(|end| end <= self.disk.len())
    }

    fn read(&mut self, offset: u64, data: &mut Output<'_>, done: usize) -> Result<Outcome, Violation> {
        let len = data.available_bytes();
        if !self.fits(offset, len as u64) {
            return Ok(Outcome::Failed);
        }
        let mut rest = data.split_at(done).map_err(Violation::from_error("a read's data"))?;
        let mut at = done;
        while at < len {
            let step = (len - at).min(BUFFER);
            if self.buffer.len() < step {
                self.buffer.resize(step, 0);
            }
            if let Err(e) = self.disk.read_at(&mut self.buffer[..step], offset + at as u64) {
                return Ok(self.failure("read", &e));
            }
            rest.write_all(&self.buffer[..step]).map_err(|e| Violation(format!("a read's data: {e}")))?;
            at += step;
            if at < len && self.awaited.is_true() {
                return Ok(Outcome::Interrupted { done: at as u64 });
            }
        }
        Ok(Outcome::Done { written: len as u32 })
    }

    fn write(&mut self, offset: u64, data: &mut Input<'_>, done: usize) -> Result<Outcome, Violation> {
        let len = data.available_bytes();
        if self.disk.is_read_only() || !self.fits(offset, len as u64) {
            return Ok(Outcome::Failed);
        }
        let mut rest = data.split_at(done).map_err(Violation::from_error("a write's data"))?;
        let mut at = done;
        while at < len {
            let step = (len - at).min(BUFFER);
            if self.buffer.len() < step {
                self.buffer.resize(step, 0);
            }
            rest.read_exact(&mut self.buffer[..step])
                .map_err(|e| Violation(format!("a write's data: {e}")))?;
            if let Err(e) = self.disk.write_at(&self.buffer[..step], offset + at as u64) {
                return Ok(self.failure("write", &e));
            }
            at += step;
            if at < len && self.awaited.is_true() {
                return Ok(Outcome::Interrupted { done: at as u64 });
            }
        }
        Ok(self.settle())
    }

    /// Ends a change of the disk: durable at once if the driver never flushes.
    fn settle(&self) -> Outcome {
        if self.flush_each_write { self.flush() } else { Outcome::Done { written: 0 } }
    }

    fn flush(&self) -> Outcome {
        match self.disk.flush() {
            Ok(()) => Outcome::Done { written: 0 },
            Err(e) => self.failure("flush", &e),
        }
    }

    fn give_id(&self, data: &mut Output<'_>) -> Result<Outcome, Violation> {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (byte, value) in id.iter_mut().zip(self.id.bytes()) {
            *byte = value;
        }
        if data.available_bytes() < id.len() {
            return Ok(Outcome::Failed);
        }
        data.write_all(&id).map_err(|e| Violation(format!("a disk's id: {e}")))?;
        Ok(Outcome::Done { written: id.len() as u32 })
    }

    fn clear(&self, segments: &mut Input<'_>, zero: bool, done: u64) -> Outcome {
        if self.disk.is_read_only() {
            return Outcome::Failed;
        }
        // The only flag that exists.
        let allowed = if zero { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        let (mut count, mut at) = (0, 0);
        while let Some(segment) = next_segment(segments) {
            let sectors = segment.sectors.to_native();
            let offset = segment.sector.to_native().saturating_mul(SECTOR);
            let len = u64::from(sectors) * SECTOR;
            if segment.flags.to_native() & !allowed != 0 {
                return Outcome::Unsupported;
            }
            count += 1;
            if count > MAX_SEGMENTS || sectors > MAX_DISCARD_SECTORS || !self.fits(offset, len) {
                return Outcome::Failed;
            }
            // Up to here it was done before.
            let mut from = offset + done.saturating_sub(at).min(len);
            while from < offset + len {
                if at + (from - offset) > done && self.awaited.is_true() {
                    return Outcome::Interrupted { done: at + (from - offset) };
                }
                let upto = ((from / CLEAR_STEP + 1) * CLEAR_STEP).min(offset + len);
                let cleared = if zero {
                    self.disk.write_zeroes(from, upto - from)
                } else {
                    self.disk.discard(from, upto - from)
                };
                if let Err(e) = cleared {
                    return self.failure(if zero { "write-zeroes" } else { "discard" }, &e);
                }
                from = upto;
            }
            at += len;
        }
        if count == 0 { Outcome::Failed } else { self.settle() }
    }
}

impl Device for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        common
            | if self.disk.is_read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` up to the write-zeroes fields.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.len() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        put(26, &1u16.to_le_bytes());
        put(28, &(1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
        put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn activate(&mut self, features: u64) {
        self.flush_each_write = features >> VIRTIO_BLK_F_FLUSH & 1 == 0;
    }

    fn reset(&mut self) {
        self.begun = None;
    }

    fn watch(&mut self, awaited: Awaited) {
        self.awaited = awaited;
    }

    fn serve(&mut self, _: usize, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, NotServed> {
        let head = chain.head_index();
        // A guest that puts another request in the place of one that was begun gets what it asks for.
        let done = self.begun.take().filter(|begun| begun.head == head).map_or(0, |begun| begun.done);
        let skipped = |available: usize| usize::try_from(done).unwrap_or(0).min(available);
        let mut parsed = Parsed::new(memory, chain)?;
        let bytes = match &parsed.request {
            Request::Read { data, .. } => data.available_bytes(),
            Request::Write { data, .. } => data.available_bytes(),
            _ => 0,
        };
        let outcome = match &mut parsed.request {
            Request::Read { offset, data } => self.read(*offset, data, skipped(data.available_bytes()))?,
            Request::Write { offset, data } => self.write(*offset, data, skipped(data.available_bytes()))?,
            Request::Flush => self.flush(),
            Request::Id { data } => self.give_id(data)?,
            Request::Discard { segments } => self.clear(segments, false, done),
            Request::WriteZeroes { segments } => self.clear(segments, true, done),
            Request::Unknown(kind) => {
                log::debug!("disk {}: request type {kind} is not supported", self.id);
                Outcome::Unsupported
            }
        };
        self.count(&parsed.request, bytes, &outcome);
        let (status, written) = match outcome {
            Outcome::Done { written } => (VIRTIO_BLK_S_OK, written),
            Outcome::Failed => (VIRTIO_BLK_S_IOERR, parsed.writable),
            Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, parsed.writable),
            Outcome::NoRoom(why) => {
                (self.events)(MachineEvent::Stuck);
                return Err(NotServed::Stuck(why));
            }
            Outcome::Interrupted { done } => {
                self.begun = Some(Begun { head, done });
                return Err(NotServed::Interrupted);
            }
        };
        parsed.finish(status as u8)?;
        Ok(written.saturating_add(1))
    }
}
