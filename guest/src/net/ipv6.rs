//! Addresses of IPv6: routers are asked for, and the address is made of the prefix that one of them
//! gives (RFC 4862). A temporary one, or one that nobody else may have, is not looked for.

use crate::memory::{Dma, array, bytes};
use crate::say;
use crate::time::Every;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::raw;
use smoltcp::storage::PacketMetadata;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, IpVersion, Ipv6Address,
    Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr,
};

const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const LINK_LOCAL: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
const HEADER: usize = 40;
/// What comes from this link, and through no router, has as many hops left.
const ON_LINK_HOPS: u8 = 255;
/// How often routers are asked for, and how long each may take to answer.
const SOLICITATIONS: u8 = 3;
const SOLICIT_US: u64 = 1_000_000;
const BUFFER: usize = 4 << 10;
const PACKETS: usize = 16;

pub struct Ipv6 {
    raw: SocketHandle,
    mac: [u8; 6],
    link_local: Ipv6Address,
    /// All that is not said by the router itself goes through it, those on the same link included:
    /// smoltcp does not understand a neighbour that answers from another of its addresses, as passt
    /// does.
    pub address: Option<Ipv6Address>,
    pub gateway: Option<Ipv6Address>,
    solicit: Every,
    solicitations: u8,
}

/// An address whose last half is made of the MAC address (RFC 4291, appendix A).
fn address(prefix: [u8; 8], mac: [u8; 6]) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac;
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&prefix);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

impl Ipv6 {
    pub fn new(
        mac: [u8; 6],
        iface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        memory: &mut Dma,
    ) -> Self {
        let mut buffer = || {
            let packets = array(memory, PACKETS, || PacketMetadata::EMPTY);
            raw::PacketBuffer::new(packets, bytes(memory, BUFFER))
        };
        let (version, protocol) = (Some(IpVersion::Ipv6), Some(IpProtocol::Icmpv6));
        let raw = sockets.add(raw::Socket::new(version, protocol, buffer(), buffer()));
        let link_local = address(LINK_LOCAL, mac);
        iface.update_ip_addrs(|list| {
            // It is the first.
            let _ = list.push(IpCidr::new(link_local.into(), 64));
        });
        Self {
            raw,
            mac,
            link_local,
            address: None,
            gateway: None,
            solicit: Every::new(0),
            solicitations: SOLICITATIONS,
        }
    }

    /// Routers are asked for again: other ones may be there.
    pub fn restart(&mut self) {
        self.solicitations = SOLICITATIONS;
        self.solicit = Every::new(0);
    }

    /// In how many microseconds a router is asked for.
    pub fn due_us(&self) -> Option<u64> {
        (self.solicitations > 0).then(|| self.solicit.left_us())
    }

    /// Looks at what routers say, and asks for them.
    pub fn poll(
        &mut self,
        number: usize,
        iface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        is_up: bool,
    ) {
        let socket = sockets.get_mut::<raw::Socket>(self.raw);
        while let Ok(packet) = socket.recv() {
            let Some((router, lifetime, prefix)) = advertised(packet) else { continue };
            self.solicitations = 0;
            let own = prefix.map(|prefix| address(prefix, self.mac));
            let gateway = (lifetime > 0).then_some(router);
            if (own, gateway) == (self.address, self.gateway) {
                continue;
            }
            iface.update_ip_addrs(|list| {
                let cidr = |one: Ipv6Address| IpCidr::new(one.into(), 128);
                let former = self.address.map(cidr);
                list.retain(|one| Some(*one) != former);
                // There is room for all three.
                let _ = own.map(|own| list.push(cidr(own)));
            });
            iface.routes_mut().remove_default_ipv6_route();
            let _ = gateway.map(|gateway| iface.routes_mut().add_default_ipv6_route(gateway));
            (self.address, self.gateway) = (own, gateway);
            if let Some(own) = own {
                say!("evt net={number} address6={own}");
            }
            // So that who is at the other end knows it before it is asked anything.
            announce(socket, own, self.mac);
        }
        if is_up && self.due_us() == Some(0) {
            self.solicitations -= 1;
            self.solicit = Every::new(SOLICIT_US);
            let mac = Some(EthernetAddress(self.mac).into());
            let solicit = NdiscRepr::RouterSolicit { lladdr: mac };
            send(socket, self.link_local, ALL_ROUTERS, solicit);
        }
    }

    /// Tells the network where this address is.
    pub fn announce(&self, sockets: &mut SocketSet<'static>) {
        announce(sockets.get_mut(self.raw), self.address, self.mac);
    }
}

fn announce(socket: &mut raw::Socket<'static>, own: Option<Ipv6Address>, mac: [u8; 6]) {
    let Some(own) = own else { return };
    let advert = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: own,
        lladdr: Some(EthernetAddress(mac).into()),
    };
    send(socket, own, ALL_NODES, advert);
}

fn send(
    socket: &mut raw::Socket<'static>,
    from: Ipv6Address,
    to: Ipv6Address,
    what: NdiscRepr<'_>,
) {
    let body = Icmpv6Repr::Ndisc(what);
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: body.buffer_len(),
        hop_limit: ON_LINK_HOPS,
    };
    // If there is no room, it is asked again.
    let Ok(bytes) = socket.send(HEADER + body.buffer_len()) else { return };
    let mut packet = Ipv6Packet::new_unchecked(bytes);
    header.emit(&mut packet);
    let mut inner = Icmpv6Packet::new_unchecked(packet.payload_mut());
    body.emit(&from, &to, &mut inner, &ChecksumCapabilities::default());
}

/// What a router says: its address, for how many seconds it is one, and the prefix that addresses
/// are made of.
fn advertised(bytes: &[u8]) -> Option<(Ipv6Address, u64, Option<[u8; 8]>)> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let inner = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let checksums = ChecksumCapabilities::default();
    let said = Icmpv6Repr::parse(&from, &to, &inner, &checksums).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { router_lifetime, prefix_info, .. }) = said
    else {
        return None;
    };
    let is_usable = packet.hop_limit() == ON_LINK_HOPS && from.octets()[..8] == LINK_LOCAL;
    let prefix = prefix_info.filter(|prefix| {
        prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
            && prefix.prefix_len == 64
            && prefix.valid_lifetime.secs() > 0
    });
    let prefix = prefix.and_then(|prefix| prefix.prefix.octets().first_chunk().copied());
    is_usable.then_some((from, router_lifetime.secs(), prefix))
}
