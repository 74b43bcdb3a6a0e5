//! Network interfaces of a VM, and ports of the host that lead to its guest.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most network interfaces of a VM.
pub const MAX_NETS: usize = 4;
/// Smallest MTU: what IPv6 needs.
pub(super) const MIN_MTU: u16 = 1280;
/// Largest MTU: what passt takes.
pub(super) const MAX_MTU: u16 = 65520;
/// Longest name of a network interface of Linux.
const MAX_TAP_NAME: usize = 15;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    #[error("`{0}` is not a network: use user, tap=NAME or none")]
    Kind(String),
    #[error("`{0}` is not a network option: the options are mac=ADDRESS, mtu=BYTES, isolated and shared-mac")]
    Option(String),
    #[error("`{0}` is not a MAC address: write it like 52:54:00:12:34:56")]
    MacSyntax(String),
    #[error("{0} is a multicast MAC address: use one whose first byte is even, such as 52:54:00:12:34:56")]
    MacGroup(Mac),
    #[error("the MAC address 00:00:00:00:00:00 cannot be used: choose another one")]
    MacZero,
    #[error("two networks of this VM have the MAC address {0}: give each its own")]
    MacTwice(Mac),
    #[error("`{0}` is not a valid MTU: use {MIN_MTU} to {MAX_MTU} bytes")]
    Mtu(String),
    #[error(
        "`{0}` is not a valid tap device name: use 1 to {MAX_TAP_NAME} characters without `/`, `%`, `:` \
         and spaces"
    )]
    TapName(String),
    #[error("two networks of this VM use the tap device `{0}`: give each its own")]
    TapTwice(String),
    #[error("{0} networks are too many: a VM can have up to {MAX_NETS}")]
    TooMany(usize),
    #[error("isolated and --forward require --net user; with a tap device, use the host's firewall")]
    NeedsUser,
    #[error(
        "`--net none` means no network: it cannot be combined with another --net, --forward or --isolated"
    )]
    NoneAndMore,
    #[error("shared-mac only works with tap devices: guests behind `user` never share a network")]
    SharedMacNeedsTap,
    #[error(
        "the guest keeps its {cards} network cards, but {named} networks were given: give --net once for each card, or --net none for all"
    )]
    Cards { cards: usize, named: usize },
    #[error("the guest keeps its network card, whose {what} is {is}: omit {what}=")]
    CardStays { what: &'static str, is: String },
    #[error("`{0}` is not a port forward: write it as [udp:][ADDRESS:]PORT:GUESTPORT")]
    ForwardSyntax(String),
    #[error("port 0 cannot be forwarded: both ports of `{0}` must be between 1 and 65535")]
    ForwardZero(String),
    #[error("{1} forwards starting at {0} exceed port 65535: start at a lower port")]
    ForwardTooMany(Forward, usize),
    #[error("the forwards {0} and {1} use the same host port")]
    ForwardTwice(Forward, Forward),
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    pub backend: NetBackend,
    pub mac: Mac,
    pub mtu: u16,
    /// The guest reaches nothing but who comes through a forward.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// Another VM on the same bridge may have the same address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_mac: bool,
}

/// What is at the host's end of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// passt, which speaks for the guest with sockets of the host.
    User,
    /// A tap device of this name.
    Tap(String),
    /// Nobody: a card without a cable.
    None,
}

impl Display for NetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Tap(name) => write!(f, "tap={name}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl NetConfig {
    pub fn is_user(&self) -> bool {
        self.backend == NetBackend::User
    }

    /// Whether anything is at the other end.
    pub fn is_connected(&self) -> bool {
        self.backend != NetBackend::None
    }

    pub fn tap(&self) -> Option<&str> {
        match &self.backend {
            NetBackend::Tap(name) => Some(name),
            NetBackend::User | NetBackend::None => None,
        }
    }

    fn validate(&self) -> Result<(), NetError> {
        self.mac.check()?;
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(NetError::Mtu(self.mtu.to_string()));
        }
        match &self.backend {
            NetBackend::User | NetBackend::None => Ok(()),
            NetBackend::Tap(_) if self.isolated => Err(NetError::NeedsUser),
            NetBackend::Tap(name) => check_tap_name(name),
        }
    }
}

