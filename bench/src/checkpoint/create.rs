//! Checkpoints of a guest that runs, seen from inside and from outside.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cases::{self, CHANGED_MIB, Case, DIRTY_MIB, METHODS, Rate};
use crate::console::{Answer, Console, PATIENCE};
use crate::host;
use crate::piton::Piton;
use crate::qemu::{self, Qemu};
use crate::results::{Results, Values};
use crate::setting::Setting;

const VM: &str = "create";
/// How long the guest is watched without a checkpoint, to know what the host itself does to it.
const WATCH: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_millis(30);
/// Some seconds of work for the disk.
const DISK_LOAD: &str = "blk 0 bench rand-write 0 48M 4K 80000 64 qd=4";

pub fn round(setting: &Setting, results: &mut Results, round: usize) -> io::Result<()> {
    let cases = cases::all(setting.quick);
    for turn in 0..cases.len() {
        let case = cases[(round + turn) % cases.len()];
        if !case.fits_host() {
            continue;
        }
        // Nobody always follows the other.
        for turn in 0..2 {
            if (round + turn).is_multiple_of(2) {
                results.measure(&case.cell("piton"), round, || piton(setting, &case))?;
            } else if case.peers {
                for method in METHODS {
                    results.measure(&case.cell(method), round, || qemu(setting, &case, method))?;
                }
            }
        }
    }
    Ok(())
}

/// Fills all memory; what is to be dirtied is dirty once, so that it is there.
fn settle(console: &mut Console, case: &Case) -> io::Result<()> {
    let usable = console.ask("info")?.number("usable")? as u64;
    let window = dirty_window(case);
    console.ask("journal off")?;
    console.ask(&format!("fill {}", usable - window))?;
    dirty_once(console, window)?;
    if case.rate != Rate::Paced(0) {
        console.ask(&format!("dirty {window} {}", case.rate))?;
    }
    console.ask("gaps start")?;
    Ok(())
}

fn dirty_window(case: &Case) -> u64 {
    if case.rate == Rate::Paced(0) { CHANGED_MIB } else { DIRTY_MIB }
}

