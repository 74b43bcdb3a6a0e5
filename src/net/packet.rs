//! Just enough of Ethernet, IP, TCP and UDP to tell whose a packet is, and to answer one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6).
pub const HEADER: usize = 12;
/// Its flag: the checksum is to be finished from `csum_start` on.
const NEEDS_CSUM: u8 = 1;

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    Arp {
        sender: Ipv4Addr,
    },
    Tcp(Segment),
    Udp {
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Another protocol over IP, with the first byte of its header.
    Other {
        from: IpAddr,
        protocol: u8,
        first: u8,
    },
    /// No IP, or a packet that is cut.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// What it takes of the space of sequence numbers.
    pub length: u32,
}

impl Segment {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

pub fn look_at(frame: &[u8]) -> Carries {
    parse(frame).unwrap_or(Carries::Unknown)
}

fn parse(frame: &[u8]) -> Option<Carries> {
    let packet = frame.get(ETHERNET..)?;
    let (from, to, protocol, body): (IpAddr, IpAddr, u8, &[u8]) = match word(frame, 12)? {
        ARP => {
            let sender: [u8; 4] = *packet.get(14..)?.first_chunk()?;
            return Some(Carries::Arp { sender: sender.into() });
        }
        IPV4 => {
            let header = usize::from(packet.first()? & 15) * 4;
            let length = usize::from(word(packet, 2)?);
            // Only the first fragment has the ports.
            if header < 20 || word(packet, 6)? & 0x1fff != 0 {
                return None;
            }
            let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
            (
                address(12)?.into(),
                address(16)?.into(),
                *packet.get(9)?,
                packet.get(header..length.max(header))?,
            )
        }
        IPV6 => {
            let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
            let length = usize::from(word(packet, 4)?);
            (address(8)?.into(), address(24)?.into(), *packet.get(6)?, packet.get(40..40 + length)?)
        }
        _ => return None,
    };
    let ports = || Some((SocketAddr::new(from, word(body, 0)?), SocketAddr::new(to, word(body, 2)?)));
    match protocol {
        TCP => {
            let (from, to) = ports()?;
            let flags = *body.get(13)?;
            let header = usize::from(body.get(12)? >> 4) * 4;
            let data = body.len().checked_sub(header)? as u32;
            let length = data + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            Some(Carries::Tcp(Segment { from, to, seq: long(body, 4)?, ack: long(body, 8)?, flags, length }))
        }
        UDP => ports().map(|(from, to)| Carries::Udp { from, to }),
        _ => Some(Carries::Other { from, protocol, first: *body.first()? }),
    }
}

/// Adds up 16-bit words, the last one filled with a zero byte.
fn sum(mut total: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    total += words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum::<u64>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// Finishes the checksum of a packet, a header and a frame, if its header says so: from then on it
/// needs nothing. False: what the header says cannot be.
pub fn finish_checksum(packet: &mut [u8]) -> bool {
    let Some((header, frame)) = packet.split_first_chunk_mut::<HEADER>() else { return false };
    if header[0] & NEEDS_CSUM == 0 {
        return true;
    }
    let at = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (at(6), at(8));
    header[0] &= !NEEDS_CSUM;
    let Some(part) = frame.get_mut(start..).filter(|part| part.len() >= offset + 2) else { return false };
    let checksum = match fold(sum(0, part)) {
        // For UDP zero means that there is none; for TCP both are the same.
        0 => 0xffff,
        other => other,
    };
    part[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// A TCP segment without data from `segment.from` to `segment.to`, in a frame.
pub fn tcp_frame(to_mac: [u8; 6], from_mac: [u8; 6], segment: &Segment) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend_from_slice(&segment.from.port().to_be_bytes());
    tcp.extend_from_slice(&segment.to.port().to_be_bytes());
    tcp.extend_from_slice(&segment.seq.to_be_bytes());
    tcp.extend_from_slice(&segment.ack.to_be_bytes());
    // Five words of header; no window, checksum to come, nothing urgent.
    tcp.extend_from_slice(&[5 << 4, segment.flags, 0, 0, 0, 0, 0, 0]);
    let length = tcp.len() as u16;
    let mut ip = Vec::new();
    let (kind, addresses) = match (segment.from.ip(), segment.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ip.extend_from_slice(&[0x45, 0]);
            ip.extend_from_slice(&(20 + length).to_be_bytes());
            // Not to be fragmented; 64 hops.
            ip.extend_from_slice(&[0, 0, 0x40, 0, 64, TCP, 0, 0]);
            ip.extend_from_slice(&[from.octets(), to.octets()].concat());
            let checksum = fold(sum(0, &ip));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            (IPV4, [from.octets(), to.octets()].concat())
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            ip.extend_from_slice(&[0x60, 0, 0, 0]);
            ip.extend_from_slice(&length.to_be_bytes());
            ip.extend_from_slice(&[TCP, 64]);
            ip.extend_from_slice(&[octets(from), octets(to)].concat());
            (IPV6, [octets(from), octets(to)].concat())
        }
    };
    let pseudo = sum(u64::from(TCP) + u64::from(length), &addresses);
    let checksum = fold(sum(pseudo, &tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    [&to_mac[..], &from_mac, &kind.to_be_bytes(), &ip, &tcp].concat()
}

/// Who a frame goes to and comes from.
pub fn macs(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    Some((*frame.first_chunk()?, *frame.get(6..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(from: &str, to: &str) -> Segment {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Segment { from, to, seq: 0xdead_beef, ack: 7, flags: RST | ACK, length: 0 }
    }

    #[test]
    fn what_is_made_is_understood_and_adds_up() {
        for (from, to) in [("192.0.2.1:80", "10.0.0.2:40000"), ("[fd00::1]:80", "[fd00::2]:1")] {
            let segment = segment(from, to);
            let frame = tcp_frame([1; 6], [2; 6], &segment);
            assert_eq!(look_at(&frame), Carries::Tcp(segment));
            assert_eq!(macs(&frame), Some(([1; 6], [2; 6])));
            let (addresses, body) = match frame[12] {
                8 => (&frame[26..34], &frame[34..]),
                _ => (&frame[22..54], &frame[54..]),
            };
            assert_eq!(fold(sum(sum(6 + body.len() as u64, addresses), body)), 0);
            if frame[12] == 8 {
                assert_eq!(fold(sum(0, &frame[14..34])), 0);
            }
        }
    }

    #[test]
    fn a_checksum_is_finished_as_the_header_says() {
        // As Linux hands a segment over: the sum of the pseudo header is in the checksum's place.
        let segment = segment("192.0.2.1:80", "10.0.0.2:40000");
        let good = tcp_frame([1; 6], [2; 6], &segment);
        let mut unfinished = good.clone();
        let pseudo = !fold(sum(6 + 20, &good[26..34]));
        unfinished[50..52].copy_from_slice(&pseudo.to_be_bytes());
        let header = [NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let mut packet = [&header[..], &unfinished].concat();
        assert!(finish_checksum(&mut packet));
        assert_eq!(packet[HEADER..], good);
        assert_eq!(packet[0], 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..4usize) {
            if bytes.len() > 14 {
                let kinds: [[u8; 3]; 3] = [[8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0]];
                if let Some(kind) = kinds.get(kind) {
                    bytes[12..15].copy_from_slice(kind);
                }
            }
            let _ = look_at(&bytes);
            let _ = macs(&bytes);
            let len = bytes.len();
            let _ = finish_checksum(&mut bytes);
            prop_assert_eq!(bytes.len(), len);
        }
    }
}
