//! Measures how long piton and QEMU take from spawn to the bundled guest's first console byte,
//! and how much memory they use beside the guest's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::console::{READY, read_in_thread};
use crate::host::CpuTimes;
use crate::stats::{quantile, sorted};

const MEMORY_MIB: u64 = 512;
const DISK_MIB: u64 = 64;
/// Beyond this many KiB a mapping is more than the guest's memory and a few neighbours.
const MOST_MERGED: u64 = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// One way to boot the guest.
struct Contender {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
    /// Before each boot, not measured.
    prepare: Box<dyn Fn() -> io::Result<()>>,
    samples: Vec<Sample>,
}

struct Sample {
    first_byte: f64,
    ready: f64,
    memory: Overhead,
}

/// Memory of a process without the guest's, in KiB.
#[derive(Default)]
struct Overhead {
    rss: u64,
    pss: u64,
    private: u64,
}

pub fn run(rounds: usize, piton: &Path, guest: &Path, work: &Path) -> io::Result<()> {
    let mut contenders = contenders(piton, guest, work);
    // The first boots read everything from the host's disk.
    for contender in &mut contenders {
        contender.boot(work)?;
    }
    let before = CpuTimes::now()?;
    for round in 0..rounds {
        // Nobody always follows the same neighbour.
        let count = contenders.len();
        for turn in 0..count {
            let contender = &mut contenders[(round + turn) % count];
            let sample = contender.boot(work)?;
            contender.samples.push(sample);
        }
        eprint!("\rround {} of {rounds}", round + 1);
    }
    eprintln!();
    report(&contenders, &CpuTimes::now()?.since(&before));
    Ok(())
}

fn contenders(piton: &Path, guest: &Path, work: &Path) -> Vec<Contender> {
    let home = work.join("home");
    let run_piton = |args: &'static [&'static str]| -> Box<dyn Fn() -> Command> {
        let (piton, home) = (piton.to_owned(), home.clone());
        Box::new(move || {
            let mut command = Command::new(&piton);
            command.env("PITON_HOME", &home).args(args);
            command
        })
    };
    let fresh = {
        let old = home.join("new");
        move || if old.exists() { fs::remove_dir_all(&old) } else { Ok(()) }
    };
    let existing = {
        let (piton, home) = (piton.to_owned(), home.clone());
        move || {
            if home.join("old/vm.json").exists() {
                return Ok(());
            }
            let mut command = Command::new(&piton);
            command.env("PITON_HOME", &home).args([
                "run",
                "old",
                "--cmdline",
                "piton.run=poweroff",
            ]);
            let made = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            if made.success() { Ok(()) } else { Err(io::Error::other("piton could not make a VM")) }
        }
    };
    let disk = work.join("disk.raw");
    let qemu = |machine: &'static str, device: &'static str| -> Box<dyn Fn() -> Command> {
        let (guest, disk) = (guest.to_owned(), disk.clone());
        Box::new(move || {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-M", machine, "-accel", "kvm", "-cpu", "qemu64,-pni", "-smp", "1"]);
            command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config"]);
            command.args(["-display", "none", "-serial", "stdio"]);
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
            let mut drive = std::ffi::OsString::from("id=d,format=raw,if=none,file=");
            drive.push(&disk);
            command.arg("-drive").arg(drive).args(["-device", device]);
            command.arg("-kernel").arg(&guest);
            command
        })
    };
    let with_disk = {
        let disk = disk.clone();
        move || File::create(&disk)?.set_len(DISK_MIB << 20)
    };
    let contender =
        |name, command, prepare| Contender { name, command, prepare, samples: Vec::new() };
    vec![
        contender("piton run", run_piton(&["run", "new"]), Box::new(fresh)),
        contender(
            "piton start --attach",
            run_piton(&["start", "--attach", "old"]),
            Box::new(existing),
        ),
        contender(
            BASELINE,
            qemu("microvm", "virtio-blk-device,drive=d"),
            Box::new(with_disk.clone()),
        ),
        contender(
            "QEMU microvm, trimmed",
            qemu("microvm,x-option-roms=off,pit=off,pic=off,rtc=off", "virtio-blk-device,drive=d"),
            Box::new(with_disk.clone()),
        ),
        contender("QEMU q35", qemu("q35", "virtio-blk-pci,drive=d"), Box::new(with_disk)),
    ]
}

/// What the others are compared with.
const BASELINE: &str = "QEMU microvm";

