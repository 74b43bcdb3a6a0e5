//! What two layers will be once they are merged, known before anything is changed.
//!
//! Both are read whole and checked, and of the very bytes that were checked the checksums are
//! taken that the merged layer will have. So nothing that rots while they merge, nor afterwards, is
//! ever taken for good: no checksum is of anything that was read without one.

use super::delta::FrozenDelta;
use super::delta_format::{BLOCK, LayerId};
use super::layer::LayerSpec;
use super::plan::{Direction, Plan};
use super::sums::{Chunk, Taking};
use super::{DiskError, Result};
use crate::storage::Storage;

/// Checksums of files of checksums, and which way the merge is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub direction: Direction,
    /// The layer that is left.
    pub left: LayerId,
    /// Of the two layers as they are.
    pub lower: u32,
    pub upper: u32,
    /// Of the layer that changes, from the first change on: only what does not change of it, which
    /// is all that anybody reads.
    pub meanwhile: u32,
    /// Of the layer that is left, once all is copied.
    pub merged: u32,
}

impl Outlook {
    /// Reads and checks both, of which nobody may change anything meanwhile. `go_on` is told the
    /// bytes after each part, and ends it with its error.
    pub fn take(
        storage: &Storage,
        (lower, lower_crc): (&LayerSpec, u32),
        (upper, upper_crc): (&LayerSpec, u32),
        direction: Option<Direction>,
        go_on: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Self> {
        let open = |spec: &LayerSpec, crc: u32| -> Result<_> {
            let layer = FrozenDelta::open(storage, spec)?;
            layer.attach_sums(storage, crc)?;
            Ok(layer)
        };
        let (below, above) = (open(lower, lower_crc)?, open(upper, upper_crc)?);
        let size = above.size();
        if above.below() != below.size() {
            return Err(DiskError::WrongSize {
                path: upper.path.clone(),
                size: above.below(),
                below: lower.path.clone(),
                below_size: below.size(),
            });
        }
        let grown = (size != below.size()).then_some(Direction::Pull);
        let direction = Plan::new(&below.runs()?, &above.runs()?, grown.or(direction)).direction;
        let left = match direction {
            Direction::Commit => lower,
            Direction::Pull => upper,
        };
        let (mut merged, mut kept) = (Taking::new(left.id, size), Taking::new(left.id, size));
        let (mut under, mut over) = (Chunk::new(below.size()), Chunk::new(size));
        let mut both = Chunk::new(size);
        for (chunk, of_lower, of_upper) in pairs(below.chunks(), above.chunks()) {
            let (mut mask, mut hidden) = (0, 0);
            if let Some(entry) = of_lower {
                below.read_chunk(&mut under, entry)?;
                mask = entry.1;
            }
            if let Some(entry) = of_upper {
                above.read_chunk(&mut over, entry)?;
                hidden = entry.1;
            }
            let rest = mask & !hidden;
            if rest != 0 {
                kept.add(chunk, rest, under.crc(rest));
            }
            both.overlay(&under, chunk, mask);
            both.overlay(&over, chunk, hidden);
            merged.add(chunk, mask | hidden, both.crc(mask | hidden));
            go_on(u64::from(mask.count_ones() + hidden.count_ones()) * BLOCK)?;
        }
        let merged = merged.write(storage, &left.path)?.crc;
        let meanwhile = match direction {
            Direction::Commit => kept.write(storage, &left.path)?.crc,
            // What it gets is not in its checksums yet, and so is not looked at.
            Direction::Pull => upper_crc,
        };
        Ok(Self { direction, left: left.id, lower: lower_crc, upper: upper_crc, meanwhile, merged })
    }
}

type Entry = (u32, u32, u32);

/// Chunks that either has, in order, with what each has of them.
fn pairs(
    lower: impl IntoIterator<Item = Entry>,
    upper: impl IntoIterator<Item = Entry>,
) -> impl Iterator<Item = (u32, Option<Entry>, Option<Entry>)> {
    let (mut lower, mut upper) = (lower.into_iter().peekable(), upper.into_iter().peekable());
    std::iter::from_fn(move || {
        let next = [lower.peek(), upper.peek()].into_iter().flatten().map(|entry| entry.0).min()?;
        let of_lower = lower.next_if(|entry| entry.0 == next);
        Some((next, of_lower, upper.next_if(|entry| entry.0 == next)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_chunks_are_in_order() {
        let found: Vec<_> = pairs([(1, 1, 1), (3, 1, 1)], [(0, 2, 2), (3, 2, 2)]).collect();
        assert_eq!(
            found,
            [(0, None, Some((0, 2, 2))), (1, Some((1, 1, 1)), None), (3, Some((3, 1, 1)), Some((3, 2, 2)))]
        );
    }
}
