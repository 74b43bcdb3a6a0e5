//! Networks as the user names them.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::net::{MAX_MTU, MIN_MTU, Mac, NetBackend, NetConfig, NetError, as_text, check_tap_name, validate};

/// MTU of an Ethernet.
const TAP_MTU: u16 = 1500;

/// A network as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg {
    /// Nothing: `none`.
    pub backend: Option<NetBackend>,
    pub mac: Option<Mac>,
    pub mtu: Option<u16>,
    pub isolated: bool,
    pub shared_mac: bool,
}

impl NetArg {
    /// A network with nothing said about it.
    pub const USER: Self =
        Self { backend: Some(NetBackend::User), mac: None, mtu: None, isolated: false, shared_mac: false };
}

impl Display for NetArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend.as_ref().unwrap_or(&NetBackend::None))?;
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        for (is, option) in [(self.isolated, ",isolated"), (self.shared_mac, ",shared-mac")] {
            if is {
                f.write_str(option)?;
            }
        }
        Ok(())
    }
}

as_text!(NetArg);

impl FromStr for NetArg {
    type Err = NetError;

    /// `user|tap=NAME|none[,mac=ADDRESS][,mtu=BYTES][,isolated][,shared-mac]`.
    fn from_str(text: &str) -> Result<Self, NetError> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let backend = match kind.split_once('=') {
            None if kind == "user" => Some(NetBackend::User),
            None if kind == "none" => None,
            Some(("tap", name)) => {
                check_tap_name(name)?;
                Some(NetBackend::Tap(name.to_owned()))
            }
            _ => return Err(NetError::Kind(kind.to_owned())),
        };
        let mut net = Self { backend, mac: None, mtu: None, isolated: false, shared_mac: false };
        for option in parts {
            match option.split_once('=') {
                _ if net.backend.is_none() => return Err(NetError::NoneAndMore),
                None if option == "isolated" => net.isolated = true,
                None if option == "shared-mac" => net.shared_mac = true,
                Some(("mac", mac)) => {
                    let mac: Mac = mac.parse()?;
                    mac.check()?;
                    net.mac = Some(mac);
                }
                Some(("mtu", mtu)) => {
                    let number = mtu.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
                    net.mtu = Some(number.ok_or_else(|| NetError::Mtu(mtu.to_owned()))?);
                }
                _ => return Err(NetError::Option(option.to_owned())),
            }
        }
        if net.isolated && net.backend != Some(NetBackend::User) {
            return Err(NetError::NeedsUser);
        }
        if net.shared_mac && net.backend == Some(NetBackend::User) {
            return Err(NetError::SharedMacNeedsTap);
        }
        Ok(net)
    }
}

/// The networks that were named, all of them. `before` are those whose addresses and MTUs stay
/// unless said otherwise; `random` is for the addresses of others, as many as are named.
pub fn networks(
    args: &[NetArg],
    before: &[NetConfig],
    random: &[[u8; 3]],
) -> Result<Vec<NetConfig>, NetError> {
    if args.iter().any(|arg| arg.backend.is_none()) {
        return if args.len() == 1 { Ok(Vec::new()) } else { Err(NetError::NoneAndMore) };
    }
    let mut nets = Vec::new();
    for ((index, arg), random) in args.iter().enumerate().zip(random) {
        let Some(backend) = arg.backend.clone() else { continue };
        let before = before.get(index);
        let mac = arg.mac.or(before.map(|net| net.mac)).unwrap_or(Mac::local(*random));
        let usual = if backend == NetBackend::User { MAX_MTU } else { TAP_MTU };
        let mtu = arg.mtu.or(before.map(|net| net.mtu)).unwrap_or(usual);
        nets.push(NetConfig { backend, mac, mtu, isolated: arg.isolated, shared_mac: arg.shared_mac });
    }
    validate(&nets)?;
    Ok(nets)
}

