//! Console device (virtio 1.2, section 5.3) with one port, the guest agent's, and the control
//! queues that give the port its name. It is not the guest's console: that is COM1.

use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::console_port::Port;
use super::{Chain, Device, NotServed, Violation};
use crate::memory::GuestMemory;

/// The name by which guests know where to start their agent.
const PORT_NAME: &[u8] = b"org.qemu.guest_agent.0";
/// The only port.
const PORT: u32 = 0;

/// `VIRTIO_CONSOLE_F_MULTIPORT`.
const MULTIPORT: u64 = 1 << 1;

/// Queues by number: the port's, then the control queues; each named by who receives.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;

/// Control events (section 5.3.6.2).
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME_EVENT: u16 = 7;
/// Length of `struct virtio_console_control`: id, event, value.
const CONTROL: usize = 8;

/// Most bytes that are looked at of one request; of a longer one the rest is lost, which only a
/// driver that does not mean well can notice: Linux sends at most a page or two.
const MOST: usize = 64 << 10;
const BUFFER: usize = 4096;

/// What the device has yet to tell the driver. One of each at most, whatever the driver asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Untold {
    /// That there is the port.
    port: bool,
    name: bool,
    /// That somebody is at the port's other end.
    open: bool,
}

/// State of the device beside its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    untold: Untold,
    /// Some process of the guest has the port open.
    open: bool,
    /// The guest may have frozen file systems that nobody could thaw yet.
    pub thaw_due: bool,
}

pub struct Console {
    port: Arc<Port>,
    multiport: bool,
    untold: Untold,
}

impl Console {
    pub fn new(port: Arc<Port>) -> Self {
        Self { port, multiport: false, untold: Untold::default() }
    }

    pub fn save(&self) -> ConsoleState {
        ConsoleState { untold: self.untold, open: self.port.is_open(), thaw_due: self.port.is_thaw_due() }
    }

    pub fn restore(&mut self, state: &ConsoleState) {
        self.untold = state.untold;
        self.port.set_thaw_due(state.thaw_due);
        self.port.set_open(state.open);
    }

    /// The next message to the driver.
    fn take_message(&mut self) -> Option<Vec<u8>> {
        let message = |event: u16, value: u16| {
            [&PORT.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        if std::mem::take(&mut self.untold.port) {
            Some(message(DEVICE_ADD, 1))
        } else if std::mem::take(&mut self.untold.name) {
            Some([message(PORT_NAME_EVENT, 1), PORT_NAME.to_vec()].concat())
        } else if std::mem::take(&mut self.untold.open) {
            Some(message(PORT_OPEN, 1))
        } else {
            None
        }
    }

    /// What the driver says on the control queue; what is not understood means nothing.
    fn obey(&mut self, message: &[u8]) {
        let &[a, b, c, d, event_low, event_high, value_low, value_high] = message else { return };
        let id = u32::from_le_bytes([a, b, c, d]);
        let event = u16::from_le_bytes([event_low, event_high]);
        let value = u16::from_le_bytes([value_low, value_high]);
        match (event, id) {
            (DEVICE_READY, _) => self.untold.port |= value == 1,
            (PORT_READY, PORT) if value == 1 => (self.untold.name, self.untold.open) = (true, true),
            (PORT_OPEN, PORT) => self.port.set_open(value == 1),
            _ => {}
        }
    }
}

impl Device for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64, 16, 16]
    }

    /// `struct virtio_console_config`: no size, one port, no emergency write.
    fn config(&self) -> Vec<u8> {
        [&[0; 4][..], &1u32.to_le_bytes(), &[0; 4]].concat()
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & MULTIPORT != 0;
    }

    fn reset(&mut self) {
        self.multiport = false;
        self.untold = Untold::default();
        self.port.set_open(false);
    }

    /// The guest's empty buffers wait until there is something for it.
    fn wants(&self, queue: usize) -> bool {
        match queue {
            TO_GUEST => self.multiport && self.port.has_for_guest(),
            // While nobody takes it, it waits in the guest.
            FROM_GUEST => self.port.has_room(),
            CONTROL_TO_GUEST => self.multiport && self.untold != Untold::default(),
            _ => true,
        }
    }

    fn serve(&mut self, queue: usize, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, NotServed> {
        let broken = |e: std::io::Error| Violation(format!("a console request: {e}"));
        let unreadable = Violation::from_error("a console request");
        if queue == TO_GUEST || queue == CONTROL_TO_GUEST {
            let mut writer = chain.writer(memory).map_err(unreadable)?;
            let room = writer.available_bytes();
            let bytes = if queue == TO_GUEST {
                self.port.take_for_guest(room.min(MOST))
            } else {
                // One that its buffer is too small for is cut, as on a wire.
                self.take_message().unwrap_or_default().into_iter().take(room).collect()
            };
            writer.write_all(&bytes).map_err(broken)?;
            // At most MOST, so it fits.
            return Ok(bytes.len() as u32);
        }
        let mut reader = chain.reader(memory).map_err(unreadable)?;
        let mut left = reader.available_bytes().min(MOST);
        if queue == CONTROL_FROM_GUEST {
            let mut message = [0; CONTROL];
            if left >= CONTROL {
                reader.read_exact(&mut message).map_err(broken)?;
                self.obey(&message);
            }
            return Ok(0);
        }
        let mut buffer = [0; BUFFER];
        while left > 0 {
            let step = left.min(BUFFER);
            reader.read_exact(&mut buffer[..step]).map_err(broken)?;
            if self.multiport {
                self.port.put_from_guest(&buffer[..step]);
            }
            left -= step;
        }
        Ok(0)
    }
}
