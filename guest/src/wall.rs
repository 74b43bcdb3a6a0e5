//! The time of day, as a guest of KVM keeps it: asked for once, and counted on by kvmclock.

use crate::cpu::{cpuid, tsc, write_msr};
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, fence};

/// Leaf with KVM's features, and its bit for the two registers (`Documentation/virt/kvm/x86`).
const FEATURES: u32 = 0x4000_0001;
const CLOCKSOURCE2: u32 = 1 << 3;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ENABLE: u64 = 1;

/// `struct pvclock_vcpu_time_info` and `struct pvclock_wall_clock`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Told {
    version: u32,
    _pad: u32,
    tsc: u64,
    system_ns: u64,
    multiplier: u32,
    shift: i8,
    _flags: [u8; 3],
    wall_version: u32,
    wall_s: u32,
    wall_ns: u32,
}

const NOTHING: Told = Told {
    version: 0,
    _pad: 0,
    tsc: 0,
    system_ns: 0,
    multiplier: 0,
    shift: 0,
    _flags: [0; 3],
    wall_version: 0,
    wall_s: 0,
    wall_ns: 0,
};

struct Page(UnsafeCell<Told>);

// SAFETY: it is only read by volatile accesses; who writes it is the hypervisor.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new(NOTHING));

fn told() -> Told {
    // SAFETY: a valid value of plain numbers at any time.
    unsafe { PAGE.0.get().read_volatile() }
}

/// Nanoseconds since this machine began, by kvmclock of the boot vCPU.
fn since_boot_ns() -> u64 {
    loop {
        let before = told();
        fence(Ordering::SeqCst);
        let now = tsc();
        fence(Ordering::SeqCst);
        if before.version & 1 == 0 && told().version == before.version {
            let ticks = now.saturating_sub(before.tsc);
            let ticks = match before.shift {
                shift @ 0.. => ticks << shift,
                shift => ticks >> -shift,
            };
            let passed = (u128::from(ticks) * u128::from(before.multiplier)) >> 32;
            return before.system_ns + passed as u64;
        }
    }
}

/// Milliseconds since 1970. From the first call on it is counted by kvmclock, and not asked for
/// again, as a system that is up does.
pub fn now_ms() -> Option<u64> {
    if cpuid(FEATURES, 0)[0] & CLOCKSOURCE2 == 0 {
        return None;
    }
    if told().version == 0 {
        let page = PAGE.0.get() as u64;
        // SAFETY: both are told of memory of their own, which stays.
        unsafe {
            write_msr(WALL_CLOCK, page + core::mem::offset_of!(Told, wall_version) as u64);
            write_msr(SYSTEM_TIME, page | ENABLE);
        }
    }
    let wall = told();
    let began_ns = u64::from(wall.wall_s) * 1_000_000_000 + u64::from(wall.wall_ns);
    Some((began_ns + since_boot_ns()) / 1_000_000)
}
