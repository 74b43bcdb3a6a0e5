//! `struct virtio_vsock_hdr`, and the operations.

pub const HEADER: usize = 44;
/// The host's address.
pub const HOST: u64 = 2;

pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RESET: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const DATA: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Flags of a shutdown.
pub const NO_MORE_READING: u32 = 1;
pub const NO_MORE_WRITING: u32 = 2;

const STREAM: u16 = 1;

#[derive(Clone, Copy, Default)]
pub struct Header {
    pub from: (u64, u32),
    pub to: (u64, u32),
    pub len: u32,
    pub op: u16,
    pub flags: u32,
    pub room: u32,
    pub used: u32,
}

impl Header {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| core::array::from_fn(|n| bytes[at + n]);
        let long = |at: usize| u64::from_le_bytes(core::array::from_fn(|n| bytes[at + n]));
        Some(Self {
            from: (long(0), u32::from_le_bytes(word(16))),
            to: (long(8), u32::from_le_bytes(word(20))),
            len: u32::from_le_bytes(word(24)),
            op: u16::from_le_bytes([bytes[30], bytes[31]]),
            flags: u32::from_le_bytes(word(32)),
            room: u32::from_le_bytes(word(36)),
            used: u32::from_le_bytes(word(40)),
        })
    }

    pub fn write(&self, out: &mut [u8]) {
        out[0..8].copy_from_slice(&self.from.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.to.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.from.1.to_le_bytes());
        out[20..24].copy_from_slice(&self.to.1.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..30].copy_from_slice(&STREAM.to_le_bytes());
        out[30..32].copy_from_slice(&self.op.to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.room.to_le_bytes());
        out[40..44].copy_from_slice(&self.used.to_le_bytes());
    }
}
