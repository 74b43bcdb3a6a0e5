//! Virtio 1.2 devices on the MMIO transport.
//!
//! Nothing that the guest writes is trusted: a request that breaks the protocol makes its device
//! ask for a reset (`DEVICE_NEEDS_RESET`) and stand still until it gets one; piton goes on.

mod awaited;
pub mod block;
mod complaints;
pub mod console;
pub mod console_port;
pub mod mmio;
mod queue;
pub mod request;
pub mod rng;

pub use awaited::Awaited;
pub use queue::{Backend, Worker};

use virtio_queue::DescriptorChain;

use crate::memory::GuestMemory;

/// A chain of descriptors in guest memory.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// The guest broke the protocol; the text says how.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl Violation {
    pub fn from_error(what: &'static str) -> impl FnOnce(virtio_queue::Error) -> Self {
        move |e| Self(format!("{what}: {e}"))
    }
}

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The host cannot serve it now. The request stays in the available ring, and the device
    /// stands still until it is resumed. The text says why.
    #[error("{0}")]
    Stuck(String),
    /// Somebody waits for the device, and a part of the request is done. It stays in the available
    /// ring, and is served on as soon as the device may.
    #[error("somebody waits for the device")]
    Interrupted,
}

/// What makes one kind of device: identity, features, configuration space, and how it answers
/// one request.
pub trait Device: Send + 'static {
    /// Device type of the virtio specification, section 5.
    fn device_type(&self) -> u32;
    /// Features offered beside those of the transport.
    fn features(&self) -> u64;
    /// Sizes of the queues.
    fn queue_sizes(&self) -> &'static [u16];
    /// Configuration space; reads beyond it give zeros.
    fn config(&self) -> Vec<u8>;
    /// Called when the driver is ready, with the features that it accepted.
    fn activate(&mut self, features: u64);
    /// Called when the driver resets the device.
    fn reset(&mut self);
    /// Whether it can serve a request of this queue now. One that it cannot waits in the queue;
    /// whoever makes the device able to rings its doorbell.
    fn wants(&self, _queue: usize) -> bool {
        true
    }
    /// Given once, before anything else: a device whose requests can take long asks in between.
    fn watch(&mut self, _awaited: Awaited) {}
    /// Serves one request of queue `queue`; returns the number of bytes written to the guest.
    fn serve(&mut self, queue: usize, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, NotServed>;
}

#[cfg(test)]
mod tests;
