//! Plays a QEMU guest agent, a good one or a bad one. Frozen means that neither the journal nor a
//! command writes to a disk until the thaw; what was written before has been flushed.

use crate::disk::Disk;
use crate::outcome::{Fail, Outcome};
use crate::port::Port;
use crate::relay::Relay;
use crate::text::Text;
use crate::time::Every;
use crate::vsock::device::{Device, RELAY};
use crate::work::{Ended, OUTPUT, Refusal, Work};
use crate::{hash, json, say, work};
use core::cell::UnsafeCell;
use core::fmt::Write;

/// How often the port is looked at, and while there is much to do.
const POLL_US: u64 = 5_000;
const BUSY_US: u64 = 300;
/// It counts as that for so many looks.
const BUSY_LOOKS: u32 = 2000;
const LATE_US: u64 = 4_000_000;
/// Longest request: a chunk of a file.
const LINE: usize = 136 << 10;
const CHUNK: usize = 4096;
/// Longest answer without data.
const SHORT: usize = 1024;
const CALLS: [&str; 11] = [
    "guest-info",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-thaw",
    "guest-exec",
    "guest-exec-status",
    "guest-file-open",
    "guest-file-read",
    "guest-file-write",
    "guest-file-seek",
    "guest-file-close",
];
const USAGE: &str = "agent on|off|silent|garbage|endless|late|dies|mute|wake|zero|refuses|lies|reopens|\
    forbids|quits|floods|relay PORT";

struct Buffer(UnsafeCell<[u8; LINE]>);
// SAFETY: reached only through `Agent::new`, which the boot vCPU calls once.
unsafe impl Sync for Buffer {}
static BUFFER: Buffer = Buffer(UnsafeCell::new([0; LINE]));

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
    /// Is told not to run commands, nor to touch files.
    Forbids,
    /// Closes its port when it is asked about a command.
    Quits,
    /// Says more of a command than anybody keeps.
    Floods,
    /// Is a program of the host.
    Relay,
}

