//! The virtio-vsock driver, and all connections.

use crate::apic;
use crate::cpu::tsc;
use crate::memory::Dma;
use crate::ring::{self, Ring};
use crate::transport::{Transport, VSOCK};
use crate::vsock::connection::{Connection, ROOM, State};
use crate::vsock::packet::{self, HEADER, Header};
use crate::{hash, say};

pub const CONNECTIONS: usize = 16;
/// The connection that commands make, and that of the agent's relay; the others echo.
pub const CALL: usize = 0;
pub const RELAY: usize = 1;

const RX: u32 = 0;
const TX: u32 = 1;
const EVENTS: u32 = 2;
/// A buffer, with header and data, in either direction.
const BUFFER: usize = 4096;
const MOST_DATA: usize = BUFFER - HEADER;
const BUFFERS: u16 = 32;
const EVENT: usize = 16;
const EVENT_BUFFERS: u16 = 4;
/// Packets of no connection that are still to be answered.
const STRAYS: usize = 8;

const BUFFER_BYTES: usize = BUFFERS as usize * BUFFER;
/// Memory that the device needs.
pub const MEMORY: u64 = 1 << 20;
const _: () =
    assert!(3 * ring::BYTES + 2 * BUFFER_BYTES + 4096 + CONNECTIONS * ROOM <= MEMORY as usize);

pub struct Device {
    transport: Transport,
    vector: u8,
    interrupts: u64,
    pub cid: u64,
    rx: Ring,
    rx_buffers: Dma,
    tx: Ring,
    tx_buffers: Dma,
    tx_free: [bool; BUFFERS as usize],
    events: Ring,
    event_buffers: Dma,
    pub connections: [Connection; CONNECTIONS],
    pub echo: Option<u32>,
    /// How often all connections were ended by the device.
    pub resets: u64,
    strays: [Option<Header>; STRAYS],
}

/// Whether there is such a device at `addr`.
pub fn is_at(addr: u64) -> bool {
    Transport::find(addr, VSOCK).is_some()
}

impl Device {
    pub fn open(addr: u64, vector: u8, mut memory: Dma) -> Option<Self> {
        let transport = Transport::find(addr, VSOCK)?;
        transport.negotiate(0)?;
        let mut ring = || Ring::new(&memory.split(ring::BYTES));
        let (mut rx, mut tx, mut events) = (ring(), ring(), ring());
        if !transport.connect(RX, &mut rx)
            || !transport.connect(TX, &mut tx)
            || !transport.connect(EVENTS, &mut events)
            || rx.size().min(tx.size()) < BUFFERS
        {
            return None;
        }
        let rx_buffers = memory.split(BUFFER_BYTES);
        let tx_buffers = memory.split(BUFFER_BYTES);
        let event_buffers = memory.split(4096);
        for id in 0..BUFFERS {
            rx.give(id, &[(rx_buffers.part(usize::from(id) * BUFFER, BUFFER), true)]);
        }
        for id in 0..EVENT_BUFFERS {
            events.give(id, &[(event_buffers.part(usize::from(id) * EVENT, EVENT), true)]);
        }
        let connections =
            core::array::from_fn(|_| Connection::free(memory.split(ROOM).into_array(|| 0)));
        let cid = u64::from(transport.config32(0)) | u64::from(transport.config32(4)) << 32;
        transport.start();
        let mut device = Self {
            transport,
            vector,
            interrupts: 0,
            cid,
            rx,
            rx_buffers,
            tx,
            tx_buffers,
            tx_free: [true; BUFFERS as usize],
            events,
            event_buffers,
            connections,
            echo: None,
            resets: 0,
            strays: [None; STRAYS],
        };
        device.tell();
        Some(device)
    }

    /// Whether there is something to do at once.
    pub fn is_due(&self) -> bool {
        let answered = self.rx.ready() > 0 && self.strays.iter().any(Option::is_none);
        answered || self.events.ready() > 0 || self.slot().is_none() && self.tx.ready() > 0
    }

    fn tell(&mut self) {
        // Only what waits for a buffer has to know when there is one.
        self.tx.want_interrupts(self.slot().is_none());
        for (queue, ring) in [(RX, &mut self.rx), (TX, &mut self.tx), (EVENTS, &mut self.events)] {
            if ring.tell() {
                self.transport.notify(queue);
            }
        }
    }

    /// Does what there is to do.
    pub fn poll(&mut self) {
        let interrupts = apic::count(self.vector);
        if interrupts != self.interrupts {
            self.interrupts = interrupts;
            self.transport.acknowledge();
        }
        // First of all: what comes after it is of new connections.
        while let Some((id, len)) = self.events.take() {
            let part = self.event_buffers.part(usize::from(id) * EVENT, EVENT);
            if len >= 4 {
                self.end_all();
            }
            self.events.give(id, &[(part, true)]);
        }
        while let Some((id, _)) = self.tx.take() {
            self.tx_free[usize::from(id) % self.tx_free.len()] = true;
        }
        // As many as there are buffers, so that nothing else waits for long.
        for _ in 0..BUFFERS {
            if self.strays.iter().all(Option::is_some) {
                break;
            }
            let Some((id, len)) = self.rx.take() else { break };
            let id = id % BUFFERS;
            let at = usize::from(id) * BUFFER;
            self.hear(at, len.min(BUFFER));
            self.rx.give(id, &[(self.rx_buffers.part(at, BUFFER), true)]);
        }
        self.send();
        self.tell();
    }

