//! What the VMM hands over: command line, memory map, RSDP. All is copied at
//! once, because it lies in memory that is used for other things later.

use crate::acpi;

pub const CMDLINE_MAX: usize = 2048;

#[derive(Clone, Copy, Default)]
pub struct Region {
    pub base: u64,
    pub len: u64,
}

pub struct StartInfo {
    cmdline: [u8; CMDLINE_MAX],
    cmdline_len: usize,
    pub ram: [Region; 32],
    pub rsdp: u64,
}

fn le32(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 4).map_or(0, |b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
}

fn le64(b: &[u8], at: usize) -> u64 {
    le32(b, at) | le32(b, at + 4) << 32
}

impl StartInfo {
    pub fn read(addr: u64) -> Self {
        let mut info = Self {
            cmdline: [0; CMDLINE_MAX],
            cmdline_len: 0,
            ram: [Region::default(); 32],
            rsdp: 0,
        };
        let Some(raw) = acpi::bytes(addr, 56) else { return info };
        if le32(raw, 0) != 0x336e_c578 {
            return info;
        }
        info.rsdp = le64(raw, 32);
        if let Some(text) = acpi::bytes(le64(raw, 24), CMDLINE_MAX) {
            let len = text.iter().position(|&c| c == 0).unwrap_or(0);
            info.cmdline[..len].copy_from_slice(&text[..len]);
            info.cmdline_len = len;
        }
        let entries = if le32(raw, 4) >= 1 { le32(raw, 48) as usize } else { 0 };
        let map = acpi::bytes(le64(raw, 40), entries.min(128) * 24).unwrap_or(&[]);
        let ram = map.chunks_exact(24).filter(|e| le32(e, 16) == 1);
        for (slot, e) in info.ram.iter_mut().zip(ram) {
            *slot = Region { base: le64(e, 0), len: le64(e, 8) };
        }
        info
    }

    pub fn cmdline(&self) -> &str {
        core::str::from_utf8(&self.cmdline[..self.cmdline_len]).unwrap_or("")
    }

    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|r| r.len).sum()
    }

    /// The value of `piton.run=`, to the closing quote or else to the next blank.
    pub fn run(&self) -> &str {
        let Some((_, rest)) = self.cmdline().split_once("piton.run=") else { return "" };
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or(""),
            None => rest.split(' ').next().unwrap_or(""),
        }
    }

    /// `virtio_mmio.device=SIZE@ADDR:IRQ`, each as (address, gsi).
    pub fn virtio_devices(&self) -> impl Iterator<Item = (u64, u32)> {
        self.cmdline().split_ascii_whitespace().filter_map(|word| {
            let (_, place) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
            let mut parts = place.split(':');
            let addr = parts.next()?;
            let addr = match addr.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => addr.parse().ok()?,
            };
            Some((addr, parts.next()?.parse().ok()?))
        })
    }
}
