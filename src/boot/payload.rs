//! What is booted, and where it begins.

use std::path::Path;

/// Where a kernel comes from.
#[derive(Debug, Clone, Copy)]
pub enum Kernel<'a> {
    File(&'a Path),
    /// The guest that is part of piton.
    Bundled(&'static [u8]),
    /// Found elsewhere; `name` is for messages.
    Found {
        name: &'a Path,
        bytes: &'a [u8],
    },
}

/// Where an initrd comes from.
#[derive(Debug, Clone, Copy)]
pub enum Initrd<'a> {
    File(&'a Path),
    Found { name: &'a Path, bytes: &'a [u8] },
}

/// What is to be booted.
#[derive(Debug)]
pub struct Payload<'a> {
    pub kernel: Kernel<'a>,
    pub initrd: Option<Initrd<'a>>,
    pub cmdline: &'a str,
    pub cpus: u32,
    /// Address and GSI of every virtio-mmio device.
    pub virtio: &'a [(u64, u32)],
}

/// Where and how the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, start info in EBX (the PVH boot ABI).
    Pvh(u64),
    /// Long mode, zero page in RSI (Linux 64-bit boot protocol).
    Linux64(u64),
}
