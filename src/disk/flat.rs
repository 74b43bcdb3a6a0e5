//! Whole disks, read from end to end and written anew: as a raw image, as one delta layer, or as
//! the blocks in which one disk differs from another. What is zeros becomes a hole.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::block_map::BlockMap;
use super::delta::{Delta, FrozenDelta};
use super::delta_format::{BLOCK, Parent};
use super::{Backing, DiskError, Result, check_range};
use crate::progress::Progress;
use crate::storage::Storage;

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

/// A disk on which nothing was ever written.
pub struct Zeros(pub u64);

impl Backing for Zeros {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.0)?;
        buf.fill(0);
        Ok(())
    }
    fn next_data(&self, _: u64) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
}

/// A disk as if it were of another size: with zeros at its end, or without its end.
pub struct Sized<'a> {
    pub disk: &'a dyn Backing,
    pub len: u64,
}

impl Backing for Sized<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len)?;
        let there = self.disk.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (part, zeros) = buf.split_at_mut(there);
        zeros.fill(0);
        if part.is_empty() { Ok(()) } else { self.disk.read_at(part, offset) }
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let end = self.len.min(self.disk.len());
        if offset >= end {
            return Ok(None);
        }
        let found = self.disk.next_data(offset)?.filter(|data| data.start < end);
        Ok(found.map(|data| data.start..data.end.min(end)))
    }
}

/// A disk with the blocks of one delta layer in place of its own, whatever the layer's header says
/// that it was made over.
pub struct Patched {
    below: Arc<dyn Backing>,
    delta: Arc<FrozenDelta>,
    /// 1: the layer's.
    map: BlockMap,
}

impl Patched {
    pub fn new(below: Arc<dyn Backing>, delta: Arc<FrozenDelta>) -> Result<Self> {
        if below.len() != delta.size() {
            return Err(DiskError::OtherSize {
                path: delta.path().to_owned(),
                size: delta.size(),
                below: below.len(),
            });
        }
        let mut map = BlockMap::new(below.len().div_ceil(BLOCK), 0);
        for run in delta.runs()? {
            map.set(run, 1);
        }
        Ok(Self { below, delta, map })
    }

    /// The stretch from `at` on that comes from one place: whether that is the layer, and its end.
    fn stretch(&self, at: u64, end: u64) -> (bool, u64) {
        let (layer, run) = self.map.run(at / BLOCK..end.div_ceil(BLOCK));
        (layer == 1, ((at / BLOCK + run) * BLOCK).min(end))
    }
}

impl Backing for Patched {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let (patched, end) = self.stretch(at, at + rest.len() as u64);
            let (part, after) = rest.split_at_mut((end - at) as usize);
            if patched {
                self.delta.read_data(part, at)?
            } else {
                self.below.read_at(part, at)?
            }
            (rest, at) = (after, end);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let (mut at, size) = (offset, self.len());
        while at < size {
            let (patched, end) = self.stretch(at, size);
            let found = if patched { self.delta.next_data(at)? } else { self.below.next_data(at)? };
            if let Some(data) = found.filter(|data| data.start < end) {
                return Ok(Some(data.start.max(at)..data.end.min(end)));
            }
            at = end;
        }
        Ok(None)
    }
}

pub(super) fn is_zero(buf: &[u8]) -> bool {
    // Every byte equals the one before it, and the first is 0.
    matches!(buf, [0, rest @ ..] if *rest == buf[..rest.len()])
}

/// Cuts `len` bytes into runs of units of which `is` says the same.
fn runs(len: usize, unit: u64, is: impl Fn(Range<usize>) -> bool) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for at in (0..len).step_by(unit as usize) {
        let next = at..(at + unit as usize).min(len);
        let is = is(next.clone());
        match runs.last_mut() {
            Some((was, run)) if *was == is => run.end = next.end,
            _ => runs.push((is, next)),
        }
    }
    runs
}

