//! Kernel and initrd files: told apart, checked, loaded.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use linux_loader::elf::{ELFCLASS64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};

use super::error::BootError;
use super::payload::{Entry, Initrd, Kernel};
use crate::layout::{HIGH_RAM_START, PAGE_SIZE};
use crate::memory::GuestMemory;

const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
/// Highest address of an initrd's last byte, for kernels that do not say.
const INITRD_MAX: u64 = 0x37ff_ffff;
const MACHINE_X86_64: u16 = 62;
/// `e_type` of a file whose addresses are final, as those of a kernel are.
const ET_EXEC: u16 = 2;
/// `xloadflags`: the kernel has a 64-bit entry 0x200 bytes into it.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

pub struct Loaded {
    pub entry: Entry,
    /// First byte after the kernel, with the memory it needs to unpack itself.
    pub end: u64,
    pub initrd_max: u64,
    /// Only bzImages have one.
    pub setup_header: Option<setup_header>,
}

fn open(what: &'static str, path: &Path) -> Result<(File, u64), BootError> {
    let failed = |error| BootError::Open { what, path: path.to_owned(), error };
    // A FIFO would be waited for.
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let unfit = |is: &str| Err(BootError::Unfit { what, path: path.to_owned(), is: is.into() });
    if !metadata.is_file() {
        unfit(if metadata.is_dir() { "a folder, not a file" } else { "not a regular file" })
    } else if metadata.len() == 0 {
        unfit("empty")
    } else {
        Ok((file, metadata.len()))
    }
}

pub fn load(memory: &GuestMemory, kernel: Kernel) -> Result<Loaded, BootError> {
    match kernel {
        Kernel::Bundled(bytes) => load_image(memory, &mut Cursor::new(bytes), bytes.len() as u64)
            .map_err(|is| BootError::Unfit { what: KERNEL, path: "(bundled guest)".into(), is }),
        Kernel::Found { name, bytes } => {
            let len = bytes.len() as u64;
            let unfit = |is| BootError::Unfit { what: KERNEL, path: name.to_owned(), is };
            load_image(memory, &mut Cursor::new(bytes), len).map_err(unfit)
        }
        Kernel::File(path) => {
            let (mut file, len) = open(KERNEL, path)?;
            load_image(memory, &mut file, len).map_err(|is| BootError::Unfit {
                what: KERNEL,
                path: path.to_owned(),
                is,
            })
        }
    }
}

/// Errors say what the file is instead of a kernel that can be booted.
fn load_image<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    file: &mut F,
    len: u64,
) -> Result<Loaded, String> {
    let mut start = [0; 0x206];
    file.seek(SeekFrom::Start(0)).map_err(|e| format!("unreadable: {e}"))?;
    let got = read_up_to(file, &mut start).map_err(|e| format!("unreadable: {e}"))?;
    if start.starts_with(b"\x7fELF") {
        load_elf(memory, file, len)
    } else if got == start.len() && &start[0x202..0x206] == b"HdrS" {
        load_bzimage(memory, file, len)
    } else {
        Err(other_kernel(&start[..got])
            .unwrap_or(
                "not a kernel that piton can boot: neither an ELF file (vmlinux) nor a bzImage (vmlinuz)",
            )
            .into())
    }
}

/// Kernels for other machines, and in other wrappings.
fn other_kernel(start: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, mark: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(mark));
    Some(match () {
        () if at(0x38, b"ARM\x64") => "a kernel for 64-bit ARM; piton runs x86-64 guests",
        () if at(0x30, b"RISCV") || at(0x38, b"RSC\x05") => "a kernel for RISC-V; piton runs x86-64 guests",
        () if at(4, b"zimg") => {
            "packed in an EFI program (zboot), which piton does not unpack; give it the vmlinux inside"
        }
        () if at(0, b"MZ") => {
            "an EFI program, not a bzImage: a unified kernel image, or one for another machine"
        }
        () if at(0, &[0x1f, 0x8b]) => "packed with gzip: unpack it with `gzip -dc`",
        () if at(0, b"\xfd7zXZ") => "packed with xz: unpack it with `xz -dc`",
        () if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) => "packed with zstd: unpack it with `zstd -dc`",
        () if at(0, &[2, 0x21, 0x4c, 0x18]) || at(0, &[4, 0x22, 0x4d, 0x18]) => {
            "packed with lz4: unpack it with `lz4 -dc`"
        }
        () => return None,
    })
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

/// End of the RAM that begins at 0.
fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