    fn end_all(&mut self) {
        self.resets += 1;
        self.strays = [None; STRAYS];
        for connection in &mut self.connections {
            if connection.state != State::Free {
                connection.state = if connection.echo { State::Free } else { State::Reset };
            }
        }
        say!("evt vsock reset");
    }

    fn hear(&mut self, at: usize, len: usize) {
        let bytes = self.rx_buffers.bytes(at, len);
        let Some(header) = Header::parse(bytes) else { return };
        let data = bytes.get(HEADER..HEADER + header.len as usize).unwrap_or(&[]);
        let (local, peer) = (header.to.1, header.from.1);
        let known = self.connections.iter_mut().find(|c| c.is_between(local, peer));
        let accepted = match known {
            Some(connection) => connection.hear(&header, data),
            None if header.op == packet::REQUEST && self.echo == Some(local) => {
                let free =
                    self.connections[RELAY + 1..].iter_mut().find(|c| c.state == State::Free);
                free.map(|connection| connection.answer(&header)).is_some()
            }
            None => header.op == packet::RESET,
        };
        if !accepted {
            let reset =
                Header { from: header.to, to: header.from, op: packet::RESET, ..Header::default() };
            let place = self.strays.iter_mut().find(|place| place.is_none());
            *place.unwrap_or(&mut None) = Some(reset);
            if let Some(broken) = self.connections.iter_mut().find(|c| c.is_between(local, peer)) {
                broken.state = State::Reset;
            }
        }
    }

    /// A free buffer to send.
    fn slot(&self) -> Option<usize> {
        self.tx_free.iter().position(|&free| free)
    }

    fn put(&mut self, slot: usize, header: &Header, data: &[u8]) {
        let (at, len) = (slot * BUFFER, HEADER + data.len());
        let out = self.tx_buffers.bytes(at, len);
        header.write(out);
        out[HEADER..].copy_from_slice(data);
        self.tx_free[slot] = false;
        self.tx.give(slot as u16, &[(self.tx_buffers.part(at, len), false)]);
    }

    fn send(&mut self) {
        for n in 0..STRAYS {
            let Some(slot) = self.slot() else { return };
            if let Some(header) = self.strays[n].take() {
                self.put(slot, &header, &[]);
            }
        }
        for n in 0..CONNECTIONS {
            self.echo(n);
            let cid = self.cid;
            while let Some(slot) = self.slot() {
                let connection = &mut self.connections[n];
                let Some((op, flags)) = connection.control() else { break };
                let header = connection.header(cid, op, flags, 0);
                self.put(slot, &header, &[]);
            }
        }
    }

    /// Sends back what has come.
    fn echo(&mut self, n: usize) {
        let mut data = [0; MOST_DATA];
        while self.connections[n].echo && self.connections[n].state != State::Free {
            let connection = &mut self.connections[n];
            if matches!(connection.state, State::Ended | State::Reset) {
                connection.state = State::Free;
            } else if connection.is_at_end() || connection.peer_is_deaf() {
                return connection.shut_down(true);
            }
            let waiting = connection.inbox();
            let len = waiting.len().min(MOST_DATA);
            data[..len].copy_from_slice(&waiting[..len]);
            let sent = self.write(n, &data[..len]);
            if sent == 0 {
                return;
            }
            self.connections[n].consume(sent);
        }
    }

    /// Sends as much of `data` as goes into one packet now; how much that was.
    pub fn write(&mut self, n: usize, data: &[u8]) -> usize {
        let Some(slot) = self.slot() else { return 0 };
        let connection = &mut self.connections[n];
        if connection.state != State::Open || data.is_empty() {
            return 0;
        }
        let len = data.len().min(MOST_DATA).min(connection.credit());
        if len == 0 {
            return 0;
        }
        // Nothing goes before the answer.
        if let Some((op, flags)) = connection.control() {
            let header = connection.header(self.cid, op, flags, 0);
            self.put(slot, &header, &[]);
            return 0;
        }
        let header = connection.header(self.cid, packet::DATA, 0, len);
        self.put(slot, &header, &data[..len]);
        len
    }

    /// Sends what the last calls made.
    pub fn flush(&mut self) {
        self.send();
        self.tell();
    }

    /// Calls a program of the host.
    pub fn call(&mut self, n: usize, port: u32) {
        let local = 1024 + hash::word(tsc(), 6) as u32 % (1 << 30);
        self.connections[n].call(local, port);
        self.flush();
    }
}
