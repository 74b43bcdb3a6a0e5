//! The machine that is measured on: its CPU time, memory and caches.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Below this share of idle CPU time, in percent, others got in the way.
const ENOUGH_IDLE: f64 = 25.0;

/// CPU time of the host, in ticks.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct CpuTimes {
    pub total: u64,
    pub idle: u64,
    pub stolen: u64,
}

impl CpuTimes {
    /// Since the host's boot.
    pub fn now() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        Ok(Self { total: ticks.iter().take(8).sum(), idle: at(3) + at(4), stolen: at(7) })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            total: self.total - before.total,
            idle: self.idle - before.idle,
            stolen: self.stolen - before.stolen,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.idle += other.idle;
        self.stolen += other.stolen;
    }

    fn percent(&self, part: u64) -> f64 {
        100.0 * part as f64 / self.total.max(1) as f64
    }

    /// How noisy it was, as lines of a list.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{:.0} % of the host's CPU time was idle, {:.1} % stolen by its own host",
            self.percent(self.idle),
            self.percent(self.stolen)
        );
        if self.percent(self.idle) < ENOUGH_IDLE {
            text += "\n- the host was busy: where that is not the benchmark itself, times are too long and worth measuring again";
        }
        text
    }
}

/// Average number of runnable threads in the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// A line `NAME   N kB` of a file of /proc, in KiB.
pub fn kib(file: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .find_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{file} has no {name}")))
}

/// Memory that belongs to a process alone, in KiB.
pub fn own_memory(pid: u64) -> io::Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    Ok(kib(&file, "Private_Clean")? + kib(&file, "Private_Dirty")?)
}

/// Writes what is dirty to the disk, so that nobody pays for his predecessor.
pub fn sync() -> io::Result<()> {
    let status = Command::new("sync").status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("sync failed")) }
}

/// Empties the page cache; only root may.
pub fn drop_caches() -> io::Result<()> {
    sync()?;
    File::options().write(true).open("/proc/sys/vm/drop_caches")?.write_all(b"3")
}

/// What a file takes on its disk, in bytes.
pub fn stored(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}
