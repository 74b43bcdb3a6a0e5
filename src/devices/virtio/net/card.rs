//! The device's state, its configuration space and what the guest sends.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_OK, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Queue, QueueT};

use super::jam::{self, Jam};
use crate::config::NetConfig;
use crate::devices::virtio::complaints::Complaints;
use crate::devices::virtio::{
    Chain, Device, NotServed, Turn, Violation, needs_notification, next_chain, want_no_notification,
};
use crate::memory::GuestMemory;
use crate::net::{self, Change, HEADER, Link, Lost, MOST_FRAME, SavedFlow};

/// Queues by number.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// Shortest frame: an Ethernet header.
const LEAST_FRAME: usize = 14;
/// Frames and bytes of one step in each direction.
pub(super) const BATCH: usize = 64;
pub(super) const BATCH_BYTES: usize = 512 << 10;
/// How long the link stays down so that the driver sees it, if it looks.
const SEEN_DOWN: Duration = Duration::from_secs(1);

/// What a step did with a queue.
#[derive(Default)]
pub(super) struct Done {
    pub served: bool,
    /// The driver wants to know.
    pub notify: bool,
    /// The step ended before the work did.
    pub more: bool,
}

/// State of the device beside its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The driver has not announced itself yet as it was asked to.
    announce: bool,
    /// Connections that end when the guest goes on elsewhere.
    #[serde(default)]
    flows: Vec<SavedFlow>,
}

pub struct Net {
    pub(super) config: NetConfig,
    pub(super) link: Arc<Link>,
    pub(super) backend: Option<Box<dyn net::Backend>>,
    /// Comes when the driver has seen that the link is down.
    pub(super) next: Option<Box<dyn net::Backend>>,
    pub(super) down_since: Option<Instant>,
    pub(super) features: u64,
    pub(super) announce: bool,
    /// Connections of former back-ends.
    pub(super) former: Vec<SavedFlow>,
    pub(super) packet: Box<[u8]>,
    /// A frame waits for the guest's buffers.
    pub(super) starved: bool,
    /// The back-end's file has something to read, or its end.
    pub(super) readable: bool,
    jam: Jam,
    pub(super) complaints: Complaints,
}

impl Net {
    pub fn new(config: NetConfig, link: Arc<Link>) -> Self {
        Self {
            config,
            link,
            backend: None,
            next: None,
            down_since: None,
            features: 0,
            announce: false,
            former: Vec::new(),
            packet: vec![0; HEADER + MOST_FRAME].into(),
            starved: false,
            readable: false,
            jam: Jam::default(),
            complaints: Complaints::default(),
        }
    }

    pub fn save(&self) -> NetState {
        let now = self.backend.as_ref().map(|backend| backend.flows()).unwrap_or_default();
        let flows = self.former.iter().cloned().chain(now).collect();
        NetState { announce: self.announce, flows }
    }

    pub fn restore(&mut self, state: NetState) {
        self.announce = state.announce;
        self.former = state.flows;
    }

