//! `net ...`.

use crate::args::Args;
use crate::guest::Guest;
use crate::net::connect::{need_address, stack};
use crate::net::stack::{Addresses, Stack};
use crate::net::{bench, get, ping};
use crate::outcome::Outcome;
use crate::say;
use core::fmt;
use core::net::SocketAddr;
use smoltcp::wire::{IpAddress, Ipv4Cidr};

const USAGE: &str = "net [N] [address dhcp|A/BITS [GATEWAY] | ping A [COUNT [INTERVAL_MS]] | get URL | \
     serve PORT|off | flood [SECONDS [BYTES]] | bench tcp|tcp-in|udp|rtt A:PORT ..]";
const SECOND_US: u64 = 1_000_000;

pub fn net(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, USAGE);
    let mut word = args.word();
    let mut n = 0;
    if let Some(number) = word.and_then(|w| w.parse().ok()) {
        n = number;
        word = args.word();
    }
    match word {
        None => show(stack(g, n)?),
        Some("address") => address(stack(g, n)?, &mut args)?,
        Some("ping") => {
            let host = args.word().ok_or(args.usage())?;
            let (count, interval) = (args.number_or(4)?, args.number_or(100)?);
            return ping::ping(g, n, host, count, interval);
        }
        Some("get") => {
            let url = args.word().ok_or(args.usage())?;
            return get::get(g, n, url);
        }
        Some("serve") => {
            let port = match args.word() {
                Some("off") => None,
                Some(port) => Some(port.parse().ok().filter(|p| *p > 0).ok_or(args.usage())?),
                None => return Err(args.usage()),
            };
            serve(g, n, port)?;
        }
        Some("flood") => {
            let (seconds, bytes) = (args.number_or(1)?, args.number_or(60)?);
            return bench::flood(g, n, seconds.saturating_mul(SECOND_US), bytes as usize);
        }
        Some("bench") => return run_bench(g, n, &mut args),
        Some(_) => return Err(args.usage()),
    }
    Ok(())
}

/// Something, or "none".
struct OrNone<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrNone<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(it) => it.fmt(f),
            None => f.write_str("none"),
        }
    }
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

fn show(stack: &Stack) {
    let Stack { number, nic, addresses, ipv6, server, .. } = stack;
    let (rx, tx) = (nic.rx.counts, nic.tx.counts);
    say!(
        "evt net={number} rx_frames={} rx_bytes={} rx_dropped={} tx_frames={} tx_bytes={}",
        rx.frames,
        rx.bytes,
        rx.dropped,
        tx.frames,
        tx.bytes
    );
    say!(
        "ok net={number} mac={} link={} address={} gateway={} dns={} address6={} gateway6={} mtu={} announced={} serving={} answered={}",
        Mac(nic.mac),
        if stack.is_up() { "up" } else { "down" },
        OrNone(addresses.map(|a| a.own)),
        OrNone(addresses.and_then(|a| a.gateway)),
        OrNone(addresses.and_then(|a| a.dns)),
        OrNone(ipv6.address),
        OrNone(ipv6.gateway),
        nic.mtu,
        stack.announced(),
        OrNone(server.port()),
        server.answered()
    );
}

fn address(stack: &mut Stack, args: &mut Args<'_>) -> Outcome {
    match args.word().ok_or(args.usage())? {
        "dhcp" => stack.use_dhcp(),
        own => {
            let own: Ipv4Cidr = own.parse().map_err(|()| args.usage())?;
            let gateway = match args.word() {
                Some(gateway) => Some(gateway.parse().map_err(|_| args.usage())?),
                None => None,
            };
            // The stack takes no other.
            if !IpAddress::Ipv4(own.address()).is_unicast() {
                return Err(args.usage());
            }
            stack.use_fixed(Addresses { own, gateway, dns: gateway });
        }
    }
    say!("ok net address");
    Ok(())
}

fn serve(g: &mut Guest, n: usize, port: Option<u16>) -> Outcome {
    if port.is_some() {
        need_address(g, n)?;
    }
    let stack = stack(g, n)?;
    stack.serve(port);
    match (port, stack.addresses) {
        (Some(port), Some(a)) => say!("ok net serve http://{}:{port}/", a.own.address()),
        _ => say!("ok net serve off"),
    }
    Ok(())
}

fn run_bench(g: &mut Guest, n: usize, args: &mut Args<'_>) -> Outcome {
    let kind = args.word().ok_or(args.usage())?;
    let peer: SocketAddr = args.word().and_then(|w| w.parse().ok()).ok_or(args.usage())?;
    match kind {
        "rtt" => bench::rtt(g, n, peer, args.number_or(1000)?.max(1)),
        "tcp" | "tcp-in" | "udp" => {
            let us = args.number_or(1)?.clamp(1, 3600) * SECOND_US;
            match kind {
                "tcp" => bench::tcp_out(g, n, peer, us),
                "tcp-in" => bench::tcp_in(g, n, peer, us),
                _ => bench::udp(g, n, peer, us, args.number_or(64)? as usize),
            }
        }
        _ => Err(args.usage()),
    }
}