impl Contender {
    fn boot(&self, work: &Path) -> io::Result<Sample> {
        (self.prepare)()?;
        let errors = work.join("stderr");
        let mut command = (self.command)();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        let start = Instant::now();
        let mut child = command.spawn()?;
        let result = watch(&mut child, start);
        // Both end cleanly on it.
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        child.wait()?;
        result.map_err(|e| {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            io::Error::other(format!("{}: {e}: {said}", self.name))
        })
    }
}

/// Sees the guest come up, and looks at the memory when it is ready.
fn watch(child: &mut Child, start: Instant) -> io::Result<Sample> {
    let output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let chunks = read_in_thread(output);
    let mut seen = Vec::new();
    let mut first_byte = None;
    loop {
        let (at, chunk) = match chunks.recv_timeout(PATIENCE) {
            Ok(chunk) => chunk,
            Err(RecvTimeoutError::Timeout) => {
                return Err(io::Error::other("the guest is not ready"));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the guest ended")),
        };
        let at = at.duration_since(start).as_secs_f64() * 1e3;
        let first_byte = *first_byte.get_or_insert(at);
        seen.extend_from_slice(&chunk);
        if seen.windows(READY.len()).any(|window| window == READY.as_bytes()) {
            return Ok(Sample { first_byte, ready: at, memory: overhead(child.id())? });
        }
    }
}

/// Sums all mappings but the guest's memory. The kernel may have merged that one with its
/// neighbours: as many pages as it is larger than the guest's memory then count as the VMM's.
fn overhead(pid: u32) -> io::Result<Overhead> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let guest = MEMORY_MIB << 10;
    let mut sum = Overhead::default();
    let mut guest_mappings = 0;
    // Most KiB of this mapping that count.
    let mut limit = u64::MAX;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let value: u64 = value.parse().unwrap_or(0);
        match name {
            "Size:" => {
                let is_guest = (guest..guest + MOST_MERGED).contains(&value);
                guest_mappings += u32::from(is_guest);
                limit = if is_guest { value - guest } else { u64::MAX };
            }
            "Rss:" => sum.rss += value.min(limit),
            "Pss:" => sum.pss += value.min(limit),
            "Private_Clean:" | "Private_Dirty:" => sum.private += value.min(limit),
            _ => {}
        }
    }
    if guest_mappings == 1 {
        Ok(sum)
    } else {
        Err(io::Error::other(format!("{guest_mappings} mappings look like the guest's memory")))
    }
}

fn report(contenders: &[Contender], cpu: &CpuTimes) {
    let rounds = contenders.first().map_or(0, |contender| contender.samples.len());
    let of = |contender: &Contender, what: fn(&Sample) -> f64| -> Vec<f64> {
        sorted(contender.samples.iter().map(what))
    };
    let baseline = contenders.iter().find(|contender| contender.name == BASELINE);
    let baseline =
        baseline.map_or(f64::NAN, |contender| quantile(&of(contender, |s| s.first_byte), 0.5));
    let mut out = io::stdout().lock();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("- {rounds} interleaved rounds; {}", cpu.describe()));
    line(String::new());
    line(
        "| | first byte, ms: median | p90 | worst | microvm ÷ this | ready, ms: median | p90 |"
            .into(),
    );
    line("| --- | ---: | ---: | ---: | ---: | ---: | ---: |".into());
    for contender in contenders {
        let (first, ready) = (of(contender, |s| s.first_byte), of(contender, |s| s.ready));
        let median = quantile(&first, 0.5);
        line(format!(
            "| {} | {median:.1} | {:.1} | {:.1} | {:.2} | {:.1} | {:.1} |",
            contender.name,
            quantile(&first, 0.9),
            quantile(&first, 1.0),
            baseline / median,
            quantile(&ready, 0.5),
            quantile(&ready, 0.9),
        ));
    }
    line(String::new());
    line("| memory beside the guest's, MiB | Rss | Pss | private |".into());
    line("| --- | ---: | ---: | ---: |".into());
    for contender in contenders {
        let mib = |what| quantile(&of(contender, what), 0.5) / 1024.0;
        line(format!(
            "| {} | {:.1} | {:.1} | {:.1} |",
            contender.name,
            mib(|s| s.memory.rss as f64),
            mib(|s| s.memory.pss as f64),
            mib(|s| s.memory.private as f64),
        ));
    }
}
