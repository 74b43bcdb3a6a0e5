//! The few facts that are needed from ACPI, without an AML interpreter.

use crate::apic::IoApic;
use crate::boot::MAX_CPUS;

/// Firmware memory below 4 GiB, all of which is mapped and never unmapped.
pub fn bytes(addr: u64, len: usize) -> Option<&'static [u8]> {
    if addr < 16 || addr.checked_add(len as u64)? > 1 << 32 {
        return None;
    }
    // SAFETY: identity-mapped by the stub; read at boot only, before the memory
    // that the VMM's structures lie in is used for anything else.
    Some(unsafe { core::slice::from_raw_parts(addr as *const u8, len) })
}

/// A generic address structure that is known to be usable.
#[derive(Clone, Copy)]
pub struct Register {
    pub io: bool,
    pub addr: u64,
}

pub struct Acpi {
    pub apic_ids: [u8; MAX_CPUS],
    pub cpus: usize,
    pub ioapics: [IoApic; 4],
    pub ioapic_count: usize,
    /// (address, gsi) of virtio-mmio devices.
    pub virtio: [(u64, u32); 64],
    pub virtio_count: usize,
    pub sleep: Option<Register>,
    pub reset: Option<(Register, u8)>,
    pub pm1a: Option<u16>,
    pub s5: u8,
    /// piton's register of platform events.
    pub events: Option<u16>,
    /// Where the VM generation id is.
    pub generation: Option<u64>,
}

/// Interrupt of piton's platform events.
pub const EVENTS_GSI: u32 = 9;
/// Bits of piton's register of platform events.
pub const EVENT_BUTTON: u8 = 1 << 0;
pub const EVENT_GENERATION: u8 = 1 << 1;

fn le32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn le64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn register(table: &[u8], at: usize) -> Option<Register> {
    let addr = le64(table, at + 4).filter(|&a| a != 0)?;
    match table.get(at)? {
        0 if addr < 0xffff_f000 => Some(Register { io: false, addr }),
        1 if addr < 0x1_0000 => Some(Register { io: true, addr }),
        _ => None,
    }
}

fn table(addr: u64) -> Option<&'static [u8]> {
    let len = le32(bytes(addr, 36)?, 4)? as usize;
    bytes(addr, len.clamp(36, 1 << 20))
}

fn find_rsdp(given: u64) -> Option<&'static [u8]> {
    let is_rsdp = |addr: u64| bytes(addr, 36).filter(|b| b.starts_with(b"RSD PTR "));
    is_rsdp(given).or_else(|| (0xe_0000..0x10_0000).step_by(16).find_map(is_rsdp))
}

impl Acpi {
    pub fn read(rsdp: u64) -> Self {
        let mut acpi = Self {
            apic_ids: [0; MAX_CPUS],
            cpus: 0,
            ioapics: [IoApic { base: 0xfec0_0000, first_gsi: 0 }; 4],
            ioapic_count: 0,
            virtio: [(0, 0); 64],
            virtio_count: 0,
            sleep: None,
            reset: None,
            pm1a: None,
            s5: 5,
            events: None,
            generation: None,
        };
        acpi.walk(rsdp);
        // Every PC has one at this address, named or not.
        acpi.ioapic_count = acpi.ioapic_count.max(1);
        acpi
    }

    pub fn ioapics(&self) -> &[IoApic] {
        &self.ioapics[..self.ioapic_count]
    }

    fn walk(&mut self, rsdp: u64) -> Option<()> {
        let rsdp = find_rsdp(rsdp)?;
        let xsdt = le64(rsdp, 24).filter(|&a| rsdp[15] >= 2 && a != 0);
        let (root, width) = match xsdt {
            Some(addr) => (table(addr)?, 8),
            None => (table(u64::from(le32(rsdp, 16)?))?, 4),
        };
        for entry in root[36..].chunks_exact(width) {
            let low = le32(entry, 0)?;
            let high = if width == 8 { le32(entry, 4)? } else { 0 };
            let Some(t) = table(u64::from(low) | u64::from(high) << 32) else { continue };
            match &t[..4] {
                b"APIC" => self.madt(t),
                b"FACP" => {
                    self.fadt(t);
                }
                _ => {}
            }
        }
        Some(())
    }

