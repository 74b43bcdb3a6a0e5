//! What cloud-init finds at a guest's first boot: a disk labelled CIDATA with `meta-data` and
//! `user-data` (the NoCloud data source). As bytes; no files here.

/// The id of the disk in a VM.
pub const DISK: &str = "cidata";

/// Bytes of one: more than any has.
pub const MOST: u64 = 16 << 20;

mod check;
mod disk;

pub use check::{SeedError, check_hostname, check_key, check_password, user_data};
pub use disk::{Seed, for_clone};
