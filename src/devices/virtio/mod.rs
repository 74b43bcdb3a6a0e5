//! Virtio 1.2 devices on the MMIO transport.
//!
//! Nothing that the guest writes is trusted: a request that breaks the protocol makes its device
//! ask for a reset (`DEVICE_NEEDS_RESET`) and stand still until it gets one; piton goes on.

mod awaited;
pub mod block;
mod complaints;
pub mod console;
pub mod console_port;
pub mod counts;
pub mod mmio;
pub mod net;
mod queue;
pub mod request;
pub mod rng;
pub mod vsock;

pub use awaited::Awaited;
pub use queue::{Active, Backend, Worker};

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

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
    /// Configuration space, as it is now; reads beyond it give zeros. Its length stays.
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
    /// A step: whoever needs the device to stand still waits for one at the most.
    fn turn(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<Turn, NotServed>
    where
        Self: Sized,
    {
        serve_next(self, queues, memory)
    }
    /// Serves one request of queue `queue`; returns the number of bytes written to the guest. A
    /// device with steps of its own needs none.
    fn serve(&mut self, _queue: usize, _memory: &GuestMemory, _chain: Chain<'_>) -> Result<u32, NotServed> {
        Ok(0)
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Nothing,
    Served {
        /// The driver wants to know.
        notify: bool,
    },
    /// As that, and there was no more to do: whatever comes now is told of.
    Finished {
        notify: bool,
    },
}

impl Turn {
    /// Both, one after the other.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, turn) | (turn, Self::Nothing) => turn,
            (
                Self::Served { notify: a } | Self::Finished { notify: a },
                Self::Served { notify: b } | Self::Finished { notify: b },
            ) => Self::Served { notify: a || b },
        }
    }
}

/// One request of the first queue that has one.
fn serve_next<D: Device>(
    device: &mut D,
    queues: &mut [Queue],
    memory: &GuestMemory,
) -> Result<Turn, NotServed> {
    for (index, queue) in queues.iter_mut().enumerate() {
        if !queue.ready() || !device.wants(index) {
            continue;
        }
        let Some(chain) = next_chain(queue, memory)? else { continue };
        let head = chain.head_index();
        let served = device.serve(index, memory, chain);
        if let Err(NotServed::Stuck(_) | NotServed::Interrupted) = &served {
            // Still the driver's next request, also for whoever saves the queue.
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
        }
        let written = served?;
        queue.add_used(memory, head, written).map_err(Violation::from_error("the used ring is broken"))?;
        return Ok(Turn::Served { notify: needs_notification(queue, memory)? });
    }
    Ok(Turn::Nothing)
}

/// The driver's next request. If there is none, it will tell of the next.
fn next_chain<'m>(queue: &mut Queue, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, Violation> {
    let broken = || Violation::from_error("the available ring is broken");
    if let Some(chain) = queue.iter(memory).map_err(broken())?.next() {
        return Ok(Some(chain));
    }
    // Asks for a notification, unless a request came in just now.
    match queue.enable_notification(memory).map_err(Violation::from_error("the rings are broken"))? {
        true => Ok(queue.iter(memory).map_err(broken())?.next()),
        false => Ok(None),
    }
}

/// Until the next time that the queue is found empty.
fn want_no_notification(queue: &mut Queue, memory: &GuestMemory) -> Result<(), Violation> {
    queue.disable_notification(memory).map_err(Violation::from_error("the used ring is broken"))
}

fn needs_notification(queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Violation> {
    if queue.event_idx_enabled() {
        return queue
            .needs_notification(memory)
            .map_err(Violation::from_error("the available ring is broken"));
    }
    wants_interrupts(queue, memory)
}

/// What the driver says in the flags of the available ring, which hold where it names no event.
fn wants_interrupts(queue: &Queue, memory: &GuestMemory) -> Result<bool, Violation> {
    // What was used must be there before the driver's wish is looked at.
    fence(Ordering::SeqCst);
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(|_| Violation("the available ring is broken".into()))?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

#[cfg(test)]
mod tests;
