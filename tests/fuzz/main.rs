//! Damaged inputs for everything that piton reads and others can write. A target takes bytes, must
//! neither panic nor hang nor allocate without bound, and says whether the input was accepted;
//! where more can be said of what it accepted, it asserts that.
//!
//! As a test each target runs for a moment; `scripts/fuzz` runs them for long (PITON_FUZZ_SECONDS,
//! PITON_FUZZ_SEED, PITON_FUZZ_ONLY). Findings are kept in tests/fuzz/corpus and tried each time.

mod agent;
mod contents;
mod depot;
mod driver;
mod files;
mod http;
#[path = "../image_common/made.rs"]
mod image_common;
mod images;
mod kernel;
mod mutate;
mod net;
mod virtio;
mod vsock;
mod watched;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mutate::Rng;

/// No input is larger than some hundred KiB; what is allocated at once for one must not be either.
const MOST_AT_ONCE: usize = 64 << 20;
/// A shared machine may stand still for a while; a hang is longer.
const HANG: Duration = Duration::from_secs(20);

/// Refuses what no honest input needs, which ends the process with a message.
struct Bounded;

// SAFETY: all is left to the system's allocator; null says that there is no memory.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST_AT_ONCE {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

pub enum Shape {
    Bytes,
    /// Offsets mean something; none is moved.
    Fixed,
    Json,
}

/// Whether the input was accepted.
pub type Run = Box<dyn Fn(&[u8]) -> bool>;
pub type Mend = Box<dyn Fn(&mut Vec<u8>)>;
type Make = fn() -> Target;

pub struct Target {
    pub name: &'static str,
    pub shape: Shape,
    pub seeds: Vec<Vec<u8>>,
    /// Mends checksums after a mutation.
    pub mend: Mend,
    pub run: Run,
}

fn targets() -> Vec<(&'static str, Make)> {
    vec![
        ("delta", files::delta),
        ("manifest", files::manifest),
        ("state", files::state),
        ("memory-index", files::memory_index),
        ("vm.json", files::vm_json),
        ("verified", files::verified),
        ("export", files::export),
        ("depot-index", depot::index),
        ("depot-manifest", depot::manifest),
        ("depot-chunk", depot::chunk),
        ("image-kind", images::kind),
        ("qcow2", images::qcow2),
        ("base-sums", images::base_sums),
        ("image", contents::image),
        ("grub", contents::grub),
        ("fat", contents::fat),
        ("virtio", virtio::target),
        ("vsock", vsock::target),
        ("net", net::device),
        ("passt", net::passt),
        ("elf", kernel::elf),
        ("bzimage", kernel::bzimage),
        ("control", http::target),
        ("agent", agent::target),
        ("agent-calls", agent::calls_target),
        ("guest-tar", agent::tar_target),
        ("events", watched::events),
        ("exposition", watched::exposition),
    ]
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// Files of the corpus, in the order of their names.
pub fn kept(name: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(corpus(name)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

struct Outcome {
    tried: u64,
    accepted: u64,
    seconds: f64,
    findings: u64,
}

/// One input. But for `control`, whose server lives on, it is all that a finding needs. It is written
/// down first: an allocation that is refused ends the process.
fn try_one(target: &Target, input: &[u8], pending: &std::path::Path) -> Result<bool, String> {
    std::fs::write(pending, input).unwrap();
    let begun = Instant::now();
    let accepted = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
    })?;
    match begun.elapsed() {
        took if took > HANG => Err(format!("it took {took:?}")),
        _ => Ok(accepted),
    }
}

fn fuzz(target: &Target, seed: u64, time: Duration, most: u64) -> Outcome {
    let pending =
        PathBuf::from("/dev/shm").join(format!("piton-fuzz-{}-{}", target.name, std::process::id()));
    let mut seeds = target.seeds.clone();
    seeds.extend(kept(target.name));
    let mut rng = Rng::new(target.name.bytes().fold(seed, |h, b| h.wrapping_mul(31) + u64::from(b)));
    let (begun, mut found) = (Instant::now(), Vec::<String>::new());
    let mut outcome = Outcome { tried: 0, accepted: 0, seconds: 0.0, findings: 0 };
    // Inputs that were accepted are gone on from, a few of them.
    let mut pool = seeds.clone();
    let mut next_seed = seeds.clone().into_iter();
    while outcome.tried < most && begun.elapsed() < time {
        let input = next_seed.next().unwrap_or_else(|| {
            let mut input = pool[rng.below(pool.len())].clone();
            let other = pool[rng.below(pool.len())].clone();
            match target.shape {
                Shape::Bytes => mutate::bytes(&mut rng, &mut input, &other, false),
                Shape::Fixed => mutate::bytes(&mut rng, &mut input, &other, true),
                Shape::Json => mutate::json(&mut rng, &mut input, &other),
            }
            input.truncate(256 << 10);
            if rng.below(16) > 0 {
                (target.mend)(&mut input);
            }
            input
        });
        outcome.tried += 1;
        match try_one(target, &input, &pending) {
            Ok(false) => {}
            Ok(true) => {
                outcome.accepted += 1;
                match pool.len() {
                    n if n < seeds.len() + 64 => pool.push(input),
                    n if rng.below(32) == 0 => {
                        let at = seeds.len() + rng.below(n - seeds.len());
                        pool[at] = input;
                    }
                    _ => {}
                }
            }
            Err(why) => {
                outcome.findings += 1;
                // The same panic again says nothing new.
                if !found.contains(&why) && found.len() < 10 {
                    let path = corpus(target.name).join(format!("found-{:08x}", crc32fast::hash(&input)));
                    std::fs::create_dir_all(corpus(target.name)).unwrap();
                    std::fs::write(&path, &input).unwrap();
                    eprintln!("{}: {why}\n  kept as {}", target.name, path.display());
                    found.push(why);
                }
            }
        }
    }
    let _ = std::fs::remove_file(&pending);
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn nothing_is_found() {
    let seed = setting("PITON_FUZZ_SEED").unwrap_or(1);
    let only = std::env::var("PITON_FUZZ_ONLY").unwrap_or_default();
    // The short run tries as many on every machine.
    let (time, most) = match setting("PITON_FUZZ_SECONDS") {
        Some(seconds) => (Duration::from_secs(seconds), u64::MAX),
        None => (Duration::from_secs(60), 1000),
    };
    let mut findings = 0;
    println!(
        "| target | seed | seconds | inputs | accepted | findings |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    );
    for (name, make) in targets() {
        if !name.contains(&only) {
            continue;
        }
        let o = fuzz(&make(), seed, time, most);
        let share = o.accepted as f64 * 100.0 / o.tried as f64;
        println!("| {name} | {seed} | {:.0} | {} | {share:.1} % | {} |", o.seconds, o.tried, o.findings);
        assert!(o.findings > 0 || o.accepted * 100 >= o.tried, "{name} refuses nearly everything");
        findings += o.findings;
    }
    assert_eq!(findings, 0, "inputs are in tests/fuzz/corpus");
}
