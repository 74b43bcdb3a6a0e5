//! `piton exec`.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::flag;

use super::args::ExecArgs;
use super::error::{Told, sentence};
use super::out;
use super::output::complain;
use super::signals::ending;
use super::{manage, named};
use crate::control::ErrorBody;
use crate::control::agent_line::AgentLine;
use crate::inside::exec::{self, Command, Ended, Host, Input, Signal, Stream};
use crate::inside::{Guest, InsideError, plain};
use crate::qga;

/// piton's own failures, apart from what a command can end with; as docker and ssh's kin have it.
const FAILED: u8 = 125;
/// As `timeout` has it.
const TIMED_OUT: u8 = 124;
/// What is read of standard input at a time, and how many such pieces wait.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;
/// Most bytes of a stream that are kept for `--json`.
const KEPT: usize = 1 << 20;
const NEEDED: [&str; 5] =
    ["guest-exec", "guest-exec-status", "guest-file-open", "guest-file-read", "guest-file-close"];

pub fn run(args: ExecArgs, json: bool) -> anyhow::Result<()> {
    let code = match try_run(args, json) {
        Ok(code) => code,
        Err(e) => {
            let text = sentence(&e);
            if json {
                out::json_line(&serde_json::json!(ErrorBody { error: text.clone() }));
            }
            complain(&text);
            FAILED
        }
    };
    if code == 0 { Ok(()) } else { Err(Told { code }.into()) }
}

fn try_run(args: ExecArgs, json: bool) -> anyhow::Result<u8> {
    let folder = named::existing(&args.name)?;
    let mut guest = connect(&folder, &NEEDED[..2], "running commands from the host")?;
    let shell = NEEDED.iter().all(|call| guest.allows(call)) && guest.has_shell()?;
    let timeout = args.timeout;
    let command =
        Command { words: args.words, env: args.env, user: args.user, folder: args.workdir, timeout };
    let mut host = Ends::new(json)?;
    let Ended { code, timed_out } = if shell {
        exec::run(&mut guest, &command, input()?, &mut host)?
    } else {
        plain::run(&mut guest, &command, &all_input()?, &mut host)?
    };
    if json {
        let [out, err] = [&host.kept[0], &host.kept[1]].map(|kept| String::from_utf8_lossy(kept));
        out::json_line(&serde_json::json!({
            "exit_code": code, "timed_out": timed_out, "stdout": out, "stderr": err, "truncated": host.truncated,
        }));
    }
    if timed_out {
        let seconds = timeout.unwrap_or_default().as_secs_f64();
        complain(&format!("the command did not finish within {seconds} s and was killed"));
        return Ok(TIMED_OUT);
    }
    Ok(code)
}

/// The guest of a VM that runs, whose agent may do what is `needed`.
pub fn connect(
    folder: &crate::folder::VmFolder,
    needed: &[&'static str],
    what: &'static str,
) -> anyhow::Result<Guest> {
    let line = AgentLine::new(&folder.socket());
    let guest = line.map_err(InsideError::from).and_then(|line| Guest::connect(line, needed, what));
    match guest {
        Err(InsideError::Client(e)) => manage::must_run(folder, Err(e)),
        Err(InsideError::Call(e)) if e.why == qga::Why::Locked => {
            let name = folder.name();
            let advice =
                if e.text.contains("paused") { format!(": `piton resume {name}`") } else { String::new() };
            Err(InsideError::Refused(format!("{}{advice}", e.text.trim_end_matches(": resume it first")))
                .into())
        }
        other => Ok(other?),
    }
}

/// Whether there is nothing to read by its nature.
fn is_null(stdin: &io::Stdin) -> bool {
    let file = stdin.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let Ok(meta) = file.and_then(|file| file.metadata()) else { return true };
    meta.file_type().is_char_device() && meta.rdev() == libc::makedev(1, 3)
}

/// Standard input as it comes.
fn input() -> anyhow::Result<Option<Input>> {
    if is_null(&io::stdin()) {
        return Ok(None);
    }
    let (sender, input) = sync_channel(PIECES);
    // It ends with the process, which it may keep waiting for a key.
    std::thread::Builder::new()
        .name("input".into())
        .spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; PIECE];
            loop {
                match stdin.read(&mut buffer) {
                    Ok(count @ 1..) if sender.send(buffer[..count].to_vec()).is_ok() => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
        })
        .context("cannot read standard input")?;
    Ok(Some(input))
}

/// All of standard input, for a guest that takes it only as a whole.
fn all_input() -> anyhow::Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if stdin.is_terminal() || is_null(&stdin) {
        return Ok(bytes);
    }
    stdin.lock().take(qga::CHUNK_MAX as u64 + 1).read_to_end(&mut bytes).context("standard input")?;
    if bytes.len() > qga::CHUNK_MAX {
        let most = qga::CHUNK_MAX >> 10;
        return Err(super::error::refused(format!(
            "this guest has no /bin/sh, so input is limited to {most} KiB"
        )));
    }
    Ok(bytes)
}

/// This process's output, and the signals that came.
struct Ends {
    signals: Vec<(i32, Arc<AtomicBool>)>,
    /// How many were handed on.
    count: u32,
    json: bool,
    kept: [Vec<u8>; 2],
    truncated: bool,
    broken: bool,
}

impl Ends {
    fn new(json: bool) -> anyhow::Result<Self> {
        let mut signals = Vec::new();
        for signal in ending() {
            let came = Arc::new(AtomicBool::new(false));
            flag::register(signal, came.clone()).context("cannot set up signal handling")?;
            signals.push((signal, came));
        }
        Ok(Self { signals, count: 0, json, kept: Default::default(), truncated: false, broken: false })
    }
}

impl Host for Ends {
    fn print(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        if self.json {
            let kept = &mut self.kept[usize::from(stream == Stream::Err)];
            let room = KEPT - kept.len();
            self.truncated |= bytes.len() > room;
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return true;
        }
        let written = match stream {
            Stream::Out => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Stream::Err => io::stderr().lock().write_all(bytes),
        };
        // It is told once; the command may take a while to end.
        written.is_ok() || std::mem::replace(&mut self.broken, true)
    }

    fn signal(&mut self) -> Option<Signal> {
        let (signal, _) = self.signals.iter().find(|(_, came)| came.swap(false, Ordering::SeqCst))?;
        self.count += 1;
        Some(match (*signal, self.count) {
            // Who asks again means it.
            (_, 2..) => Signal::Kill,
            (SIGINT, _) => Signal::Interrupt,
            (SIGHUP, _) => Signal::Hangup,
            _ => Signal::Terminate,
        })
    }
}