    pub(super) fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }

    /// The back-end's file was found to have something to read: it is not tried otherwise.
    pub fn note_readable(&mut self) {
        self.readable = true;
    }

    /// Does what was done to the cable. `seen`: the driver knows the link as it is.
    pub fn follow_link(&mut self, seen: bool, now: Instant) {
        match self.link.take_change() {
            Change::Nothing => {}
            Change::Unplug => {
                self.unplug();
                self.next = None;
            }
            Change::Plug(backend) => {
                self.unplug();
                self.next = Some(backend);
                self.down_since = Some(now);
            }
        }
        let waited = self.down_since.is_none_or(|since| now.duration_since(since) >= SEEN_DOWN);
        if (seen || waited)
            && let Some(mut backend) = self.next.take()
        {
            backend.end_flows(std::mem::take(&mut self.former));
            self.down_since = None;
            self.starved = false;
            self.announce = self.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
            let set = backend.set_offloads(self.features);
            self.backend = Some(backend);
            self.link.set_up(true);
            if let Err(lost) = set {
                self.lose(lost);
            }
        }
    }

    fn is_blocked(&self) -> bool {
        self.backend.as_ref().is_some_and(|backend| backend.is_blocked())
    }

    /// Looks whether the back-end takes anything. `moved`: it has, since the last time.
    pub fn watch_jam(&mut self, moved: bool, now: Instant) {
        let dropped = self.jam.drops();
        self.jam.look(self.is_blocked(), moved, now);
        if self.jam.drops() && !dropped {
            let backend = &self.config.backend;
            let text = "takes no frames: what the guest sends is dropped until it does";
            self.complaints.warn(format_args!("the network {backend} of this VM {text}"));
        }
        if self.jam.is_dead() {
            self.lose(Lost(format!("it took no frames for {} s", jam::DEAD_FROM)));
        }
    }

    fn flush(&mut self) {
        if let Some(Err(lost)) = self.backend.as_mut().map(|backend| backend.flush()) {
            self.lose(lost);
        }
    }

    fn unplug(&mut self) {
        if let Some(backend) = self.backend.take() {
            self.former = backend.flows();
        }
        self.jam = Jam::default();
        self.link.set_up(false);
    }

    pub(super) fn lose(&mut self, lost: Lost) {
        self.unplug();
        self.link.lose(lost);
    }

    /// What the thread is to wait for, if the device serves: the back-end's file, and whether for
    /// reading and for writing.
    pub(super) fn waits_for(&self) -> Option<(libc::c_int, bool, bool)> {
        use std::os::fd::AsRawFd;
        self.backend.as_ref().map(|backend| (backend.fd().as_raw_fd(), !self.starved, backend.is_blocked()))
    }

    /// A frame of the guest. One that makes no sense is lost.
    fn transmit(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<usize, Violation> {
        let mut reader = chain.reader(memory).map_err(Violation::from_error("a frame to send"))?;
        let length = reader.available_bytes();
        let Some(packet) =
            self.packet.get_mut(..length).filter(|packet| packet.len() >= HEADER + LEAST_FRAME)
        else {
            let most = HEADER + MOST_FRAME;
            self.complaints.warn(format_args!(
                "the guest sent a frame of {length} bytes: only {} to {most} are allowed",
                HEADER + LEAST_FRAME
            ));
            return Ok(0);
        };
        reader.read_exact(packet).map_err(|e| Violation(format!("a frame to send: {e}")))?;
        let Some(backend) = self.backend.as_mut().filter(|backend| !backend.is_blocked()) else {
            return Ok(length);
        };
        self.link.count_sent(&packet[HEADER..]);
        if let Err(lost) = backend.send(packet) {
            self.lose(lost);
        }
        Ok(length)
    }

    /// A command (section 5.1.6.5); what is not known is answered as failed.
    fn control(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, Violation> {
        let wrong = Violation::from_error;
        let mut reader = chain.clone().reader(memory).map_err(wrong("a control command"))?;
        let mut writer = chain.writer(memory).map_err(wrong("a control command's answer"))?;
        let mut command = [0; 2];
        let whole = reader.read_exact(&mut command).is_ok();
        let [class, command] = command.map(u32::from);
        let done = whole && (class, command) == (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK);
        if done {
            self.announce = false;
        }
        let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        // Both are one byte.
        writer
            .write_all(&[answer as u8])
            .map_err(|e| Violation(format!("a control command has no room for its response: {e}")))?;
        Ok(1)
    }

    /// Serves a queue of requests to its end, or until it was enough for now.
    fn serve_queue(
        &mut self,
        index: usize,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Done, NotServed> {
        let mut done = Done::default();
        if !queue.ready() {
            return Ok(done);
        }
        let mut bytes = 0;
        for count in 0.. {
            if index == TRANSMIT && self.is_blocked() && !self.jam.drops() {
                break;
            }
            if count >= BATCH || bytes >= BATCH_BYTES {
                done.more = true;
                break;
            }
            let Some(chain) = next_chain(queue, memory)? else { break };
            if !done.served {
                // What comes during it is found anyway.
                want_no_notification(queue, memory)?;
                done.served = true;
            }
            let head = chain.head_index();
            let written = match index {
                CONTROL => self.control(memory, chain)?,
                _ => {
                    bytes += self.transmit(memory, chain)?;
                    0
                }
            };
            queue
                .add_used(memory, head, written)
                .map_err(Violation::from_error("the used ring is broken"))?;
        }
        done.notify = done.served && needs_notification(queue, memory)?;
        Ok(done)
    }
}

impl Device for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    /// The same with every back-end, so that a guest can go on with another one.
    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ]
        .iter()
        .fold(0, |all, feature| all | 1 << feature)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256, 16]
    }

    /// `struct virtio_net_config`: MAC address, status, one pair of queues, MTU.
    fn config(&self) -> Vec<u8> {
        let up = if self.backend.is_some() { VIRTIO_NET_S_LINK_UP } else { 0 };
        let announce = if self.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = (up | announce) as u16;
        let pairs: u16 = 1;
        [&self.config.mac.0[..], &status.to_le_bytes(), &pairs.to_le_bytes(), &self.config.mtu.to_le_bytes()]
            .concat()
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        if let Some(Err(lost)) = self.backend.as_mut().map(|backend| backend.set_offloads(features)) {
            self.lose(lost);
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.announce = false;
        self.starved = false;
    }

    fn turn(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<Turn, NotServed> {
        // First: what the guest sends waits while the back-end is blocked, and nobody tells of it again.
        self.flush();
        let mut all = Done::default();
        for (index, queue) in queues.iter_mut().enumerate() {
            let done = match index {
                RECEIVE => self.receive(queue, memory)?,
                _ => self.serve_queue(index, queue, memory)?,
            };
            all.served |= done.served;
            all.notify |= done.notify;
            all.more |= done.more;
        }
        // One that is blocked is polled, and begins with the next turn.
        if self.backend.as_ref().is_some_and(|backend| !backend.is_blocked()) {
            self.flush();
        }
        // An answer to what was sent is told of by nobody.
        all.more |= !self.starved && self.backend.as_ref().is_some_and(|backend| backend.has_frame());
        Ok(match all {
            Done { more: true, notify, .. } => Turn::Served { notify },
            Done { served: true, notify, .. } => Turn::Finished { notify },
            Done { .. } => Turn::Nothing,
        })
    }
}
