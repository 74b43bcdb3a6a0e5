//! The virtio-net driver.

use crate::apic;
use crate::cpu::tsc;
use crate::hash;
use crate::memory::Dma;
use crate::net::frames::{self, Frame, MTU_MAX, MTU_UNMERGED, Receive, Send};
use crate::ring::{self, Ring};
use crate::transport::{NET, Transport};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const WANTED: u64 =
    F_GUEST_CSUM | F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE;

const RX: u32 = 0;
const TX: u32 = 1;
const CONTROL: u32 = 2;

/// Places in the device's configuration.
const CONFIG_STATUS: u64 = 6;
const CONFIG_MTU: u64 = 10;
const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;
/// Class and command.
const ANNOUNCE_ACK: [u8; 2] = [3, 0];

const ETHERNET: usize = 14;
/// Memory of one device.
pub const BYTES: usize = frames::BYTES + ring::BYTES + 4096;

/// What the device has to say about its link.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub up: bool,
    pub announce: bool,
}

pub struct Nic {
    transport: Transport,
    features: u64,
    vector: u8,
    /// Interrupts looked at so far.
    interrupts: u64,
    pub mac: [u8; 6],
    pub mtu: usize,
    pub rx: Receive,
    pub tx: Send,
    control: Ring,
    command: Dma,
    control_free: bool,
}

impl Nic {
    /// Whether there is a network device at `addr`.
    pub fn is_at(addr: u64) -> bool {
        Transport::find(addr, NET).is_some()
    }

    pub fn open(addr: u64, vector: u8, memory: &mut Dma) -> Option<Self> {
        let transport = Transport::find(addr, NET)?;
        let features = transport.negotiate(WANTED)?;
        let mut rx = Receive::new(memory);
        let mut tx = Send::new(memory);
        let mut control = Ring::new(&memory.split(ring::BYTES));
        let controlled = features & F_CTRL_VQ != 0;
        if !transport.connect(RX, &mut rx.ring)
            || !transport.connect(TX, &mut tx.ring)
            || controlled && !transport.connect(CONTROL, &mut control)
        {
            return None;
        }
        let merged = features & F_MRG_RXBUF != 0;
        rx.fill(merged);
        tx.ring.want_interrupts(false);
        control.want_interrupts(false);
        let told =
            if features & F_MTU != 0 { usize::from(transport.config16(CONFIG_MTU)) } else { 0 };
        let mtu = if told >= 576 { told } else { 1500 };
        let mtu = mtu.min(if merged { MTU_MAX } else { MTU_UNMERGED });
        tx.frame_max = mtu + ETHERNET;
        let random = hash::word(tsc(), addr).to_le_bytes();
        // Locally administered.
        let mut mac = [0x02, random[0], random[1], random[2], random[3], random[4]];
        if features & F_MAC != 0 {
            mac = core::array::from_fn(|n| transport.config8(n as u64));
        }
        transport.start();
        let mut nic = Self {
            transport,
            features,
            vector,
            interrupts: 0,
            mac,
            mtu,
            rx,
            tx,
            control,
            command: memory.split(4096),
            control_free: true,
        };
        nic.tell();
        Some(nic)
    }

    /// Tells the device of frames to send and of buffers to fill.
    pub fn tell(&mut self) {
        if self.rx.ring.tell() {
            self.transport.notify(RX);
        }
        if self.tx.ring.tell() {
            self.transport.notify(TX);
        }
    }

    /// Takes note of interrupts; whether there was one.
    pub fn acknowledge(&mut self) -> bool {
        let count = apic::count(self.vector);
        let fresh = count != self.interrupts;
        if fresh {
            self.interrupts = count;
            self.transport.acknowledge();
        }
        fresh
    }

    pub fn link(&self) -> Link {
        if self.features & F_STATUS == 0 {
            return Link { up: true, announce: false };
        }
        let status = self.transport.config16(CONFIG_STATUS);
        let announce = self.features & F_GUEST_ANNOUNCE != 0 && status & STATUS_ANNOUNCE != 0;
        Link { up: status & STATUS_LINK_UP != 0, announce }
    }

    /// Says that the announcement was made; false if the device still thinks of the last time.
    pub fn acknowledge_announcement(&mut self) -> bool {
        if self.control.take().is_some() {
            self.control_free = true;
        }
        if !self.control_free {
            return false;
        }
        self.control_free = false;
        self.command.bytes(0, 2).copy_from_slice(&ANNOUNCE_ACK);
        let parts = [(self.command.part(0, 2), false), (self.command.part(8, 1), true)];
        self.control.give(0, &parts);
        if self.control.tell() {
            self.transport.notify(CONTROL);
        }
        true
    }
}

impl Device for Nic {
    type RxToken<'a> = Frame<'a>;
    type TxToken<'a> = &'a mut Send;

    fn receive(&mut self, _: Instant) -> Option<(Frame<'_>, &mut Send)> {
        // The answer to a frame needs room, too.
        if self.tx.has_room() { Some((self.rx.next()?, &mut self.tx)) } else { None }
    }

    fn transmit(&mut self, _: Instant) -> Option<&mut Send> {
        self.tx.has_room().then_some(&mut self.tx)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + ETHERNET;
        if self.features & F_GUEST_CSUM != 0 {
            // What comes from the host itself may have none yet.
            caps.checksum.tcp = Checksum::Tx;
            caps.checksum.udp = Checksum::Tx;
        }
        caps
    }
}