fn too_big(needed: u64, memory: &GuestMemory) -> String {
    format!(
        "too big: it needs memory up to {} MiB and the VM has {} MiB; give it more with --memory",
        needed.div_ceil(1 << 20),
        low_ram_end(memory) >> 20
    )
}

fn load_elf<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    file: &mut F,
    len: u64,
) -> Result<Loaded, String> {
    check_elf(memory, file, len)?;
    let loaded = Elf::load(memory, None, file, None).map_err(|e| format!("damaged: {e}"))?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh(address.0),
        _ => Entry::Linux64(loaded.kernel_load.0),
    };
    Ok(Loaded { entry, end: loaded.kernel_end, initrd_max: INITRD_MAX, setup_header: None })
}

/// What linux-loader would refuse without saying why, or not refuse.
fn check_elf<F: Read + Seek>(memory: &GuestMemory, file: &mut F, len: u64) -> Result<(), String> {
    let truncated = |_| "truncated: its headers are cut off".to_owned();
    let mut header = Elf64_Ehdr::default();
    file.seek(SeekFrom::Start(0)).map_err(truncated)?;
    file.read_exact(header.as_mut_slice()).map_err(truncated)?;
    if header.e_ident[4] != ELFCLASS64 {
        return Err("a 32-bit ELF file; piton boots 64-bit kernels".into());
    }
    if header.e_machine != MACHINE_X86_64 {
        return Err(format!("for another processor (ELF machine {}, x86-64 is 62)", header.e_machine));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum == 0 {
        return Err("not a kernel: an ELF file without program headers".into());
    }
    file.seek(SeekFrom::Start(header.e_phoff)).map_err(truncated)?;
    let mut loads = 0;
    for _ in 0..header.e_phnum {
        let mut segment = Elf64_Phdr::default();
        file.read_exact(segment.as_mut_slice()).map_err(truncated)?;
        if segment.p_type != PT_LOAD {
            continue;
        }
        loads += 1;
        if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > len) {
            return Err("truncated: a segment extends beyond the end of the file".into());
        }
        let end = segment.p_paddr.saturating_add(segment.p_memsz.max(segment.p_filesz));
        if end > low_ram_end(memory) {
            return Err(too_big(end, memory));
        }
        if segment.p_memsz > 0 && segment.p_paddr < HIGH_RAM_START {
            if header.e_type != ET_EXEC {
                return Err("not a kernel: it is a program, library or module of an operating system; \
                            a kernel is called vmlinux or vmlinuz"
                    .into());
            }
            return Err(format!(
                "not a kernel: it would be loaded at {:#x}, and a kernel is loaded at 1 MiB or above",
                segment.p_paddr
            ));
        }
    }
    if loads == 0 {
        return Err("not a kernel: an ELF file with nothing to load".into());
    }
    Ok(())
}

fn load_bzimage<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    file: &mut F,
    len: u64,
) -> Result<Loaded, String> {
    let mut header = setup_header::default();
    file.seek(SeekFrom::Start(0x1f1)).map_err(|e| format!("unreadable: {e}"))?;
    file.read_exact(header.as_mut_slice()).map_err(|_| "truncated: its header is cut off".to_owned())?;
    // 64-bit entry: protocol 2.12. Protocol 2.10 brought pref_address and init_size.
    if header.version < 0x020c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(
            "a kernel without a 64-bit entry point; piton boots 64-bit kernels of Linux 3.8 or later".into(),
        );
    }
    let setup_len = (u64::from(header.setup_sects.max(1)) + 1) * 512;
    let system_len = u64::from(header.syssize) * 16;
    if len < setup_len + system_len {
        return Err(format!("truncated: it has {len} bytes of {}", setup_len + system_len));
    }
    let pref_address = header.pref_address;
    let needed = pref_address.max(HIGH_RAM_START).saturating_add(header.init_size.into());
    if needed.max(HIGH_RAM_START + len) > low_ram_end(memory) {
        return Err(too_big(needed.max(HIGH_RAM_START + len), memory));
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(HIGH_RAM_START)), file, None)
        .map_err(|e| format!("damaged: {e}"))?;
    let initrd_max = header.initrd_addr_max;
    Ok(Loaded {
        entry: Entry::Linux64(loaded.kernel_load.0 + ENTRY_64),
        end: loaded.kernel_end.max(needed),
        initrd_max: if initrd_max == 0 { INITRD_MAX } else { initrd_max.into() },
        setup_header: loaded.setup_header,
    })
}

