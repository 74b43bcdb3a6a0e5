//! What all disks have in common.

pub const SECTOR: u64 = 512;
/// Of one chain, the base among them.
pub const MAX_LAYERS: usize = 255;
