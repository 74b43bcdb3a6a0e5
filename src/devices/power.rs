//! ACPI power registers of a hardware-reduced platform, and the events that the generic event
//! device tells the guest about.
//!
//! Source: ACPI 6.5, sections 4.8.3.7 (sleep registers), 4.8.3.6 (reset register), 5.6.9 (GED).

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::events::{EventSink, MachineEvent};
use crate::layout::{
    POWER_EVENT_BUTTON, POWER_EVENT_GENERATION, POWER_EVENTS, POWER_RESET, POWER_RESET_VALUE,
    POWER_SLEEP_CONTROL, POWER_SLEEP_TYPE_S5,
};

/// `SLP_EN`: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;
pub struct Power {
    events: EventSink,
    /// Events that the guest has not read yet; reading clears them.
    pending: AtomicU8,
    irq: EventFd,
}

impl Power {
    /// `irq` is the generic event device's interrupt.
    pub fn new(events: EventSink, irq: EventFd) -> Self {
        Self { events, pending: AtomicU8::new(0), irq }
    }

    /// Events that the guest has not read yet.
    pub fn save(&self) -> u8 {
        self.pending.load(Ordering::SeqCst)
    }

    pub fn restore(&self, pending: u8) {
        self.pending.store(pending, Ordering::SeqCst);
    }

    /// Leaves word that the VM generation id has changed, for a guest that does not run yet:
    /// [`Power::interrupt_again`] tells it.
    pub fn note_generation(&self) {
        self.pending.fetch_or(POWER_EVENT_GENERATION, Ordering::SeqCst);
    }

    /// For a guest that has not read what is pending: a restored one, whose saved interrupt
    /// controllers may not have seen it, or one that boots and had the interrupt masked.
    pub fn interrupt_again(&self) -> std::io::Result<()> {
        if self.pending.load(Ordering::SeqCst) == 0 { Ok(()) } else { self.irq.write(1) }
    }

    /// Tells the guest that the power button was pressed.
    pub fn press_button(&self) -> std::io::Result<()> {
        self.pending.fetch_or(POWER_EVENT_BUTTON, Ordering::SeqCst);
        self.irq.write(1)
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (POWER_EVENTS, Some(first)) = (offset, data.first_mut()) {
            *first = self.pending.swap(0, Ordering::SeqCst);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (POWER_SLEEP_CONTROL, &[value])
                if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == POWER_SLEEP_TYPE_S5 =>
            {
                (self.events)(MachineEvent::PowerOff)
            }
            (POWER_RESET, &[POWER_RESET_VALUE]) => (self.events)(MachineEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn registers_do_what_the_tables_say() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let power = Power::new(
            Arc::new(move |event| sink.lock().unwrap().push(event)),
            EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        );
        power.write(POWER_SLEEP_CONTROL, &[POWER_SLEEP_TYPE_S5 << 2]);
        power.write(POWER_SLEEP_CONTROL, &[SLEEP_ENABLE]);
        power.write(POWER_RESET, &[0]);
        power.write(99, &[0xff; 8]);
        assert!(seen.lock().unwrap().is_empty());
        power.write(POWER_SLEEP_CONTROL, &[POWER_SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE]);
        power.write(POWER_RESET, &[POWER_RESET_VALUE]);
        assert_eq!(*seen.lock().unwrap(), [MachineEvent::PowerOff, MachineEvent::Reset]);
    }

    #[test]
    fn the_button_is_seen_once() {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let power = Power::new(Arc::new(|_| {}), irq.try_clone().unwrap());
        power.press_button().unwrap();
        assert_eq!(irq.read().unwrap(), 1);
        let mut value = [0xaa];
        power.read(POWER_EVENTS, &mut value);
        assert_eq!(value, [POWER_EVENT_BUTTON]);
        power.read(POWER_EVENTS, &mut value);
        assert_eq!(value, [0]);
        power.interrupt_again().unwrap();
        assert!(irq.read().is_err(), "there is nothing to tell");
        power.note_generation();
        power.interrupt_again().unwrap();
        assert_eq!(irq.read().unwrap(), 1);
        power.read(POWER_EVENTS, &mut value);
        assert_eq!(value, [POWER_EVENT_GENERATION]);
    }
}
