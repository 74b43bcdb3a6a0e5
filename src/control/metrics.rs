//! What is measured of a VM. The thread of the control socket reads it without asking the owner, who
//! may be busy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::State;
use super::exposition::{Page, Type};
use super::jobs::{JobState, Jobs};
use crate::checkpoint::{Kind, Manifest};
use crate::devices::virtio::counts::{AllDiskCounts, DiskTraffic};
use crate::folder::Happened;
use crate::net::{Link, LinkInfo};

/// Upper bounds of the buckets that pauses are counted in, in milliseconds.
const BUCKETS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// A counter of a device: its name, what it is, and where it stands.
type Row<T> = (&'static str, &'static str, fn(&T) -> u64);

/// Lines of the log: errors, and warnings.
static LOGGED: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// To be told of each line of the log.
pub fn logged(level: log::Level) {
    match level {
        log::Level::Error => LOGGED[0].fetch_add(1, Ordering::Relaxed),
        log::Level::Warn => LOGGED[1].fetch_add(1, Ordering::Relaxed),
        _ => 0,
    };
}

/// The state of a VM as a metric: 1 for the one that it is in.
pub fn state_of(page: &mut Page, state: State) {
    page.family("piton_state", Type::Gauge, "1 for the state that the VM is in, 0 for all others.");
    for one in [State::Running, State::Paused, State::Stopped, State::Unresponsive] {
        page.sample(&[("state", &one.to_string())], u8::from(one == state));
    }
}

/// What the owner tells now and then.
#[derive(Clone, Default)]
pub struct Now {
    pub state: Option<State>,
    /// It is paused until somebody helps the host.
    pub stuck: bool,
    pub cpus: u32,
    pub memory: u64,
    pub links: Vec<Arc<Link>>,
}

/// What the checkpoints of a VM are, without those in the trash.
#[derive(Clone, Default)]
struct Stored {
    kinds: BTreeMap<String, u64>,
    memory: u64,
    disks: u64,
    trash: u64,
    /// Layers above the base of each disk.
    layers: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Pauses {
    /// How many fell into each bucket, and beyond all.
    counts: [u64; BUCKETS.len() + 1],
    sum: Duration,
    last: Option<Duration>,
    captures: u64,
    memory: u64,
    disks: u64,
}

/// A clone is the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    vm: String,
    began: Instant,
    /// In seconds, as Unix counts them.
    started: f64,
    now: Mutex<Now>,
    stored: Mutex<Stored>,
    pauses: Mutex<Pauses>,
    events: Mutex<BTreeMap<String, u64>>,
    disks: AllDiskCounts,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    pub fn new(vm: &str) -> Self {
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(Arc::new(Inner {
            vm: vm.to_owned(),
            began: Instant::now(),
            started: started.unwrap_or_default().as_secs_f64(),
            now: Mutex::default(),
            stored: Mutex::default(),
            pauses: Mutex::default(),
            events: Mutex::default(),
            disks: AllDiskCounts::default(),
        }))
    }

    /// Where the guest's requests are counted.
    pub fn disks(&self) -> AllDiskCounts {
        self.0.disks.clone()
    }

    pub fn set_now(&self, now: Now) {
        *lock(&self.0.now) = now;
    }

    /// What checkpoints there are, in the trash or not, and how many layers each disk has.
    pub fn set_stored(&self, manifests: &[Manifest], layers: BTreeMap<String, usize>) {
        let kinds = [Kind::Standard, Kind::Production, Kind::Offline];
        let mut stored = Stored { layers, ..Stored::default() };
        stored.kinds = kinds.iter().map(|kind| (kind.to_string(), 0)).collect();
        for manifest in manifests {
            if manifest.is_in_trash() {
                stored.trash += 1;
            } else {
                *stored.kinds.entry(manifest.kind.to_string()).or_default() += 1;
            }
            stored.memory += memory_of(manifest);
            stored.disks += manifest.disk_bytes;
        }
        *lock(&self.0.stored) = stored;
    }

    /// A checkpoint was made.
    pub fn captured(&self, manifest: &Manifest) {
        let mut pauses = lock(&self.0.pauses);
        pauses.captures += 1;
        pauses.memory += memory_of(manifest);
        pauses.disks += manifest.disk_bytes;
        // Of a production checkpoint it is the file systems that stood still.
        let Some(pause) = manifest.pause_us.map(Duration::from_micros) else { return };
        let fits = |ms: &u64| pause <= Duration::from_millis(*ms);
        let bucket = BUCKETS.iter().position(fits).unwrap_or(BUCKETS.len());
        pauses.counts[bucket] += 1;
        pauses.sum += pause;
        pauses.last = Some(pause);
    }

