//! The socket, and a thread for each client.

use std::io;
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};

use super::conversation::converse;
use super::export::Export;
use super::line::Line;
use super::wire::Broken;
use crate::seats::{Seat, Seats};

#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("{} already exists: choose another path for the socket, or remove it", .0.display())]
    Taken(PathBuf),
    #[error("the path of the socket, {}, is too long ({len} bytes, at most {max}): choose a shorter one", path.display())]
    TooLong { path: PathBuf, len: usize, max: usize },
    #[error("cannot set up the socket {}: {error}", path.display())]
    Setup { path: PathBuf, error: io::Error },
}

/// Clients at one time. Each may have one request of [`super::handshake::REQUEST_MAX`] under way.
const CLIENTS_MAX: usize = 16;
/// One that was silent for so long makes room for another if all places are taken.
const GRACE: Duration = Duration::from_secs(1);
/// How long a client waits for a place before it is sent away.
const SEATING: Duration = Duration::from_secs(3);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// Longest path of a Unix socket, without its final NUL (unix(7)).
const PATH_MAX: usize = 107;

/// Serves until it is dropped, which removes the socket. Clients that are being served then go with
/// the process.
pub struct Server {
    path: PathBuf,
    /// Until clients are answered.
    listener: Option<UnixListener>,
}

impl Server {
    /// Makes the socket. Clients can connect, and are answered from [`Self::serve`] on.
    pub fn bind(path: &Path) -> Result<Self, NbdError> {
        let len = path.as_os_str().as_bytes().len();
        if len > PATH_MAX {
            return Err(NbdError::TooLong { path: path.to_owned(), len, max: PATH_MAX });
        }
        Ok(Self { path: path.to_owned(), listener: Some(listen(path)?) })
    }

    pub fn serve(&mut self, exports: Vec<Export>) -> Result<(), NbdError> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let exports: Arc<[Export]> = exports.into();
        let spawned =
            std::thread::Builder::new().name("nbd".into()).spawn(move || accept(&listener, &exports));
        match spawned {
            Ok(_) => Ok(()),
            Err(error) => Err(NbdError::Setup { path: self.path.clone(), error }),
        }
    }
}

/// The socket, which nobody else may use from its first moment on.
fn listen(path: &Path) -> Result<UnixListener, NbdError> {
    let bind = || {
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        listener
    };
    let failed = |error| NbdError::Setup { path: path.to_owned(), error };
    match bind() {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            // One that a killed server left: nobody listens.
            let left = UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            let is_socket = std::fs::symlink_metadata(path)
                .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
            if !left || !is_socket {
                return Err(NbdError::Taken(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
            bind().map_err(failed)
        }
        other => other.map_err(failed),
    }
}

fn accept(listener: &UnixListener, exports: &Arc<[Export]>) {
    let seats = Seats::new(CLIENTS_MAX, GRACE);
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                log::warn!("cannot accept a client: {e}");
                // Out of file descriptors, it would fail again at once.
                seats.free_one();
                std::thread::sleep(RETRY);
                continue;
            }
        };
        let Some(seat) = seat(&seats, &stream) else {
            log::warn!("rejected a client: {CLIENTS_MAX} others are connected and active");
            continue;
        };
        let exports = exports.clone();
        let spawned = std::thread::Builder::new().name("nbd client".into()).spawn(move || {
            let line = Line::new(stream, &seat).map_err(Broken::from);
            if let Err(e) = line.and_then(|mut line| converse(&mut line, &exports, Line::rest)) {
                log::info!("a client disconnected: {e}");
            }
        });
        if let Err(e) = spawned {
            log::warn!("cannot serve a client: {e}");
        }
    }
}

/// A place for a client, if one is free in time.
fn seat(seats: &Seats, stream: &UnixStream) -> Option<Seat> {
    let deadline = Instant::now() + SEATING;
    loop {
        let line = stream.try_clone().ok()?;
        let seat = seats.take(move || {
            // It may have gone by itself.
            let _ = line.shutdown(Shutdown::Both);
        });
        if seat.is_some() || Instant::now() >= deadline {
            return seat;
        }
        std::thread::sleep(RETRY);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove the socket {}: {e}", self.path.display());
        }
    }
}
