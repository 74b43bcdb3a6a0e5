//! TCP connections of a guest behind passt, so that one of which passt knows nothing is reset: passt
//! says nothing to it, and the guest would wait for long. And who an isolated guest may answer.
//!
//! A connection is known from its first SYN on. What a full table has no room for is not known, and
//! is not reset either.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::packet::{ACK, Carries, FIN, ICMPV6, RST, SYN, Segment, UDP, look_at, macs, tcp_frame};

/// Most connections that are known at a time.
const MOST: usize = 32 << 10;
/// Most that are saved, to be ended later.
const MOST_SAVED: usize = 4096;
/// Closed ones whose last packets may still come.
const LINGERING: usize = 1024;
/// Most senders of datagrams that an isolated guest may answer.
const MOST_CALLERS: usize = 4096;
/// Ports of DHCP servers, for IPv4 and IPv6.
const DHCP: [u16; 2] = [67, 547];
/// ICMPv6 of the neighbourhood: who is there, and where the router is.
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 133..=137;

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    guest: SocketAddr,
    peer: SocketAddr,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// What the guest sent next, and what it waited for, when it last said something.
    next: u32,
    awaits: u32,
    peer_mac: [u8; 6],
    guest_mac: [u8; 6],
    guest_closed: bool,
    peer_closed: bool,
    /// The guest asked for it, and the peer has not agreed yet.
    is_asked_for: bool,
}

/// A connection that is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFlow {
    guest: SocketAddr,
    peer: SocketAddr,
    next: u32,
    awaits: u32,
    guest_mac: [u8; 6],
    peer_mac: [u8; 6],
}

impl SavedFlow {
    /// A segment that makes the guest say where it is, as if the peer asked whether it is still
    /// there (RFC 9293, section 3.8.4). The answer is then of no known connection, and reset.
    pub fn probe(&self) -> Vec<u8> {
        let segment = Segment {
            from: self.peer,
            to: self.guest,
            seq: self.awaits.wrapping_sub(1),
            ack: self.next,
            flags: ACK,
            length: 0,
        };
        tcp_frame(self.guest_mac, self.peer_mac, &segment)
    }
}

/// What becomes of a frame of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// It goes nowhere, and this is the answer.
    Answer(Vec<u8>),
}

pub struct Flows {
    known: HashMap<Ends, Known>,
    lingering: VecDeque<Ends>,
    /// There was no room for one: unknown ones may be in order.
    overflowed: bool,
    isolated: bool,
    /// Who sent the isolated guest a datagram.
    callers: HashSet<Ends>,
}

impl Flows {
    pub fn new(isolated: bool) -> Self {
        Self {
            known: HashMap::new(),
            lingering: VecDeque::new(),
            overflowed: false,
            isolated,
            callers: HashSet::new(),
        }
    }

    pub fn saved(&self) -> Vec<SavedFlow> {
        let open = self.known.iter().filter(|(_, known)| !(known.guest_closed && known.peer_closed));
        let saved = open.take(MOST_SAVED).map(|(ends, known)| SavedFlow {
            guest: ends.guest,
            peer: ends.peer,
            next: known.next,
            awaits: known.awaits,
            guest_mac: known.guest_mac,
            peer_mac: known.peer_mac,
        });
        saved.collect()
    }

    /// A frame that the guest sends.
    pub fn leaves(&mut self, frame: &[u8]) -> Verdict {
        let segment = match look_at(frame) {
            Carries::Tcp(segment) => segment,
            other if self.isolated && !self.may_leave(other) => return Verdict::Drop,
            _ => return Verdict::Pass,
        };
        let ends = Ends { guest: segment.from, peer: segment.to };
        let Some((peer_mac, guest_mac)) = macs(frame) else { return Verdict::Drop };
        let begins = segment.has(SYN) && !segment.has(ACK);
        if begins && !self.isolated {
            self.begin(ends);
        }
        let Some(known) = self.known.get_mut(&ends) else {
            return match () {
                () if segment.has(RST) => Verdict::Drop,
                () if self.overflowed && !self.isolated => Verdict::Pass,
                () => Verdict::Answer(reset(&segment, guest_mac, peer_mac)),
            };
        };
        (known.guest_mac, known.peer_mac) = (guest_mac, peer_mac);
        known.is_asked_for |= begins;
        known.next = segment.seq.wrapping_add(segment.length);
        if segment.has(ACK) {
            known.awaits = segment.ack;
        }
        known.guest_closed |= segment.has(FIN);
        self.after(ends, &segment);
        Verdict::Pass
    }

    /// A frame that comes to the guest. What is returned is to follow it.
    pub fn enters(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let mut more = None;
        match look_at(frame) {
            Carries::Tcp(segment) if segment.flags & (SYN | FIN | RST) != 0 => {
                let ends = Ends { guest: segment.to, peer: segment.from };
                if segment.has(SYN) && !segment.has(ACK) {
                    self.begin(ends);
                }
                if let Some(known) = self.known.get_mut(&ends) {
                    known.peer_closed |= segment.has(FIN);
                    known.is_asked_for &= !segment.has(SYN);
                    if known.is_asked_for && segment.has(RST) && !segment.has(ACK) {
                        more = Some(refusal(&segment, known));
                    }
                    self.after(ends, &segment);
                }
            }
            Carries::Udp { from, to } if self.isolated => {
                if self.callers.len() >= MOST_CALLERS {
                    self.callers.clear();
                }
                self.callers.insert(Ends { guest: to, peer: from });
            }
            _ => {}
        }
        more
    }

