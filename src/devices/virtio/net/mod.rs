//! Network device (virtio 1.2, section 5.1) in front of a back-end of `net/`, which can be changed
//! while the guest runs: the link goes down and up, and the guest is asked to announce itself.
//!
//! Frames go through a buffer of our own, so that every write to guest memory is seen. If nobody
//! is at the other end, or nobody takes anything, what the guest sends is lost, as on a wire; if the
//! guest has no buffers, what comes waits in the back-end.

mod card;
mod jam;
mod receive;
mod worker;

pub use card::{Net, NetState};
pub use worker::spawn;