/// What is at the other end of cards that a guest has already: those named, one for each card.
/// What the guest knows of its cards stays.
pub fn replug(args: &[NetArg], cards: &[NetConfig]) -> Result<Vec<NetConfig>, NetError> {
    let nowhere = |card: &NetConfig| NetConfig {
        backend: NetBackend::None,
        isolated: false,
        shared_mac: false,
        ..card.clone()
    };
    if let [NetArg { backend: None, .. }] = args {
        return Ok(cards.iter().map(nowhere).collect());
    }
    if args.len() != cards.len() {
        return Err(NetError::Cards { cards: cards.len(), named: args.len() });
    }
    let each = args.iter().zip(cards).map(|(arg, card)| {
        if arg.mac.is_some_and(|mac| mac != card.mac) {
            return Err(NetError::CardStays { what: "mac", is: card.mac.to_string() });
        }
        if arg.mtu.is_some_and(|mtu| mtu != card.mtu) {
            return Err(NetError::CardStays { what: "mtu", is: card.mtu.to_string() });
        }
        let Some(backend) = arg.backend.clone() else { return Ok(nowhere(card)) };
        Ok(NetConfig { backend, isolated: arg.isolated, shared_mac: arg.shared_mac, ..card.clone() })
    });
    let nets = each.collect::<Result<Vec<_>, _>>()?;
    validate(&nets)?;
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Forward;

    fn net(text: &str) -> Result<NetArg, NetError> {
        text.parse()
    }

    #[test]
    fn networks_as_they_are_named() {
        assert_eq!(net("user"), Ok(NetArg::USER));
        assert_eq!(net("none").map(|net| net.backend), Ok(None));
        let tap = net("tap=tap0,mac=52:54:00:12:34:56,mtu=9000").unwrap();
        assert_eq!(tap.backend, Some(NetBackend::Tap("tap0".into())));
        assert_eq!(tap.mac.map(|mac| mac.to_string()).as_deref(), Some("52:54:00:12:34:56"));
        assert_eq!(tap.mtu, Some(9000));
        assert!(net("user,isolated").unwrap().isolated);
        for (wrong, error) in [
            ("", NetError::Kind(String::new())),
            ("bridge", NetError::Kind("bridge".into())),
            ("user=1", NetError::Kind("user=1".into())),
            ("tap=", NetError::TapName(String::new())),
            ("tap=a/b", NetError::TapName("a/b".into())),
            ("tap=..", NetError::TapName("..".into())),
            ("tap=0123456789abcdef", NetError::TapName("0123456789abcdef".into())),
            ("user,x", NetError::Option("x".into())),
            ("user,mac=1", NetError::MacSyntax("1".into())),
            ("user,mac=52:54:00:12:34:56:78", NetError::MacSyntax("52:54:00:12:34:56:78".into())),
            ("user,mac=52:54:00:12:34:+5", NetError::MacSyntax("52:54:00:12:34:+5".into())),
            ("user,mac=53:54:00:12:34:56", NetError::MacGroup(Mac([0x53, 0x54, 0, 0x12, 0x34, 0x56]))),
            ("user,mac=00:00:00:00:00:00", NetError::MacZero),
            ("user,mtu=1279", NetError::Mtu("1279".into())),
            ("user,mtu=65521", NetError::Mtu("65521".into())),
            ("user,mtu=many", NetError::Mtu("many".into())),
            ("tap=tap0,isolated", NetError::NeedsUser),
            ("none,isolated", NetError::NoneAndMore),
            ("user,shared-mac", NetError::SharedMacNeedsTap),
        ] {
            assert_eq!(net(wrong), Err(error), "{wrong}");
        }
    }

    #[test]
    fn addresses_stay_and_differ() {
        let random = [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [0, 0, 5]];
        let two = networks(&[NetArg::USER, net("tap=t0").unwrap()], &[], &random).unwrap();
        assert_ne!(two[0].mac, two[1].mac);
        assert_eq!((two[0].mtu, two[1].mtu), (65520, 1500));
        let moved = networks(&[net("tap=t1").unwrap()], &two, &random).unwrap();
        assert_eq!((moved[0].mac, moved[0].mtu), (two[0].mac, 65520));
        assert_eq!(networks(&[net("none").unwrap()], &two, &random), Ok(Vec::new()));
        let mix = [net("none").unwrap(), NetArg::USER];
        assert_eq!(networks(&mix, &[], &random), Err(NetError::NoneAndMore));
        let same = [net("tap=t0").unwrap(), net("tap=t0").unwrap()];
        assert_eq!(networks(&same, &[], &random), Err(NetError::TapTwice("t0".into())));
        let mac = net("user,mac=52:54:00:00:00:01").unwrap();
        assert!(matches!(networks(&[mac.clone(), mac], &[], &random), Err(NetError::MacTwice(_))));
        assert_eq!(networks(&vec![NetArg::USER; 5], &[], &random), Err(NetError::TooMany(5)));
    }

    #[test]
    fn cards_that_the_guest_has_get_another_end() {
        let named = |texts: &[&str]| texts.iter().map(|text| net(text).unwrap()).collect::<Vec<_>>();
        let cards = networks(&named(&["tap=t0,mtu=9000", "user,isolated"]), &[], &[[1; 3], [2; 3]]).unwrap();
        let moved = replug(&named(&["user", "tap=t1,shared-mac"]), &cards).unwrap();
        assert_eq!((moved[0].mac, moved[0].mtu), (cards[0].mac, 9000));
        assert!(moved[0].is_user() && !moved[1].isolated && moved[1].shared_mac);
        assert_eq!(moved[1].tap(), Some("t1"));
        for none in [&["none"][..], &["none", "none"]] {
            let nowhere = replug(&named(none), &cards).unwrap();
            assert!(nowhere.iter().all(|net| !net.is_connected() && !net.isolated));
            assert_eq!(nowhere[1].mac, cards[1].mac);
        }
        assert_eq!(replug(&named(&["user"]), &cards), Err(NetError::Cards { cards: 2, named: 1 }));
        assert_eq!(replug(&named(&["user"]), &[]), Err(NetError::Cards { cards: 0, named: 1 }));
        assert_eq!(replug(&named(&["none"]), &[]), Ok(Vec::new()));
        let same = format!("user,mac={},mtu=9000", cards[0].mac);
        assert!(replug(&named(&[&same, "none"]), &cards).is_ok());
        for other in ["user,mac=52:54:00:00:00:07", "user,mtu=1500"] {
            let refused = replug(&named(&[other, "user"]), &cards);
            assert!(matches!(refused, Err(NetError::CardStays { .. })), "{refused:?}");
        }
        assert_eq!(replug(&named(&["tap=t1", "tap=t1"]), &cards), Err(NetError::TapTwice("t1".into())));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["user", "none", "tap=t0,mac=52:54:00:12:34:56,mtu=9000,shared-mac", "user,isolated"] {
            assert_eq!(net(text).unwrap().to_string(), text);
        }
        let nets = networks(&[NetArg::USER, net("tap=t0").unwrap()], &[], &[[1; 3], [2; 3]]).unwrap();
        let json = serde_json::to_string(&nets).unwrap();
        assert_eq!(serde_json::from_str::<Vec<NetConfig>>(&json).unwrap(), nets);
        assert!(serde_json::from_str::<Forward>("\"80:0\"").is_err());
    }
}
