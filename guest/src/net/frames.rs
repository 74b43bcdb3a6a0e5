//! The two queues that frames go through. Buffers are of the driver's own, so that nothing that a
//! socket holds is ever the device's.

use crate::memory::Dma;
use crate::ring::{Ring, SIZE};
use smoltcp::phy::{RxToken, TxToken};

/// In front of each frame: `virtio_net_hdr`, with the number of buffers.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// A buffer for what comes in. Longer frames need several.
const RX_BUFFER: usize = 2048;
const RX_BYTES: usize = SIZE as usize * RX_BUFFER;
/// What goes out lies here, one frame after the other.
const TX_BYTES: usize = 512 << 10;
/// Longest IP packet that is sent or received, and its Ethernet header.
pub const MTU_MAX: usize = 65_520;
const ETHERNET: usize = 14;
const FRAME_MAX: usize = MTU_MAX + ETHERNET;
/// What fits one buffer.
pub const MTU_UNMERGED: usize = RX_BUFFER - HEADER - ETHERNET;

const JOINED_BYTES: usize = (HEADER + FRAME_MAX).next_multiple_of(4096);
/// Memory for both directions.
pub const BYTES: usize = 2 * crate::ring::BYTES + RX_BYTES + TX_BYTES + JOINED_BYTES;

#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub frames: u64,
    pub bytes: u64,
    pub dropped: u64,
}

pub struct Receive {
    pub ring: Ring,
    buffers: Dma,
    /// Where a frame of several buffers is put together.
    joined: &'static mut [u8],
    merged: bool,
    pub counts: Counts,
}

impl Receive {
    pub fn new(memory: &mut Dma) -> Self {
        Self {
            ring: Ring::new(&memory.split(crate::ring::BYTES)),
            buffers: memory.split(RX_BYTES),
            joined: memory.split(JOINED_BYTES).into_array(|| 0),
            merged: false,
            counts: Counts::default(),
        }
    }

    /// Gives all buffers to the device.
    pub fn fill(&mut self, merged: bool) {
        self.merged = merged;
        (0..self.ring.size()).for_each(|id| self.recycle(id));
    }

    fn recycle(&mut self, id: u16) {
        let part = self.buffers.part(usize::from(id) * RX_BUFFER, RX_BUFFER);
        self.ring.give(id, &[(part, true)]);
    }

    fn bytes(&mut self, id: u16, len: usize) -> &mut [u8] {
        self.buffers.bytes(usize::from(id) * RX_BUFFER, len.min(RX_BUFFER))
    }

    /// Takes the next frame that has come in whole.
    pub fn next(&mut self) -> Option<Frame<'_>> {
        if self.ring.ready() == 0 {
            return None;
        }
        let (first, len) = self.ring.take()?;
        let merged = self.merged;
        let count = match self.bytes(first, len).get(NUM_BUFFERS..HEADER) {
            Some(&[low, high]) if merged => usize::from(u16::from_le_bytes([low, high])),
            Some(_) => 1,
            None => 0,
        };
        if count == 1 {
            return Some(Frame { queue: self, at: At::Buffer(first, len.min(RX_BUFFER)) });
        }
        let mut end = 0;
        let (mut id, mut len) = (first, len);
        // The device gives the buffers of one frame back together.
        for left in (0..count).rev() {
            let got = len.min(RX_BUFFER);
            let into = self.joined.get_mut(end..end + got);
            let from = self.buffers.bytes(usize::from(id) * RX_BUFFER, got);
            let fits = into.map(|into| into.copy_from_slice(from)).is_some();
            end = if fits { end + got } else { usize::MAX / 2 };
            self.recycle(id);
            if left > 0 {
                let Some(next) = self.ring.take() else {
                    end = usize::MAX / 2;
                    break;
                };
                (id, len) = next;
            }
        }
        if count == 0 {
            self.recycle(first);
        }
        Some(Frame { queue: self, at: At::Joined(end) })
    }
}

enum At {
    Buffer(u16, usize),
    Joined(usize),
}

/// A frame that came in; consuming it gives its buffers back.
pub struct Frame<'a> {
    queue: &'a mut Receive,
    at: At,
}

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_it: F) -> R {
        let Self { queue, at } = self;
        let all = match at {
            At::Buffer(id, len) => &*queue.buffers.bytes(usize::from(id) * RX_BUFFER, len),
            At::Joined(end) => queue.joined.get(..end).unwrap_or(&[]),
        };
        // Of a frame that made no sense, the stack sees nothing.
        let frame = all.get(HEADER..).unwrap_or(&[]);
        if frame.is_empty() {
            queue.counts.dropped += 1;
        } else {
            queue.counts.frames += 1;
            queue.counts.bytes += frame.len() as u64;
        }
        let result = use_it(frame);
        if let At::Buffer(id, _) = at {
            queue.recycle(id);
        }
        result
    }
}

pub struct Send {
    pub ring: Ring,
    arena: Dma,
    /// Bytes of the arena used and freed so far; what lies between is the device's.
    head: u64,
    tail: u64,
    /// Frames sent and done so far. Frame n has the descriptor n modulo the ring's size.
    sent: u64,
    done: u64,
    /// Where in the arena each frame ends, and whether the device is done with it.
    ends: [u64; SIZE as usize],
    returned: [bool; SIZE as usize],
    pub frame_max: usize,
    pub counts: Counts,
}

impl Send {
    pub fn new(memory: &mut Dma) -> Self {
        Self {
            ring: Ring::new(&memory.split(crate::ring::BYTES)),
            arena: memory.split(TX_BYTES),
            head: 0,
            tail: 0,
            sent: 0,
            done: 0,
            ends: [0; SIZE as usize],
            returned: [false; SIZE as usize],
            frame_max: FRAME_MAX,
            counts: Counts::default(),
        }
    }

    fn slot(&self, frame: u64) -> usize {
        (frame % u64::from(self.ring.size())) as usize
    }

    /// Takes back what the device is done with.
    pub fn reclaim(&mut self) {
        while let Some((id, _)) = self.ring.take() {
            self.returned[usize::from(id)] = true;
        }
        while self.done < self.sent && self.returned[self.slot(self.done)] {
            let slot = self.slot(self.done);
            self.returned[slot] = false;
            self.tail = self.ends[slot];
            self.done += 1;
        }
    }

    /// Where a frame of `len` bytes would begin, if there is room for it.
    fn place(&self, len: usize) -> Option<u64> {
        let size = TX_BYTES as u64;
        let mut start = self.head;
        if start % size + len as u64 > size {
            start = start.next_multiple_of(size);
        }
        let room = start + len as u64 - self.tail <= size;
        (room && self.sent - self.done < u64::from(self.ring.size())).then_some(start)
    }

    pub fn has_room(&self) -> bool {
        self.place(HEADER + self.frame_max).is_some()
    }

    /// Sends a frame that `fill` makes; there must be room for it.
    pub fn frame<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let whole = HEADER + len;
        let Some(start) = self.place(whole) else { panic!("a frame was sent without room for it") };
        let at = (start % TX_BYTES as u64) as usize;
        let bytes = self.arena.bytes(at, whole);
        bytes[..HEADER].fill(0);
        let result = fill(&mut bytes[HEADER..]);
        let slot = self.slot(self.sent);
        self.head = start + whole as u64;
        self.ends[slot] = self.head;
        self.sent += 1;
        self.ring.give(slot as u16, &[(self.arena.part(at, whole), false)]);
        self.counts.frames += 1;
        self.counts.bytes += len as u64;
        result
    }
}

impl TxToken for &mut Send {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.frame(len, fill)
    }
}
