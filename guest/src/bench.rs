//! `blk bench`: keeps several requests in flight and measures each.

use crate::args::{Args, number};
use crate::cpu::tsc;
use crate::disk::Op;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::outcome::{Fail, Outcome};
use crate::virtio::MAX_SLOTS;
use crate::{hash, say, time};

struct Plan {
    write: bool,
    random: bool,
    offset: u64,
    blocks: u64,
    size: usize,
    count: u64,
    flush_every: u64,
    depth: usize,
}

impl Plan {
    fn place(&self, n: u64) -> u64 {
        let block = if self.random { hash::word(77, n) } else { n } % self.blocks;
        self.offset + block * self.size as u64
    }
}

pub fn bench(g: &mut Guest, n: usize, mut args: Args<'_>) -> Outcome {
    let (random, write) = match args.word() {
        Some("rand-write") => (true, true),
        Some("rand-read") => (true, false),
        Some("seq-write") => (false, true),
        Some("seq-read") => (false, false),
        _ => return Err(args.usage()),
    };
    let (offset, len, size, count) =
        (args.number()?, args.number()?, args.number()?, args.number()?);
    let (mut flush_every, mut depth) = (0, 8);
    while let Some(word) = args.word() {
        match word.strip_prefix("qd=") {
            Some(text) => depth = number(text).ok_or(args.usage())? as usize,
            None => flush_every = number(word).ok_or(args.usage())?,
        }
    }
    if size == 0 || size % 512 != 0 || len < size {
        return Err(Fail::Text("BS must be whole sectors, and LEN at least BS"));
    }
    if write {
        g.check_writable(n, offset, len)?;
    }
    g.disk(n)?.check_range(offset, len)?;
    // Slots are left for the journal, which goes on meanwhile.
    let spare = g.disk(n)?.depth().saturating_sub(3);
    let room = g.buffer.len() / size as usize;
    let depth = depth.clamp(1, MAX_SLOTS).min(spare).min(room);
    if depth == 0 {
        return Err(Fail::Text("BS is more than the buffer holds"));
    }
    let blocks = len / size;
    let plan =
        Plan { write, random, offset, blocks, size: size as usize, count, flush_every, depth };
    let (us, latency) = run(g, n, &plan)?;
    let us = us.max(1);
    let tenths = count * size * 10 / us;
    say!(
        "ok mb_s={}.{} iops={} p50_us={} p99_us={} count={count} bs={size} qd={depth} ms={}",
        tenths / 10,
        tenths % 10,
        count * 1_000_000 / us,
        latency.percentile(50),
        latency.percentile(99),
        us / 1000
    );
    Ok(())
}

fn run(g: &mut Guest, n: usize, plan: &Plan) -> Result<(u64, Histogram), Fail> {
    let mut latency = Histogram::new();
    // Which request each lane has in flight.
    let mut lanes: [Option<usize>; MAX_SLOTS] = [None; MAX_SLOTS];
    let (mut issued, mut done) = (0, 0);
    let start = tsc();
    while done < plan.count {
        let until_flush = match done.checked_div(plan.flush_every) {
            Some(flushes) => ((flushes + 1) * plan.flush_every).min(plan.count),
            None => plan.count,
        };
        let mut kick = false;
        for (lane, held) in lanes[..plan.depth].iter_mut().enumerate() {
            if held.is_some() || issued == until_flush {
                continue;
            }
            let at = lane * plan.size;
            let place = plan.place(issued);
            if plan.write {
                hash::fill(g.buffer.words(at, plan.size), issued, place / 8);
            }
            let part = g.buffer.part(at, plan.size);
            let op = if plan.write { Op::Write } else { Op::Read };
            *held = g.disk(n)?.submit(op, place, part);
            if held.is_none() {
                break;
            }
            issued += 1;
            kick = true;
        }
        let d = g.disk(n)?;
        if kick {
            d.kick();
        }
        let mut waiting = [0; MAX_SLOTS];
        let mut count = 0;
        for slot in lanes.iter().flatten() {
            waiting[count] = *slot;
            count += 1;
        }
        d.wait_any(&waiting[..count])?;
        let mut failed = None;
        for held in &mut lanes {
            let Some(slot) = *held else { continue };
            if let Some((ticks, outcome)) = d.take(slot) {
                *held = None;
                done += 1;
                latency.add(time::us(ticks));
                failed = failed.or(outcome.err());
            }
        }
        if let Some(e) = failed {
            for slot in lanes.into_iter().flatten() {
                let _ = d.finish(slot);
            }
            return Err(e.into());
        }
        if plan.flush_every != 0 && done == until_flush {
            d.flush()?;
        }
        g.background();
    }
    Ok((time::us_since(start), latency))
}
