//! Frames to the guest, each in one buffer of it or, if its driver can put them together, in
//! several, which it must be told of at once.

use std::io::Write;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::card::{BATCH, BATCH_BYTES, Net};
use crate::devices::virtio::request::Output;
use crate::devices::virtio::{NotServed, Turn, Violation, next_chain};
use crate::memory::GuestMemory;
use crate::net::HEADER;

/// Where the number of buffers is in a header.
const BUFFERS_AT: usize = 10;
/// Of the available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;

impl Net {
    pub(super) fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Turn, NotServed> {
        self.starved = !queue.ready();
        let begin = queue.next_used();
        let merges = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut bytes = 0;
        for _ in 0..BATCH {
            if self.starved || bytes >= BATCH_BYTES {
                break;
            }
            let Some(backend) = &mut self.backend else { break };
            let incoming = match backend.peek() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                Err(lost) => {
                    self.lose(lost);
                    break;
                }
            };
            let length = HEADER + incoming.frame.len();
            let at = queue.next_avail();
            match Buffers::take(queue, memory, length, merges)? {
                Found::Enough(buffers) => {
                    let used = buffers.fill(incoming.header, incoming.frame)?;
                    publish(queue, memory, &used)?;
                    bytes += length;
                    self.link.count_received(length - HEADER);
                    backend.drop_frame();
                }
                Found::TooFew => {
                    queue.set_next_avail(at);
                    self.starved = true;
                }
                Found::TooSmall => {
                    queue.set_next_avail(at);
                    backend.drop_frame();
                    self.complaints.warn(format_args!(
                        "dropped a frame of {length} bytes: the guest's buffers are smaller"
                    ));
                }
            }
        }
        if queue.next_used() == begin {
            return Ok(Turn::Nothing);
        }
        Ok(Turn::Served { notify: wants_interrupt(queue, memory, begin)? })
    }
}

/// Buffers of the guest for one frame.
struct Buffers<'m>(Vec<(u16, Output<'m>)>);

enum Found<'m> {
    Enough(Buffers<'m>),
    TooFew,
    /// All that the guest can ever offer at once will not do.
    TooSmall,
}

impl<'m> Buffers<'m> {
    fn take(
        queue: &mut Queue,
        memory: &'m GuestMemory,
        length: usize,
        merges: bool,
    ) -> Result<Found<'m>, Violation> {
        let (mut found, mut room) = (Vec::new(), 0);
        while room < length {
            // A driver that cannot put buffers together gets whole frames only.
            if found.len() >= if merges { queue.size().into() } else { 1 } {
                return Ok(Found::TooSmall);
            }
            let Some(chain) = next_chain(queue, memory)? else { return Ok(Found::TooFew) };
            let head = chain.head_index();
            let writer = chain.writer(memory).map_err(Violation::from_error("a buffer for frames"))?;
            room = writer.available_bytes().saturating_add(room);
            found.push((head, writer));
        }
        Ok(Found::Enough(Self(found)))
    }

    /// Returns heads and lengths for the used ring.
    fn fill(self, mut header: [u8; HEADER], frame: &[u8]) -> Result<Vec<(u16, u32)>, Violation> {
        // At most the size of the queue.
        let count = self.0.len() as u16;
        header[BUFFERS_AT..].copy_from_slice(&count.to_le_bytes());
        let broken = |e: std::io::Error| Violation(format!("a buffer for frames: {e}"));
        let mut parts = [&header[..], frame];
        let mut used = Vec::with_capacity(self.0.len());
        for (head, mut writer) in self.0 {
            let mut written = 0;
            for part in &mut parts {
                let (now, later) = part.split_at(part.len().min(writer.available_bytes()));
                writer.write_all(now).map_err(broken)?;
                written += now.len();
                *part = later;
            }
            // A packet is far shorter than 4 GiB.
            used.push((head, written as u32));
        }
        Ok(used)
    }
}

/// Puts all of `used` into the used ring in one step: a driver that found a part of a frame would
/// take it for damaged.
fn publish(queue: &mut Queue, memory: &GuestMemory, used: &[(u16, u32)]) -> Result<(), Violation> {
    let broken = |_| Violation("the used ring is broken".into());
    let (ring, mut next) = (queue.used_ring(), queue.next_used());
    for &(head, length) in used {
        // The ring was checked to lie in guest memory, so this does not overflow.
        let slot = GuestAddress(ring + 4 + u64::from(next % queue.size()) * 8);
        let element = [u32::from(head).to_le_bytes(), length.to_le_bytes()].concat();
        memory.write_slice(&element, slot).map_err(broken)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release).map_err(broken)
}

/// Whether the driver wants to know of what was used since the ring stood at `old`.
fn wants_interrupt(queue: &Queue, memory: &GuestMemory, old: u16) -> Result<bool, Violation> {
    let broken = |_| Violation("the available ring is broken".into());
    // What was used must be there before the driver's wish is looked at.
    fence(Ordering::SeqCst);
    let read =
        |offset| memory.load(GuestAddress(queue.avail_ring() + offset), Ordering::Relaxed).map_err(broken);
    if queue.event_idx_enabled() {
        let event = u16::from_le(read(4 + 2 * u64::from(queue.size()))?);
        let new = queue.next_used();
        // Section 2.7.10: the event lies in what is new.
        return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
    }
    Ok(u16::from_le(read(0)?) & NO_INTERRUPT == 0)
}
