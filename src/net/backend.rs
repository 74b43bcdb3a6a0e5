//! What every back-end can do.

use std::os::fd::BorrowedFd;

use super::flows::SavedFlow;
use super::packet::HEADER;

/// Most bytes of a frame: its headers and the largest IP packet.
pub const MOST_FRAME: usize = 14 + 65535;

/// The back-end is of no use any more; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

impl Lost {
    pub(super) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self(format!("{what}: {e}"))
    }
}

/// A frame that came in.
pub struct Incoming<'a> {
    /// `struct virtio_net_hdr_v1`, without the number of buffers.
    pub header: [u8; HEADER],
    pub frame: &'a [u8],
}

/// What is at the other end. No call waits.
pub trait Backend: Send {
    /// To be polled: for reading if frames are wanted, for writing while it is blocked.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The next frame, which stays until it is dropped.
    fn peek(&mut self) -> Result<Option<Incoming<'_>>, Lost>;
    fn drop_frame(&mut self);
    /// Whether there is one that its file does not tell of.
    fn has_frame(&self) -> bool;
    /// Whether what was sent before waits for the outside: then nothing more may be sent.
    fn is_blocked(&self) -> bool;
    /// Sends a header and a frame. May change both.
    fn send(&mut self, packet: &mut [u8]) -> Result<(), Lost>;
    /// Passes on what waits.
    fn flush(&mut self) -> Result<(), Lost>;
    /// What the driver can take of unfinished packets, as bits of its features.
    fn set_offloads(&mut self, features: u64) -> Result<(), Lost>;
    /// Connections that would have to end if another back-end took the place of this one.
    fn flows(&self) -> Vec<SavedFlow> {
        Vec::new()
    }
    /// Ends connections that an earlier back-end had.
    fn end_flows(&mut self, _: Vec<SavedFlow>) {}
}
