//! Going back in a new process, and what a layer more costs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cases;
use crate::console::{Console, PATIENCE};
use crate::host;
use crate::qemu::{self, Qemu};
use crate::results::{Results, Values};
use crate::setting::Setting;

pub const DEPTHS: [u32; 3] = [1, 8, 32];
pub const CACHES: [&str; 2] = ["warm", "cold"];
/// What changes in memory and on the disk from one checkpoint of a chain to the next.
const STEP_MIB: u64 = 4;
const QEMU_METHODS: [&str; 2] = ["incoming", "loadvm"];

pub fn cell(mib: u64, depth: u32, cache: &str, who: &str) -> String {
    format!("restore {mib}M depth {depth} {cache} {who}")
}

pub fn chain_cell(mib: u64) -> String {
    format!("chain {mib}M piton")
}

/// The checkpoints are made once a run, and not at all if nothing is left to measure.
pub fn all(setting: &Setting, results: &mut Results) -> io::Result<()> {
    for &mib in cases::sizes(setting.quick) {
        if !cases::fits_host(mib) {
            continue;
        }
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for depth in DEPTHS {
            sources.push(Box::new(PitonChain { setting, mib, depth }));
        }
        for method in QEMU_METHODS {
            sources.push(Box::new(QemuState { setting, mib, method }));
        }
        let mut made: Option<io::Result<()>> = None;
        for round in 0..setting.rounds {
            for turn in 0..sources.len() {
                let source = &sources[(round + turn) % sources.len()];
                for cache in CACHES {
                    let cell = cell(mib, source.depth(), cache, source.who());
                    if results.has(&cell, round) {
                        continue;
                    }
                    let made = made.get_or_insert_with(|| make_all(setting, results, mib, round));
                    let failed = made.as_ref().err().map(ToString::to_string);
                    results.measure(&cell, round, || match failed {
                        Some(e) => Err(io::Error::other(e)),
                        None => {
                            prepare_cache(cache, source.as_ref()).and_then(|()| source.restore())
                        }
                    })?;
                }
            }
        }
        for depth in DEPTHS {
            setting.piton.remove(&chain_name(mib, depth));
        }
        for file in [disk(setting, mib), state(setting, mib)] {
            let _ = fs::remove_file(file);
        }
    }
    Ok(())
}

/// Cold caches of one leave those of the next one cold, too: warm ones take a restore before.
fn prepare_cache(cache: &str, source: &dyn Source) -> io::Result<()> {
    if cache == "cold" {
        return host::drop_caches();
    }
    source.restore()?;
    host::sync()
}

/// Something to go back to.
trait Source {
    fn who(&self) -> &str;
    fn depth(&self) -> u32;
    fn restore(&self) -> io::Result<Values>;
}

/// Times from the spawn on, in ms.
struct Clock {
    start: Instant,
    values: Values,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), values: Values::new() }
    }

    fn note(&mut self, name: &str) {
        self.note_at(name, Instant::now());
    }

    fn note_at(&mut self, name: &str, at: Instant) {
        self.values.insert(name.into(), at.duration_since(self.start).as_secs_f64() * 1e3);
    }

    /// The guest goes on: its first answer, and all of its memory.
    fn ask(&mut self, console: &mut Console) -> io::Result<()> {
        let answer = console.ask("echo here")?;
        self.note_at("answer_ms", answer.at);
        let sum = console.ask("sum")?;
        self.note_at("touched_ms", sum.at);
        Ok(())
    }
}

fn chain_name(mib: u64, depth: u32) -> String {
    format!("chain-{mib}-{depth}")
}

fn disk(setting: &Setting, mib: u64) -> PathBuf {
    setting.work.join(format!("restore-{mib}.qcow2"))
}

fn state(setting: &Setting, mib: u64) -> PathBuf {
    setting.work.join(format!("restore-{mib}.state"))
}

fn make_all(setting: &Setting, results: &mut Results, mib: u64, round: usize) -> io::Result<()> {
    let mut values = Values::new();
    for depth in DEPTHS {
        values.extend(make_chain(setting, mib, depth)?);
    }
    results.measure(&chain_cell(mib), round, || Ok(values))?;
    make_state(setting, mib)
}

fn fill(console: &mut Console) -> io::Result<()> {
    let usable = console.ask("info")?.number("usable")? as u64;
    console.ask("journal off")?;
    console.ask(&format!("fill {}", usable - STEP_MIB)).map(drop)
}

