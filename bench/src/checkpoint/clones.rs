//! New VMs from one checkpoint.

use std::io;
use std::time::Instant;

use super::cases;
use crate::host;
use crate::results::{Results, Values};
use crate::setting::Setting;
use crate::stats;

pub const COUNTS: [u32; 3] = [1, 10, 50];
const ORIGIN: &str = "origin";

pub fn size(quick: bool) -> u64 {
    if quick { 512 } else { 2048 }
}

pub fn cell(mib: u64, count: u32) -> String {
    format!("clone {mib}M {count}")
}

pub fn all(setting: &Setting, results: &mut Results) -> io::Result<()> {
    let mib = size(setting.quick);
    let cells = COUNTS.map(|count| (count, cell(mib, count)));
    let done = |round| cells.iter().all(|(_, cell)| results.has(cell, round));
    if (0..setting.rounds).all(done) || !cases::fits_host(mib) {
        return Ok(());
    }
    let piton = &setting.piton;
    let failed = make_origin(setting, mib).err().map(|e| e.to_string());
    for round in 0..setting.rounds {
        for (count, cell) in &cells {
            results.measure(cell, round, || {
                if let Some(e) = &failed {
                    return Err(io::Error::other(e.clone()));
                }
                let outcome = make(setting, *count);
                for n in 1..=*count {
                    piton.remove(&format!("c-{n}"));
                }
                outcome
            })?;
        }
    }
    piton.remove(ORIGIN);
    Ok(())
}

fn make_origin(setting: &Setting, mib: u64) -> io::Result<()> {
    let mut vm = setting.piton.boot(ORIGIN, &["--memory".into(), format!("{mib}M")])?;
    let usable = vm.console.ask("info")?.number("usable")? as u64;
    vm.console.ask(&format!("fill {usable}"))?;
    setting.piton.run(&["checkpoint", "create", ORIGIN, "one"])?;
    vm.end()
}

fn make(setting: &Setting, count: u32) -> io::Result<Values> {
    let piton = &setting.piton;
    host::sync()?;
    let start = Instant::now();
    piton.run(&["clone", &format!("{ORIGIN}@one"), "c", "--count", &count.to_string()])?;
    let each = start.elapsed().as_secs_f64() * 1e3 / f64::from(count);
    let mut own = Vec::new();
    for n in 1..=count {
        let shown = piton.json(&["show", &format!("c-{n}")])?;
        let pid = shown["pid"]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("no process in {shown}")))?;
        own.push(host::own_memory(pid)? as f64 / 1024.0);
    }
    let own = stats::sorted(own);
    Ok(Values::from([
        ("each_ms".into(), each),
        ("own_mib".into(), stats::median(&own)),
        ("own_most_mib".into(), stats::quantile(&own, 1.0)),
    ]))
}
