//! Where two chains may differ, by what their layers hold and without reading any of it.

use std::ops::Range;

use super::delta_format::BLOCK;
use super::frozen::FrozenChain;
use super::{Backing, Result};

/// Bytes from block to block outside of which both read the same: what the layers hold that lie
/// above the last one that both have. All of `b`, where they have no base in common, and nothing past
/// its end; past the end of a smaller one all is zeros.
pub fn suspects(a: &FrozenChain, b: &FrozenChain) -> Result<Vec<Range<u64>>> {
    if a.base().path() != b.base().path() {
        return Ok(vec![Range { start: 0, end: b.len() }]);
    }
    let common = a.deltas().iter().zip(b.deltas()).take_while(|(a, b)| a.id() == b.id()).count();
    let mut runs = Vec::new();
    for delta in a.deltas()[common..].iter().chain(&b.deltas()[common..]) {
        runs.extend(delta.runs()?);
    }
    Ok(union(runs)
        .into_iter()
        .map(|run| run.start * BLOCK..(run.end * BLOCK).min(b.len()))
        .filter(|range| !range.is_empty())
        .collect())
}

/// Sorted, none touching another.
pub fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut union: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}
