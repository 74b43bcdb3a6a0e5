//! The one part of a keyboard controller that kernels still use: pulsing the reset line.

use crate::bus::BusDevice;
use crate::events::{EventSink, MachineEvent};

/// Status and command register, relative to the data port 0x60.
const COMMAND: u64 = 4;
/// "Pulse output line 0", the processor's reset.
const PULSE_RESET: u8 = 0xfe;

pub struct I8042 {
    events: EventSink,
}

impl I8042 {
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    /// Status reads as "both buffers empty", so a driver that polls it goes on at once.
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [PULSE_RESET] {
            (self.events)(MachineEvent::Reset);
        }
    }
}
