//! Boot parameters: the command line, the PVH start info and the Linux zero page.
//!
//! Sources: Xen's docs/misc/pvh.pandoc; the kernel's Documentation/arch/x86/boot.rst and
//! zero-page.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::error::{BootError, write_error};
use crate::layout::{
    ACPI_START, CMDLINE_MAX, CMDLINE_START, HIGH_RAM_START, LOW_RAM_END, PVH_INFO_START, PVH_MEMMAP_START,
    PVH_MODLIST_START, ZERO_PAGE_START,
};
use crate::memory::GuestMemory;

const PVH_MAGIC: u32 = 0x336e_c578;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot loader type: none that is registered.
const LOADER_UNDEFINED: u8 = 0xff;
/// For an ELF kernel, which brings no setup header: protocol 2.15.
const PROTOCOL_VERSION: u16 = 0x020f;

pub fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong(cmdline.len()));
    }
    if !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(BootError::CmdlineNotAscii);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(CMDLINE_START)).map_err(write_error("the command line"))
}

/// Address, length and E820 type of every part of the address space that the guest must know.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_RAM_END, E820_RAM), (ACPI_START, HIGH_RAM_START - ACPI_START, E820_RESERVED)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(HIGH_RAM_START);
        let end = region.start_addr().raw_value() + region.len();
        map.push((start, end - start, E820_RAM));
    }
    map
}

pub fn write_pvh(memory: &GuestMemory, initrd: Option<(u64, u64)>) -> Result<(), BootError> {
    let map = memory_map(memory);
    for (i, &(addr, size, type_)) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        let at = PVH_MEMMAP_START + (i * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(entry, GuestAddress(at)).map_err(write_error("the memory map"))?;
    }
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        memory.write_obj(module, GuestAddress(PVH_MODLIST_START)).map_err(write_error("the module list"))?;
    }
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { PVH_MODLIST_START } else { 0 },
        cmdline_paddr: CMDLINE_START,
        rsdp_paddr: ACPI_START,
        memmap_paddr: PVH_MEMMAP_START,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(PVH_INFO_START)).map_err(write_error("the start info"))
}

pub fn write_linux(
    memory: &GuestMemory,
    header: Option<setup_header>,
    cmdline_len: usize,
    initrd: Option<(u64, u64)>,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL_VERSION,
            ..Default::default()
        }),
        acpi_rsdp_addr: ACPI_START,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE_START as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    if let Some((start, len)) = initrd {
        // Both lie below 4 GiB: the loader placed the initrd in low RAM.
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: kind };
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE_START)).map_err(write_error("the zero page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_names_all_ram_and_no_hole() {
        let memory = crate::memory::allocate(6 << 30).unwrap();
        let ram: Vec<_> = memory_map(&memory).into_iter().filter(|e| e.2 == E820_RAM).collect();
        assert_eq!(
            ram,
            [
                (0, LOW_RAM_END, E820_RAM),
                (HIGH_RAM_START, (3 << 30) - HIGH_RAM_START, E820_RAM),
                (4 << 30, 3 << 30, E820_RAM)
            ]
        );
    }

    #[test]
    fn command_lines() {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        write_cmdline(&memory, &"x".repeat(CMDLINE_MAX - 1)).unwrap();
        assert!(matches!(
            write_cmdline(&memory, &"x".repeat(CMDLINE_MAX)),
            Err(BootError::CmdlineTooLong(CMDLINE_MAX))
        ));
        for wrong in ["a\nb", "a\0b", "ä"] {
            assert!(matches!(write_cmdline(&memory, wrong), Err(BootError::CmdlineNotAscii)));
        }
    }
}
