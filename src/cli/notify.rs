//! What a service manager is told of this process (sd_notify(3)).

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

/// Opened before the process is confined, and not passed on to the programs that it starts.
static MANAGER: OnceLock<UnixDatagram> = OnceLock::new();

/// Connects to the manager that waits for word, if there is one.
pub fn begin() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    match connect(path.as_bytes()) {
        Ok(socket) => drop(MANAGER.set(socket)),
        Err(e) => log::warn!("cannot notify the service manager at {}: {e}", path.display()),
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read holds up no VM.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tell(text: &str) {
    if let Some(Err(e)) = MANAGER.get().map(|socket| socket.send(text.as_bytes())) {
        log::debug!("the service manager was not told `{text}`: {e}");
    }
}

/// What was started is there.
pub fn ready() {
    tell("READY=1");
}

/// It comes to its end, which may take up to `within`.
pub fn stopping(within: std::time::Duration) {
    let micros = within.saturating_add(GRACE).as_micros();
    tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}"));
}

/// What is left to be done once the guest is off.
const GRACE: std::time::Duration = std::time::Duration::from_secs(30);
