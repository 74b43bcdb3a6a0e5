//! Frames to the guest, each in one buffer of it or, if its driver can put them together, in
//! several, which it must be told of at once.

use std::io::Write;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::card::{BATCH, BATCH_BYTES, Done, Net};
use crate::devices::virtio::request::Output;
use crate::devices::virtio::{NotServed, Violation, next_chain, want_no_notification, wants_interrupts};
use crate::memory::GuestMemory;
use crate::net::HEADER;

/// Where the number of buffers is in a header.
const BUFFERS_AT: usize = 10;

impl Net {
    pub(super) fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Done, NotServed> {
        self.starved = !queue.ready();
        let begin = queue.next_used();
        let merges = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut done = Done::default();
        let mut bytes = 0;
        for count in 0.. {
            // What the back-end has to say it was asked to tell of.
            let Some(backend) = self.backend.as_mut().filter(|backend| self.readable || backend.has_frame())
            else {
                break;
            };
            if self.starved {
                break;
            }
            if count >= BATCH || bytes >= BATCH_BYTES {
                done.more = true;
                break;
            }
            let incoming = match backend.peek() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => {
                    self.readable = false;
                    break;
                }
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
        done.served = queue.next_used() != begin;
        if done.served {
            done.notify = wants_interrupt(queue, memory, begin)?;
            // While there are buffers, more of them are no news.
            if !self.starved {
                want_no_notification(queue, memory)?;
            }
        }
        Ok(done)
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
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&length.to_le_bytes());
        memory.write_slice(&element, slot).map_err(broken)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release).map_err(broken)
}

/// Whether the driver wants to know of what was used since the ring stood at `old`.
fn wants_interrupt(queue: &Queue, memory: &GuestMemory, old: u16) -> Result<bool, Violation> {
    if !queue.event_idx_enabled() {
        return wants_interrupts(queue, memory);
    }
    // What was used must be there before the driver's wish is looked at.
    fence(Ordering::SeqCst);
    let event: u16 = memory
        .load(GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(queue.size())), Ordering::Relaxed)
        .map_err(|_| Violation("the available ring is broken".into()))?;
    let new = queue.next_used();
    // Section 2.7.10: the event lies in what is new.
    Ok(new.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < new.wrapping_sub(old))
}
