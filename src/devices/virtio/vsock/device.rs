//! Socket device (virtio 1.2, section 5.10): streams between programs of the guest and of the host,
//! which meet at Unix sockets.
//!
//! A guest that goes on at a checkpoint, or as a clone, is told by an event that none of its
//! connections is there any more. Until it has taken the event, it gets no packet and none of it is
//! looked at: else it would take the end of the old ones for the end of a new one.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use super::host::Host;
use super::packet::{HEADER, Header};
use super::sockets::{GUEST_CID, Sockets};
use crate::devices::virtio::{
    Chain, Device, NotServed, Turn, Violation, needs_notification, next_chain, want_no_notification,
};
use crate::memory::GuestMemory;

/// Queues by number, each named by who receives.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;

/// `VIRTIO_VSOCK_F_STREAM`.
const STREAMS: u64 = 1 << 0;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;

/// Most data of one packet; Linux sends no more at once.
const MOST_DATA: usize = 64 << 10;
/// Packets of one step in each direction.
const BATCH: usize = 32;

/// State of the device beside its queues. Connections are not saved: they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The port that the next caller from the host gets: those before may be known to the guest.
    next_port: u32,
}

/// What the guest does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// That its connections are gone.
    Reset,
    /// It was told that; the index of its event ring then.
    Told(u16),
}

pub struct Vsock {
    sockets: Sockets,
    active: bool,
    news: News,
    packet: Box<[u8]>,
}

impl Vsock {
    /// `epoll` becomes what the device's thread waits for.
    pub fn new(host: Arc<Host>, epoll: Arc<Epoll>) -> std::io::Result<Self> {
        Ok(Self {
            sockets: Sockets::new(host, epoll)?,
            active: false,
            news: News::None,
            packet: vec![0; HEADER + MOST_DATA].into(),
        })
    }

    pub fn save(&self) -> VsockState {
        VsockState { next_port: self.sockets.next_port() }
    }

    /// After the queues were restored.
    pub fn restore(&mut self, state: VsockState) {
        self.sockets.set_next_port(state.next_port);
        if self.active {
            self.news = News::Reset;
        }
    }

    /// What the host's sockets told. It is only noted, so this may happen while the machine stands
    /// still.
    pub fn note_all(&mut self, events: &[EpollEvent]) {
        for event in events {
            self.sockets.note(event.data(), event.event_set());
        }
    }