/// Writes every page of the window.
fn dirty_once(console: &mut Console, window: u64) -> io::Result<()> {
    console.ask(&format!("dirty {window} max"))?;
    let deadline = Instant::now() + PATIENCE;
    while console.ask("dirty")?.number("written")? < (window * 256) as f64 {
        if Instant::now() > deadline {
            return Err(io::Error::other("the guest does not get to dirty its memory"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    console.ask("dirty 0").map(drop)
}

/// The longest time the guest did not run, in ms. With one vCPU it may have been at work then.
fn pause(gaps: &Answer, case: &Case) -> io::Result<f64> {
    let gap = gaps.number("gap_us")?;
    let longest = if case.cpus == 1 { gap.max(gaps.number("busy_us")?) } else { gap };
    Ok(longest / 1e3)
}

/// Watches a guest while something is done to it.
fn watched(
    console: &mut Console,
    case: &Case,
    values: &mut Values,
    prefix: &str,
    act: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let mut note = |name: &str, value: f64| values.insert(format!("{prefix}{name}"), value);
    let before = console.ask("dirty")?;
    console.ask("gaps")?;
    // What falls into the answering itself the guest does not count.
    std::thread::sleep(REST);
    if case.disk_load {
        console.send(DISK_LOAD)?;
        std::thread::sleep(WATCH);
    }
    let start = Instant::now();
    act()?;
    note("total_ms", start.elapsed().as_secs_f64() * 1e3);
    if case.disk_load {
        // The console is taken until then.
        note("load_iops", console.answer(DISK_LOAD)?.number("iops")?);
    }
    note("pause_ms", pause(&console.ask("gaps")?, case)?);
    let after = console.ask("dirty")?;
    let pages = after.number("written")? - before.number("written")?;
    note("dirtied_mb_s", pages * 4096.0 / 1e6 / after.at.duration_since(before.at).as_secs_f64());
    Ok(())
}

fn nothing() -> io::Result<()> {
    std::thread::sleep(WATCH);
    Ok(())
}

fn disk_arg(setting: &Setting) -> io::Result<std::path::PathBuf> {
    let disk = setting.work.join("create.raw");
    fs::File::create(&disk)?.set_len(64 << 20)?;
    Ok(disk)
}

fn piton(setting: &Setting, case: &Case) -> io::Result<Values> {
    let disk = disk_arg(setting)?;
    host::sync()?;
    let mut args =
        vec!["--memory".into(), format!("{}M", case.mib), "--cpus".into(), case.cpus.to_string()];
    args.extend(["--disk".into(), disk.display().to_string()]);
    let mut vm = setting.piton.boot(VM, &args)?;
    let console = &mut vm.console;
    let outcome = piton_session(&setting.piton, console, case);
    drop(vm);
    setting.piton.remove(VM);
    outcome
}

fn piton_session(piton: &Piton, console: &mut Console, case: &Case) -> io::Result<Values> {
    let mut values = Values::new();
    let create = |name: &str| piton.run(&["checkpoint", "create", VM, name]).map(drop);
    settle(console, case)?;
    watched(console, case, &mut values, "idle_", nothing)?;
    watched(console, case, &mut values, "", || create("full"))?;
    if case.rate == Rate::Paced(0) {
        dirty_once(console, CHANGED_MIB)?;
    }
    watched(console, case, &mut values, "next_", || create("next"))?;
    for (name, prefix) in [("full", ""), ("next", "next_")] {
        let shown = piton.json(&["checkpoint", "show", &format!("{VM}@{name}")])?;
        host_side(&shown, &mut values, prefix)?;
    }
    Ok(values)
}

/// What piton itself says of a checkpoint.
fn host_side(shown: &Value, values: &mut Values, prefix: &str) -> io::Result<()> {
    let number = |pointer: &str| shown.pointer(pointer).and_then(Value::as_f64);
    let missing = || io::Error::other(format!("`piton checkpoint show` lacks something: {shown}"));
    let pause = number("/pause_us").ok_or_else(missing)?;
    let bytes = number("/memory/stored_bytes").ok_or_else(missing)?;
    values.insert(format!("{prefix}host_pause_ms"), pause / 1e3);
    values.insert(format!("{prefix}bytes"), bytes);
    for (name, pointer) in [("rounds", "/capture/rounds"), ("slowed", "/capture/slowed")] {
        values.extend(number(pointer).map(|value| (format!("{prefix}{name}"), value)));
    }
    Ok(())
}

fn qemu(setting: &Setting, case: &Case, method: &str) -> io::Result<Values> {
    let disk = setting.work.join("create.qcow2");
    let file = setting.work.join("create.state");
    let _ = fs::remove_file(&disk);
    qemu::create_qcow2(&disk, 64, None)?;
    host::sync()?;
    let mut qemu = Qemu::boot(&qemu::Setup {
        guest: &setting.guest,
        work: &setting.work,
        memory_mib: case.mib,
        cpus: case.cpus,
        disks: &[("qcow2", disk.clone())],
        more: &[],
    })?;
    let mut values = Values::new();
    let Qemu { console, qmp, .. } = &mut qemu;
    settle(console, case)?;
    watched(console, case, &mut values, "idle_", nothing)?;
    qmp.forget_events();
    let disk_before = host::stored(&disk)?;
    watched(console, case, &mut values, "", || match method {
        "savevm" => qmp.human("savevm one"),
        "migrate" => {
            qmp.run("stop", serde_json::json!({}))?;
            // The default is a limit for networks.
            qmp.run("migrate-set-parameters", serde_json::json!({ "max-bandwidth": 1_u64 << 40 }))?;
            qmp.migrate(&file)?;
            qmp.run("cont", serde_json::json!({})).map(drop)
        }
        _ => {
            qmp.capability("background-snapshot", true)?;
            qmp.run("migrate-set-parameters", serde_json::json!({ "max-bandwidth": 1_u64 << 40 }))?;
            qmp.migrate(&file)
        }
    })?;
    // The monitor may be ahead of its events.
    qmp.status()?;
    values.insert("host_pause_ms".into(), qmp.stopped_ms());
    let bytes =
        if method == "savevm" { host::stored(&disk)? - disk_before } else { stored_size(&file)? };
    values.insert("bytes".into(), bytes as f64);
    drop(qemu);
    let _ = fs::remove_file(&file);
    Ok(values)
}

fn stored_size(file: &Path) -> io::Result<u64> {
    Ok(fs::metadata(file)?.len())
}
