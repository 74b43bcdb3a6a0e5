//! One network device with its TCP/IP stack: addresses, and what goes on in the background.

use crate::cpu::tsc;
use crate::memory::{Dma, MIB, array, bytes};
use crate::net::http::{CONNECTIONS, Facts, Server};
use crate::net::ipv6::Ipv6;
use crate::net::nic::{self, Nic};
use crate::time::{self, Every};
use crate::{hash, say};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::iface::{PollIngressSingleResult, PollResult};
use smoltcp::socket::{dhcpv4, dns, icmp, tcp, udp};
use smoltcp::storage::PacketMetadata;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame};
use smoltcp::wire::{EthernetProtocol, IpCidr, Ipv4Address, Ipv4Cidr};

/// Memory that one device with its stack needs.
pub const MEMORY: u64 = 3 * MIB;
const _: () = assert!(nic::BYTES + SOCKET_BYTES <= MEMORY as usize);

const SOCKETS: usize = 6 + CONNECTIONS;
/// Receive and send buffers of the one connection that commands make, and of those served.
const CLIENT: [usize; 2] = [256 << 10, 256 << 10];
const SERVE: [usize; 2] = [4 << 10, 64 << 10];
/// Receive and send alike.
const UDP: usize = 64 << 10;
const UDP_PACKETS: usize = 256;
const ICMP: usize = 4 << 10;
const ICMP_PACKETS: usize = 16;
const SOCKET_BYTES: usize =
    CLIENT[0] + CLIENT[1] + CONNECTIONS * (SERVE[0] + SERVE[1]) + 2 * (UDP + ICMP) + (64 << 10);

/// Frames looked at before something else gets its turn.
const FRAMES_AT_ONCE: usize = 64;
/// The link is looked at this often even without an interrupt.
const LINK_US: u64 = 1_000_000;
/// A gap longer than this is taken for a pause of the machine, in which no time passed for it.
const LONGEST_STEP_US: u64 = 2_000_000;
const DHCP_RETRY: Duration = Duration::from_secs(1);

/// Time for the stack: it never goes back, and stands still while the machine does.
struct Clock {
    last: u64,
    now_us: u64,
}

impl Clock {
    fn now(&mut self) -> Instant {
        let now = tsc();
        let passed = time::us(now.wrapping_sub(self.last));
        // What is less than a microsecond is left for the next look.
        if passed > 0 || now < self.last {
            self.now_us += passed.min(LONGEST_STEP_US);
            self.last = now;
        }
        Instant::from_micros(self.now_us as i64)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub own: Ipv4Cidr,
    pub gateway: Option<Ipv4Address>,
    pub dns: Option<Ipv4Address>,
}

pub struct Stack {
    pub number: usize,
    pub nic: Nic,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    clock: Clock,
    look: Every,
    up: bool,
    /// An announcement that is still to be made; whether the device waits for word of it.
    announcing: Option<bool>,
    announced: u64,
    dhcp: Option<SocketHandle>,
    pub addresses: Option<Addresses>,
    pub ipv6: Ipv6,
    pub dns: SocketHandle,
    pub icmp: SocketHandle,
    /// What its answers are known by.
    pub ident: u16,
    pub udp: SocketHandle,
    pub client: SocketHandle,
    pub server: Server,
}

/// Whether there is a network device at `addr`.
pub fn is_at(addr: u64) -> bool {
    Nic::is_at(addr)
}

fn connection(memory: &mut Dma, [receive, send]: [usize; 2]) -> tcp::Socket<'static> {
    let mut buffer = |len| tcp::SocketBuffer::new(bytes(memory, len));
    let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
    socket.set_nagle_enabled(false);
    socket
}

