//! Disks that others read over a Unix socket: a server of the Network Block Device protocol
//! (fixed newstyle, structured replies, block status), for reading only.
//!
//! Nothing that a client sends is believed: lengths are bounded before anything is read, ranges
//! are checked against the disk. A client that breaks the protocol loses its connection; the
//! others do not notice.

mod conversation;
mod export;
mod handshake;
mod line;
mod server;
mod transmission;
mod wire;

#[cfg(test)]
mod tests;

pub use export::Export;
pub use server::{NbdError, Server};
