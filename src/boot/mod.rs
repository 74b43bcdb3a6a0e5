//! Getting a fresh machine ready to run its kernel: kernel and initrd in memory, boot
//! parameters, ACPI tables, CPU features and first registers. A restore never comes here.

pub mod acpi;
pub mod cpuid;
mod error;
mod kernel;
mod params;
mod payload;
mod registers;

use vm_memory::{Bytes, GuestAddress};

use crate::layout::{POWER_PORT, POWER_RESET, POWER_RESET_VALUE, RESET_VECTOR};
use crate::memory::GuestMemory;

pub use error::BootError;
pub use payload::{Entry, Initrd, Kernel, Payload};
pub use registers::set_up_vcpu;

use error::write_error;

/// Loads everything that guest code finds in memory at its first instruction.
pub fn load(memory: &GuestMemory, payload: &Payload) -> Result<Entry, BootError> {
    let kernel = kernel::load(memory, payload.kernel)?;
    let initrd = payload
        .initrd
        .map(|initrd| kernel::load_initrd(memory, initrd, kernel.end, kernel.initrd_max))
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
