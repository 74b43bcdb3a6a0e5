//! Interrupts: IDT and TSS contents, local APIC, IOAPIC, and the idle call.

use crate::boot::{FIRST_TSS, KERNEL_CS, KERNEL_STACK, MAX_CPUS, TSS_SIZE};
use crate::cpu::{self, Mmio};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

pub const TIMER: u8 = 0x40;
pub const SERIAL: u8 = 0x50;
pub const EVENTS: u8 = 0x58;
pub const FIRST_DISK: u8 = 0x60;
pub const FIRST_NIC: u8 = 0x70;
pub const VSOCK: u8 = 0x78;
pub const WAKE: u8 = 0xf0;
const SPURIOUS: u8 = 0xff;

unsafe extern "C" {
    static irq_counts: [AtomicU64; 256];
    static irq_total: AtomicU64;
    static mut idt: [[u64; 2]; 256];
    static mut gdt: [u64; FIRST_TSS / 8 + 2 * MAX_CPUS];
    static mut boot_tss: [u8; TSS_SIZE + 8192 + 8];
    static mut ap_tss: [[u8; TSS_SIZE]; MAX_CPUS];
    static kernel_stacks: u8;
    fn irq_stubs();
    fn exception_stubs();
    fn gp_stub();
    fn spurious_stub();
}

// SAFETY: the architecture's address of the local APIC; below 4 GiB all is mapped.
const LAPIC: Mmio = unsafe { Mmio::new(0xfee0_0000, 0x1000) };

const ID: u64 = 0x20;
const SVR: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

/// Fills the tables that the stub has loaded empty. Before this, no interrupt
/// may come (none is enabled) and no port is open to CPL 3.
pub fn fill_tables() {
    let (gates, segments) = (&raw mut idt, &raw mut gdt);
    let (boot_task, tasks) = (&raw mut boot_tss, &raw mut ap_tss);
    let stack = &raw const kernel_stacks as u64;
    // SAFETY: runs once, on the only vCPU that is up, before any interrupt; nothing
    // else in the program refers to these tables.
    let (gates, segments, boot_task, tasks) =
        unsafe { (&mut *gates, &mut *segments, &mut *boot_task, &mut *tasks) };

    boot_task[4..12].copy_from_slice(&(stack + KERNEL_STACK).to_le_bytes());
    boot_task[102..104].copy_from_slice(&(TSS_SIZE as u16).to_le_bytes());
    // The I/O permission bitmap is all zeros; it must end with a byte of ones.
    boot_task[TSS_SIZE + 8192] = 0xff;

    for (cpu, task) in tasks.iter_mut().enumerate().skip(1) {
        let top = stack + (cpu as u64 + 1) * KERNEL_STACK;
        task[4..12].copy_from_slice(&top.to_le_bytes());
        task[102..104].copy_from_slice(&(TSS_SIZE as u16).to_le_bytes());
        let base = task.as_ptr() as u64;
        let slot = FIRST_TSS / 8 + 2 * cpu;
        segments[slot] = (TSS_SIZE as u64 - 1)
            | (base & 0xff_ffff) << 16
            | 0x89 << 40
            | (base >> 24 & 0xff) << 56;
        segments[slot + 1] = base >> 32;
    }
    for (vector, gate) in gates.iter_mut().enumerate() {
        let handler = match vector {
            13 => gp_stub as *const () as usize,
            0..32 => exception_stubs as *const () as usize + vector * 16,
            255 => spurious_stub as *const () as usize,
            _ => irq_stubs as *const () as usize + (vector - 32) * 32,
        } as u64;
        let low = (handler & 0xffff) | u64::from(KERNEL_CS) << 16 | 0x8e00 << 32;
        *gate = [low | (handler >> 16 & 0xffff) << 48, handler >> 32];
    }
}

/// Switches this vCPU's local APIC on.
pub fn enable_local() {
    LAPIC.write(SVR, 0x100 | u32::from(SPURIOUS));
    LAPIC.write(LVT_LINT0, MASKED);
    LAPIC.write(DIVIDE, 0b1011);
    LAPIC.write(LVT_TIMER, u32::from(TIMER));
}

pub fn local_id() -> u8 {
    (LAPIC.read(ID) >> 24) as u8
}

pub fn count(vector: u8) -> u64 {
    // SAFETY: the stub changes these only by locked increments.
    unsafe { irq_counts[usize::from(vector)].load(SeqCst) }
}

/// All interrupts taken so far. Read it before looking for work, then give it to
/// [`idle`].
pub fn total() -> u64 {
    // SAFETY: as in `count`.
    unsafe { irq_total.load(SeqCst) }
}

/// Halts for at most `us`, not at all if an interrupt has come since `seen`.
pub fn idle(seen: u64, us: u64) {
    LAPIC.write(INITIAL, (us.clamp(20, 4_000_000) * 1000) as u32);
    // SAFETY: as in `count`.
    cpu::idle(unsafe { &irq_total }, seen);
}

pub fn timer_free_run() {
    LAPIC.write(LVT_TIMER, MASKED | u32::from(TIMER));
    LAPIC.write(INITIAL, u32::MAX);
}

pub fn timer_stop() {
    LAPIC.write(INITIAL, 0);
    LAPIC.write(LVT_TIMER, u32::from(TIMER));
}

pub fn timer_count() -> u32 {
    LAPIC.read(CURRENT)
}

fn send(apic_id: u8, command: u32) {
    LAPIC.write(ICR_HIGH, u32::from(apic_id) << 24);
    LAPIC.write(ICR_LOW, command);
    for _ in 0..1000 {
        if LAPIC.read(ICR_LOW) & 1 << 12 == 0 {
            return;
        }
    }
}

pub fn send_wake(apic_id: u8) {
    send(apic_id, 0x4000 | u32::from(WAKE));
}

pub fn send_init(apic_id: u8) {
    send(apic_id, 0x4500);
}

pub fn send_startup(apic_id: u8, page: u8) {
    send(apic_id, 0x4600 | u32::from(page));
}

#[derive(Clone, Copy)]
pub struct IoApic {
    pub base: u32,
    pub first_gsi: u32,
}

/// Points a GSI at the boot vCPU, edge triggered, active high.
///
/// Edge also for lines that stay high until the device is acknowledged: the
/// handler ends the interrupt before the program acknowledges the device, which
/// on a level pin would come again without end; and as the driver acknowledges
/// before it looks at the ring, no completion is lost by it.
pub fn route(ioapics: &[IoApic], gsi: u32, vector: u8) -> bool {
    let Some(chip) = ioapics.iter().filter(|c| c.first_gsi <= gsi).max_by_key(|c| c.first_gsi)
    else {
        return false;
    };
    let pin = gsi - chip.first_gsi;
    if pin >= 120 {
        return false;
    }
    // SAFETY: the address is the one that the MADT (or the architecture) gives.
    let regs = unsafe { Mmio::new(u64::from(chip.base), 0x20) };
    regs.write(0, 0x11 + 2 * pin);
    regs.write(0x10, u32::from(local_id()) << 24);
    regs.write(0, 0x10 + 2 * pin);
    regs.write(0x10, u32::from(vector));
    true
}
