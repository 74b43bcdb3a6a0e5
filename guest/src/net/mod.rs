//! Networks: a virtio-net driver, the TCP/IP stack `smoltcp` above it, and the commands.

mod bench;
pub mod commands;
mod connect;
pub mod error;
mod frames;
mod get;
pub mod http;
mod ipv6;
mod nic;
mod ping;
pub mod stack;