impl Stack {
    /// Brings up the device at `addr`, with [`MEMORY`] of its own.
    pub fn open(addr: u64, number: usize, vector: u8, mut memory: Dma) -> Option<Self> {
        let memory = &mut memory;
        let mut nic = Nic::open(addr, vector, memory)?;
        let mut clock = Clock { last: tsc(), now_us: 0 };
        let mut config = Config::new(EthernetAddress(nic.mac).into());
        config.random_seed = hash::word(tsc(), addr);
        let mut iface = Interface::new(config, &mut nic, clock.now());
        let mut sockets = SocketSet::new(array(memory, SOCKETS, || SocketStorage::EMPTY));
        let dns = sockets.add(dns::Socket::new(&[], array(memory, 1, || None)));
        let mut icmp_buffer = || {
            let packets = array(memory, ICMP_PACKETS, || PacketMetadata::EMPTY);
            icmp::PacketBuffer::new(packets, bytes(memory, ICMP))
        };
        let mut icmp = icmp::Socket::new(icmp_buffer(), icmp_buffer());
        let ident = hash::word(tsc(), 5) as u16;
        // It fails for an open socket only.
        let _ = icmp.bind(icmp::Endpoint::Ident(ident));
        let icmp = sockets.add(icmp);
        let mut udp_buffer = || {
            let packets = array(memory, UDP_PACKETS, || PacketMetadata::EMPTY);
            udp::PacketBuffer::new(packets, bytes(memory, UDP))
        };
        let udp = sockets.add(udp::Socket::new(udp_buffer(), udp_buffer()));
        let client = sockets.add(connection(memory, CLIENT));
        let served = [(); CONNECTIONS].map(|()| sockets.add(connection(memory, SERVE)));
        let ipv6 = Ipv6::new(nic.mac, &mut iface, &mut sockets, memory);
        let up = nic.link().up;
        let mut stack = Self {
            number,
            nic,
            iface,
            sockets,
            clock,
            look: Every::new(LINK_US),
            up,
            announcing: None,
            announced: 0,
            dhcp: None,
            addresses: None,
            ipv6,
            dns,
            icmp,
            ident,
            udp,
            client,
            server: Server::new(served),
        };
        stack.use_dhcp();
        Some(stack)
    }

    /// Does what there is to do.
    pub fn poll(&mut self, facts: &Facts) {
        let interrupted = self.nic.acknowledge();
        self.nic.rx.ring.want_interrupts(false);
        // An interrupt without a frame is about the link.
        if self.look.take().is_some() || interrupted && self.nic.rx.ring.ready() == 0 {
            self.look_at_link();
        }
        self.announce();
        self.nic.tx.reclaim();
        let now = self.clock.now();
        for _ in 0..FRAMES_AT_ONCE {
            let done = self.iface.poll_ingress_single(now, &mut self.nic, &mut self.sockets);
            if done == PollIngressSingleResult::None {
                break;
            }
        }
        self.server.poll(&mut self.sockets, facts);
        self.follow_dhcp();
        self.ipv6.poll(self.number, &mut self.iface, &mut self.sockets, self.up);
        self.flush();
        self.nic.rx.ring.want_interrupts(true);
    }

    /// Sends what sockets have to send.
    pub fn flush(&mut self) {
        let now = self.clock.now();
        while self.iface.poll_egress(now, &mut self.nic, &mut self.sockets) != PollResult::None {}
        // Only what waits for room has to know when there is some.
        self.nic.tx.ring.want_interrupts(!self.nic.tx.has_room());
        self.nic.tell();
        self.nic.tx.reclaim();
    }

    /// In how many microseconds there is something to do, unless an interrupt comes first.
    pub fn due_us(&mut self) -> u64 {
        if self.nic.rx.ring.ready() > 0 || self.announcing.is_some() {
            return 0;
        }
        let now = self.clock.now();
        let due = self.iface.poll_delay(now, &self.sockets).map_or(LINK_US, |d| d.total_micros());
        // What cannot be sent is not due.
        let due = if due == 0 && !self.nic.tx.has_room() { LINK_US } else { due };
        let solicits = self.ipv6.due_us().filter(|_| self.up && self.nic.tx.has_room());
        due.min(self.look.left_us()).min(solicits.unwrap_or(LINK_US))
    }