    fn begin(&mut self, ends: Ends) {
        if self.known.len() < MOST || self.known.contains_key(&ends) {
            // What was known of an earlier connection between the same ends is over.
            self.known.insert(ends, Known::default());
        } else {
            self.overflowed = true;
        }
    }

    fn after(&mut self, ends: Ends, segment: &Segment) {
        if segment.has(RST) {
            self.known.remove(&ends);
            return;
        }
        let closed = |known: &Known| known.guest_closed && known.peer_closed;
        if segment.has(FIN) && self.known.get(&ends).is_some_and(closed) && !self.lingering.contains(&ends) {
            self.lingering.push_back(ends);
            if self.lingering.len() > LINGERING
                && let Some(oldest) = self.lingering.pop_front()
                && self.known.get(&oldest).is_some_and(closed)
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// Whether an isolated guest may say this. Its TCP connections are looked at elsewhere.
    fn may_leave(&self, what: Carries) -> bool {
        match what {
            Carries::Arp { .. } => true,
            Carries::Udp { to, .. } if DHCP.contains(&to.port()) => true,
            Carries::Udp { from, to } => self.callers.contains(&Ends { guest: from, peer: to }),
            Carries::Other { protocol: ICMPV6, first, .. } => NEIGHBOURS.contains(&first),
            Carries::Other { protocol: UDP, .. } | Carries::Other { .. } | Carries::Unknown => false,
            Carries::Tcp(_) => false,
        }
    }
}

/// What who knows nothing of a connection answers (RFC 9293, section 3.5.2).
fn reset(segment: &Segment, guest_mac: [u8; 6], peer_mac: [u8; 6]) -> Vec<u8> {
    let (seq, ack, flags) = match segment.has(ACK) {
        true => (segment.ack, 0, RST),
        false => (0, segment.seq.wrapping_add(segment.length), RST | ACK),
    };
    let answer = Segment { from: segment.to, to: segment.from, seq, ack, flags, length: 0 };
    tcp_frame(guest_mac, peer_mac, &answer)
}

/// A refusal that the guest heeds. Early versions of passt refuse a connection without saying which
/// (RFC 9293, section 3.10.7.3: that is to be dropped), and the guest would wait for long.
fn refusal(segment: &Segment, known: &Known) -> Vec<u8> {
    let answer = Segment { seq: 0, ack: known.next, flags: RST | ACK, ..*segment };
    tcp_frame(known.guest_mac, known.peer_mac, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52; 6];
    const ROUTER: [u8; 6] = [2; 6];

    fn segment(from: &str, to: &str, flags: u8, seq: u32, ack: u32) -> Segment {
        Segment { from: from.parse().unwrap(), to: to.parse().unwrap(), seq, ack, flags, length: 0 }
    }

    fn out(flags: u8, seq: u32, ack: u32) -> Vec<u8> {
        tcp_frame(ROUTER, GUEST, &segment("10.0.0.2:4000", "192.0.2.1:80", flags, seq, ack))
    }

    fn back(flags: u8) -> Vec<u8> {
        tcp_frame(GUEST, ROUTER, &segment("192.0.2.1:80", "10.0.0.2:4000", flags, 9, 9))
    }

    fn answer(flows: &mut Flows, frame: &[u8]) -> Segment {
        match flows.leaves(frame) {
            Verdict::Answer(frame) => {
                assert_eq!(macs(&frame), Some((GUEST, ROUTER)));
                let Carries::Tcp(segment) = look_at(&frame) else { panic!("{frame:?}") };
                segment
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_that_nobody_knows_is_reset() {
        let mut flows = Flows::new(false);
        let reset = answer(&mut flows, &out(ACK, 5, 77));
        assert_eq!(reset, segment("192.0.2.1:80", "10.0.0.2:4000", RST, 77, 0));
        assert_eq!(answer(&mut flows, &out(FIN, 5, 0)).ack, 6);
        assert_eq!(flows.leaves(&out(RST, 5, 0)), Verdict::Drop);
    }

    #[test]
    fn one_that_began_here_is_left_alone() {
        for begin_outside in [false, true] {
            let mut flows = Flows::new(false);
            if begin_outside {
                flows.enters(&back(SYN));
                assert_eq!(flows.leaves(&out(SYN | ACK, 1, 2)), Verdict::Pass);
            } else {
                assert_eq!(flows.leaves(&out(SYN, 1, 0)), Verdict::Pass);
                flows.enters(&back(SYN | ACK));
            }
            assert_eq!(flows.leaves(&out(ACK, 2, 10)), Verdict::Pass);
            assert_eq!(flows.leaves(&out(FIN | ACK, 2, 10)), Verdict::Pass);
            flows.enters(&back(FIN | ACK));
            // The last acknowledgement still goes through.
            assert_eq!(flows.leaves(&out(ACK, 3, 11)), Verdict::Pass);
            assert!(flows.saved().is_empty());
            flows.enters(&back(RST));
            answer(&mut flows, &out(ACK, 3, 11));
        }
    }

    #[test]
    fn a_refusal_says_what_is_refused() {
        let mut flows = Flows::new(false);
        flows.leaves(&out(SYN, 4, 0));
        let Carries::Tcp(told) = look_at(&flows.enters(&back(RST)).unwrap()) else { panic!() };
        assert_eq!(told, segment("192.0.2.1:80", "10.0.0.2:4000", RST | ACK, 0, 5));
        // Nothing is added to one that says so, nor to the end of one that was agreed to.
        flows.leaves(&out(SYN, 4, 0));
        assert_eq!(flows.enters(&back(RST | ACK)), None);
        flows.leaves(&out(SYN, 4, 0));
        flows.enters(&back(SYN | ACK));
        flows.leaves(&out(ACK, 5, 10));
        assert_eq!(flows.enters(&back(RST)), None);
    }

    #[test]
    fn what_is_saved_ends_under_the_next_back_end() {
        let mut flows = Flows::new(false);
        flows.leaves(&out(SYN, 1, 0));
        flows.leaves(&out(ACK, 2, 500));
        let saved = flows.saved();
        let [flow] = &saved[..] else { panic!("{saved:?}") };
        let Carries::Tcp(probe) = look_at(&flow.probe()) else { panic!() };
        assert_eq!(probe, segment("192.0.2.1:80", "10.0.0.2:4000", ACK, 499, 2));
        // What the guest answers to it.
        let reset = answer(&mut Flows::new(false), &out(ACK, 2, 500));
        assert_eq!((reset.seq, reset.flags), (500, RST));
        let json = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<Vec<SavedFlow>>(&json).unwrap(), saved);
    }

    #[test]
    fn a_flood_of_connections_is_bounded_and_resets_nobody() {
        let mut flows = Flows::new(false);
        let many = |n: u32| {
            let from = format!("10.0.{}.{}:{}", n >> 24 & 255, n >> 16 & 255, n & 0xffff);
            move |flags| tcp_frame(ROUTER, GUEST, &segment(&from, "192.0.2.1:80", flags, 1, 1))
        };
        for n in 0..MOST as u32 + 100 {
            assert_eq!(flows.leaves(&many(n)(SYN)), Verdict::Pass);
        }
        assert_eq!(flows.known.len(), MOST);
        assert_eq!(flows.leaves(&many(MOST as u32 + 50)(ACK)), Verdict::Pass);
        assert_eq!(flows.saved().len(), MOST_SAVED);
    }

    #[test]
    fn closed_connections_make_room() {
        let mut flows = Flows::new(false);
        for port in 1..=2 * LINGERING as u16 {
            let (guest, peer) = (format!("10.0.0.2:{port}"), "192.0.2.1:80");
            for flags in [SYN, FIN | ACK] {
                flows.leaves(&tcp_frame(ROUTER, GUEST, &segment(&guest, peer, flags, 1, 1)));
            }
            flows.enters(&tcp_frame(GUEST, ROUTER, &segment(peer, &guest, FIN | ACK, 1, 1)));
        }
        assert_eq!(flows.known.len(), LINGERING);
    }

    fn datagram(from_guest: bool, peer_port: u16) -> Vec<u8> {
        let (from, to) = ("10.0.0.2:5353", format!("192.0.2.1:{peer_port}"));
        let (from, to) = if from_guest { (from, &to[..]) } else { (&to[..], from) };
        let mut frame = tcp_frame(ROUTER, GUEST, &segment(from, to, 0, 0, 0));
        frame[23] = UDP;
        frame
    }

    #[test]
    fn an_isolated_guest_answers_and_asks_nobody() {
        let mut flows = Flows::new(true);
        let refused = answer(&mut flows, &out(SYN, 1, 0));
        assert_eq!((refused.flags, refused.ack), (RST | ACK, 2));
        flows.enters(&back(SYN));
        assert_eq!(flows.leaves(&out(SYN | ACK, 1, 2)), Verdict::Pass);

        assert_eq!(flows.leaves(&datagram(true, 53)), Verdict::Drop);
        assert_eq!(flows.leaves(&datagram(true, 67)), Verdict::Pass);
        flows.enters(&datagram(false, 9999));
        assert_eq!(flows.leaves(&datagram(true, 9999)), Verdict::Pass);
        assert_eq!(flows.leaves(&datagram(true, 53)), Verdict::Drop);

        let mut ping = datagram(true, 1);
        ping[23] = 1;
        assert_eq!(flows.leaves(&ping), Verdict::Drop);
        let arp = [&ROUTER[..], &GUEST, &[8, 6], &[0; 28]].concat();
        assert_eq!(flows.leaves(&arp), Verdict::Pass);
        assert_eq!(flows.leaves(&[0; 60]), Verdict::Drop);
    }
}
