//! `net ping ADDRESS [COUNT [INTERVAL_MS]]`.

use crate::cpu::tsc;
use crate::guest::Guest;
use crate::net::connect::{need_address, resolve, stack};
use crate::net::error::Error;
use crate::outcome::Fail;
use crate::time::Every;
use crate::{say, time};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};

/// How long an answer is waited for.
const LATE_US: u64 = 2_000_000;
/// Requests whose answers are told apart at a time.
const OPEN: usize = 256;
const PAYLOAD: [u8; 56] = [0x5a; 56];

struct Tally {
    sent: u64,
    received: u64,
    /// When each request was sent; 0 once it is answered.
    when: [u64; OPEN],
    shortest: u64,
    longest: u64,
    sum: u64,
}

pub fn ping(g: &mut Guest, n: usize, host: &str, count: u64, interval_ms: u64) -> Result<(), Fail> {
    need_address(g, n)?;
    let to = IpAddress::from(resolve(g, n, host)?);
    if matches!(to, IpAddress::Ipv6(_)) {
        return Err(Fail::Text("only IPv4 addresses are pinged"));
    }
    let mut tally =
        Tally { sent: 0, received: 0, when: [0; OPEN], shortest: u64::MAX, longest: 0, sum: 0 };
    let mut every = Every::new(interval_ms.clamp(1, 60_000) * 1000);
    let mut due = true;
    while tally.sent < count {
        let left = if due { 0 } else { every.left_us() };
        g.until(left, |g| {
            tally.hear(g, n);
            None::<()>
        });
        every.restart();
        due = false;
        tally.send(g, n, to)?;
    }
    g.until(LATE_US, |g| {
        tally.hear(g, n);
        (tally.received == tally.sent).then_some(())
    });
    let Tally { sent, received, shortest, longest, sum, .. } = tally;
    if received == 0 {
        return Err(Error::Silence.into());
    }
    let word = if received == sent { "ok" } else { "err" };
    say!(
        "{word} ping sent={sent} received={received} lost={} min_us={shortest} avg_us={} max_us={longest}",
        sent - received,
        sum / received
    );
    Ok(())
}

impl Tally {
    fn send(&mut self, g: &mut Guest, n: usize, to: IpAddress) -> Result<(), Error> {
        let stack = stack(g, n)?;
        let seq = self.sent as u16;
        let echo = Icmpv4Repr::EchoRequest { ident: stack.ident, seq_no: seq, data: &PAYLOAD };
        let socket = stack.sockets.get_mut::<icmp::Socket>(stack.icmp);
        let place = socket.send(echo.buffer_len(), to).map_err(|_| Error::Busy)?;
        let checksums = ChecksumCapabilities::default();
        echo.emit(&mut Icmpv4Packet::new_unchecked(place), &checksums);
        self.when[usize::from(seq) % OPEN] = tsc();
        self.sent += 1;
        stack.flush();
        Ok(())
    }

    fn hear(&mut self, g: &mut Guest, n: usize) {
        let Ok(stack) = stack(g, n) else { return };
        let socket = stack.sockets.get_mut::<icmp::Socket>(stack.icmp);
        let own = stack.ident;
        while let Ok((bytes, _)) = socket.recv() {
            let answer = Icmpv4Packet::new_checked(bytes)
                .and_then(|packet| Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()));
            let Ok(Icmpv4Repr::EchoReply { ident, seq_no, .. }) = answer else { continue };
            let when = core::mem::take(&mut self.when[usize::from(seq_no) % OPEN]);
            if ident == own && when != 0 {
                let us = time::us_since(when);
                self.received += 1;
                self.shortest = self.shortest.min(us);
                self.longest = self.longest.max(us);
                self.sum += us;
            }
        }
    }
}
