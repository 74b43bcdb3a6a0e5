//! `fill`, `sum`, `read` and `dirty`.

use crate::args::{self, Args};
use crate::cpu::tsc;
use crate::guest::Guest;
use crate::outcome::{Fail, Outcome};
use crate::smp::{self, MODE_DIRTY};
use crate::{dirty, hash, memory, say, time};

const WORDS_PER_MIB: u64 = memory::MIB / 8;

struct Rate(u64);

impl core::fmt::Display for Rate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0 == dirty::UNPACED { f.write_str("max") } else { self.0.fmt(f) }
    }
}

fn dirty_mibs() -> u64 {
    dirty::range().1
}

pub fn fill(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, "fill MIB [SEED [RUN]]");
    let mibs = args.number()?;
    let seed = args.number_or(1)?;
    let run = args.number_or(1)?.max(1);
    if mibs > memory::mibs() - dirty_mibs() {
        return Err(Fail::Text("not that much memory (see usable= in info)"));
    }
    let start = tsc();
    g.filled = 0;
    for n in 0..mibs {
        memory::with_mib(n, |words| {
            for (word, index) in words.iter_mut().zip(n * WORDS_PER_MIB..) {
                *word = hash::word(seed, index / run);
            }
        });
        g.background();
    }
    g.filled = mibs;
    say!("ok filled={mibs} seed={seed} ms={}", time::us_since(start) / 1000);
    Ok(())
}

pub fn sum(g: &mut Guest) -> Outcome {
    let mut sum = hash::Sum::new();
    for n in 0..g.filled {
        memory::with_mib(n, |words| sum.add(words));
        g.background();
    }
    say!("ok sum={:016x} mib={}", sum.finish(), g.filled);
    Ok(())
}

/// One word of each cache line: the reading, not the arithmetic, is to be timed.
pub fn read(g: &mut Guest) -> Outcome {
    let start = tsc();
    let mut seen = 0;
    for n in 0..g.filled {
        memory::with_mib(n, |words| {
            seen ^= words.iter().step_by(8).fold(0, |a, w| a ^ w);
        });
        g.background();
    }
    let us = time::us_since(start);
    core::hint::black_box(seen);
    say!("ok read={} ms={} us={us}", g.filled, us / 1000);
    Ok(())
}

fn stop_dirty() {
    for (_, cpu) in smp::cpus() {
        if cpu.mode() & MODE_DIRTY != 0 {
            cpu.set_mode(0, MODE_DIRTY);
        }
    }
}

pub fn dirty(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, "dirty MIB MB_PER_S|max | dirty 0 | dirty check");
    match args.word() {
        Some("check") => {
            stop_dirty();
            match dirty::verify() {
                Ok(pages) => say!("ok dirty checked={pages} written={}", dirty::written()),
                Err(page) => say!("err dirty wrong page={page} written={}", dirty::written()),
            }
            return Ok(());
        }
        None => {
            let (rate, written) = (Rate(dirty::rate()), dirty::written());
            let on = smp::cpus().any(|(_, c)| c.mode() & MODE_DIRTY != 0);
            say!("ok dirty mib={} rate={rate} on={} written={written}", dirty_mibs(), u8::from(on));
            return Ok(());
        }
        Some(_) => {}
    }
    let mut args = Args::new(text, "dirty MIB MB_PER_S|max | dirty 0 | dirty check");
    let mibs = args.number()?;
    let rate = match args.word() {
        Some("max") => dirty::UNPACED,
        Some(text) => args::number(text).ok_or(args.usage())?,
        None => 0,
    };
    stop_dirty();
    if mibs == 0 || rate == 0 {
        say!("ok dirty off written={}", dirty::written());
        return Ok(());
    }
    let room = memory::mibs();
    if mibs > room - g.filled {
        return Err(Fail::Text("not that much memory beside what is filled"));
    }
    dirty::prepare(room - mibs, mibs, rate);
    let worker = smp::secondaries().next().unwrap_or(smp::boot_cpu());
    worker.gaps.reset();
    worker.set_mode(MODE_DIRTY, 0);
    say!("ok dirty mib={mibs} rate={}", Rate(rate));
    Ok(())
}
