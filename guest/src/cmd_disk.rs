//! `blk`.

use crate::args::{Args, number};
use crate::bench;
use crate::cpu::tsc;
use crate::disk::SECTOR;
use crate::guest::Guest;
use crate::outcome::{Fail, Outcome};
use crate::{hash, say, time};

const USAGE: &str = "blk [N] read|write|verify|flush|discard|zero|id|bench ... (see help)";
const CHUNK: u64 = 256 << 10;

pub fn blk(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, USAGE);
    let mut verb = args.word().ok_or(args.usage())?;
    let mut n = 0;
    if let Some(index) = number(verb) {
        n = index as usize;
        verb = args.word().ok_or(args.usage())?;
    }
    match verb {
        "flush" => {
            let start = tsc();
            g.disk(n)?.flush()?;
            say!("ok flushed disk={n} us={}", time::us_since(start));
            return Ok(());
        }
        "id" => {
            let id =
                g.disk(n)?.id()?.map(|c| if c == 0 || c.is_ascii_graphic() { c } else { b'?' });
            let len = id.iter().position(|&c| c == 0).unwrap_or(id.len());
            say!("ok id={} disk={n}", core::str::from_utf8(&id[..len]).unwrap_or("?"));
            return Ok(());
        }
        "bench" => return bench::bench(g, n, args),
        _ => {}
    }
    let offset = args.number()?;
    let len = args.number()?;
    match verb {
        "read" => read(g, n, offset, len),
        "write" => write(g, n, offset, len, args.number()?),
        "verify" => verify(g, n, offset, len, args.number()?),
        "discard" | "zero" => {
            g.check_writable(n, offset, len)?;
            g.disk(n)?.clear(offset, len, verb == "discard")?;
            say!("ok {verb} disk={n} offset={offset} len={len}");
            Ok(())
        }
        _ => Err(args.usage()),
    }
}

/// Splits a range into what the buffer holds, with the background work between.
fn chunks(
    g: &mut Guest,
    offset: u64,
    len: u64,
    mut each: impl FnMut(&mut Guest, u64, usize) -> Outcome,
) -> Outcome {
    let chunk = CHUNK.min(g.buffer.len() as u64);
    if chunk < SECTOR {
        return Err(Fail::Text("no memory for a buffer"));
    }
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let n = chunk.min(end - at);
        each(g, at, n as usize)?;
        at += n;
        g.background();
    }
    Ok(())
}

fn read_chunk(g: &mut Guest, n: usize, at: u64, len: usize) -> Outcome {
    let part = g.buffer.part(0, len);
    g.disk(n)?.read(at, part).map_err(|e| Fail::DiskAt(e, at))
}

fn read(g: &mut Guest, n: usize, offset: u64, len: u64) -> Outcome {
    g.disk(n)?.check_range(offset, len)?;
    let mut sum = hash::Sum::new();
    chunks(g, offset, len, |g, at, len| {
        read_chunk(g, n, at, len)?;
        sum.add(g.buffer.words(0, len));
        Ok(())
    })?;
    say!("ok sum={:016x} disk={n} offset={offset} len={len}", sum.finish());
    Ok(())
}

fn write(g: &mut Guest, n: usize, offset: u64, len: u64, seed: u64) -> Outcome {
    g.check_writable(n, offset, len)?;
    let start = tsc();
    chunks(g, offset, len, |g, at, len| {
        hash::fill(g.buffer.words(0, len), seed, at / 8);
        let part = g.buffer.part(0, len);
        g.disk(n)?.write(at, part).map_err(|e| Fail::DiskAt(e, at))
    })?;
    let ms = time::us_since(start) / 1000;
    say!("ok written disk={n} offset={offset} len={len} seed={seed} ms={ms}");
    Ok(())
}

fn verify(g: &mut Guest, n: usize, offset: u64, len: u64, seed: u64) -> Outcome {
    g.disk(n)?.check_range(offset, len)?;
    let mut wrong = None;
    let mut bad = 0_u64;
    chunks(g, offset, len, |g, at, len| {
        read_chunk(g, n, at, len)?;
        for (i, sector) in g.buffer.words(0, len).chunks(SECTOR as usize / 8).enumerate() {
            let place = at + i as u64 * SECTOR;
            if hash::differs(sector, seed, place / 8).is_some() {
                wrong = wrong.or(Some(place));
                bad += 1;
            }
        }
        Ok(())
    })?;
    match wrong {
        None => say!("ok verified disk={n} offset={offset} len={len} seed={seed}"),
        Some(at) => say!("err reason=differs disk={n} first={at} sectors={bad} seed={seed}"),
    }
    Ok(())
}
