//! COM1: polled output, interrupt-driven input with a line editor.

use crate::cpu::{inb, outb};
use crate::work::OUTPUT;
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

const PORT: u16 = 0x3f8;
const LSR: u16 = PORT + 5;
pub const IRQ: u32 = 4;
const LINE_MAX: usize = 512;

static ROOM: AtomicU32 = AtomicU32::new(0);
/// A line that the user is typing has been echoed up to here.
static MID_LINE: AtomicBool = AtomicBool::new(false);

/// What is printed is kept for a program's output instead.
static CAPTURING: AtomicBool = AtomicBool::new(false);
static CAPTURED: AtomicUsize = AtomicUsize::new(0);
static CAPTURE: Capture = Capture(UnsafeCell::new([0; OUTPUT]));

struct Capture(UnsafeCell<[u8; OUTPUT]>);
// SAFETY: only the boot vCPU captures, and only it writes while it does.
unsafe impl Sync for Capture {}

/// Whether what is printed is kept from now on; returns what was so before.
pub fn capture(on: bool) -> bool {
    CAPTURING.swap(on, Relaxed)
}

/// What was kept since the last time, and whether there was more than has room.
pub fn take_captured(out: &mut [u8; OUTPUT]) -> (usize, bool) {
    let len = CAPTURED.swap(0, Relaxed);
    // SAFETY: nothing is captured at this time, and the boot vCPU is here.
    *out = unsafe { *CAPTURE.0.get() };
    (len.min(OUTPUT), len > OUTPUT)
}

/// Starts a line of its own: answers are found by how a line begins.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::serial::line(format_args!($($arg)*)) };
}

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

pub fn line(args: fmt::Arguments<'_>) {
    if !CAPTURING.load(Relaxed) && MID_LINE.swap(false, Relaxed) {
        raw("\r\n");
    }
    let _ = Console.write_fmt(args);
    raw("\r\n");
}

pub fn raw(text: &str) {
    text.bytes().for_each(put);
}

fn put(byte: u8) {
    if CAPTURING.load(Relaxed) {
        if byte != b'\r' {
            let at = CAPTURED.fetch_add(1, Relaxed);
            if at < OUTPUT {
                // SAFETY: `at` is inside, and only the boot vCPU is here.
                unsafe { CAPTURE.0.get().cast::<u8>().add(at).write(byte) };
            }
        }
        return;
    }
    // One look at the status for each 16 bytes: that is how much an empty
    // transmit FIFO takes, and a look costs as much as a byte.
    if ROOM.load(Relaxed) == 0 {
        for _ in 0..200_000 {
            if inb(LSR) & 0x20 != 0 {
                break;
            }
        }
        ROOM.store(16, Relaxed);
    }
    ROOM.fetch_sub(1, Relaxed);
    outb(PORT, byte);
}

/// Everything but the receive interrupt.
pub fn init() {
    outb(PORT + 2, 0x07);
    outb(PORT + 3, 0x80);
    outb(PORT, 1);
    outb(PORT + 1, 0);
    outb(PORT + 3, 3);
    outb(PORT + 4, 0x0b);
}

pub fn enable_receive_interrupt() {
    outb(PORT + 1, 1);
}

pub struct Input {
    ring: [u8; 4096],
    head: usize,
    tail: usize,
    line: [u8; LINE_MAX],
    len: usize,
    last_was_cr: bool,
}

impl Input {
    pub const fn new() -> Self {
        Self { ring: [0; 4096], head: 0, tail: 0, line: [0; LINE_MAX], len: 0, last_was_cr: false }
    }

    /// Moves what has arrived into the ring. The status is read even if no
    /// interrupt was counted: an edge lost in a restore costs one idle period.
    pub fn drain(&mut self) {
        while self.tail - self.head < self.ring.len() && inb(LSR) & 1 != 0 {
            self.ring[self.tail % self.ring.len()] = inb(PORT);
            self.tail += 1;
        }
    }

    /// Echoes and edits; a whole line is copied to `out`.
    pub fn take_line<'a>(&mut self, out: &'a mut [u8; LINE_MAX]) -> Option<&'a str> {
        while self.head < self.tail {
            let byte = self.ring[self.head % self.ring.len()];
            self.head += 1;
            let after_cr = core::mem::replace(&mut self.last_was_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => {
                    raw("\r\n");
                    MID_LINE.store(false, Relaxed);
                    let len = core::mem::take(&mut self.len);
                    out[..len].copy_from_slice(&self.line[..len]);
                    return Some(core::str::from_utf8(&out[..len]).unwrap_or("?"));
                }
                8 | 0x7f if self.len > 0 => {
                    self.len -= 1;
                    raw("\x08 \x08");
                }
                0x15 => {
                    while self.len > 0 {
                        self.len -= 1;
                        raw("\x08 \x08");
                    }
                }
                0x20..=0x7e if self.len < LINE_MAX => {
                    self.line[self.len] = byte;
                    self.len += 1;
                    MID_LINE.store(true, Relaxed);
                    put(byte);
                }
                _ => {}
            }
        }
        None
    }
}

pub const fn line_buffer() -> [u8; LINE_MAX] {
    [0; LINE_MAX]
}
