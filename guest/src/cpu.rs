//! Instructions, and what the CPL 0 stub does for the program.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

#[inline]
pub fn outb(port: u16, value: u8) {
    // SAFETY: no device of a guest of this kind reaches memory by port I/O alone.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

#[inline]
pub fn outw(port: u16, value: u16) {
    // SAFETY: as in `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

#[inline]
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

#[inline]
pub fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as in `outb`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}

#[inline]
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is never set.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Halts until an interrupt, unless `word` no longer holds `expected`. The
/// comparison cannot miss an interrupt handler's or another vCPU's update that
/// is followed by an interrupt.
pub fn idle(word: &AtomicU64, expected: u64) {
    // SAFETY: the stub reads eight bytes at rdi and changes nothing but flags.
    unsafe {
        asm!("hlt", in("r8") 0, in("rdi") word.as_ptr(), in("rsi") expected, options(nostack));
    }
}

/// The VMM's CPUID: at CPL 3 on software KVM the instruction shows the host's.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: the stub runs CPUID; rbx, which the compiler reserves, is put back.
    unsafe {
        asm!("mov r9, rbx", "hlt", "xchg r9, rbx", in("r8") 1,
             inout("eax") leaf => a, out("r9") b, inout("ecx") sub => c, out("edx") d,
             options(nostack));
    }
    [a, b as u32, c, d]
}

/// # Safety
/// Whatever the register does with `value` is in order.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the stub runs WRMSR and changes nothing else.
    unsafe {
        asm!("hlt", in("r8") 3, in("ecx") register, in("eax") value as u32,
             in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Shuts this machine down by a triple fault.
pub fn triple_fault() -> ! {
    // SAFETY: the stub loads an empty IDT and faults; nothing runs after it.
    unsafe { asm!("hlt", in("r8") 4, options(nostack, noreturn)) }
}

/// Registers of one memory-mapped device.
#[derive(Clone, Copy)]
pub struct Mmio {
    base: u64,
    len: u64,
}

impl Mmio {
    /// # Safety
    /// `base..base + len` is identity-mapped and holds device registers.
    pub const unsafe fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    pub fn read(&self, offset: u64) -> u32 {
        assert!(offset + 4 <= self.len);
        // SAFETY: inside the range that `new` was promised.
        unsafe { ((self.base + offset) as *const u32).read_volatile() }
    }

    pub fn read16(&self, offset: u64) -> u16 {
        assert!(offset + 2 <= self.len);
        // SAFETY: inside the range that `new` was promised.
        unsafe { ((self.base + offset) as *const u16).read_volatile() }
    }

    pub fn read8(&self, offset: u64) -> u8 {
        assert!(offset < self.len);
        // SAFETY: inside the range that `new` was promised.
        unsafe { ((self.base + offset) as *const u8).read_volatile() }
    }

    pub fn write(&self, offset: u64, value: u32) {
        assert!(offset + 4 <= self.len);
        // SAFETY: inside the range that `new` was promised.
        unsafe { ((self.base + offset) as *mut u32).write_volatile(value) }
    }

    pub fn write8(&self, offset: u64, value: u8) {
        assert!(offset < self.len);
        // SAFETY: inside the range that `new` was promised.
        unsafe { ((self.base + offset) as *mut u8).write_volatile(value) }
    }
}
