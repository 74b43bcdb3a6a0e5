//! Whether ports of the host can be had, before anybody is told to take them.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::config::{Forward, Protocol};

/// How often a port that is taken is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("cannot forward {0}: port {port} of this host is in use; choose another one", port = .0.port)]
    Taken(Forward),
    #[error("cannot forward {0}: only root can use ports below {from} of this host; choose a higher one", from = privileged_below())]
    Privileged(Forward),
    #[error("cannot forward {0}: this host does not have that address")]
    NoAddress(Forward),
    #[error("cannot forward {0}: {1}")]
    Other(Forward, Error),
}

fn privileged_below() -> u16 {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    said.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Whether all of these ports can be had. One that is taken may be given back in `patience`: who
/// had it may be ending.
pub fn check_free(forwards: &[Forward], patience: Duration) -> Result<(), PortError> {
    let deadline = Instant::now() + patience;
    for forward in forwards {
        while let Err(error) = try_out(forward) {
            match error.kind() {
                ErrorKind::AddrInUse if Instant::now() < deadline => std::thread::sleep(AGAIN),
                ErrorKind::AddrInUse => return Err(PortError::Taken(*forward)),
                ErrorKind::PermissionDenied => return Err(PortError::Privileged(*forward)),
                ErrorKind::AddrNotAvailable => return Err(PortError::NoAddress(*forward)),
                _ => return Err(PortError::Other(*forward, error)),
            }
        }
    }
    Ok(())
}

fn try_out(forward: &Forward) -> Result<(), Error> {
    match forward.address {
        Some(address) => bind(forward.protocol, address, forward.port),
        None => {
            bind(forward.protocol, Ipv4Addr::UNSPECIFIED.into(), forward.port)?;
            match bind(forward.protocol, Ipv6Addr::UNSPECIFIED.into(), forward.port) {
                // A host without IPv6.
                Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
                Err(e) if e.kind() == ErrorKind::AddrNotAvailable => Ok(()),
                other => other,
            }
        }
    }
}

fn bind(protocol: Protocol, address: IpAddr, port: u16) -> Result<(), Error> {
    let address = SocketAddr::new(address, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let check = |text: String| check_free(&[text.parse().unwrap()], Duration::ZERO);
        for text in [
            format!("{tcp_port}:80"),
            format!("127.0.0.1:{tcp_port}:80"),
            format!("udp:{udp_port}:80"),
            format!("udp:127.0.0.1:{udp_port}:80"),
        ] {
            let error = check(text.clone()).unwrap_err();
            assert!(matches!(error, PortError::Taken(_)), "{error}");
            assert!(error.to_string().contains(&text), "{error}");
        }
        drop(tcp);
        check(format!("127.0.0.1:{tcp_port}:80")).unwrap();
        assert!(matches!(check("203.0.113.77:4000:80".into()), Err(PortError::NoAddress(_))));
    }

    #[test]
    fn one_that_is_given_back_in_time_will_do() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward: Forward = format!("127.0.0.1:{}:80", tcp.local_addr().unwrap().port()).parse().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(tcp);
        });
        check_free(&[forward], Duration::from_secs(30)).unwrap();
        holder.join().unwrap();
    }
}