    /// How long the thread may wait.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        self.sockets.deadline().map(|deadline| deadline.saturating_duration_since(now))
    }

    /// Tells the guest its news; whether it knows all.
    fn tell(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<(bool, Turn), NotServed> {
        let broken = || Violation::from_error("the event ring is broken");
        if self.news == News::Reset {
            let Some(chain) = next_chain(queue, memory)? else { return Ok((false, Turn::Nothing)) };
            let head = chain.head_index();
            let mut writer = chain.writer(memory).map_err(Violation::from_error("a buffer for events"))?;
            let event = TRANSPORT_RESET.to_le_bytes();
            writer.write_all(&event).map_err(|e| Violation(format!("a buffer for events: {e}")))?;
            queue.add_used(memory, head, event.len() as u32).map_err(broken())?;
            let index = queue.avail_idx(memory, Ordering::Acquire).map_err(broken())?;
            self.news = News::Told(index.0);
            // To be told of the next buffer.
            queue.enable_notification(memory).map_err(broken())?;
            return Ok((false, Turn::Served { notify: needs_notification(queue, memory)? }));
        }
        if let News::Told(index) = self.news {
            // The driver gives a buffer back once it has done what the event asks for.
            if queue.avail_idx(memory, Ordering::Acquire).map_err(broken())?.0 == index {
                return Ok((false, Turn::Nothing));
            }
            self.news = News::None;
        }
        Ok((true, Turn::Nothing))
    }

    /// A packet of the guest.
    fn hear(&mut self, memory: &GuestMemory, chain: Chain<'_>, now: Instant) -> Result<(), Violation> {
        let broken = |e: std::io::Error| Violation(format!("a socket's packet: {e}"));
        let mut reader = chain.reader(memory).map_err(Violation::from_error("a socket's packet"))?;
        let mut bytes = [0; HEADER];
        reader.read_exact(&mut bytes).map_err(broken)?;
        let header = Header::parse(&bytes);
        let data = self.packet.get_mut(..header.len as usize).ok_or_else(|| {
            Violation(format!("a socket's packet of {} bytes: the maximum is {MOST_DATA}", header.len))
        })?;
        reader.read_exact(data).map_err(broken)?;
        self.sockets.hear(&header, data, now);
        Ok(())
    }

    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory, now: Instant) -> Result<Turn, NotServed> {
        let mut any = false;
        for _ in 0..BATCH {
            if self.sockets.is_full() {
                break;
            }
            let Some(chain) = next_chain(queue, memory)? else { break };
            if !any {
                // What comes during it is found anyway.
                want_no_notification(queue, memory)?;
                any = true;
            }
            let head = chain.head_index();
            self.hear(memory, chain, now)?;
            queue.add_used(memory, head, 0).map_err(Violation::from_error("the used ring is broken"))?;
        }
        finish(any, queue, memory)
    }

    fn send(&mut self, queue: &mut Queue, memory: &GuestMemory, now: Instant) -> Result<Turn, NotServed> {
        let (mut any, mut starved) = (false, false);
        for _ in 0..BATCH {
            if !self.sockets.has_packet() {
                break;
            }
            let at = queue.next_avail();
            let Some(chain) = next_chain(queue, memory)? else {
                starved = true;
                break;
            };
            let head = chain.head_index();
            let mut writer =
                chain.writer(memory).map_err(Violation::from_error("a buffer for a socket's packet"))?;
            let room = writer.available_bytes().checked_sub(HEADER).ok_or_else(|| {
                Violation(format!("a buffer for a socket's packet has less than {HEADER} bytes"))
            })?;
            let data = &mut self.packet[..room.min(MOST_DATA)];
            let Some(header) = self.sockets.next_packet(data, now) else {
                queue.set_next_avail(at);
                break;
            };
            let length = header.len as usize;
            let broken = |e: std::io::Error| Violation(format!("a buffer for a socket's packet: {e}"));
            writer.write_all(&header.to_bytes()).map_err(broken)?;
            writer.write_all(&self.packet[..length]).map_err(broken)?;
            any = true;
            // Far less than 4 GiB.
            let written = (HEADER + length) as u32;
            queue
                .add_used(memory, head, written)
                .map_err(Violation::from_error("the used ring is broken"))?;
        }
        // While there are buffers, more of them are no news.
        if any && !starved {
            want_no_notification(queue, memory)?;
        }
        finish(any, queue, memory)
    }
}

fn finish(any: bool, queue: &mut Queue, memory: &GuestMemory) -> Result<Turn, NotServed> {
    Ok(match any {
        true => Turn::Served { notify: needs_notification(queue, memory)? },
        false => Turn::Nothing,
    })
}

impl Device for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        STREAMS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[128, 128, 16]
    }

    /// `struct virtio_vsock_config`: the guest's address.
    fn config(&self) -> Vec<u8> {
        GUEST_CID.to_le_bytes().into()
    }

    fn activate(&mut self, _: u64) {
        self.active = true;
    }

    fn reset(&mut self) {
        self.active = false;
        self.news = News::None;
        self.sockets.clear();
    }

    fn turn(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<Turn, NotServed> {
        let now = Instant::now();
        self.sockets.expire(now);
        if !queues.iter().all(QueueT::ready) {
            return Ok(Turn::Nothing);
        }
        let (informed, told) = self.tell(&mut queues[EVENTS], memory)?;
        if !informed {
            return Ok(told);
        }
        self.sockets.accept(now);
        let received = self.receive(&mut queues[FROM_GUEST], memory, now)?;
        let sent = self.send(&mut queues[TO_GUEST], memory, now)?;
        Ok(told.and(received).and(sent))
    }
}
