//! What is measured, and how the cells of the results are called.

use crate::host;
use crate::results::Results;

/// Host memory beside the guest's that a case needs: VMMs, buffers, some page cache.
const ROOM_MIB: u64 = 2048;

/// The dirtied part of memory; with nothing else to dirty, what changes between two checkpoints.
pub const DIRTY_MIB: u64 = 128;
pub const CHANGED_MIB: u64 = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    Paced(u64),
    Unpaced,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Paced(rate) => write!(f, "{rate}"),
            Self::Unpaced => f.write_str("max"),
        }
    }
}

pub const RATES: [Rate; 4] = [Rate::Paced(0), Rate::Paced(50), Rate::Paced(500), Rate::Unpaced];
/// What QEMU offers.
pub const METHODS: [&str; 3] = ["savevm", "migrate", "background-snapshot"];

/// A guest while a checkpoint is made of it.
#[derive(Clone, Copy)]
pub struct Case {
    pub mib: u64,
    pub cpus: u32,
    pub rate: Rate,
    pub disk_load: bool,
    /// Compared with QEMU, or alone.
    pub peers: bool,
}

impl Case {
    pub fn cell(&self, who: &str) -> String {
        let Self { mib, cpus, rate, .. } = self;
        let disk = if self.disk_load { " disk" } else { "" };
        format!("create {mib}M {cpus}cpu {rate}{disk} {who}")
    }

    pub fn title(&self) -> String {
        let rate = match self.rate {
            Rate::Paced(0) => "nothing dirtied".into(),
            Rate::Paced(rate) => format!("{rate} MB/s"),
            Rate::Unpaced => "unpaced".into(),
        };
        let disk = if self.disk_load { ", disk under load" } else { "" };
        format!("{} MiB, {} vCPU, {rate}{disk}", self.mib, self.cpus)
    }

    pub fn fits_host(&self) -> bool {
        fits_host(self.mib)
    }
}

pub fn fits_host(mib: u64) -> bool {
    host::kib("/proc/meminfo", "MemAvailable")
        .is_ok_and(|free| free / 1024 > mib + mib / 4 + ROOM_MIB)
}

pub fn sizes(quick: bool) -> &'static [u64] {
    if quick { &[512] } else { &[512, 2048] }
}

/// Sizes of the row of pauses over memory.
pub const GROWTH: [u64; 5] = [512, 1024, 2048, 4096, 8192];

pub fn growth(mib: u64) -> Case {
    Case { mib, cpus: 1, rate: Rate::Paced(500), disk_load: false, peers: false }
}

pub fn disk_load(mib: u64) -> Case {
    Case { mib, cpus: 2, rate: Rate::Paced(500), disk_load: true, peers: true }
}

pub fn all(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for &mib in sizes(quick) {
        for cpus in [1, 2] {
            for rate in RATES {
                let few = matches!(rate, Rate::Paced(0 | 500));
                if !quick || few {
                    cases.push(Case { mib, cpus, rate, disk_load: false, peers: true });
                }
            }
        }
        cases.push(disk_load(mib));
    }
    let more = GROWTH.into_iter().filter(|mib| !sizes(quick).contains(mib));
    cases.extend(more.filter(|&mib| !quick || mib <= 1024).map(growth));
    cases
}

/// What a growing memory does to the pause, or to another value: cells of one rate.
pub fn growing(results: &Results, value: &str) -> Vec<(u64, Vec<f64>)> {
    let of = |mib| results.of(&growth(mib).cell("piton"), value);
    GROWTH.into_iter().map(|mib| (mib, of(mib))).filter(|(_, pauses)| !pauses.is_empty()).collect()
}
