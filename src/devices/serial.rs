//! COM1, a 16550: vm-superio's state machine, an interrupt, and the console behind it.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::bus::BusDevice;

/// The saved state of COM1 is impossible.
#[derive(Debug, thiserror::Error)]
#[error("cannot restore COM1: {0}")]
pub struct RestoreError(String);

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = std::io::Error;
    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

struct ConsoleWriter(Arc<Console>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.output(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Registers of the 16550 and what its receive FIFO holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    pub baud_divisor: [u8; 2],
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub received: Vec<u8>,
}

pub struct Serial {
    uart: Mutex<Uart<Interrupt, NoEvents, ConsoleWriter>>,
    console: Arc<Console>,
}

impl Serial {
    pub fn new(irq: EventFd, console: Arc<Console>) -> Self {
        let uart = Uart::new(Interrupt(irq), ConsoleWriter(console.clone()));
        Self { uart: Mutex::new(uart), console }
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Interrupt, NoEvents, ConsoleWriter>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn save(&self) -> SerialState {
        let state = self.uart().state();
        SerialState {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }

    /// Raises the interrupt again if it was pending.
    pub fn restore(&self, state: &SerialState) -> Result<(), RestoreError> {
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let state = vm_superio::serial::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        let mut uart = self.uart();
        let irq = uart.interrupt_evt().0.try_clone().map_err(|e| RestoreError(e.to_string()))?;
        *uart = Uart::from_state(&state, Interrupt(irq), NoEvents, ConsoleWriter(self.console.clone()))
            .map_err(|e| RestoreError(format!("{e:?}")))?;
        Ok(())
    }

    /// Moves as much typed input into the receive FIFO as fits. Called when input came and each
    /// time the guest took a byte.
    pub fn feed(&self) {
        self.feed_locked(&mut self.uart());
    }

    fn feed_locked(&self, uart: &mut Uart<Interrupt, NoEvents, ConsoleWriter>) {
        let input = self.console.take_input(uart.fifo_capacity());
        // In loopback mode, or with a full FIFO, input is lost as on a real line.
        if !input.is_empty()
            && let Err(e) = uart.enqueue_raw_bytes(&input)
        {
            log::debug!("console input was lost: {e:?}");
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else { return };
        let mut uart = self.uart();
        *byte = uart.read(offset);
        if offset == 0 {
            self.feed_locked(&mut uart);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), &[byte]) = (u8::try_from(offset), data) else { return };
        if let Err(e) = self.uart().write(offset, byte) {
            log::debug!("COM1: {e:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interrupt enable register, and its bit for received data; line status, and "data ready".
    const ENABLE: u64 = 1;
    const RECEIVED: u8 = 1;
    const LINE_STATUS: u64 = 5;

    fn serial(dir: &tempfile::TempDir) -> (Serial, EventFd, Arc<Console>) {
        let console = Console::start(&dir.path().join("log")).unwrap();
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (Serial::new(irq.try_clone().unwrap(), console.clone()), irq, console)
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (serial, irq, console) = serial(&dir);
        serial.write(ENABLE, &[RECEIVED]);
        let typed: Vec<u8> = (0..500u32).map(|at| at as u8).collect();
        console.input(&typed);
        serial.feed();
        assert_eq!(irq.read().unwrap(), 1);
        let mut got = Vec::new();
        while read(&serial, LINE_STATUS) & 1 != 0 {
            got.push(read(&serial, 0));
        }
        assert!(got == typed);
        console.close();
    }

    #[test]
    fn a_restored_one_goes_on_and_interrupts_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _, console) = serial(&dir);
        first.write(ENABLE, &[RECEIVED]);
        console.input(b"ab");
        first.feed();
        first.write(7, &[0x5a]);
        let saved = first.save();
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let second = Serial::new(irq.try_clone().unwrap(), console.clone());
        second.restore(&saved).unwrap();
        assert_eq!((second.save(), irq.read().unwrap()), (saved.clone(), 1));
        assert_eq!([read(&second, 0), read(&second, 0), read(&second, 7)], [b'a', b'b', 0x5a]);
        assert!(second.restore(&SerialState { received: vec![0; 1000], ..saved }).is_err());
        second.write(0, b"wide");
        second.write(99, &[0]);
        assert_eq!(read(&second, u64::MAX), 0);
        console.close();
        assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"");
    }
}
