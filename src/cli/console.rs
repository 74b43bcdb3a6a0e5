//! `piton console`: the guest's console on this terminal, or in a pipe.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::args::ConsoleArgs;
use super::manage::must_run;
use super::named::existing;
use super::out::note;
use super::terminal::{RawTerminal, print, read_keys};
use crate::control::client::{self, ClientError, ConsoleStream};
use crate::devices::console::BACKLOG;
use crate::folder::{Ending, LastRun, VmFolder};

const KEYS: &str = "Ctrl-A x detaches, Ctrl-A h shows help";
const HELP: &str = "Ctrl-A x detaches, the VM keeps running; Ctrl-A Ctrl-A sends one Ctrl-A to the guest";
/// Lines of the past that a user at a terminal is shown.
const TAIL: usize = 10;

/// How long the process of a VM whose console has ended may take to close its socket, and how often
/// that is looked for.
const LAST_BREATH: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

enum Event {
    Output(Vec<u8>),
    /// The VM has ended, or closed the connection.
    Closed,
    /// The user has left by the escape key.
    Left,
    /// Nothing more will be typed.
    InputEnded,
}

/// Why there is nothing more to show.
enum End {
    Closed,
    Left,
    /// Nobody reads our output any more.
    Unread,
    /// The input has ended, and the guest had nothing more to say.
    Quiet,
}

pub fn run(args: &ConsoleArgs) -> anyhow::Result<()> {
    let (folder, name) = (existing(&args.name)?, &args.name);
    let at_terminal = io::stdin().is_terminal();
    // A script wants what the guest answers, not what it said before.
    let lines = match args.tail {
        _ if args.no_log => 0,
        Some(lines) => lines,
        None if at_terminal => TAIL,
        None => 0,
    };
    let past = if lines == 0 { 0 } else { BACKLOG };
    let ConsoleStream { mut stream, past } = must_run(&folder, client::console(&folder.socket(), past))?;
    if at_terminal {
        note(&format!("piton: attached to `{name}`. {KEYS}."));
    }
    let terminal = RawTerminal::enter().context("cannot set up the terminal")?;
    let mut before = vec![0; past];
    stream.read_exact(&mut before).context("cannot read the console")?;
    let shown = show_past(last_lines(&before, lines));
    let ended = shown.and_then(|()| {
        let (sender, events) = channel();
        read_output(stream.try_clone()?, sender.clone());
        read_input(stream.try_clone()?, sender);
        follow(&events, args.linger)
    });
    drop(terminal);
    match ended {
        Ok(End::Quiet | End::Unread) => Ok(()),
        Ok(End::Left) => {
            note(&format!("piton: detached from `{name}`, which keeps running"));
            Ok(())
        }
        Ok(End::Closed) if is_gone(&folder.socket()) => run_ended(&folder),
        Ok(End::Closed) => Err(anyhow!("the connection to the console of `{name}` was lost")),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(e).context("cannot print the console's output"),
    }
}

/// Whether the VM has ended, which closes its consoles a moment before its socket.
fn is_gone(socket: &Path) -> bool {
    let deadline = Instant::now() + LAST_BREATH;
    loop {
        if matches!(client::get(socket), Err(ClientError::NotRunning)) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Tells how the run of a VM ended whose console has just come to its end.
fn run_ended(folder: &VmFolder) -> anyhow::Result<()> {
    let name = folder.name();
    match folder.last_run() {
        Some(LastRun { how: Ending::Crashed { why }, .. }) => Err(anyhow!("the VM `{name}` crashed: {why}")),
        Some(LastRun { how: Ending::Killed, .. }) => {
            Err(anyhow!("the process of the VM `{name}` was killed"))
        }
        Some(LastRun { how: Ending::Ended { by }, .. }) => {
            note(&format!("piton: the VM `{name}` was stopped by {by}"));
            Ok(())
        }
        Some(LastRun { how: Ending::Off, .. }) | None => {
            note(&format!("piton: the VM `{name}` has shut down"));
            Ok(())
        }
    }
}

/// The last `count` lines; one that has not come to its end counts, too.
fn last_lines(bytes: &[u8], count: usize) -> &[u8] {
    let ends = bytes.strip_suffix(b"\n").unwrap_or(bytes).iter().enumerate().rev();
    let start = ends.filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).nth(count.saturating_sub(1));
    match count {
        0 => &[],
        _ => &bytes[start.unwrap_or(0)..],
    }
}

fn show_past(lines: &[u8]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    print(lines)?;
    // What is piped on stays as the guest wrote it.
    if !lines.ends_with(b"\n") && io::stdout().is_terminal() {
        print(b"\r\n")?;
    }
    note("piton: -- end of earlier output --");
    Ok(())
}

fn read_output(mut stream: UnixStream, events: Sender<Event>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let event = match stream.read(&mut buffer) {
                Ok(count @ 1..) => Event::Output(buffer[..count].to_vec()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                _ => Event::Closed,
            };
            let closed = matches!(event, Event::Closed);
            if events.send(event).is_err() || closed {
                return;
            }
        }
    });
}

fn read_input(mut stream: UnixStream, events: Sender<Event>) {
    std::thread::spawn(move || {
        let left = read_keys(&format!("piton: {HELP}."), |bytes| stream.write_all(bytes));
        // The reader may be gone by now.
        let _ = events.send(if left { Event::Left } else { Event::InputEnded });
    });
}

/// Shows output until there is no more. After the end of the input the guest may be quiet for
/// `linger`.
fn follow(events: &Receiver<Event>, linger: Duration) -> io::Result<End> {
    let mut deadline: Option<Instant> = None;
    loop {
        let event = match deadline {
            Some(deadline) => events.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(RecvTimeoutError::from),
        };
        match event {
            Ok(Event::Output(bytes)) => match print(&bytes) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Unread),
                printed => printed?,
            },
            Ok(Event::InputEnded) => deadline = Some(Instant::now() + linger),
            Ok(Event::Left) => return Ok(End::Left),
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => return Ok(End::Closed),
            Err(RecvTimeoutError::Timeout) => return Ok(End::Quiet),
        }
        deadline = deadline.map(|_| Instant::now() + linger);
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines() {
        let text = b"one\r\ntwo\r\nthree\r\n";
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(text, 1), b"three\r\n");
        assert_eq!(last_lines(text, 2), b"two\r\nthree\r\n");
        assert_eq!(last_lines(text, 3), text);
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(b"one\nlogin: ", 1), b"login: ");
        assert_eq!(last_lines(b"one\nlogin: ", 2), b"one\nlogin: ");
        assert_eq!(last_lines(b"\n\n", 1), b"\n");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
