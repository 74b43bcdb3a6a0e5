//! A virtio-console device with several ports, of which one is used: the guest agent's. All queues
//! are polled, with one buffer each.

use crate::transport::{CONSOLE, Transport};
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering::SeqCst, fence};

const BUFFER: usize = 4096;
const RING: u16 = 4;
const NAME: &[u8] = b"org.qemu.guest_agent.0";
/// `VIRTIO_CONSOLE_F_MULTIPORT`.
const F_MULTIPORT: u64 = 1 << 1;
/// The queues of port 0 and the control queues.
const FROM_HOST: usize = 0;
const TO_HOST: usize = 1;
const CONTROL_FROM_HOST: usize = 2;
const CONTROL_TO_HOST: usize = 3;
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
/// Looks at a ring until what was sent counts as not taken.
const LOOKS: u32 = 2_000_000;

#[repr(C, align(4096))]
struct Ring {
    desc: [[u64; 2]; RING as usize],
    avail: [u16; 2 + RING as usize],
    used: Used,
    buffer: [u8; BUFFER],
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    idx: u16,
    ring: [[u32; 2]; RING as usize],
}

struct Rings(UnsafeCell<[Ring; 4]>);
// SAFETY: reached only through the one Port, which the boot vCPU owns.
unsafe impl Sync for Rings {}
// SAFETY: all fields are integers, for which zero is a value.
static RINGS: Rings = Rings(UnsafeCell::new(unsafe { core::mem::zeroed() }));

pub struct Port {
    transport: Transport,
    avail: [u16; 4],
    pub named: bool,
    pub open: bool,
}

impl Port {
    /// Brings up the console device at `addr`, if there is one.
    pub fn find(addr: u64) -> Option<Self> {
        let transport = Transport::find(addr, CONSOLE)?;
        let mut port = Self { transport, avail: [0; 4], named: false, open: false };
        port.start().then_some(port)
    }

    fn ring(queue: usize) -> *mut Ring {
        RINGS.0.get().cast::<Ring>().wrapping_add(queue)
    }

    fn start(&mut self) -> bool {
        let agreed = self.transport.negotiate(F_MULTIPORT);
        if agreed.is_none_or(|features| features & F_MULTIPORT == 0) {
            return false;
        }
        for queue in 0..4 {
            let ring = Self::ring(queue);
            // SAFETY: the device has just been reset, and only addresses are taken.
            let parts = unsafe {
                // No interrupts.
                (&raw mut (*ring).avail).write_volatile([1, 0, 0, 0, 0, 0]);
                (&raw mut (*ring).used.idx).write_volatile(0);
                [
                    &raw const (*ring).desc as u64,
                    &raw const (*ring).avail as u64,
                    &raw const (*ring).used as u64,
                ]
            };
            self.transport.place(queue as u32, RING, parts);
        }
        self.transport.start();
        self.give(FROM_HOST, BUFFER, true);
        self.give(CONTROL_FROM_HOST, BUFFER, true);
        self.control(DEVICE_READY, 1);
        true
    }

    /// Gives the queue's buffer to the device.
    fn give(&mut self, queue: usize, len: usize, device_writes: bool) {
        let ring = Self::ring(queue);
        let at = self.avail[queue] % RING;
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        // SAFETY: the queue's only buffer is not the device's at this time.
        unsafe {
            let flags = if device_writes { 2u64 << 32 } else { 0 };
            let buffer = &raw const (*ring).buffer as u64;
            (&raw mut (*ring).desc[0]).write_volatile([buffer, len as u64 | flags]);
            (&raw mut (*ring).avail[2 + usize::from(at)]).write_volatile(0);
            fence(SeqCst);
            (&raw mut (*ring).avail[1]).write_volatile(self.avail[queue]);
        }
        fence(SeqCst);
        self.transport.notify(queue as u32);
    }

    /// How many bytes the device put into the buffer, once it has given it back.
    fn given_back(&self, queue: usize) -> Option<usize> {
        let ring = Self::ring(queue);
        // SAFETY: the one ring of this queue; the index is less than its size.
        unsafe {
            if (&raw const (*ring).used.idx).read_volatile() != self.avail[queue] {
                return None;
            }
            fence(SeqCst);
            let at = usize::from(self.avail[queue].wrapping_sub(1) % RING);
            let [_, len] = (&raw const (*ring).used.ring[at]).read_volatile();
            Some((len as usize).min(BUFFER))
        }
    }

    /// Sends; false if the host has not taken what was sent before.
    fn put(&mut self, queue: usize, bytes: &[u8]) -> bool {
        let mut taken = false;
        for _ in 0..LOOKS {
            taken = self.given_back(queue).is_some();
            if taken {
                break;
            }
            core::hint::spin_loop();
        }
        if taken {
            let len = bytes.len().min(BUFFER);
            // SAFETY: the buffer is not the device's, and `len` bytes fit.
            unsafe {
                let buffer = (&raw mut (*Self::ring(queue)).buffer).cast::<u8>();
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, len);
            }
            self.give(queue, len, false);
        }
        taken
    }

    fn take<'a>(&mut self, queue: usize, into: &'a mut [u8; BUFFER]) -> Option<&'a [u8]> {
        let len = self.given_back(queue)?;
        // SAFETY: the device has given the buffer back.
        *into = unsafe { (&raw const (*Self::ring(queue)).buffer).read_volatile() };
        self.give(queue, BUFFER, true);
        Some(&into[..len])
    }

    fn control(&mut self, event: u16, value: u16) {
        let mut message = [0; 8];
        message[4..6].copy_from_slice(&event.to_le_bytes());
        message[6..].copy_from_slice(&value.to_le_bytes());
        self.put(CONTROL_TO_HOST, &message);
    }

    /// Looks at what the device says of its ports.
    pub fn poll(&mut self) {
        let mut buffer = [0; BUFFER];
        while let Some(message) = self.take(CONTROL_FROM_HOST, &mut buffer) {
            let Some((&[0, 0, 0, 0, low, high, _, _], rest)) = message.split_first_chunk::<8>()
            else {
                continue;
            };
            match u16::from_le_bytes([low, high]) {
                DEVICE_ADD => self.control(PORT_READY, 1),
                PORT_NAME => self.named = rest == NAME,
                _ => {}
            }
        }
    }

    pub fn set_open(&mut self, open: bool) {
        self.open = open;
        self.control(PORT_OPEN, u16::from(open));
    }

    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.put(TO_HOST, bytes)
    }

    /// Calls `use_it` with what has arrived.
    pub fn receive(&mut self, use_it: impl FnOnce(&[u8])) -> bool {
        let mut buffer = [0; BUFFER];
        self.take(FROM_HOST, &mut buffer).map(use_it).is_some()
    }
}