    /// Something happened that the VM's events tell of.
    pub fn happened(&self, event: &Happened) {
        *lock(&self.0.events).entry(event.event.to_string()).or_default() += 1;
    }

    /// All of it, as Prometheus reads it.
    pub fn page(&self, jobs: &Jobs) -> String {
        let mut page = Page::new(&self.0.vm);
        self.process(&mut page);
        self.checkpoints(&mut page);
        self.devices(&mut page);
        self.work(&mut page, jobs);
        page.finish()
    }

    fn process(&self, page: &mut Page) {
        let now = lock(&self.0.now).clone();
        page.family("piton_info", Type::Gauge, "The version of piton that runs the VM.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        state_of(page, now.state.unwrap_or(State::Stopped));
        let stuck = "1 if the VM is paused because the host has no room for what its guest writes.";
        page.one("piton_out_of_room", Type::Gauge, stuck, u8::from(now.stuck));
        let started = "When the VM's process started, in seconds since 1970.";
        page.one("piton_start_time_seconds", Type::Gauge, started, self.0.started);
        let uptime = self.0.began.elapsed().as_secs_f64();
        page.one("piton_uptime_seconds", Type::Gauge, "How long the VM's process has been there.", uptime);
        if let Ok(time) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
            let time = Duration::from(time).as_secs_f64();
            let help = "Time of the host's CPUs that the VM's process has used, guest included.";
            page.one("piton_cpu_seconds_total", Type::Counter, help, time);
        }
        page.one("piton_cpus", Type::Gauge, "vCPUs of the VM.", now.cpus);
        page.one("piton_memory_bytes", Type::Gauge, "Memory of the guest.", now.memory);
    }

    fn checkpoints(&self, page: &mut Page) {
        let stored = lock(&self.0.stored).clone();
        page.family("piton_checkpoints", Type::Gauge, "Checkpoints of the VM by type, without the trash.");
        for (kind, count) in &stored.kinds {
            page.sample(&[("type", kind)], count);
        }
        page.one("piton_trash_checkpoints", Type::Gauge, "Checkpoints in the trash of the VM.", stored.trash);
        let help = "Bytes that the checkpoints recorded, those in the trash included.";
        page.family("piton_checkpoint_bytes", Type::Gauge, help)
            .sample(&[("part", "memory")], stored.memory)
            .sample(&[("part", "disks")], stored.disks);
        page.family("piton_disk_layers", Type::Gauge, "Layers above the base image of a disk.");
        for (disk, layers) in &stored.layers {
            page.sample(&[("disk", disk)], layers);
        }
        let pauses = lock(&self.0.pauses);
        let help = "Checkpoints made since the VM's process started.";
        page.one("piton_captures_total", Type::Counter, help, pauses.captures);
        page.family("piton_capture_bytes_total", Type::Counter, "Bytes recorded by these checkpoints.")
            .sample(&[("part", "memory")], pauses.memory)
            .sample(&[("part", "disks")], pauses.disks);
        let help = "How long the guest stood still for a checkpoint.";
        page.family("piton_pause_seconds", Type::Histogram, help);
        let mut count = 0;
        for (upto, here) in BUCKETS.iter().zip(pauses.counts) {
            count += here;
            let upto = Duration::from_millis(*upto).as_secs_f64().to_string();
            page.part("_bucket", &[("le", &upto)], count);
        }
        count += pauses.counts[BUCKETS.len()];
        page.part("_bucket", &[("le", "+Inf")], count);
        page.part("_sum", &[], pauses.sum.as_secs_f64()).part("_count", &[], count);
        if let Some(last) = pauses.last {
            let help = "The last of these pauses.";
            page.one("piton_last_pause_seconds", Type::Gauge, help, last.as_secs_f64());
        }
    }

