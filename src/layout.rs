//! Where things lie in guest-physical memory, on the port bus and on the interrupt controller.
//!
//! Low memory follows the Linux boot protocol's habits (zero page, page tables and command
//! line under 640 KiB); everything piton itself chose is stated here and nowhere else.

/// Page size of guest memory, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Global descriptor table used at boot.
pub const GDT_START: u64 = 0x500;
/// Interrupt descriptor table used at boot (empty).
pub const IDT_START: u64 = 0x540;
/// PVH `hvm_start_info`; the module list follows in the same page.
pub const PVH_INFO_START: u64 = 0x6000;
/// PVH module list.
pub const PVH_MODLIST_START: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMMAP_START: u64 = 0x7000;
/// Linux `boot_params` ("zero page").
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Stack pointer of the first vCPU at boot.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Level 4 page table for the 64-bit entry; the next two pages hold levels 3 and 2.
pub const PML4_START: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Longest command line, with its final NUL (Linux COMMAND_LINE_SIZE on x86).
pub const CMDLINE_MAX: usize = 2048;
/// End of usable low memory; the extended BIOS data area would follow.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// RSDP first, then the other ACPI tables: the area that firmware-less kernels scan.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the area for ACPI tables.
pub const ACPI_END: u64 = GENERATION_PAGE;
/// The page with the VM generation id at its start: in the area that the memory map reserves, and
/// with nothing else in it.
pub const GENERATION_PAGE: u64 = 0xf_e000;
/// Where a real-mode jump to FFFF:0000 lands: "reboot through the BIOS".
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// First byte of high memory.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// RAM goes on here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio device; one every [`VIRTIO_MMIO_SIZE`] bytes.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Address space of one virtio-mmio device, in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// GSIs that virtio devices get, in this order: IOAPIC-only pins first.
pub const VIRTIO_GSIS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15];

/// I/O APIC registers (the in-kernel one's fixed place).
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC_START: u32 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for its TSS; never RAM.
pub const KVM_TSS_START: u64 = 0xfffb_d000;
/// One page that KVM on Intel needs for an identity map; never RAM.
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;

/// COM1: first port, number of ports, GSI.
pub const COM1_PORT: u64 = 0x3f8;
pub const COM1_PORTS: u64 = 8;
pub const COM1_GSI: u32 = 4;
/// i8042: data port, with the command port four above it.
pub const I8042_PORT: u64 = 0x60;
pub const I8042_PORTS: u64 = 5;
/// ACPI power registers: sleep control, sleep status, reset, then the event register.
pub const POWER_PORT: u64 = 0x600;
pub const POWER_PORTS: u64 = 8;
pub const POWER_SLEEP_CONTROL: u64 = 0;
pub const POWER_SLEEP_STATUS: u64 = 1;
pub const POWER_RESET: u64 = 2;
pub const POWER_EVENTS: u64 = 4;
/// What the ACPI tables tell the guest to write to them, and what it reads.
pub const POWER_SLEEP_TYPE_S5: u8 = 5;
pub const POWER_RESET_VALUE: u8 = 1;
/// Event bit: the power button was pressed.
pub const POWER_EVENT_BUTTON: u8 = 1 << 0;
/// Event bit: the VM generation id has changed.
pub const POWER_EVENT_GENERATION: u8 = 1 << 1;
/// Generic event device (ACPI 6.5, section 5.6.9): its GSI.
pub const GED_GSI: u32 = 9;

/// Most vCPUs whose local APIC fits an 8-bit APIC id (255 is broadcast).
pub const MAX_CPUS: u32 = 254;
