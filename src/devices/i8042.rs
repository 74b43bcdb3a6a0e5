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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_the_reset_pulse_does_anything() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let i8042 = I8042::new(Arc::new(move |event| sink.lock().unwrap().push(event)));
        for (offset, data) in
            [(0, &[0xfe][..]), (4, &[0xff]), (4, &[0xfe, 0xfe]), (4, &[]), (u64::MAX, &[0xfe])]
        {
            i8042.write(offset, data);
        }
        let mut data = [0xaa; 8];
        i8042.read(4, &mut data);
        assert_eq!((data, seen.lock().unwrap().len()), ([0; 8], 0));
        i8042.write(4, &[0xfe]);
        assert_eq!(*seen.lock().unwrap(), [MachineEvent::Reset]);
    }
}
