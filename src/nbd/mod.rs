//! Disks that others read over a Unix socket: a server of the Network Block Device protocol
//! (fixed newstyle, structured replies, block status), for reading only.
//!
//! Nothing that a client sends is believed: lengths are bounded before anything is read, ranges
//! are checked against the disk. A client that breaks the protocol loses its connection; the
//! others do not notice.

mod handshake;
mod server;
mod transmission;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Backing;

pub use server::Server;

#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("{} is there already: choose another path for the socket, or remove it", .0.display())]
    Taken(PathBuf),
    #[error("the path of the socket, {}, has {len} bytes and at most {max} can be used: choose a shorter one", path.display())]
    TooLong { path: PathBuf, len: usize, max: usize },
    #[error("the socket {} cannot be set up: {error}", path.display())]
    Setup { path: PathBuf, error: io::Error },
}

/// A disk to be read, under a name.
#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub disk: Arc<dyn Backing>,
}

/// Why a conversation ended before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the client sent what the protocol does not know: {0}")]
    Protocol(&'static str),
}

/// Talks with one client until it goes.
fn converse(stream: &mut (impl io::Read + io::Write), exports: &[Export]) -> Result<(), Broken> {
    match handshake::negotiate(stream, exports)? {
        Some(agreed) => transmission::serve(stream, &agreed),
        None => Ok(()),
    }
}