/// Tells `each` all of a disk that is not zeros: in order, in whole units of `unit` bytes but for
/// what lies at the disk's end. `progress` moves on by the disk's length.
pub(super) fn each_data(
    disk: &dyn Backing,
    unit: u64,
    progress: &Progress,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = disk.len();
    let mut buf = vec![0; STEP as usize];
    let mut at = 0;
    while at < size {
        progress.check()?;
        let Some(data) = disk.next_data(at)? else { break };
        let start = data.start.max(at) / unit * unit;
        let end = data.end.next_multiple_of(unit).min(start + STEP).min(size);
        let part = &mut buf[..(end - start) as usize];
        disk.read_at(part, start)?;
        for (zero, run) in runs(part.len(), unit, |unit| is_zero(&part[unit])) {
            if !zero {
                each(start + run.start as u64, &part[run])?;
            }
        }
        progress.add(end - at);
        at = end;
    }
    progress.add(size - at);
    Ok(())
}

/// Writes the disk as a new raw image, sparse and durable.
pub fn write_raw(storage: &Storage, path: &Path, disk: &dyn Backing, progress: &Progress) -> Result<()> {
    let file = storage.create_new(path)?;
    file.set_len(disk.len())?;
    each_data(disk, BLOCK, progress, |at, bytes| Ok(file.write_at(bytes, at)?))?;
    Ok(file.sync_data()?)
}

/// Writes the disk as a new layer over a base of zeros, durable.
pub fn write_layer(
    storage: &Storage,
    path: &Path,
    disk: &dyn Backing,
    progress: &Progress,
) -> Result<Arc<FrozenDelta>> {
    let delta = Delta::create(storage, path, disk.len(), Parent::Base)?;
    each_data(disk, BLOCK, progress, |at, bytes| {
        delta.write_data(bytes, at)?;
        delta.mark(at / BLOCK..(at + bytes.len() as u64).div_ceil(BLOCK));
        Ok(())
    })?;
    delta.sync()?;
    Ok(delta.freeze())
}

/// Writes those blocks of `disk` that differ from `before`, of the same size, as a new layer over
/// it, durable.
pub fn write_changes(
    storage: &Storage,
    path: &Path,
    disk: &dyn Backing,
    before: &dyn Backing,
    suspects: &[Range<u64>],
    progress: &Progress,
) -> Result<Arc<FrozenDelta>> {
    let delta = Delta::create(storage, path, disk.len(), Parent::Base)?;
    differences(before, disk, suspects, progress, |at, bytes| {
        for (zero, run) in runs(bytes.len(), BLOCK, |block| is_zero(&bytes[block])) {
            let start = at + run.start as u64;
            let blocks = start / BLOCK..(at + run.end as u64).div_ceil(BLOCK);
            if zero {
                delta.clear_data(blocks.clone())?
            } else {
                delta.write_data(&bytes[run], start)?
            }
            delta.mark(blocks);
        }
        Ok(())
    })?;
    delta.sync()?;
    Ok(delta.freeze())
}

/// Tells `each` every run of blocks in which `b` differs from `a`, in order, and what `b` has there.
/// Both are of one size. Only `suspects` are looked at, in bytes from block to block; `progress`
/// moves on by their length.
pub fn differences(
    a: &dyn Backing,
    b: &dyn Backing,
    suspects: &[Range<u64>],
    progress: &Progress,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut then, mut now) = (vec![0; STEP as usize], vec![0; STEP as usize]);
    for suspect in suspects {
        let (mut at, suspect_end) = (suspect.start, suspect.end.min(b.len()));
        while at < suspect_end {
            progress.check()?;
            let next = [a.next_data(at)?, b.next_data(at)?].into_iter().flatten().map(|data| data.start);
            // Where neither has data both are zeros.
            let Some(start) = next.min().map(|start| start.max(at) / BLOCK * BLOCK) else { break };
            if start >= suspect_end {
                break;
            }
            let end = (start + STEP).min(suspect_end);
            let (then, now) = (&mut then[..(end - start) as usize], &mut now[..(end - start) as usize]);
            a.read_at(then, start)?;
            b.read_at(now, start)?;
            for (same, run) in runs(now.len(), BLOCK, |block| then[block.clone()] == now[block]) {
                if !same {
                    each(start + run.start as u64, &now[run])?;
                }
            }
            progress.add(end - at);
            at = end;
        }
        progress.add(suspect_end.saturating_sub(at));
    }
    Ok(())
}