    fn devices(&self, page: &mut Page) {
        let disks = self.0.disks.now();
        let rows: [Row<DiskTraffic>; 7] = [
            ("piton_disk_reads_total", "Reads that the guest completed.", |one| one.reads),
            ("piton_disk_read_bytes_total", "Bytes that the guest read.", |one| one.read_bytes),
            ("piton_disk_writes_total", "Writes that the guest completed.", |one| one.writes),
            ("piton_disk_written_bytes_total", "Bytes that the guest wrote.", |one| one.written_bytes),
            ("piton_disk_flushes_total", "Flushes that the guest completed.", |one| one.flushes),
            ("piton_disk_discards_total", "Discards and write-zeroes of the guest.", |one| one.discards),
            ("piton_disk_errors_total", "Requests that the guest got an error for.", |one| one.failures),
        ];
        for (name, help, value) in rows {
            page.family(name, Type::Counter, help);
            for (disk, traffic) in &disks {
                page.sample(&[("disk", disk)], value(traffic));
            }
        }
        let links: Vec<_> = lock(&self.0.now).links.iter().map(|link| link.info()).collect();
        let named = |n: usize| n.to_string();
        page.family("piton_net_up", Type::Gauge, "1 if the guest can send and receive on this network.");
        for (n, link) in links.iter().enumerate() {
            page.sample(&[("net", &named(n))], u8::from(link.up));
        }
        let rows: [Row<LinkInfo>; 4] = [
            ("piton_net_received_frames_total", "Frames that the guest received.", |one| one.received.0),
            ("piton_net_received_bytes_total", "Bytes that the guest received.", |one| one.received.1),
            ("piton_net_sent_frames_total", "Frames that the guest sent.", |one| one.sent.0),
            ("piton_net_sent_bytes_total", "Bytes that the guest sent.", |one| one.sent.1),
        ];
        for (name, help, value) in rows {
            page.family(name, Type::Counter, help);
            for (n, link) in links.iter().enumerate() {
                page.sample(&[("net", &named(n))], value(link));
            }
        }
    }

    fn work(&self, page: &mut Page, jobs: &Jobs) {
        let list = jobs.list().jobs;
        page.family("piton_jobs", Type::Gauge, "Jobs that are not over.");
        for state in [JobState::Queued, JobState::Running] {
            let count = list.iter().filter(|job| job.state == state).count();
            page.sample(&[("state", &state.to_string())], count);
        }
        page.family("piton_jobs_finished_total", Type::Counter, "Jobs that are over, by how they ended.");
        for ((kind, state), count) in jobs.ends() {
            page.sample(&[("kind", &kind.to_string()), ("result", &state.to_string())], count);
        }
        page.family("piton_log_lines_total", Type::Counter, "Errors and warnings in the log.");
        for (level, count) in ["error", "warning"].iter().zip(&LOGGED) {
            page.sample(&[("level", level)], count.load(Ordering::Relaxed));
        }
        page.family("piton_events_total", Type::Counter, "What `piton events` tells of.");
        for (event, count) in lock(&self.0.events).iter() {
            page.sample(&[("event", event)], count);
        }
    }
}

fn memory_of(manifest: &Manifest) -> u64 {
    let stored = |memory: &crate::checkpoint::manifest::MemoryInfo| {
        memory.compressed_bytes.unwrap_or(memory.stored_bytes)
    };
    manifest.memory.as_ref().map_or(0, stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::manifest::tests::sample;
    use crate::id::Id;

    #[test]
    fn pauses_fall_into_buckets_that_add_up() {
        let metrics = Metrics::new("demo");
        for pause in [Some(500), Some(1000), Some(7000), Some(9_000_000), None] {
            let manifest = Manifest { pause_us: pause, ..sample(Id::from_bytes([1; 16]), "one", None) };
            metrics.captured(&manifest);
        }
        let page = metrics.page(&Jobs::default());
        for line in [
            "piton_captures_total{vm=\"demo\"} 5",
            "piton_pause_seconds_bucket{vm=\"demo\",le=\"0.001\"} 2",
            "piton_pause_seconds_bucket{vm=\"demo\",le=\"0.005\"} 2",
            "piton_pause_seconds_bucket{vm=\"demo\",le=\"0.01\"} 3",
            "piton_pause_seconds_bucket{vm=\"demo\",le=\"5\"} 3",
            "piton_pause_seconds_bucket{vm=\"demo\",le=\"+Inf\"} 4",
            "piton_pause_seconds_count{vm=\"demo\"} 4",
            "piton_pause_seconds_sum{vm=\"demo\"} 9.0085",
            "piton_last_pause_seconds{vm=\"demo\"} 9",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
    }
}
