//! ACPI tables: what the guest's kernel must know of hardware that cannot be probed.
//!
//! The platform is hardware-reduced (ACPI 6.5, section 4.1): no PM timer, no SCI; sleep and reset
//! are plain registers, and the power button comes through the generic event device.

use acpi_tables::aml::{self, Path};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use super::error::{BootError, write_error};
use crate::layout::{
    ACPI_END, ACPI_START, COM1_GSI, COM1_PORT, COM1_PORTS, GED_GSI, GENERATION_PAGE, IOAPIC_START,
    LAPIC_START, POWER_EVENT_BUTTON, POWER_EVENT_GENERATION, POWER_EVENTS, POWER_PORT, POWER_RESET,
    POWER_RESET_VALUE, POWER_SLEEP_CONTROL, POWER_SLEEP_STATUS, POWER_SLEEP_TYPE_S5, VIRTIO_MMIO_SIZE,
};
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"PITON ";
const OEM_TABLE_ID: [u8; 8] = *b"PITONVM ";
/// `iapc_boot_arch` (ACPI 6.5, section 5.2.9.3): no VGA, no MSI-capable bus, no RTC at port 0x70.
const NO_VGA_MSI_RTC: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// Writes RSDP, XSDT, FADT, MADT and DSDT below 1 MiB.
pub fn write_tables(memory: &GuestMemory, cpus: u32, virtio: &[(u64, u32)]) -> Result<(), BootError> {
    let mut at = ACPI_START;
    let mut put = |bytes: &[u8]| -> Result<u64, BootError> {
        let here = at;
        at = (at + bytes.len() as u64).next_multiple_of(16);
        if at > ACPI_END {
            return Err(write_error("the ACPI tables")("they are too large"));
        }
        memory.write_slice(bytes, GuestAddress(here)).map_err(write_error("the ACPI tables"))?;
        Ok(here)
    };
    // The RSDP comes first, where kernels look for it; its contents are known last.
    put(&vec![0; Rsdp::len()])?;
    let dsdt = put(dsdt(virtio).as_slice())?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes_of(&xsdt))?;
    memory
        .write_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(ACPI_START))
        .map_err(write_error("the ACPI tables"))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let register =
        |offset| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, POWER_PORT + offset);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set: the button is a control-method device and not a fixed register.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.reset_reg = register(POWER_RESET);
    fadt.reset_value = POWER_RESET_VALUE;
    fadt.sleep_control_reg = register(POWER_SLEEP_CONTROL);
    fadt.sleep_status_reg = register(POWER_SLEEP_STATUS);
    fadt.iapc_boot_arch = NO_VGA_MSI_RTC.into();
    bytes_of(&fadt.finalize())
}

fn madt(cpus: u32) -> Vec<u8> {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, 1, LocalInterruptController::Address(LAPIC_START));
    for cpu in 0..cpus {
        // At most 254 vCPUs: the APIC id is the index and fits.
        madt.add_structure(ProcessorLocalApic::new(cpu as u8, cpu as u8, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_START, 0));
    bytes_of(&madt)
}

fn interrupt(gsi: u32) -> aml::Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    aml::Interrupt::new(consumer, edge, active_low, shared, gsi)
}

fn dsdt(virtio: &[(u64, u32)]) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, 1);
    let mut body = Vec::new();
    append_serial(&mut body);
    for (index, &(address, gsi)) in virtio.iter().enumerate() {
        append_virtio(&mut body, index, address, gsi);
    }
    append_generation(&mut body);
    append_events(&mut body);
    body.extend(bytes_of(&aml::Name::new(
        Path::new("_S5_"),
        &aml::Package::new(vec![&POWER_SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )));
    sdt.append_slice(&body);
    sdt
}

/// Adds a device below `\_SB_`.
fn append_device(body: &mut Vec<u8>, name: &str, children: Vec<&dyn Aml>) {
    let device = aml::Device::new(Path::new(name), children);
    aml::Scope::new(Path::new("\\_SB_"), vec![&device]).to_aml_bytes(body as &mut dyn AmlSink);
}

fn append_serial(body: &mut Vec<u8>) {
    let port = COM1_PORT as u16;
    append_device(
        body,
        "COM1",
        vec![
            &aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501")),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    &interrupt(COM1_GSI),
                    &aml::IO::new(port, port, 1, COM1_PORTS as u8),
                ]),
            ),
        ],
    );
}

