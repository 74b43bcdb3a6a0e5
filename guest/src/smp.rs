//! Secondary vCPUs: start-up, and the work that they are given.

use crate::boot::{MAX_CPUS, TRAMPOLINE};
use crate::cpu::{idle, tsc};
use crate::{apic, dirty, time};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

pub const MODE_COUNT: u32 = 1;
pub const MODE_GAPS: u32 = 2;
pub const MODE_DIRTY: u32 = 4;

pub struct Gaps {
    last: AtomicU64,
    pub longest: AtomicU64,
    /// The longest stretch of other work between two samples.
    pub busy: AtomicU64,
    pub over_100us: AtomicU64,
    pub since: AtomicU64,
}

impl Gaps {
    const fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            over_100us: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// Measures from the sample before; a TSC that went backwards is no gap.
    pub fn sample(&self) {
        let now = tsc();
        let last = self.last.swap(now, SeqCst);
        if last == 0 || now < last {
            return;
        }
        let gap = now - last;
        self.longest.fetch_max(gap, SeqCst);
        if gap > time::ticks(100) {
            self.over_100us.fetch_add(1, SeqCst);
        }
    }

    /// Ends a stretch of work. It is kept apart from the gaps, because it is as
    /// long as the work is; a pause that falls into it is seen here alone.
    pub fn sample_busy(&self) {
        let now = tsc();
        let last = self.last.swap(now, SeqCst);
        if last != 0 && now > last {
            self.busy.fetch_max(now - last, SeqCst);
        }
    }

    /// Ticks since the sample before, which no sample has ended yet.
    pub fn open(&self) -> u64 {
        match self.last.load(SeqCst) {
            0 => 0,
            last => tsc().saturating_sub(last),
        }
    }

    /// What lies between here and the next sample is not measured.
    pub fn skip(&self) {
        self.last.store(0, SeqCst);
    }

    pub fn reset(&self) {
        self.longest.store(0, SeqCst);
        self.busy.store(0, SeqCst);
        self.over_100us.store(0, SeqCst);
        self.since.store(tsc(), SeqCst);
    }
}

pub struct Cpu {
    pub apic_id: AtomicU32,
    up: AtomicBool,
    /// Changed before each wake-up interrupt.
    wake: AtomicU64,
    mode: AtomicU32,
    /// The mode that the vCPU has seen.
    seen: AtomicU32,
    pub counter: AtomicU64,
    pub gaps: Gaps,
}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        apic_id: AtomicU32::new(0),
        up: AtomicBool::new(false),
        wake: AtomicU64::new(0),
        mode: AtomicU32::new(0),
        seen: AtomicU32::new(0),
        counter: AtomicU64::new(0),
        gaps: Gaps::new(),
    }
}; MAX_CPUS];
static RUNNING: AtomicUsize = AtomicUsize::new(1);

pub fn running() -> usize {
    RUNNING.load(SeqCst)
}

/// The vCPUs that are up; the boot vCPU is the first.
pub fn cpus() -> impl Iterator<Item = (usize, &'static Cpu)> {
    CPUS.iter().enumerate().filter(|(_, c)| c.up.load(SeqCst))
}

pub fn secondaries() -> impl Iterator<Item = &'static Cpu> {
    cpus().skip(1).map(|(_, c)| c)
}

pub fn boot_cpu() -> &'static Cpu {
    &CPUS[0]
}

impl Cpu {
    fn announce(&self) {
        self.apic_id.store(u32::from(apic::local_id()), SeqCst);
        self.up.store(true, SeqCst);
    }

    pub fn mode(&self) -> u32 {
        self.mode.load(SeqCst)
    }

    /// Changes what the vCPU does, and waits until it has noticed. The boot vCPU,
    /// the only one to call this, looks at its own mode whenever it rests.
    pub fn set_mode(&self, on: u32, off: u32) {
        let mode = (self.mode() & !off) | on;
        self.mode.store(mode, SeqCst);
        if core::ptr::eq(self, boot_cpu()) {
            self.gaps.skip();
            return;
        }
        self.wake.fetch_add(1, SeqCst);
        apic::send_wake(self.apic_id.load(SeqCst) as u8);
        // On a busy host it may not have run for a while; the bound is for one that never will.
        let start = tsc();
        while self.seen.load(SeqCst) != mode && time::us_since(start) < 10_000_000 {
            core::hint::spin_loop();
        }
    }
}

/// Starts the vCPUs that the MADT names and waits until they are up.
pub fn start(apic_ids: &[u8]) {
    boot_cpu().announce();
    let own = apic::local_id();
    let others = || apic_ids.iter().copied().filter(|&id| id != own).take(MAX_CPUS - 1);
    let wanted = 1 + others().count();
    if wanted == 1 {
        return;
    }
    copy_trampoline();
    others().for_each(apic::send_init);
    time::spin_us(200);
    // A start-up that came too early for its INIT is lost, hence the second one;
    // a vCPU that is up already ignores it.
    for _ in 0..3 {
        others().for_each(|id| apic::send_startup(id, (TRAMPOLINE >> 12) as u8));
        for _ in 0..500 {
            let up = cpus().count();
            RUNNING.store(up, SeqCst);
            if up == wanted {
                return;
            }
            time::spin_us(100);
        }
    }
}

fn copy_trampoline() {
    unsafe extern "C" {
        static trampoline: u8;
        static trampoline_end: u8;
    }
    let from = &raw const trampoline;
    let len = &raw const trampoline_end as usize - from as usize;
    // SAFETY: conventional memory, from which all that the VMM put there has been
    // copied; the stub's symbols bound the source.
    unsafe { core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len) };
}

pub fn secondary_main(index: usize) -> ! {
    let me = &CPUS[index];
    apic::enable_local();
    me.announce();
    loop {
        let wake = me.wake.load(SeqCst);
        let mode = me.mode();
        if me.seen.swap(mode, SeqCst) != mode {
            me.gaps.skip();
        }
        if mode == 0 {
            idle(&me.wake, wake);
            continue;
        }
        // Each of these rounds is short, so that a gap is the VMM's and not ours.
        me.counter.fetch_add(1, SeqCst);
        me.gaps.sample();
        if mode & MODE_DIRTY != 0 {
            dirty::step();
        } else {
            core::hint::spin_loop();
        }
    }
}
