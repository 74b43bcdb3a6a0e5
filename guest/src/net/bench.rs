//! `net flood` and `net bench`: as much as goes through, and how long a round trip takes.

use crate::cpu::tsc;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::net::connect::{SILENCE_US, client, connect, need_address, read, stack};
use crate::net::error::Error;
use crate::outcome::Fail;
use crate::{say, time};
use core::net::SocketAddr;
use smoltcp::socket::udp;

/// An Ethernet type for experiments, which nobody answers.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const SHORTEST_FRAME: usize = 60;
/// Frames between two looks at everything else.
const BURST: usize = 64;
/// A round trip that takes longer counts as lost.
const LOST_US: u64 = 1_000_000;
const FILLER: [u8; 4096] = [0x5a; 4096];

/// Sends broadcast frames for so long, past the stack.
pub fn flood(g: &mut Guest, n: usize, us: u64, len: usize) -> Result<(), Fail> {
    let nic = &stack(g, n)?.nic;
    let (mac, len) = (nic.mac, len.clamp(SHORTEST_FRAME, nic.mtu));
    let start = tsc();
    let mut frames = 0_u64;
    while time::us_since(start) < us {
        g.background();
        let nic = &mut stack(g, n)?.nic;
        nic.tx.reclaim();
        for _ in 0..BURST {
            if !nic.tx.has_room() {
                break;
            }
            nic.tx.frame(len, |frame| {
                frame[..6].fill(0xff);
                frame[6..12].copy_from_slice(&mac);
                frame[12..14].copy_from_slice(&EXPERIMENTAL);
                frame[14..].fill(0);
            });
            frames += 1;
        }
        nic.tell();
    }
    let took = time::us_since(start).max(1);
    say!(
        "ok flood frames={frames} bytes={len} ms={} per_s={}",
        took / 1000,
        frames * 1_000_000 / took
    );
    Ok(())
}

/// Sends for so long, and waits until the peer has read it all and ended the connection.
pub fn tcp_out(g: &mut Guest, n: usize, peer: SocketAddr, us: u64) -> Result<(), Fail> {
    connect(g, n, peer)?;
    let start = tsc();
    let mut bytes = 0_u64;
    let sent = g.until(us, |g| {
        let socket = match client(g, n) {
            Ok(socket) if socket.may_send() => socket,
            _ => return Some(Error::Reset),
        };
        while socket.can_send() {
            bytes += socket.send_slice(&FILLER).unwrap_or(0) as u64;
        }
        None
    });
    if let Some(e) = sent {
        return Err(Fail::NetAfter(e, bytes));
    }
    client(g, n)?.close();
    let ended = g.until(SILENCE_US, |g| match client(g, n) {
        Ok(socket) => match read(socket, |_| ()) {
            Ok(Some(false)) => Some(Ok(())),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        },
        Err(e) => Some(Err(e)),
    });
    ended.unwrap_or(Err(Error::Silence)).map_err(|e| Fail::NetAfter(e, bytes))?;
    report("tcp", bytes, time::us_since(start));
    Ok(())
}

/// Reads for so long, or until the peer ends the connection.
pub fn tcp_in(g: &mut Guest, n: usize, peer: SocketAddr, us: u64) -> Result<(), Fail> {
    connect(g, n, peer)?;
    let start = tsc();
    let mut bytes = 0;
    let ended = g.until(us, |g| match client(g, n) {
        Ok(socket) => match read(socket, |some| bytes += some.len() as u64) {
            Ok(Some(false)) => Some(Ok(())),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        },
        Err(e) => Some(Err(e)),
    });
    ended.unwrap_or(Ok(())).map_err(|e| Fail::NetAfter(e, bytes))?;
    client(g, n)?.abort();
    report("tcp-in", bytes, time::us_since(start));
    Ok(())
}

fn report(what: &str, bytes: u64, us: u64) {
    let us = us.max(1);
    let (whole, tenth) = (bytes / us, bytes % us * 10 / us);
    say!("ok bench {what} bytes={bytes} ms={} mb_s={whole}.{tenth}", us / 1000);
}

fn bind(g: &mut Guest, n: usize) -> Result<(), Error> {
    need_address(g, n)?;
    let stack = stack(g, n)?;
    let port = stack.fresh_port();
    let socket = stack.sockets.get_mut::<udp::Socket>(stack.udp);
    socket.close();
    // What came for the port before is not for this one.
    socket.bind(port).map_err(|_| Error::Busy)
}

/// Sends datagrams for so long; how many arrive, the peer knows.
pub fn udp(g: &mut Guest, n: usize, peer: SocketAddr, us: u64, len: usize) -> Result<(), Fail> {
    bind(g, n)?;
    let payload = &FILLER[..len.clamp(1, 1400)];
    let start = tsc();
    let mut sent = 0_u64;
    while time::us_since(start) < us {
        g.background();
        let stack = stack(g, n)?;
        let socket = stack.sockets.get_mut::<udp::Socket>(stack.udp);
        while socket.send_slice(payload, peer).is_ok() {
            sent += 1;
        }
        stack.flush();
    }
    let took = time::us_since(start).max(1);
    say!(
        "ok bench udp sent={sent} bytes={} ms={} per_s={}",
        payload.len(),
        took / 1000,
        sent * 1_000_000 / took
    );
    Ok(())
}

/// Round trips over UDP, one at a time, with a peer that sends back what it gets.
pub fn rtt(g: &mut Guest, n: usize, peer: SocketAddr, count: u64) -> Result<(), Fail> {
    bind(g, n)?;
    let mut times = Histogram::new();
    let mut shortest = u64::MAX;
    let mut lost = 0_u64;
    for number in 0..count {
        let stack = stack(g, n)?;
        let socket = stack.sockets.get_mut::<udp::Socket>(stack.udp);
        socket.send_slice(&number.to_le_bytes(), peer).map_err(|_| Error::Busy)?;
        let start = tsc();
        stack.flush();
        let answered = g.until(LOST_US, |g| {
            let stack = g.net[n].as_mut()?;
            let socket = stack.sockets.get_mut::<udp::Socket>(stack.udp);
            while let Ok((bytes, _)) = socket.recv() {
                if *bytes == number.to_le_bytes() {
                    return Some(());
                }
            }
            None
        });
        match answered {
            Some(()) => {
                let us = time::us_since(start);
                shortest = shortest.min(us);
                times.add(us);
            }
            None => lost += 1,
        }
        // To a port that nobody listens at it would take forever.
        if lost > 10 && times.total() == 0 {
            return Err(Error::Silence.into());
        }
    }
    if times.total() == 0 {
        return Err(Error::Silence.into());
    }
    say!(
        "ok bench rtt count={} lost={lost} min_us={shortest} p50_us={} p99_us={}",
        times.total(),
        times.percentile(50),
        times.percentile(99)
    );
    Ok(())
}
