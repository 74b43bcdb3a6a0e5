//! Plays a QEMU guest agent, a good one or a bad one. Frozen means that neither the journal nor a
//! command writes to a disk until the thaw; what was written before has been flushed.

use crate::disk::Disk;
use crate::outcome::{Fail, Outcome};
use crate::port::Port;
use crate::text::Text;
use crate::time::Every;
use crate::{hash, say};
use core::fmt::Write;

/// How often the port is looked at.
pub const POLL_US: u64 = 5_000;
const LATE_US: u64 = 4_000_000;
const LINE: usize = 512;
const USAGE: &str =
    "agent on|off|silent|garbage|endless|late|dies|mute|wake|zero|refuses|lies|reopens";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Honest,
    /// Reads and never answers.
    Silent,
    /// Answers with broken JSON and random bytes.
    Garbage,
    /// Answers with a line that does not end.
    Endless,
    /// Freezes at once and says so four seconds later.
    Late,
    /// Freezes and closes its port without an answer.
    Dies,
    /// Freezes, says so, and answers nothing more.
    Mute,
    /// Says that it froze no file system, and is right.
    Zero,
    /// Answers a freeze with an error.
    Refuses,
    /// Says that it froze, and later that it did not.
    Lies,
    /// Freezes, closes its port, and opens it again.
    Reopens,
}

pub struct Agent {
    port: Option<Port>,
    mode: Mode,
    pub frozen: bool,
    mute: bool,
    line: [u8; LINE],
    len: usize,
    /// The id of the freeze whose answer comes late.
    late: Option<(u64, Every)>,
    seed: u64,
}

impl Agent {
    pub fn new() -> Self {
        Self {
            port: None,
            mode: Mode::Off,
            frozen: false,
            mute: false,
            line: [0; LINE],
            len: 0,
            late: None,
            seed: 0,
        }
    }

    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// The command; a new mode is a new process, which opens the port anew.
    pub fn command(&mut self, text: &str, devices: impl Iterator<Item = u64>) -> Outcome {
        if text == "wake" {
            // The same process, with its port open all the while.
            self.mute = false;
            say!("ok agent wake");
            return Ok(());
        }
        let mode = match text {
            "on" => Mode::Honest,
            "off" => Mode::Off,
            "silent" => Mode::Silent,
            "garbage" => Mode::Garbage,
            "endless" => Mode::Endless,
            "late" => Mode::Late,
            "dies" => Mode::Dies,
            "mute" => Mode::Mute,
            "zero" => Mode::Zero,
            "refuses" => Mode::Refuses,
            "lies" => Mode::Lies,
            "reopens" => Mode::Reopens,
            _ => return Err(Fail::Usage(USAGE)),
        };
        if self.port.is_none() {
            self.port = devices.into_iter().find_map(Port::find);
        }
        let Some(port) = &mut self.port else {
            return Err(Fail::Text("there is no console device"));
        };
        for _ in 0..1_000_000 {
            port.poll();
            if port.named {
                break;
            }
            core::hint::spin_loop();
        }
        if !port.named {
            return Err(Fail::Text("there is no port for an agent"));
        }
        if port.open {
            port.set_open(false);
        }
        (self.mode, self.mute, self.len, self.late) = (mode, false, 0, None);
        // Of an earlier conversation.
        while port.receive(|_| ()) {}
        if mode != Mode::Off {
            port.set_open(true);
        }
        say!("ok agent {text}");
        Ok(())
    }

    /// Answers what was asked.
    pub fn poll(&mut self, disks: &mut [Option<Disk>], seq: u64) {
        if self.mode == Mode::Off {
            return;
        }
        if let Some((id, due)) = &mut self.late {
            // As an agent that is held up by a hook: it reads nothing meanwhile.
            if due.left_us() > 0 {
                return;
            }
            let id = *id;
            self.late = None;
            self.answer(id, format_args!("1"));
        }
        let Some(port) = &mut self.port else { return };
        port.poll();
        let mut chunk = [0; LINE];
        let mut got = 0;
        port.receive(|bytes| {
            got = bytes.len().min(LINE);
            chunk[..got].copy_from_slice(&bytes[..got]);
        });
        for &byte in &chunk[..got] {
            if byte == b'\n' {
                let (line, len) = (self.line, self.len);
                self.len = 0;
                self.obey(&line[..len], disks, seq);
            } else if byte != 0xff && self.len < LINE {
                self.line[self.len] = byte;
                self.len += 1;
            }
        }
    }

