//! Lets an agent that is a program of the host serve this guest's port: bytes go from the port to a
//! vsock connection and back, until that ends.

use crate::port::Port;
use crate::vsock::connection::State;
use crate::vsock::device::{Device, RELAY};

const BUFFER: usize = 4096;

pub struct Relay {
    held: [u8; BUFFER],
    start: usize,
    end: usize,
}

impl Relay {
    pub fn new() -> Self {
        Self { held: [0; BUFFER], start: 0, end: 0 }
    }

    /// False once the other side is gone.
    pub fn poll(&mut self, port: &mut Port, device: &mut Device) -> bool {
        loop {
            if self.start == self.end {
                let (held, mut len) = (&mut self.held, 0);
                port.receive(|bytes| {
                    len = bytes.len();
                    held[..len].copy_from_slice(bytes);
                });
                (self.start, self.end) = (0, len);
            }
            if self.start == self.end {
                break;
            }
            match device.write(RELAY, &self.held[self.start..self.end]) {
                0 => break,
                count => self.start += count,
            }
        }
        loop {
            let mut chunk = [0; BUFFER];
            let connection = &mut device.connections[RELAY];
            let inbox = connection.inbox();
            let len = inbox.len().min(BUFFER);
            if len == 0 {
                break;
            }
            chunk[..len].copy_from_slice(&inbox[..len]);
            if !port.send(&chunk[..len]) {
                break;
            }
            connection.consume(len);
        }
        device.flush();
        let connection = &mut device.connections[RELAY];
        let over =
            connection.is_at_end() || !matches!(connection.state, State::Asking | State::Open);
        if over {
            connection.shut_down(true);
            device.flush();
            device.connections[RELAY].state = State::Free;
        }
        !over
    }
}
