//! Where the manager listens, and its life.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use std::os::unix::net::UnixListener;
use tokio::sync::oneshot;

use super::actions::Actions;
use super::api::Context;
use super::front::{Door, router};
use super::gate::Gate;
use super::life;
use super::starter::Starter;
use super::watch::Watch;
use crate::control::server::connections::serve as serve_clients;
use crate::control::server::descriptors;
use crate::folder::Home;
use crate::seats::Seats;
use crate::seccomp::{self, Thread};

/// Connections at one time, where there are file descriptors enough.
const CONNECTIONS_MAX: usize = 256;
/// A connection that said nothing for this long makes room for another if all are taken.
const GRACE: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("cannot listen on {at}: {error}")]
    Listen { at: String, error: io::Error },
    #[error("another manager, or another program, listens on {}", .0.display())]
    Taken(PathBuf),
    #[error("{} exists and is not a socket: choose another path", .0.display())]
    NoSocket(PathBuf),
    #[error("cannot start the manager: {0}")]
    Start(io::Error),
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Port 0: any that is free.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Default for Address {
    fn default() -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, 0).into())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an address: use ADDRESS:PORT, ADDRESS, PORT or unix:PATH", .0.escape_debug())]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        text.parse()
            .or_else(|_| text.parse().map(port))
            .or_else(|_| text.parse::<IpAddr>().map(|address| (address, 0).into()))
            .map(Self::Tcp)
            .map_err(|_| AddressError(text.to_owned()))
    }
}

pub struct Options {
    pub home: Home,
    pub address: Address,
    /// Names that this host has for browsers elsewhere.
    pub allowed_hosts: Vec<String>,
    /// Runs [`start_commands`](super::start_commands).
    pub starter: Command,
    /// Restrict what the threads that browsers reach may ask of the kernel.
    pub confined: bool,
}

/// Where the manager can be found: a link is this and the token. Over a Unix socket the port is the
/// user's own.
fn root(allowed_hosts: &[String], at: Option<SocketAddr>) -> String {
    let host = allowed_hosts.first();
    match at {
        None => format!("http://{}", host.map_or("localhost:PORT", String::as_str)),
        Some(at) => match host {
            Some(host) => format!("http://{host}:{}", at.port()),
            None => format!("http://{at}"),
        },
    }
}

/// A socket that listens.
enum Open {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves until `stop` comes. `new_link` is told each link; one lets one browser in. All that browsers
/// reach is in a thread, and in those that it starts, that may look at files, ask VMs and the process
/// that starts commands, and nothing else.
pub fn serve(
    options: Options,
    new_link: impl Fn(&str) + Send + Sync + 'static,
    stop: oneshot::Receiver<()>,
) -> Result<(), ManagerError> {
    let (door, gate, at) = match &options.address {
        Address::Tcp(address) => {
            let failed = |error| ManagerError::Listen { at: address.to_string(), error };
            let door = TcpListener::bind(address).map_err(failed)?;
            let at = door.local_addr().map_err(failed)?;
            door.set_nonblocking(true).map_err(failed)?;
            // An address is nobody's name.
            let own = (!at.ip().is_unspecified()).then(|| match at.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            });
            let gate = Gate::new(options.allowed_hosts.iter().cloned().chain(own), &at.port().to_string());
            (Open::Tcp(door), gate, Some(at))
        }
        Address::Unix(path) => {
            let mark = format!("{:08x}", crc32fast::hash(path.as_os_str().as_encoded_bytes()));
            (Open::Unix(bind(path)?), Gate::new(options.allowed_hosts.iter().cloned(), &mark), None)
        }
    };
    let Options { home, address, starter, confined, .. } = options;
    let root = root(&options.allowed_hosts, at);
    let tell = move |token: &str| new_link(&format!("{root}/?token={token}"));
    // The first is told here, as it may start a browser.
    tell(&gate.new_link().map_err(ManagerError::Start)?);
    let front = Door { gate: Arc::new(gate), new_link: Arc::new(tell) };
    let served = talk_confined(door, home, starter, confined, stop, |context| router(front, context));
    if let Address::Unix(path) = &address {
        let _ = std::fs::remove_file(path);
    }
    served
}

pub struct HomeOptions {
    pub home: Home,
    pub path: PathBuf,
    /// As in [`Options`].
    pub starter: Command,
    pub confined: bool,
}

/// Serves the socket of a home until `stop` comes; `ready` is called once it listens.
pub fn serve_home(
    options: HomeOptions,
    ready: impl FnOnce(),
    stop: oneshot::Receiver<()>,
) -> Result<(), ManagerError> {
    let HomeOptions { home, path, starter, confined } = options;
    let door = Open::Unix(bind(&path)?);
    ready();
    let served = talk_confined(door, home, starter, confined, stop, super::home::router);
    let _ = std::fs::remove_file(&path);
    served
}

fn talk_confined(
    door: Open,
    home: Home,
    starter: Command,
    confined: bool,
    stop: oneshot::Receiver<()>,
    router: impl FnOnce(Context) -> Router + Send + 'static,
) -> Result<(), ManagerError> {
    let starter = Starter::spawn(starter).map_err(ManagerError::Start)?;
    if confined {
        seccomp::enable().map_err(|e| ManagerError::Start(io::Error::other(e)))?;
    }
    let served = std::thread::Builder::new().name("manager".into()).spawn(move || {
        seccomp::confine(Thread::Manager);
        life::run(talk(door, home, Actions::new(starter), stop, router)).map_err(ManagerError::Start)?
    });
    let served = served.map_err(ManagerError::Start)?.join();
    served.unwrap_or_else(|_| Err(ManagerError::Start(io::Error::other("its thread panicked"))))
}

async fn talk(
    open: Open,
    home: Home,
    actions: Actions,
    stop: oneshot::Receiver<()>,
    router: impl FnOnce(Context) -> Router,
) -> Result<(), ManagerError> {
    let watch = Watch::new(home.clone());
    tokio::spawn(watch.clone().run());
    let app = router(Context { home, watch, actions });
    let seats = Seats::new((descriptors() / 4).clamp(4, CONNECTIONS_MAX), GRACE);
    life::until(stop, async |stopped| {
        match open {
            Open::Tcp(door) => {
                let door = tokio::net::TcpListener::from_std(door).map_err(ManagerError::Start)?;
                serve_clients(door, app, seats, stopped).await;
            }
            Open::Unix(door) => {
                let door = tokio::net::UnixListener::from_std(door).map_err(ManagerError::Start)?;
                serve_clients(door, app, seats, stopped).await;
            }
        }
        Ok(())
    })
    .await
}

/// Listens at `path`, in place of the socket of a manager that is no more.
fn bind(path: &Path) -> Result<UnixListener, ManagerError> {
    let failed = |error| ManagerError::Listen { at: path.display().to_string(), error };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(ManagerError::NoSocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(ManagerError::Taken(path.to_owned())),
            Err(e) => return Err(failed(e)),
        },
    }
    let door = UnixListener::bind(path).map_err(failed)?;
    door.set_nonblocking(true).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(door)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        for (text, address) in [
            ("8000", tcp("127.0.0.1:8000")),
            ("127.0.0.2", tcp("127.0.0.2:0")),
            ("[::1]:80", tcp("[::1]:80")),
            ("::1", tcp("[::1]:0")),
            ("unix:/run/x", Ok(Address::Unix("/run/x".into()))),
        ] {
            assert_eq!(text.parse(), address, "{text}");
        }
        for text in ["", "unix:", "localhost:80", "99999", "a b"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
