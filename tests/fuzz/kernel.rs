//! Kernel files, loaded as a boot does.

use piton::boot::{Kernel, Payload, load};
use piton::memory::allocate;

use crate::files::folder;
use crate::{Run, Shape, Target};

fn run() -> Run {
    let dir = folder();
    // What an earlier kernel left in it changes nothing.
    let memory = allocate(16 << 20).unwrap();
    Box::new(move |bytes| {
        let path = dir.path().join("kernel");
        std::fs::write(&path, bytes).unwrap();
        let virtio = [(0xd000_0000, 5)];
        let payload = Payload {
            kernel: Kernel::File(&path),
            initrd: None,
            cmdline: "console=ttyS0",
            cpus: 1,
            virtio: &virtio,
        };
        load(&memory, &payload).is_ok()
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// ELF64 for x86-64 with a segment to load and a PVH note.
pub fn elf() -> Target {
    let mut bytes = vec![0; 0x400];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &[2, 0, 62, 0, 1]);
    put(&mut bytes, 24, &0x10_0000u64.to_le_bytes());
    put(&mut bytes, 32, &64u64.to_le_bytes());
    put(&mut bytes, 52, &[64, 0, 56, 0, 2, 0]);
    let segment = |kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
        let words = [offset, address, address, file, memory, 4];
        let mut header = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        words.iter().for_each(|word| header.extend_from_slice(&word.to_le_bytes()));
        header
    };
    put(&mut bytes, 64, &segment(1, 0x200, 0x10_0000, 0x100, 0x1000));
    put(&mut bytes, 120, &segment(4, 0x180, 0, 20, 20));
    // The note "Xen", type 18: the entry.
    put(&mut bytes, 0x180, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut bytes, 0x18c, b"Xen\0\0\x01\x10\0");
    Target { name: "elf", shape: Shape::Bytes, seeds: vec![bytes], mend: Box::new(|_| {}), run: run() }
}

/// Boot protocol 2.15 with a 64-bit entry.
pub fn bzimage() -> Target {
    let mut bytes = vec![0; 1024 + 2048];
    put(&mut bytes, 0x1f1, &[1]);
    put(&mut bytes, 0x1f4, &128u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &[0x55, 0xaa]);
    put(&mut bytes, 0x202, b"HdrS\x0f\x02");
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut bytes, 0x236, &[1, 0]);
    put(&mut bytes, 0x258, &0x10_0000u64.to_le_bytes());
    put(&mut bytes, 0x260, &0x1000u32.to_le_bytes());
    Target { name: "bzimage", shape: Shape::Bytes, seeds: vec![bytes], mend: Box::new(|_| {}), run: run() }
}
