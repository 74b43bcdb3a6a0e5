//! The time of day, as a guest of KVM keeps it: asked for once, and counted on by kvmclock.

use crate::cpu::{cpuid, write_msr};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Leaf with KVM's features, and its bit for the two registers (`Documentation/virt/kvm/x86`).
const FEATURES: u32 = 0x4000_0001;
const CLOCKSOURCE: u32 = 1;
const WALL_CLOCK: u32 = 0x11;
const SYSTEM_TIME: u32 = 0x12;
const ENABLE: u64 = 1;

/// `struct pvclock_vcpu_time_info` and `struct pvclock_wall_clock`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Told {
    version: u32,
    _pad: u32,
    _tsc: u64,
    system_ns: u64,
    _rate: [u32; 2],
    wall_version: u32,
    wall_s: u32,
    wall_ns: u32,
}

const NOTHING: Told = Told {
    version: 0,
    _pad: 0,
    _tsc: 0,
    system_ns: 0,
    _rate: [0; 2],
    wall_version: 0,
    wall_s: 0,
    wall_ns: 0,
};

struct Page(UnsafeCell<Told>);

// SAFETY: it is only read by volatile accesses; who writes it is the hypervisor.
unsafe impl Sync for Page {}

/// When this machine began, as it was told first: a restore makes KVM write it anew, of a clock that
/// is not set yet.
static BEGAN_MS: AtomicU64 = AtomicU64::new(0);

static PAGE: Page = Page(UnsafeCell::new(NOTHING));

fn told() -> Told {
    // SAFETY: a valid value of plain numbers at any time.
    unsafe { PAGE.0.get().read_volatile() }
}

/// Milliseconds since 1970. From the first call on it is counted by kvmclock, and not asked for
/// again, as a system that is up does. At each call kvmclock is told anew where it lies, which makes
/// it say its time of now: it cannot be counted on by the TSC, which on software KVM is another one
/// for this program than for KVM.
pub fn now_ms() -> Option<u64> {
    if cpuid(FEATURES, 0)[0] & CLOCKSOURCE == 0 {
        return None;
    }
    let page = PAGE.0.get() as u64;
    let mut began = BEGAN_MS.load(Relaxed);
    // SAFETY: both are told of memory of their own, which stays.
    unsafe {
        if began == 0 {
            write_msr(WALL_CLOCK, page + core::mem::offset_of!(Told, wall_version) as u64);
        }
        write_msr(SYSTEM_TIME, page | ENABLE);
    }
    let Told { system_ns, wall_s, wall_ns, .. } = told();
    if began == 0 {
        began = u64::from(wall_s) * 1000 + u64::from(wall_ns) / 1_000_000;
        BEGAN_MS.store(began, Relaxed);
    }
    Some(began + system_ns / 1_000_000)
}