    fn look_at_link(&mut self) {
        let link = self.nic.link();
        let came_up = link.up && !self.up;
        if link.up != self.up {
            say!("evt net={} link={}", self.number, if link.up { "up" } else { "down" });
            self.up = link.up;
        }
        if link.announce {
            self.announcing = Some(true);
        } else if came_up {
            self.announcing = self.announcing.or(Some(false));
        }
        if came_up {
            // Who was behind the former link may not be behind this one. The address is kept until
            // a server gives another one.
            self.iface.update_ip_addrs(|_| ());
            self.ipv6.restart();
            if let Some(handle) = self.dhcp {
                let dhcp = self.sockets.get_mut::<dhcpv4::Socket>(handle);
                dhcp.reset();
                dhcp.poll();
            }
        }
    }

    /// Tells the network where this address is now, by a gratuitous ARP.
    fn announce(&mut self) {
        let Some(device_waits) = self.announcing else { return };
        if !self.nic.tx.has_room() || device_waits && !self.nic.acknowledge_announcement() {
            return;
        }
        self.announcing = None;
        self.ipv6.announce(&mut self.sockets);
        let Some(addresses) = self.addresses else { return };
        let own = addresses.own.address();
        let mac = EthernetAddress(self.nic.mac);
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: own,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: own,
        };
        let len = EthernetFrame::<&[u8]>::header_len() + arp.buffer_len();
        self.nic.tx.frame(len, |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame.set_src_addr(mac);
            frame.set_dst_addr(EthernetAddress::BROADCAST);
            frame.set_ethertype(EthernetProtocol::Arp);
            arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
        self.announced += 1;
        say!("evt net={} announced={own}", self.number);
    }

    fn follow_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        let event = match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => Some(Addresses {
                own: config.address,
                gateway: config.router,
                dns: config.dns_servers.first().copied(),
            }),
        };
        self.set_addresses(event);
    }

    pub fn use_dhcp(&mut self) {
        if self.dhcp.is_none() {
            let mut socket = dhcpv4::Socket::new();
            let mut retry = socket.get_retry_config();
            (retry.discover_timeout, retry.initial_request_timeout) = (DHCP_RETRY, DHCP_RETRY);
            socket.set_retry_config(retry);
            self.dhcp = Some(self.sockets.add(socket));
        }
    }

    pub fn use_fixed(&mut self, addresses: Addresses) {
        if let Some(handle) = self.dhcp.take() {
            self.sockets.remove(handle);
        }
        self.set_addresses(Some(addresses));
    }

    fn set_addresses(&mut self, addresses: Option<Addresses>) {
        if addresses == self.addresses {
            return;
        }
        self.addresses = addresses;
        self.iface.update_ip_addrs(|list| {
            list.retain(|one| !matches!(one, IpCidr::Ipv4(_)));
            // There is room for all three.
            let _ = addresses.map(|a| list.push(IpCidr::Ipv4(a.own)));
        });
        self.iface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = addresses.and_then(|a| a.gateway) {
            let _ = self.iface.routes_mut().add_default_ipv4_route(gateway);
        }
        let servers = addresses.and_then(|a| a.dns).map(Into::into);
        self.sockets.get_mut::<dns::Socket>(self.dns).update_servers(servers.as_slice());
        match addresses {
            Some(a) => say!("evt net={} address={}", self.number, a.own),
            None => say!("evt net={} address=none", self.number),
        }
    }

    /// Starts the web server at a port, or ends it.
    pub fn serve(&mut self, port: Option<u16>) {
        self.server.set_port(&mut self.sockets, port);
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// How often the network was told where this address is.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// A local port that was not used just before a going back, either.
    pub fn fresh_port(&self) -> u16 {
        0xc000 | hash::word(tsc(), 4) as u16 & 0x3fff
    }
}
