//! Streams to programs of the host: a virtio-vsock driver, connections, and the commands.

pub mod commands;
pub mod connection;
pub mod device;
mod packet;