/// A VM with so many checkpoints in a row, which is off. Tells how long the last of them took.
fn make_chain(setting: &Setting, mib: u64, depth: u32) -> io::Result<Values> {
    let name = chain_name(mib, depth);
    let mut vm = setting.piton.boot(&name, &["--memory".into(), format!("{mib}M")])?;
    fill(&mut vm.console)?;
    let mut values = Values::new();
    for n in 1..=depth {
        change(&mut vm.console, n)?;
        let start = Instant::now();
        setting.piton.run(&["checkpoint", "create", &name, &format!("c{n}")])?;
        values.insert(format!("create_{depth}_ms"), start.elapsed().as_secs_f64() * 1e3);
    }
    vm.end()?;
    Ok(values)
}

fn change(console: &mut Console, n: u32) -> io::Result<()> {
    console.ask(&format!("dirty {STEP_MIB} max"))?;
    let deadline = Instant::now() + PATIENCE;
    while console.ask("dirty")?.number("written")? < (STEP_MIB * 256) as f64 {
        if Instant::now() > deadline {
            return Err(io::Error::other("the guest does not get to dirty its memory"));
        }
    }
    console.ask("dirty 0")?;
    console.ask(&format!("blk 0 write {}M {STEP_MIB}M {n}", u64::from(n % 8) * STEP_MIB)).map(drop)
}

struct PitonChain<'a> {
    setting: &'a Setting,
    mib: u64,
    depth: u32,
}

impl Source for PitonChain<'_> {
    fn who(&self) -> &str {
        "piton"
    }

    fn depth(&self) -> u32 {
        self.depth
    }

    fn restore(&self) -> io::Result<Values> {
        let piton = &self.setting.piton;
        let name = chain_name(self.mib, self.depth);
        let checkpoint = format!("{name}@c{}", self.depth);
        let mut clock = Clock::start();
        piton.run(&["checkpoint", "apply", &checkpoint, "--discard-current"])?;
        clock.note("paused_ms");
        let mut vm = piton.console(&name)?;
        piton.run(&["resume", &name])?;
        clock.ask(&mut vm.console)?;
        vm.end()?;
        Ok(clock.values)
    }
}

/// The same guest as a file of `migrate` and as a snapshot in its disk.
fn make_state(setting: &Setting, mib: u64) -> io::Result<()> {
    let disk = disk(setting, mib);
    let _ = fs::remove_file(&disk);
    qemu::create_qcow2(&disk, 64, None)?;
    let mut qemu = Qemu::boot(&setup(setting, mib, &[("qcow2", disk)], &[]))?;
    fill(&mut qemu.console)?;
    change(&mut qemu.console, 1)?;
    qemu.qmp.run("stop", serde_json::json!({}))?;
    qemu.qmp.human("savevm one")?;
    qemu.qmp.migrate(&state(setting, mib))?;
    qemu.qmp.run("quit", serde_json::json!({})).map(drop)
}

fn setup<'a>(
    setting: &'a Setting,
    memory_mib: u64,
    disks: &'a [(&'static str, PathBuf)],
    more: &'a [String],
) -> qemu::Setup<'a> {
    qemu::Setup { guest: &setting.guest, work: &setting.work, memory_mib, cpus: 1, disks, more }
}

struct QemuState<'a> {
    setting: &'a Setting,
    mib: u64,
    method: &'static str,
}

impl Source for QemuState<'_> {
    fn who(&self) -> &str {
        self.method
    }

    fn depth(&self) -> u32 {
        1
    }

    fn restore(&self) -> io::Result<Values> {
        let Self { setting, mib, method } = *self;
        let from = match method {
            "incoming" => ["-incoming".into(), incoming(&state(setting, mib))],
            _ => ["-loadvm".into(), "one".into()],
        };
        let more: Vec<String> = std::iter::once("-S".into()).chain(from).collect();
        let mut clock = Clock::start();
        let mut qemu = Qemu::spawn(&setup(setting, mib, &[("qcow2", disk(setting, mib))], &more))?;
        let deadline = Instant::now() + PATIENCE;
        while qemu.qmp.status()? == "inmigrate" {
            if Instant::now() > deadline {
                return Err(io::Error::other("QEMU does not get its state"));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        clock.note("paused_ms");
        qemu.qmp.run("cont", serde_json::json!({}))?;
        clock.ask(&mut qemu.console)?;
        Ok(clock.values)
    }
}

fn incoming(file: &Path) -> String {
    format!("exec:cat '{}'", file.display())
}
