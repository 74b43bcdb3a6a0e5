//! How much a guest has asked of its disks. Counters only ever grow while the VM's process lives: they
//! outlast the machine, which another one replaces when the VM goes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that were answered, and bytes of them.
#[derive(Debug, Default)]
pub struct DiskCounts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    failures: AtomicU64,
}

/// Numbers at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskTraffic {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    /// Those that write zeroes are among them.
    pub discards: u64,
    /// Requests that the guest got an error for.
    pub failures: u64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl DiskCounts {
    pub fn read(&self, bytes: u64) {
        add(&self.reads, 1);
        add(&self.read_bytes, bytes);
    }

    pub fn wrote(&self, bytes: u64) {
        add(&self.writes, 1);
        add(&self.written_bytes, bytes);
    }

    pub fn flushed(&self) {
        add(&self.flushes, 1);
    }

    pub fn discarded(&self) {
        add(&self.discards, 1);
    }

    pub fn failed(&self) {
        add(&self.failures, 1);
    }

    pub fn now(&self) -> DiskTraffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskTraffic {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            failures: get(&self.failures),
        }
    }
}

/// Those of all disks by their ids. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct AllDiskCounts(Arc<Mutex<BTreeMap<String, Arc<DiskCounts>>>>);

impl AllDiskCounts {
    /// Those of a disk, which are the former ones if it was there before.
    pub fn of(&self, disk: &str) -> Arc<DiskCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(disk.to_owned()).or_default().clone()
    }

    pub fn now(&self) -> Vec<(String, DiskTraffic)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(disk, counts)| (disk.clone(), counts.now())).collect()
    }
}
