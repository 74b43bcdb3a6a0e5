//! Reading a block request out of guest memory (virtio 1.2, section 5.2.6).

use std::io::{Read, Write};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{Reader, Writer};
use vm_memory::bitmap::BS;
use vm_memory::{ByteValued, Le32, Le64};

use super::{Chain, Violation};
use crate::memory::GuestMemory;

pub const SECTOR: u64 = 512;

type Slice<'m> = BS<'m, vm_memory::bitmap::AtomicBitmap>;
pub type Input<'m> = Reader<'m, Slice<'m>>;
pub type Output<'m> = Writer<'m, Slice<'m>>;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    kind: Le32,
    reserved: Le32,
    sector: Le64,
}
// SAFETY: three plain little-endian integers without padding.
unsafe impl ByteValued for Header {}

/// One range of a discard or write-zeroes request.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Segment {
    pub sector: Le64,
    pub sectors: Le32,
    pub flags: Le32,
}
// SAFETY: three plain little-endian integers without padding.
unsafe impl ByteValued for Segment {}

/// What the driver asks for, with where its data lie.
pub enum Request<'m> {
    Read { offset: u64, data: Output<'m> },
    Write { offset: u64, data: Input<'m> },
    Flush,
    Id { data: Output<'m> },
    Discard { segments: Input<'m> },
    WriteZeroes { segments: Input<'m> },
    Unknown(u32),
}

/// A parsed request and the place of its answer.
pub struct Parsed<'m> {
    pub request: Request<'m>,
    status: Output<'m>,
    /// Bytes before the status byte that the device may write.
    pub writable: u32,
}

impl<'m> Parsed<'m> {
    pub fn new(memory: &'m GuestMemory, chain: Chain<'_>) -> Result<Self, Violation> {
        let wrong = Violation::from_error;
        let mut input: Input<'m> =
            chain.clone().reader(memory).map_err(wrong("a block request's readable part"))?;
        let mut data: Output<'m> = chain.writer(memory).map_err(wrong("a block request's writable part"))?;
        let header: Header = input
            .read_obj()
            .map_err(|e| Violation(format!("a block request's header is not in the request: {e}")))?;
        let writable = data
            .available_bytes()
            .checked_sub(1)
            .ok_or_else(|| Violation("a block request has no room for its status".into()))?;
        let status = data.split_at(writable).map_err(wrong("a block request's status"))?;
        // A sector beyond 2^55 is beyond any disk; the bounds check refuses it.
        let offset = header.sector.to_native().saturating_mul(SECTOR);
        let request = match header.kind.to_native() {
            VIRTIO_BLK_T_IN => Request::Read { offset, data },
            VIRTIO_BLK_T_OUT => Request::Write { offset, data: input },
            VIRTIO_BLK_T_FLUSH => Request::Flush,
            VIRTIO_BLK_T_GET_ID => Request::Id { data },
            VIRTIO_BLK_T_DISCARD => Request::Discard { segments: input },
            VIRTIO_BLK_T_WRITE_ZEROES => Request::WriteZeroes { segments: input },
            other => Request::Unknown(other),
        };
        let writable = u32::try_from(writable)
            .map_err(|_| Violation(format!("a block request of {writable} bytes is too long")))?;
        Ok(Self { request, status, writable })
    }

    /// Writes the status byte.
    pub fn finish(mut self, status: u8) -> Result<(), Violation> {
        self.status.write_all(&[status]).map_err(|e| Violation(format!("a block request's status: {e}")))
    }
}

/// Reads the next range, if there is one more whole.
pub fn next_segment(segments: &mut Input<'_>) -> Option<Segment> {
    let mut bytes = [0; size_of::<Segment>()];
    segments.read_exact(&mut bytes).ok()?;
    Segment::from_slice(&bytes).copied()
}
