//! The socket device: streams between programs of the guest and of the host.

mod connection;
mod device;
mod greeting;
pub mod host;
mod packet;
mod sockets;
mod worker;

pub use device::{Vsock, VsockState};
pub use worker::spawn;

#[cfg(test)]
mod tests;
