//! COM1, a 16550: vm-superio's state machine, an interrupt, and the console behind it.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::bus::BusDevice;

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