fn append_virtio(body: &mut Vec<u8>, index: usize, address: u64, gsi: u32) {
    append_device(
        body,
        &format!("V{index:03}"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
            &aml::Name::new(Path::new("_UID"), &index),
            // DMA is cache coherent.
            &aml::Name::new(Path::new("_CCA"), &aml::ONE),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    // Devices lie below 4 GiB by layout.
                    &aml::Memory32Fixed::new(true, address as u32, VIRTIO_MMIO_SIZE as u32),
                    &interrupt(gsi),
                ]),
            ),
        ],
    );
}

/// Where the VM generation id is: drivers know the device by its compatible id.
fn append_generation(body: &mut Vec<u8>) {
    let (low, high) = (GENERATION_PAGE as u32, (GENERATION_PAGE >> 32) as u32);
    append_device(
        body,
        "VGEN",
        vec![
            &aml::Name::new(Path::new("_HID"), &"PITN0001"),
            &aml::Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("ADDR"), &aml::Package::new(vec![&low, &high])),
        ],
    );
}

/// The button, and the generic event device whose `_EVT` tells who has news.
fn append_events(body: &mut Vec<u8>) {
    append_device(body, "PWRB", vec![&aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0C0C"))]);
    let events = usize::try_from(POWER_PORT + POWER_EVENTS).unwrap_or_default();
    append_device(
        body,
        "GED_",
        vec![
            &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(Path::new("_CRS"), &aml::ResourceTemplate::new(vec![&interrupt(GED_GSI)])),
            &aml::OpRegion::new(Path::new("EVTR"), aml::OpRegionSpace::SystemIO, &events, &aml::ONE),
            &aml::Field::new(
                Path::new("EVTR"),
                aml::FieldAccessType::Byte,
                aml::FieldLockRule::NoLock,
                aml::FieldUpdateRule::WriteAsZeroes,
                vec![aml::FieldEntry::Named(*b"EVTS", 8)],
            ),
            &aml::Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    // Reading clears the register, so it is read once.
                    &aml::Store::new(&aml::Local(0), &Path::new("EVTS")),
                    &aml::And::new(&aml::Local(1), &aml::Local(0), &POWER_EVENT_BUTTON),
                    &aml::If::new(
                        &aml::Equal::new(&aml::Local(1), &POWER_EVENT_BUTTON),
                        vec![&aml::Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
                    ),
                    &aml::And::new(&aml::Local(1), &aml::Local(0), &POWER_EVENT_GENERATION),
                    &aml::If::new(
                        &aml::Equal::new(&aml::Local(1), &POWER_EVENT_GENERATION),
                        vec![&aml::Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)],
                    ),
                ],
            ),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAX_CPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_largest_tables_fit_and_add_up() {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        let virtio: Vec<_> = (0..16).map(|i| (0xd000_0000 + i * 0x1000, 5 + i as u32)).collect();
        write_tables(&memory, MAX_CPUS, &virtio).unwrap();
        let mut rsdp = [0; 36];
        memory.read_slice(&mut rsdp, GuestAddress(ACPI_START)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp), 0);
        let table = |at: u64| {
            let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
            let mut bytes = vec![0; len as usize];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            assert_eq!(sum(&bytes), 0, "{}", String::from_utf8_lossy(&bytes[..4]));
            bytes
        };
        let xsdt = table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let signatures: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap()))[..4].to_vec())
            .collect();
        assert_eq!(signatures, [b"FACP".to_vec(), b"APIC".to_vec()]);
        let fadt = table(u64::from_le_bytes(xsdt[36..44].try_into().unwrap()));
        let dsdt = table(u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        let address = [b"ADDR\x12\x08\x02\x0c", &(GENERATION_PAGE as u32).to_le_bytes()[..], b"\0"].concat();
        assert!(dsdt.windows(address.len()).any(|bytes| bytes == address));
    }
}
