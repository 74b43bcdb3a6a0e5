//! Depots: two PITON_HOMEs as two hosts, a folder or an S3 server between them, and what can happen
//! to all of them.

#[path = "../ckpt_common/mod.rs"]
mod ckpt_common;
#[path = "../common/mod.rs"]
mod common;

mod broken;
mod killed;
mod s3;
mod server;
mod shared;
mod unneeded;