    fn obey(&mut self, line: &[u8], disks: &mut [Option<Disk>], seq: u64) {
        let line = core::str::from_utf8(line).unwrap_or("");
        let has = |call: &str| line.contains(call);
        let digits = line.rsplit_once("\"id\":").map_or("", |(_, rest)| rest.trim_start());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let id: u64 = digits[..end].parse().unwrap_or(0);
        let freeze = has("guest-fsfreeze-freeze");
        if self.mute || self.mode == Mode::Silent {
            return;
        }
        if matches!(self.mode, Mode::Garbage | Mode::Endless) {
            return self.garbage();
        }
        if has("guest-sync-delimited") {
            self.send(b"\xff");
            self.answer(id, format_args!("{id}"));
        } else if has("guest-info") {
            self.answer(
                id,
                format_args!(
                    "{{\"version\":\"piton\",\"supported_commands\":[\
                     {{\"name\":\"guest-fsfreeze-status\",\"enabled\":true}},\
                     {{\"name\":\"guest-fsfreeze-freeze\",\"enabled\":true}},\
                     {{\"name\":\"guest-fsfreeze-thaw\",\"enabled\":true}}]}}"
                ),
            );
        } else if freeze && self.mode == Mode::Zero {
            self.answer(id, format_args!("0"));
        } else if freeze && self.mode == Mode::Refuses {
            self.refuse(id);
        } else if freeze {
            self.freeze(id, disks, seq);
        } else if has("guest-fsfreeze-status") {
            let frozen = self.frozen && self.mode != Mode::Lies;
            self.answer(id, format_args!("\"{}\"", if frozen { "frozen" } else { "thawed" }));
        } else if has("guest-fsfreeze-thaw") {
            let count = u8::from(self.frozen);
            if core::mem::take(&mut self.frozen) {
                say!("evt thawed seq={seq}");
            }
            self.answer(id, format_args!("{count}"));
        } else {
            self.refuse(id);
        }
    }

    fn freeze(&mut self, id: u64, disks: &mut [Option<Disk>], seq: u64) {
        for disk in disks.iter_mut().flatten().filter(|disk| !disk.read_only && disk.has_flush()) {
            if let Err(e) = disk.flush() {
                say!("evt freeze failed {e}");
                return self.refuse(id);
            }
        }
        self.frozen = true;
        say!("evt frozen seq={seq}");
        match self.mode {
            Mode::Dies | Mode::Reopens => {
                let reopens = self.mode == Mode::Reopens;
                if let Some(port) = &mut self.port {
                    port.set_open(false);
                    if reopens {
                        port.set_open(true);
                    }
                }
            }
            Mode::Late => self.late = Some((id, Every::new(LATE_US))),
            Mode::Mute => {
                self.answer(id, format_args!("1"));
                self.mute = true;
            }
            _ => self.answer(id, format_args!("1")),
        }
    }

    fn answer(&mut self, id: u64, value: core::fmt::Arguments<'_>) {
        self.reply(id, format_args!("\"return\":{value}"));
    }

    fn refuse(&mut self, id: u64) {
        let error = "{\"class\":\"GenericError\",\"desc\":\"not today\"}";
        self.reply(id, format_args!("\"error\":{error}"));
    }

    fn reply(&mut self, id: u64, what: core::fmt::Arguments<'_>) {
        let mut text = Text::<LINE>::new();
        if writeln!(text, "{{{what},\"id\":{id}}}").is_ok() {
            self.send(text.as_bytes());
        }
    }

    fn garbage(&mut self) {
        let mut bytes = [b'x'; 4096];
        let rounds = if self.mode == Mode::Endless { 100 } else { 4 };
        for _ in 0..rounds {
            if self.mode == Mode::Garbage {
                let broken = b"\xff{\"return\": [1, \"id\": 1}\n{}\n\"\n";
                let (head, tail) = bytes.split_at_mut(broken.len());
                head.copy_from_slice(broken);
                for byte in tail {
                    self.seed += 1;
                    *byte = hash::word(self.seed, 7) as u8;
                }
            }
            self.send(&bytes);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Some(port) = &mut self.port
            && port.open
        {
            port.send(bytes);
        }
    }
}
