//! Getting a fresh machine ready to run its kernel: kernel and initrd in memory, boot
//! parameters, ACPI tables, CPU features and first registers. A restore never comes here.

pub mod acpi;
pub mod cpuid;
mod kernel;
mod params;
mod registers;

use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::layout::{POWER_PORT, POWER_RESET, POWER_RESET_VALUE, RESET_VECTOR};
use crate::memory::GuestMemory;

pub use registers::set_up_vcpu;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("the {what} {} cannot be read: {error}", path.display())]
    Open { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("the {what} {} is {is}", path.display())]
    Unfit { what: &'static str, path: PathBuf, is: String },
    #[error(
        "the initrd {} ({initrd_mib} MiB) does not fit beside the kernel in {memory_mib} MiB of memory; \
         give the VM more with --memory", path.display()
    )]
    InitrdTooBig { path: PathBuf, initrd_mib: u64, memory_mib: u64 },
    #[error("the command line has {0} characters: at most {max} fit", max = crate::layout::CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    #[error("the command line has a character that is not printable ASCII")]
    CmdlineNotAscii,
    #[error("{what} cannot be written to guest memory: {error}")]
    Write { what: &'static str, error: String },
    #[error("KVM refused to {what}: {error}")]
    Kvm { what: &'static str, error: String },
}

/// Where a kernel comes from.
#[derive(Debug, Clone, Copy)]
pub enum Kernel<'a> {
    File(&'a Path),
    /// The guest that is part of piton.
    Bundled(&'static [u8]),
}

/// What is to be booted.
#[derive(Debug)]
pub struct Payload<'a> {
    pub kernel: Kernel<'a>,
    pub initrd: Option<&'a Path>,
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

/// Loads everything that guest code finds in memory at its first instruction.
pub fn load(memory: &GuestMemory, payload: &Payload) -> Result<Entry, BootError> {
    let kernel = kernel::load(memory, payload.kernel)?;
    let initrd = payload
        .initrd
        .map(|path| kernel::load_initrd(memory, path, kernel.end, kernel.initrd_max))
        .transpose()?;
    params::write_cmdline(memory, payload.cmdline)?;
    acpi::write_tables(memory, payload.cpus, payload.virtio)?;
    write_reset_stub(memory)?;
    match kernel.entry {
        Entry::Pvh(_) => params::write_pvh(memory, initrd)?,
        Entry::Linux64(_) => {
            params::write_linux(memory, kernel.setup_header, payload.cmdline.len(), initrd)?;
            registers::write_page_tables(memory)?;
        }
    }
    Ok(kernel.entry)
}

/// All the firmware there is. Linux on a hardware-reduced platform without UEFI reboots by a jump
/// to the BIOS's reset vector; what it finds there does what the ACPI reset register is for.
fn write_reset_stub(memory: &GuestMemory) -> Result<(), BootError> {
    let [low, high] = ((POWER_PORT + POWER_RESET) as u16).to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xba, low, high,          // mov dx, port
        0xb0, POWER_RESET_VALUE,  // mov al, value
        0xee,                     // out dx, al
        0xf4,                     // hlt
        0xeb, 0xfd,               // jmp to the hlt
    ];
    memory.write_slice(&code, GuestAddress(RESET_VECTOR)).map_err(write_error("the reset vector"))
}

/// For `map_err`: names what did not get into guest memory.
fn write_error<E: ToString>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Write { what, error: error.to_string() }
}