/// Loads the initrd as high as it may lie; returns its address and length in bytes.
pub fn load_initrd(
    memory: &GuestMemory,
    initrd: Initrd,
    kernel_end: u64,
    max: u64,
) -> Result<(u64, u64), BootError> {
    let (path, opened, len) = match initrd {
        Initrd::File(path) => {
            let (file, len) = open(INITRD, path)?;
            (path, Some(file), len)
        }
        Initrd::Found { name, bytes } => (name, None, bytes.len() as u64),
    };
    let top = low_ram_end(memory).min(max.saturating_add(1));
    let start = top.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1));
    let Some(start) = start.filter(|start| *start >= kernel_end) else {
        return Err(BootError::InitrdTooBig {
            path: path.to_owned(),
            initrd_mib: len.div_ceil(1 << 20),
            memory_mib: memory.iter().map(|region| region.len()).sum::<u64>() >> 20,
        });
    };
    let written = match (opened, initrd) {
        (Some(mut file), _) => memory.read_exact_volatile_from(GuestAddress(start), &mut file, len as usize),
        (None, Initrd::Found { bytes, .. }) => memory.write_slice(bytes, GuestAddress(start)),
        (None, Initrd::File(_)) => Ok(()),
    };
    written.map_err(|e| BootError::Open {
        what: INITRD,
        path: path.to_owned(),
        error: std::io::Error::other(e.to_string()),
    })?;
    Ok((start, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_bytes(bytes: &[u8]) -> String {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        match load_image(&memory, &mut Cursor::new(bytes), bytes.len() as u64) {
            Ok(loaded) => format!("loaded, {:?}", loaded.entry),
            Err(e) => e,
        }
    }

    /// An ELF64 file with one segment of `filesz` bytes to be loaded at `paddr`.
    fn elf(paddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_type: ET_EXEC,
            e_machine: MACHINE_X86_64,
            e_entry: paddr,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: 1,
            ..Default::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let segment = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: 0,
            p_paddr: paddr,
            p_filesz: filesz,
            p_memsz: memsz,
            ..Default::default()
        };
        [header.as_slice(), segment.as_slice()].concat()
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(load_bytes(b"#!/bin/sh").contains("neither"));
        assert!(load_bytes(b"\x1f\x8b\x08").contains("gzip -dc"));
        assert!(load_bytes(b"MZ\0\0zimg").contains("zboot"));
        assert!(load_bytes(&[&b"MZ"[..], &[0; 0x36], b"ARM\x64"].concat()).contains("64-bit ARM"));
        assert!(load_bytes(b"\x7fELF\x01\x01").contains("truncated"));
        let mut old = elf(1 << 20, 64, 64);
        old[4] = 1;
        assert!(load_bytes(&old).contains("32-bit"));
        let mut arm = elf(1 << 20, 64, 64);
        arm[18] = 183;
        assert!(load_bytes(&arm).contains("another processor"));
        assert!(load_bytes(&elf(1 << 20, 4096, 4096)).contains("truncated"));
        assert!(load_bytes(&elf(1 << 20, 64, 1 << 30)).contains("--memory"));
        assert!(load_bytes(&elf(u64::MAX, 64, 64)).contains("--memory"));
        assert!(load_bytes(&elf(0x7000, 64, 64)).contains("at 1 MiB or above"));
        assert_eq!(load_bytes(&elf(1 << 20, 64, 64)), "loaded, Linux64(1048576)");
    }

    #[test]
    fn an_initrd_must_fit() {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let (start, len) = load_initrd(&memory, Initrd::File(file.path()), 4 << 20, INITRD_MAX).unwrap();
        assert_eq!((start, len), (8 << 20, 8 << 20));
        let error = load_initrd(&memory, Initrd::File(file.path()), 9 << 20, INITRD_MAX).unwrap_err();
        assert!(matches!(error, BootError::InitrdTooBig { .. }), "{error}");
        file.as_file().set_len(1 << 40).unwrap();
        assert!(load_initrd(&memory, Initrd::File(file.path()), 0, INITRD_MAX).is_err());
    }

    proptest::proptest! {
        #[test]
        fn damaged_headers_never_panic(
            flips in proptest::collection::vec((0usize..200, proptest::num::u8::ANY), 1..20),
            bz in proptest::bool::ANY,
        ) {
            let mut bytes = elf(1 << 20, 64, 64);
            if bz {
                bytes = vec![0; 4096];
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            for (at, value) in flips {
                let at = if bz { 0x1e0 + at } else { at % bytes.len() };
                bytes[at] = value;
            }
            load_bytes(&bytes);
        }
    }
}
