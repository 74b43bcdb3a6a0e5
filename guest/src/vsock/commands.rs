//! `vsock ...`.

use crate::args::{Args, number};
use crate::guest::Guest;
use crate::hash;
use crate::net::error::Error;
use crate::outcome::{Fail, Outcome};
use crate::say;
use crate::vsock::connection::State;
use crate::vsock::device::{CALL, Device};

const USAGE: &str = "vsock [echo PORT|off | call PORT [TEXT | bytes N]]";
const CONNECT_US: u64 = 10_000_000;
const SILENCE_US: u64 = 30_000_000;
/// An answer up to this long is shown.
const SHOWN: usize = 512;
/// The seed of what `bytes N` sends.
const SEED: u64 = 1;

fn device(g: &mut Guest) -> Result<&mut Device, Error> {
    g.vsock.as_mut().ok_or(Error::NoDevice)
}

pub fn vsock(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, USAGE);
    match args.word() {
        None => {
            let device = device(g)?;
            let open = device.connections.iter().filter(|c| c.state == State::Open).count();
            say!("ok vsock cid={} open={open} resets={}", device.cid, device.resets);
        }
        Some("echo") => {
            let port = match args.word() {
                Some("off") => None,
                port => Some(port.and_then(|p| p.parse().ok()).ok_or(args.usage())?),
            };
            device(g)?.echo = port;
            say!("ok vsock echo");
        }
        Some("call") => {
            let port = args.word().and_then(|p| p.parse().ok()).ok_or(args.usage())?;
            let rest = text.splitn(3, ' ').nth(2).unwrap_or("");
            let what = match rest.strip_prefix("bytes ").map(number) {
                Some(count) => What::Bytes(count.ok_or(args.usage())?),
                None => What::Text(rest.as_bytes()),
            };
            return call(g, port, &what);
        }
        Some(_) => return Err(args.usage()),
    }
    Ok(())
}

/// What is sent.
enum What<'a> {
    Text(&'a [u8]),
    Bytes(u64),
}

impl What<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Bytes(count) => *count,
        }
    }

    /// What comes after the first `at` bytes.
    fn fill(&self, at: u64, out: &mut [u8]) {
        match self {
            Self::Text(text) => out.copy_from_slice(&text[at as usize..at as usize + out.len()]),
            Self::Bytes(_) => hash::bytes(out, SEED, at),
        }
    }
}

/// Sends all of it, says that this was all, and reads until the host's program has said all.
fn call(g: &mut Guest, port: u32, what: &What<'_>) -> Result<(), Fail> {
    device(g)?.call(CALL, port);
    let answered = g.until(CONNECT_US, |g| match device(g).map(|d| d.connections[CALL].state) {
        Ok(State::Asking) => None,
        Ok(State::Open) => Some(Ok(())),
        _ => Some(Err(Error::Refused)),
    });
    let mut sum = hash::FNV_START;
    let (mut sent, mut received) = (0, 0_u64);
    let mut shown = [0; SHOWN];
    let mut outcome = answered.unwrap_or(Err(Error::Silence));
    while outcome.is_ok() {
        let step = g.until(SILENCE_US, |g| {
            let device = match device(g) {
                Ok(device) => device,
                Err(e) => return Some(Err(e)),
            };
            let before = (sent, received);
            while sent < what.len() {
                let mut chunk = [0; 1024];
                let len = (what.len() - sent).min(chunk.len() as u64) as usize;
                what.fill(sent, &mut chunk[..len]);
                match device.write(CALL, &chunk[..len]) {
                    0 => break,
                    count => sent += count as u64,
                }
            }
            let connection = &mut device.connections[CALL];
            if sent == what.len() {
                connection.shut_down(false);
            }
            while !connection.inbox().is_empty() {
                let bytes = connection.inbox();
                sum = hash::fnv(sum, bytes);
                for (n, &byte) in (received as usize..).zip(bytes) {
                    if let Some(place) = shown.get_mut(n) {
                        *place = byte;
                    }
                }
                let count = bytes.len();
                received += count as u64;
                connection.consume(count);
            }
            let end = connection.is_at_end();
            let reset = connection.state == State::Reset;
            device.flush();
            match () {
                () if end => Some(Ok(true)),
                () if reset => Some(Err(Error::Reset)),
                () if (sent, received) != before => Some(Ok(false)),
                () => None,
            }
        });
        match step.unwrap_or(Err(Error::Silence)) {
            Ok(true) => break,
            Ok(false) => {}
            Err(e) => outcome = Err(e),
        }
    }
    let device = device(g)?;
    device.connections[CALL].shut_down(true);
    device.flush();
    device.connections[CALL].state = State::Free;
    outcome.map_err(|e| Fail::NetAfter(e, received))?;
    if let Some(text) = shown.get(..received as usize) {
        let lines = core::str::from_utf8(text).unwrap_or("").lines();
        lines.for_each(|line| say!("evt body {line}"));
    }
    say!("ok vsock call sent={sent} received={received} fnv={sum:016x}");
    Ok(())
}
