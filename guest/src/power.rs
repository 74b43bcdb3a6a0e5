//! Ways out: power off and reset.

use crate::acpi::{Acpi, Register};
use crate::cpu::{Mmio, inw, outb, outw};
use crate::time::spin_us;

fn write8(reg: Register, value: u8) {
    if reg.io {
        outb(reg.addr as u16, value);
    } else {
        // SAFETY: the FADT names this register; below 4 GiB all is mapped.
        unsafe { Mmio::new(reg.addr, 1) }.write8(0, value);
    }
}

/// Returns only if nothing worked.
pub fn off(acpi: &Acpi) {
    if let Some(reg) = acpi.sleep {
        write8(reg, (acpi.s5 << 2) | 1 << 5);
        spin_us(200_000);
    }
    if let Some(port) = acpi.pm1a {
        let keep = inw(port) & !(7 << 10);
        outw(port, keep | u16::from(acpi.s5) << 10 | 1 << 13);
        spin_us(200_000);
    }
}

/// Returns only if nothing worked.
pub fn reset(acpi: &Acpi) {
    if let Some((reg, value)) = acpi.reset {
        write8(reg, value);
        spin_us(200_000);
    }
    outb(0x64, 0xfe);
    spin_us(200_000);
}