pub struct Agent {
    port: Option<Port>,
    mode: Mode,
    pub frozen: bool,
    mute: bool,
    line: &'static mut [u8],
    len: usize,
    work: &'static mut Work,
    relay: Relay,
    /// Looks until it counts as idle.
    busy: u32,
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
            // SAFETY: called once, so no other reference is made.
            line: unsafe { &mut *BUFFER.0.get() },
            len: 0,
            work: Work::take(),
            relay: Relay::new(),
            busy: 0,
            late: None,
            seed: 0,
        }
    }

    /// Until the port is to be looked at again.
    pub fn due_us(&self) -> Option<u64> {
        match self.mode {
            Mode::Off => None,
            _ if self.busy > 0 => Some(BUSY_US),
            _ => Some(POLL_US),
        }
    }

    pub fn file(&self, name: &[u8]) -> Option<&[u8]> {
        self.work.read_all(name)
    }

    pub fn next_program(
        &mut self,
        line: &mut [u8; 512],
        input: &mut [u8; OUTPUT],
    ) -> Option<(usize, usize, usize)> {
        self.work.next(line, input)
    }

    pub fn end_program(&mut self, n: usize, code: u8, output: &[u8], truncated: bool) {
        self.work.end(n, code, output, truncated);
    }

    /// The command; a new mode is a new process, which opens the port anew.
    pub fn command(
        &mut self,
        text: &str,
        devices: impl Iterator<Item = u64>,
        vsock: Option<&mut Device>,
    ) -> Outcome {
        if text == "wake" {
            // The same process, with its port open all the while.
            self.mute = false;
            say!("ok agent wake");
            return Ok(());
        }
        let relay: Option<u32> = text.strip_prefix("relay ").and_then(|port| port.parse().ok());
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
            "forbids" => Mode::Forbids,
            "quits" => Mode::Quits,
            "floods" => Mode::Floods,
            _ if relay.is_some() => Mode::Relay,
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
        if let Some(number) = relay {
            let device = vsock.ok_or(Fail::Text("there is no vsock device"))?;
            self.relay = Relay::new();
            device.call(RELAY, number);
        }
        if mode != Mode::Off {
            port.set_open(true);
        }
        say!("ok agent {text}");
        Ok(())
    }

    /// Answers what was asked.
    pub fn poll(&mut self, disks: &mut [Option<Disk>], vsock: Option<&mut Device>, seq: u64) {
        if self.mode == Mode::Off {
            return;
        }
        self.busy = self.busy.saturating_sub(1);
        if self.mode == Mode::Relay {
            self.busy = BUSY_LOOKS;
            if let (Some(port), Some(device)) = (&mut self.port, vsock)
                && !self.relay.poll(port, device)
            {
                port.set_open(false);
                self.mode = Mode::Off;
                say!("evt agent relay ended");
            }
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
        let mut chunk = [0; CHUNK];
        loop {
            let Some(port) = &mut self.port else { return };
            let mut got = 0;
            port.receive(|bytes| {
                got = bytes.len();
                chunk[..got].copy_from_slice(bytes);
            });
            if got == 0 {
                return;
            }
            self.busy = BUSY_LOOKS;
            for &byte in &chunk[..got] {
                if byte == b'\n' {
                    let line = core::mem::take(&mut self.line);
                    let len = core::mem::take(&mut self.len);
                    self.obey(core::str::from_utf8(&line[..len]).unwrap_or(""), disks, seq);
                    self.line = line;
                } else if byte != 0xff && self.len < LINE {
                    self.line[self.len] = byte;
                    self.len += 1;
                }
            }
        }
    }

    fn obey(&mut self, line: &str, disks: &mut [Option<Disk>], seq: u64) {
        // The last ones: what stands in arguments comes before, with its quotes escaped.
        let call = line.rsplit_once("\"execute\":\"").map_or("", |(_, rest)| rest);
        let call = call.split('"').next().unwrap_or("");
        let id = line.rfind("\"id\":").and_then(|at| json::number(&line[at..], "id"));
        let id = id.unwrap_or(0) as u64;
        if self.mute || self.mode == Mode::Silent {
            return;
        }
        if matches!(self.mode, Mode::Garbage | Mode::Endless) {
            return self.garbage();
        }
        let works = call.starts_with("guest-exec") || call.starts_with("guest-file");
        match call {
            "guest-sync-delimited" => {
                self.send(b"\xff");
                self.answer(id, format_args!("{id}"));
            }
            "guest-info" => self.info(id),
            "guest-fsfreeze-freeze" if self.mode == Mode::Zero => {
                self.answer(id, format_args!("0"))
            }
            "guest-fsfreeze-freeze" if self.mode == Mode::Refuses => self.refuse(id, "not today"),
            "guest-fsfreeze-freeze" => self.freeze(id, disks, seq),
            "guest-fsfreeze-status" => {
                let frozen = self.frozen && self.mode != Mode::Lies;
                self.answer(id, format_args!("\"{}\"", if frozen { "frozen" } else { "thawed" }));
            }
            "guest-fsfreeze-thaw" => {
                let count = u8::from(self.frozen);
                if core::mem::take(&mut self.frozen) {
                    say!("evt thawed seq={seq}");
                }
                self.answer(id, format_args!("{count}"));
            }
            _ if works && self.frozen => self.disabled(id, call, "the agent is in frozen state"),
            _ if works && self.mode == Mode::Forbids => {
                self.disabled(id, call, "the command is not allowed");
            }
            "guest-exec-status" if self.mode == Mode::Quits => {
                if let Some(port) = &mut self.port {
                    port.set_open(false);
                }
                self.mode = Mode::Off;
            }
            "guest-exec-status" if self.mode == Mode::Floods => self.flood(id),
            _ if works => {
                if let Err(why) = self.work(id, call, line) {
                    self.refuse(id, why);
                }
            }
            _ => self.disabled(id, call, "it has not been found"),
        }
    }

    fn info(&mut self, id: u64) {
        let enabled = self.mode != Mode::Forbids;
        let mut text = Text::<SHORT>::new();
        for (n, call) in CALLS.iter().enumerate() {
            let (comma, allowed) = (if n > 0 { "," } else { "" }, n < 4 || enabled);
            let _ = write!(text, "{comma}{{\"name\":\"{call}\",\"enabled\":{allowed}}}");
        }
        self.answer(
            id,
            format_args!("{{\"version\":\"piton\",\"supported_commands\":[{}]}}", text.as_str()),
        );
    }

    fn work(&mut self, id: u64, call: &str, line: &str) -> Result<(), Refusal> {
        let handle = json::number(line, "handle").unwrap_or(0);
        let data = json::string(line, "buf-b64").unwrap_or("");
        match call {
            "guest-exec" => {
                let pid = self.exec(line)?;
                self.answer(id, format_args!("{{\"pid\":{pid}}}"));
            }
            "guest-exec-status" => {
                let pid = json::number(line, "pid").unwrap_or(0);
                let Some(port) = &mut self.port else { return Ok(()) };
                self.work.status(pid, |ended| tell_ended(port, id, ended))?;
            }
            "guest-file-open" => {
                let mut name = [0; 256];
                let path =
                    json::string(line, "path").and_then(|path| json::unescape(path, &mut name));
                let name = &name[..path.ok_or("File name too long")?];
                let handle = self.work.open(name, json::string(line, "mode").unwrap_or("r"))?;
                self.answer(id, format_args!("{handle}"));
            }
            "guest-file-read" => {
                let count = json::number(line, "count").unwrap_or(4096).max(0) as usize;
                let (bytes, eof) = self.work.read(handle, count)?;
                let Some(port) = &mut self.port else { return Ok(()) };
                let mut out = Sink::new(port);
                let count = bytes.len();
                let _ = write!(out, "{{\"return\":{{\"count\":{count},\"buf-b64\":\"");
                let _ = json::encode(bytes, &mut out);
                let _ = writeln!(out, "\",\"eof\":{eof}}},\"id\":{id}}}");
            }
            "guest-file-write" => {
                let count = self.work.write(handle, |room| json::decode(data, room))?;
                self.answer(id, format_args!("{{\"count\":{count},\"eof\":false}}"));
            }
            "guest-file-seek" => {
                let offset = json::number(line, "offset").unwrap_or(0);
                let at =
                    self.work.seek(handle, offset, json::string(line, "whence").unwrap_or(""))?;
                self.answer(id, format_args!("{{\"position\":{at},\"eof\":false}}"));
            }
            "guest-file-close" => {
                self.work.close(handle)?;
                self.answer(id, format_args!("{{}}"));
            }
            _ => return Err("it has not been found"),
        }
        Ok(())
    }

    /// A command of this guest as a program; all words of its line come from the request.
    fn exec(&mut self, line: &str) -> Result<i64, Refusal> {
        let path = json::string(line, "path").unwrap_or("");
        let name = path.rsplit('/').next().unwrap_or("");
        if !work::is_program(name) {
            return Err("Failed to execute child process (No such file or directory)");
        }
        let fill = |out: &mut [u8]| {
            let mut len = json::unescape(name, out)?;
            let mut fits = true;
            json::strings(line, "arg", |arg| {
                if let Some(place) = out.get_mut(len) {
                    *place = b' ';
                    len += 1;
                }
                match out.get_mut(len..).and_then(|rest| json::unescape(arg, rest)) {
                    Some(count) => len += count,
                    None => fits = false,
                }
            });
            fits.then_some(len)
        };
        let input = json::string(line, "input-data").unwrap_or("");
        self.work.start(fill, |out| json::decode(input, out))
    }

    fn disabled(&mut self, id: u64, call: &str, why: &str) {
        self.reply(
            id,
            format_args!(
                "\"error\":{{\"class\":\"CommandNotFound\",\
                 \"desc\":\"Command {call} has been disabled: {why}\"}}"
            ),
        );
    }

    fn flood(&mut self, id: u64) {
        let Some(port) = &mut self.port else { return };
        let mut out = Sink::new(port);
        let _ = write!(out, "{{\"return\":{{\"exited\":true,\"exitcode\":0,\"out-data\":\"");
        for _ in 0..3 << 18 {
            let _ = out.write_str("YWJj");
        }
        let _ = writeln!(out, "\"}},\"id\":{id}}}");
    }

    fn freeze(&mut self, id: u64, disks: &mut [Option<Disk>], seq: u64) {
        for disk in disks.iter_mut().flatten().filter(|disk| !disk.read_only && disk.has_flush()) {
            if let Err(e) = disk.flush() {
                say!("evt freeze failed {e}");
                return self.refuse(id, "a disk cannot be flushed");
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

    fn refuse(&mut self, id: u64, why: &str) {
        let class = "\"class\":\"GenericError\"";
        self.reply(id, format_args!("\"error\":{{{class},\"desc\":\"{why}\"}}"));
    }

    fn reply(&mut self, id: u64, what: core::fmt::Arguments<'_>) {
        let mut text = Text::<{ 2 * SHORT }>::new();
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

fn tell_ended(port: &mut Port, id: u64, ended: Option<Ended<'_>>) {
    let mut out = Sink::new(port);
    let _ = match ended {
        None => write!(out, "{{\"return\":{{\"exited\":false}}"),
        Some(Ended { code, output, truncated }) => {
            let _ = write!(
                out,
                "{{\"return\":{{\"exited\":true,\"exitcode\":{code},\"out-truncated\":{truncated},\"out-data\":\""
            );
            let _ = json::encode(output, &mut out);
            write!(out, "\"}}")
        }
    };
    let _ = writeln!(out, ",\"id\":{id}}}");
}

/// Text on its way to the host, in pieces as long as the port takes.
struct Sink<'a> {
    port: &'a mut Port,
    held: Text<CHUNK>,
}

impl<'a> Sink<'a> {
    fn new(port: &'a mut Port) -> Self {
        Self { port, held: Text::new() }
    }

    fn flush(&mut self) {
        if self.port.open && !self.held.as_bytes().is_empty() {
            self.port.send(self.held.as_bytes());
        }
        self.held = Text::new();
    }
}

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        if self.held.write_str(text).is_err() {
            self.flush();
            self.held.write_str(text)?;
        }
        Ok(())
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
