//! First registers of the vCPUs, and what they need in memory.
//!
//! The first vCPU begins as its boot protocol says; the others stay in reset until the guest
//! wakes them through its local APIC (INIT, SIPI).

use kvm_bindings::{CpuId, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::error::{BootError, write_error};
use super::payload::Entry;
use crate::layout::{BOOT_STACK, GDT_START, IDT_START, PML4_START, PVH_INFO_START, ZERO_PAGE_START};
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, memory write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const LVT_MODE_EXTINT: u32 = 7 << 8;
const LVT_MODE_NMI: u32 = 4 << 8;
const LVT_MODE_MASK: u32 = 7 << 8;
const LVT_MASKED: u32 = 1 << 16;

fn kvm_error<E: ToString>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Kvm { what, error: error.to_string() }
}

/// Maps the first GiB one to one, in 2 MiB pages: all that the 64-bit entry touches before it
/// builds tables of its own.
pub fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let pdpt = PML4_START + 0x1000;
    let pd = PML4_START + 0x2000;
    let put = |value: u64, at: u64| {
        memory.write_obj(value, GuestAddress(at)).map_err(write_error("the page tables"))
    };
    put(pdpt | PAGE_PRESENT_WRITABLE, PML4_START)?;
    put(pd | PAGE_PRESENT_WRITABLE, pdpt)?;
    (0..512).try_for_each(|i| put(i << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE, pd + i * 8))
}

/// Gives a fresh vCPU its features and, to the first one, its start.
pub fn set_up_vcpu(
    fd: &VcpuFd,
    memory: &GuestMemory,
    index: u32,
    cpuid: &CpuId,
    entry: Entry,
) -> Result<(), BootError> {
    fd.set_cpuid2(cpuid).map_err(kvm_error("set a vCPU's features"))?;
    set_msr(fd, MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)?;
    set_msr(fd, MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)?;
    set_lapic_lines(fd)?;
    if index > 0 {
        return Ok(());
    }
    let mut sregs = fd.get_sregs().map_err(kvm_error("read a vCPU's segments"))?;
    let regs = match entry {
        Entry::Pvh(rip) => {
            set_segments(memory, &mut sregs, false)?;
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            kvm_regs { rip, rbx: PVH_INFO_START, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Linux64(rip) => {
            set_segments(memory, &mut sregs, true)?;
            sregs.cr3 = PML4_START;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
            kvm_regs {
                rip,
                rsi: ZERO_PAGE_START,
                rsp: BOOT_STACK,
                rbp: BOOT_STACK,
                rflags: RFLAGS,
                ..Default::default()
            }
        }
    };
    fd.set_sregs(&sregs).map_err(kvm_error("set a vCPU's segments"))?;
    fd.set_regs(&regs).map_err(kvm_error("set a vCPU's registers"))
}

/// A KVM that cannot virtualise an MSR refuses it; the guest then sees it as it is.
fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), BootError> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry])
        .map_err(|e| BootError::Kvm { what: "set an MSR", error: format!("{e:?}") })?;
    if !matches!(fd.set_msrs(&msrs), Ok(1)) {
        log::info!("KVM does not allow setting MSR {index:#x}; it keeps its value");
    }
    Ok(())
}

/// LINT0 takes the PIC's interrupts and LINT1 the NMI, as firmware leaves them.
fn set_lapic_lines(fd: &VcpuFd) -> Result<(), BootError> {
    let mut lapic = fd.get_lapic().map_err(kvm_error("read a local APIC's state"))?;
    set_lvt(&mut lapic, LAPIC_LVT_LINT0, LVT_MODE_EXTINT);
    set_lvt(&mut lapic, LAPIC_LVT_LINT1, LVT_MODE_NMI);
    fd.set_lapic(&lapic).map_err(kvm_error("set a local APIC's state"))
}

fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = &mut lapic.regs[register..register + 4];
    let mut value = [0; 4];
    for (to, from) in value.iter_mut().zip(&*bytes) {
        *to = *from as u8;
    }
    let value = u32::from_le_bytes(value) & !LVT_MODE_MASK & !LVT_MASKED | mode;
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
}

/// Flat segments; the code segment is 64-bit or 32-bit.
fn set_segments(memory: &GuestMemory, sregs: &mut kvm_sregs, long: bool) -> Result<(), BootError> {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment { l: long.into(), db: (!long).into(), ..flat(0x10, 0xb) };
    let data = kvm_segment { db: 1, ..flat(0x18, 0x3) };
    let task = kvm_segment { s: 0, g: 0, limit: 0x67, ..flat(0x20, 0xb) };
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (i, entry) in table.iter().enumerate() {
        let at = GuestAddress(GDT_START + i as u64 * 8);
        memory.write_obj(*entry, at).map_err(write_error("the descriptor table"))?;
    }
    sregs.gdt.base = GDT_START;
    sregs.gdt.limit = size_of_val(&table) as u16 - 1;
    sregs.idt.base = IDT_START;
    sregs.idt.limit = 0;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    Ok(())
}

/// A segment as its 8-byte descriptor (Intel SDM volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let bits = |value: u8, at: u32| u64::from(value) << at;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | bits(segment.type_, 40)
        | bits(segment.s, 44)
        | bits(segment.dpl, 45)
        | bits(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bits(segment.avl, 52)
        | bits(segment.l, 53)
        | bits(segment.db, 54)
        | bits(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        let mut sregs = kvm_sregs::default();
        set_segments(&memory, &mut sregs, true).unwrap();
        let entry = |i: u64| memory.read_obj::<u64>(GuestAddress(GDT_START + i * 8)).unwrap();
        assert_eq!(entry(2), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(3), 0x00cf_9300_0000_ffff);
        set_segments(&memory, &mut sregs, false).unwrap();
        assert_eq!(entry(2), 0x00cf_9b00_0000_ffff);
    }
}
