//! Time by the TSC, which a restore may move in either direction.

use crate::apic;
use crate::cpu::{cpuid, tsc};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

static TSC_KHZ: AtomicU64 = AtomicU64::new(1_000_000);

/// Learns the TSC's rate: from the hypervisor's timing leaf if there is one,
/// else against the local APIC timer, whose bus KVM and QEMU run at 1 GHz.
pub fn calibrate() {
    if cpuid(0x4000_0000, 0)[0] >= 0x4000_0010 {
        let khz = u64::from(cpuid(0x4000_0010, 0)[0]);
        if (100_000..20_000_000).contains(&khz) {
            TSC_KHZ.store(khz, Relaxed);
            return;
        }
    }
    apic::timer_free_run();
    let (t0, c0) = sample();
    while tsc().wrapping_sub(t0) < 8_000_000 {
        core::hint::spin_loop();
    }
    let (t1, c1) = sample();
    apic::timer_stop();
    let ns = u64::from(c0.wrapping_sub(c1));
    let ticks = t1.wrapping_sub(t0);
    if (100_000..1_000_000_000).contains(&ns) && ticks < 100_000_000_000 {
        let khz = ticks * 1_000_000 / ns;
        if (50_000..20_000_000).contains(&khz) {
            TSC_KHZ.store(khz, Relaxed);
        }
    }
}

fn sample() -> (u64, u32) {
    let before = tsc();
    let count = apic::timer_count();
    (before + tsc().wrapping_sub(before) / 2, count)
}

pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Relaxed)
}

/// Microseconds in so many ticks; 0 for a count that went backwards.
pub fn us(ticks: u64) -> u64 {
    if ticks > u64::MAX / 2 {
        return 0;
    }
    (u128::from(ticks) * 1000 / u128::from(tsc_khz())) as u64
}

pub fn us_since(start: u64) -> u64 {
    us(tsc().wrapping_sub(start))
}

pub fn ticks(us: u64) -> u64 {
    us.saturating_mul(tsc_khz()) / 1000
}

/// Waits by the TSC, and by a bound on the number of looks in case it stops.
pub fn spin_us(us: u64) {
    let start = tsc();
    let wanted = ticks(us);
    let mut looks = 0_u64;
    while tsc().wrapping_sub(start) < wanted && looks < wanted {
        looks += 1;
        core::hint::spin_loop();
    }
}

/// Something that is due now and then.
pub struct Every {
    last: u64,
    pub period_us: u64,
}

impl Every {
    pub fn new(period_us: u64) -> Self {
        Self { last: tsc(), period_us }
    }

    pub fn restart(&mut self) {
        self.last = tsc();
    }

    /// Microseconds until it is due; 0 also when the TSC has gone backwards.
    pub fn left_us(&self) -> u64 {
        let now = tsc();
        if now < self.last {
            return 0;
        }
        self.period_us.saturating_sub(us(now - self.last))
    }

    /// If it is due: starts the next period and says how long this one was.
    pub fn take(&mut self) -> Option<u64> {
        if self.left_us() > 0 {
            return None;
        }
        let now = tsc();
        let took = us(now.wrapping_sub(self.last));
        self.last = now;
        Some(took)
    }
}