    fn madt(&mut self, t: &[u8]) {
        let mut at = 44;
        while let Some(&[kind, len]) = t.get(at..at + 2) {
            let entry = t.get(at..at + usize::from(len)).unwrap_or(&[]);
            match (kind, entry.len()) {
                (0, 8..) if entry[4] & 1 != 0 => self.cpu(entry[3]),
                (9, 16..) if entry[8] & 1 != 0 && entry[5..8] == [0; 3] => self.cpu(entry[4]),
                (1, 12..) if self.ioapic_count < self.ioapics.len() => {
                    self.ioapics[self.ioapic_count] = IoApic {
                        base: le32(entry, 4).unwrap_or(0),
                        first_gsi: le32(entry, 8).unwrap_or(0),
                    };
                    self.ioapic_count += 1;
                }
                _ => {}
            }
            at += usize::from(len.max(2));
        }
    }

    fn cpu(&mut self, apic_id: u8) {
        if self.cpus < MAX_CPUS && !self.apic_ids[..self.cpus].contains(&apic_id) {
            self.apic_ids[self.cpus] = apic_id;
            self.cpus += 1;
        }
    }

    fn fadt(&mut self, t: &'static [u8]) -> Option<()> {
        let flags = le32(t, 112)?;
        if flags & 1 << 10 != 0
            && let Some(reg) = register(t, 116)
        {
            self.reset = Some((reg, *t.get(128)?));
        }
        if flags & 1 << 20 != 0 {
            self.sleep = register(t, 244);
            // Without an AML interpreter the register is known by whose table this is: on piton
            // it lies four ports above the sleep control register.
            if t.get(10..16) == Some(b"PITON ") {
                self.events =
                    self.sleep.filter(|reg| reg.io && reg.addr < 0xfff0).map(|r| r.addr as u16 + 4);
            }
        } else {
            self.pm1a = le32(t, 64).filter(|&p| p != 0 && p < 0x1_0000).map(|p| p as u16);
        }
        let dsdt = le64(t, 140).filter(|&a| a != 0).or(le32(t, 40).map(u64::from))?;
        let dsdt = table(dsdt)?;
        self.s5 = sleep_type(dsdt).unwrap_or(if self.sleep.is_some() { 5 } else { 0 });
        self.virtio_devices(dsdt);
        self.generation = generation(dsdt);
        Some(())
    }

    /// Memory32Fixed and extended interrupt descriptors that follow the HID.
    fn virtio_devices(&mut self, dsdt: &[u8]) {
        const HID: &[u8] = b"LNRO0005";
        let places = || dsdt.windows(HID.len()).enumerate().filter(|(_, w)| *w == HID);
        for (start, _) in places() {
            let rest = &dsdt[start + HID.len()..];
            let end = rest.windows(HID.len()).position(|w| w == HID).unwrap_or(rest.len());
            let rest = &rest[..end];
            let memory = rest.windows(12).find(|w| w[..3] == [0x86, 9, 0]);
            let irq = rest.windows(9).find(|w| w[0] == 0x89 && w[2] == 0 && w[1] >= 6 && w[4] == 1);
            if let (Some(memory), Some(irq)) = (memory, irq)
                && self.virtio_count < self.virtio.len()
                && let (Some(base), Some(gsi)) = (le32(memory, 4), le32(irq, 5))
            {
                self.virtio[self.virtio_count] = (u64::from(base), gsi);
                self.virtio_count += 1;
            }
        }
    }
}

/// The package named `ADDR` of the VM generation counter: low and high half of its address. Only
/// one that lies in mapped memory is of use.
fn generation(dsdt: &[u8]) -> Option<u64> {
    const START: &[u8] = b"ADDR\x12\x08\x02\x0c";
    let at = dsdt.windows(START.len()).position(|w| w == START)? + START.len();
    let high = *dsdt.get(at + 4)?;
    le32(dsdt, at).map(u64::from).filter(|&addr| high == 0 && addr <= 0xffff_f000)
}

/// SLP_TYPa: the first number in the package named `_S5_`.
fn sleep_type(dsdt: &[u8]) -> Option<u8> {
    let at = dsdt.windows(4).position(|w| w == b"_S5_")? + 4;
    let package = dsdt.get(at..).filter(|p| p.first() == Some(&0x12))?;
    let length_bytes = 1 + usize::from(package.get(1)? >> 6);
    match package.get(1 + length_bytes + 1..)? {
        [0x0a, n, ..] => Some(*n),
        [n @ 0..=1, ..] => Some(*n),
        _ => None,
    }
}