/// Whether a VM can have all of these.
pub fn validate(nets: &[NetConfig]) -> Result<(), NetError> {
    if nets.len() > MAX_NETS {
        return Err(NetError::TooMany(nets.len()));
    }
    for (i, net) in nets.iter().enumerate() {
        net.validate()?;
        for other in &nets[..i] {
            if other.mac == net.mac {
                return Err(NetError::MacTwice(net.mac));
            }
            match (&other.backend, &net.backend) {
                (NetBackend::Tap(a), NetBackend::Tap(b)) if a == b => {
                    return Err(NetError::TapTwice(a.clone()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a VM with these networks can have these forwards.
pub fn validate_forwards(nets: &[NetConfig], forwards: &[Forward]) -> Result<(), NetError> {
    if !forwards.is_empty() && !nets.iter().any(NetConfig::is_user) {
        return Err(NetError::NeedsUser);
    }
    for (i, forward) in forwards.iter().enumerate() {
        if let Some(other) = forwards[..i].iter().find(|other| other.clashes_with(forward)) {
            return Err(NetError::ForwardTwice(*other, *forward));
        }
    }
    Ok(())
}

/// As the kernel checks the name of a network interface.
pub(super) fn check_tap_name(name: &str) -> Result<(), NetError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/%:,".contains(c);
    let ok = (1..=MAX_TAP_NAME).contains(&name.len()) && !name.contains(bad) && name != "." && name != "..";
    ok.then_some(()).ok_or_else(|| NetError::TapName(name.to_owned()))
}

/// The address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// One that no maker of cards gave away, with bytes that are to be random.
    pub fn local(random: [u8; 3]) -> Self {
        let [a, b, c] = random;
        Self([0x52, 0x54, 0, a, b, c])
    }

    pub(super) fn check(self) -> Result<(), NetError> {
        match self.0 {
            [0, 0, 0, 0, 0, 0] => Err(NetError::MacZero),
            [first, ..] if first & 1 == 1 => Err(NetError::MacGroup(self)),
            _ => Ok(()),
        }
    }
}

impl Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let wrong = || NetError::MacSyntax(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(wrong)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    pub protocol: Protocol,
    /// None: all addresses of the host.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub guest_port: u16,
}

impl Forward {
    /// Whether both are the same port of the same address.
    pub fn same_port(&self, other: &Self) -> bool {
        (self.protocol, self.address, self.port) == (other.protocol, other.address, other.port)
    }

    fn clashes_with(&self, other: &Self) -> bool {
        let everywhere = |forward: &Self| forward.address.is_none_or(|address| address.is_unspecified());
        (self.protocol, self.port) == (other.protocol, other.port)
            && (self.address == other.address || everywhere(self) || everywhere(other))
    }
}

impl Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol == Protocol::Udp {
            f.write_str("udp:")?;
        }
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.port, self.guest_port)
    }
}

impl FromStr for Forward {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let wrong = || NetError::ForwardSyntax(text.to_owned());
        let (protocol, rest) = match text.split_once(':') {
            Some(("udp", rest)) => (Protocol::Udp, rest),
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            _ => (Protocol::Tcp, text),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, port)) => (Some(parse_address(address).ok_or_else(wrong)?), port),
        };
        let number = |text: &str| -> Result<u16, NetError> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or_else(wrong)
        };
        let (port, guest_port) = (number(port)?, number(guest)?);
        if port == 0 || guest_port == 0 {
            return Err(NetError::ForwardZero(text.to_owned()));
        }
        Ok(Self { protocol, address, port, guest_port })
    }
}

/// An IPv6 address is in brackets, as in a URL.
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None if text == "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// As text in JSON.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(super) use as_text;

as_text!(Mac);
as_text!(Forward);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NetArg, networks};

    #[test]
    fn forwards_are_read_as_they_are_told() {
        for text in ["8080:80", "127.0.0.1:2222:22", "udp:5353:53", "[::1]:80:80", "udp:[fd00::1]:1:2"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:localhost:1:2".parse::<Forward>().unwrap().to_string(), "127.0.0.1:1:2");
        for wrong in
            ["", "80", ":80", "80:", "a:80:80", "1.2.3:80:80", "::1:80:80", "80:65536", "+80:80", "sctp:1:2"]
        {
            assert_eq!(wrong.parse::<Forward>(), Err(NetError::ForwardSyntax(wrong.into())), "{wrong}");
        }
        for zero in ["0:80", "80:0", "udp:127.0.0.1:0:1"] {
            assert_eq!(zero.parse::<Forward>(), Err(NetError::ForwardZero(zero.into())));
        }
    }

    #[test]
    fn one_port_leads_to_one_place() {
        let nets = networks(&[NetArg::USER], &[], &[[1, 2, 3]]).unwrap();
        let check = |texts: &[&str]| {
            let forwards: Vec<Forward> = texts.iter().map(|text| text.parse().unwrap()).collect();
            validate_forwards(&nets, &forwards)
        };
        assert_eq!(check(&["80:80", "udp:80:80", "81:80"]), Ok(()));
        assert_eq!(check(&["127.0.0.1:80:80", "127.0.0.2:80:80"]), Ok(()));
        for twice in [["80:80", "80:81"], ["127.0.0.1:80:80", "80:80"], ["0.0.0.0:80:80", "127.0.0.1:80:80"]]
        {
            assert!(matches!(check(&twice), Err(NetError::ForwardTwice(..))), "{twice:?}");
        }
        let forward = ["80:80".parse().unwrap()];
        assert_eq!(validate_forwards(&[], &forward), Err(NetError::NeedsUser));
    }
}
