//! The one TCP connection that commands make: finding the peer, connecting, reading.

use crate::guest::Guest;
use crate::net::error::Error;
use crate::net::stack::Stack;
use core::net::{IpAddr, SocketAddr};
use smoltcp::socket::dns::{self, GetQueryResultError};
use smoltcp::socket::tcp::{self, RecvError};
use smoltcp::time::Duration;
use smoltcp::wire::DnsQueryType;

const DNS_US: u64 = 15_000_000;
const CONNECT_US: u64 = 30_000_000;
/// Nothing heard for so long ends a connection.
const SILENCE: Duration = Duration::from_secs(30);
pub const SILENCE_US: u64 = 30_000_000;
/// Who only listens finds out by this that the other side is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

pub fn stack(g: &mut Guest, n: usize) -> Result<&mut Stack, Error> {
    g.net.get_mut(n).and_then(Option::as_mut).ok_or(Error::NoDevice)
}

pub fn client(g: &mut Guest, n: usize) -> Result<&mut tcp::Socket<'static>, Error> {
    let stack = stack(g, n)?;
    Ok(stack.sockets.get_mut::<tcp::Socket>(stack.client))
}

/// Waits until the device has an address.
pub fn need_address(g: &mut Guest, n: usize) -> Result<(), Error> {
    stack(g, n)?;
    g.until(DNS_US, |g| g.net[n].as_ref().is_none_or(|s| s.addresses.is_some()).then_some(()))
        .ok_or(Error::NoAddress)
}

/// A name's IPv4 address, or if it has none, and this guest has one itself, its IPv6 address.
pub fn resolve(g: &mut Guest, n: usize, host: &str) -> Result<IpAddr, Error> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    match query(g, n, host, DnsQueryType::A) {
        Err(Error::Unresolved) if stack(g, n)?.ipv6.address.is_some() => {
            query(g, n, host, DnsQueryType::Aaaa)
        }
        other => other,
    }
}

fn query(g: &mut Guest, n: usize, host: &str, kind: DnsQueryType) -> Result<IpAddr, Error> {
    let stack = stack(g, n)?;
    let handle = stack.dns;
    let socket = stack.sockets.get_mut::<dns::Socket>(handle);
    let query =
        socket.start_query(stack.iface.context(), host, kind).map_err(|_| Error::Unresolved)?;
    let answer = g.until(DNS_US, |g| {
        let stack = g.net[n].as_mut()?;
        match stack.sockets.get_mut::<dns::Socket>(handle).get_query_result(query) {
            Err(GetQueryResultError::Pending) => None,
            Err(GetQueryResultError::Failed) => Some(None),
            Ok(list) => Some(list.first().map(|address| IpAddr::from(*address))),
        }
    });
    match answer {
        Some(found) => found.ok_or(Error::Unresolved),
        None => {
            let stack = self::stack(g, n)?;
            stack.sockets.get_mut::<dns::Socket>(handle).cancel_query(query);
            Err(Error::Silence)
        }
    }
}

pub fn connect(g: &mut Guest, n: usize, peer: SocketAddr) -> Result<(), Error> {
    need_address(g, n)?;
    client(g, n)?.abort();
    let stack = stack(g, n)?;
    // The end of the connection before this one is told first.
    stack.flush();
    let port = stack.fresh_port();
    let socket = stack.sockets.get_mut::<tcp::Socket>(stack.client);
    socket.set_timeout(Some(SILENCE));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.connect(stack.iface.context(), peer, port).map_err(|_| Error::Refused)?;
    let done = g.until(CONNECT_US, |g| match client(g, n).map(|s| s.state()) {
        Ok(tcp::State::SynSent | tcp::State::SynReceived) => None,
        Ok(tcp::State::Closed) | Err(_) => Some(Err(Error::Refused)),
        Ok(_) => Some(Ok(())),
    });
    done.unwrap_or(Err(Error::Silence))
}

/// Gives `use_it` what has come. True if something had, false if the other side has ended.
pub fn read(
    socket: &mut tcp::Socket<'static>,
    mut use_it: impl FnMut(&[u8]),
) -> Result<Option<bool>, Error> {
    let mut any = false;
    loop {
        let taken = socket.recv(|bytes| {
            use_it(bytes);
            (bytes.len(), bytes.len())
        });
        match taken {
            Ok(0) => return Ok(any.then_some(true)),
            Ok(_) => any = true,
            Err(RecvError::Finished) if any => return Ok(Some(true)),
            Err(RecvError::Finished) => return Ok(Some(false)),
            Err(RecvError::InvalidState) => return Err(Error::Reset),
        }
    }
}
