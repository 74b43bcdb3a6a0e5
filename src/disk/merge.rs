//! Two neighbouring layers become one.
//!
//! *Commit*: the blocks of the upper layer are copied down over those of the
//! lower. *Pull*: the blocks that only the lower layer has are copied up. While
//! it goes on, everything that is read through the upper layer stays the same:
//! what a commit overwrites the upper layer hides, and what a pull copies
//! is what was read there before. So it may stop anywhere, and be begun again.
//! Nothing may read the lower layer by itself: it has one child, the upper one.
//! If the upper one is of a disk that has grown, a lower delta is pulled up, and a base grows first.
//!
//! Order at the end:
//! 1. copied data, fdatasync, bits, fdatasync;
//! 2. commit: every child of the upper layer gets the lower one for its parent
//!    (children not yet relinked read the same through the upper layer);
//!    pull: the upper layer gets the lower one's parent;
//! 3. the caller records which layers there are now, durably;
//! 4. the caller removes the file that is left over.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::delta::{Delta, FrozenDelta};
use super::delta_format::{BLOCK, Parent};
use super::layer::{LayerSpec, inspect, relink, relink_over};
use super::outlook::Outlook;
pub use super::plan::{Direction, Plan};
use super::raw::RawDisk;
use super::{Backing, Disk, DiskError, ImageFormat, Result};
use crate::storage::{Lock, Storage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

impl Progress {
    pub fn is_done(&self) -> bool {
        self.done >= self.total
    }
}

/// What blocks are copied down into.
pub(super) enum Lower {
    Base(RawDisk),
    Delta(Delta),
}

impl Lower {
    /// `data` reaches up to the end of the blocks, or of the disk.
    pub(super) fn put(&self, blocks: Range<u64>, data: &[u8]) -> Result<()> {
        let start = blocks.start * BLOCK;
        match self {
            Self::Delta(lower) => put(lower, blocks, data),
            Self::Base(base) if is_zero(data) => base.write_zeroes(start, data.len() as u64),
            Self::Base(base) => base.write_at(data, start),
        }
    }

    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Self::Delta(lower) => lower.sync(),
            Self::Base(base) => base.flush(),
        }
    }
}

/// A merge under way. Dropping it leaves a state that reads the same.
pub struct Merge {
    lower: Lower,
    /// What a pull copies to.
    upper: Option<Delta>,
    upper_spec: LayerSpec,
    /// What is copied from; checks what it reads if it has checksums.
    source: Arc<FrozenDelta>,
    /// What lies below the lower layer, and its size; for a pull, the new parent.
    below: (Parent, u64),
    plan: Plan,
    size: u64,
    /// Of what is copied from; past it all is zeros.
    source_size: u64,
    /// What the base has to grow to before anything is copied to it.
    grow: Option<u64>,
    /// Where in the plan the next step begins: run, and blocks of it.
    at: (usize, u64),
    done: u64,
}

/// Blocks that are copied at once.
pub(super) const CHUNK: u64 = 256;

impl Merge {
    /// Two deltas, the upper made over the lower. Takes the lower one for
    /// itself: fails if anybody else reads it.
    pub fn open(
        storage: &Storage,
        lower: &LayerSpec,
        upper: &LayerSpec,
        direction: Option<Direction>,
        outlook: Option<&Outlook>,
    ) -> Result<Self> {
        check_parent(storage, upper, Parent::Delta(lower.id), &lower.path)?;
        let lower = Delta::open_again(storage, lower, Lock::Exclusive)?;
        let frozen = FrozenDelta::open(storage, upper)?;
        check_size(upper, frozen.below(), lower.path(), lower.size())?;
        let grown = (frozen.size() != lower.size()).then_some(Direction::Pull);
        let size = frozen.size();
        let below = lower.as_frozen();
        if let Some(outlook) = outlook {
            below.attach_sums(storage, outlook.lower)?;
            frozen.attach_sums(storage, outlook.upper)?;
        }
        let plan = Plan::new(
            &below.runs()?,
            &frozen.runs()?,
            grown.or(outlook.map(|outlook| outlook.direction)).or(direction),
        );
        let (source, opened) = match plan.direction {
            Direction::Commit => (frozen, None),
            // Whoever reads this layer goes on reading the same, so its
            // lock is shared; the lower one's keeps a second merge away.
            Direction::Pull => (below, Some(Delta::open_again(storage, upper, Lock::Shared)?)),
        };
        Ok(Self {
            below: (lower.parent(), lower.below()),
            size,
            source_size: source.size(),
            grow: None,
            lower: Lower::Delta(lower),
            upper: opened,
            source,
            upper_spec: upper.clone(),
            plan,
            at: (0, 0),
            done: 0,
        })
    }

    /// A delta down into the base itself; never the other way.
    pub fn open_on_base(
        storage: &Storage,
        base: &Path,
        format: ImageFormat,
        upper: &LayerSpec,
        sums: Option<u32>,
        may_grow: bool,
    ) -> Result<Self> {
        if format != ImageFormat::Raw {
            return Err(DiskError::Qcow2 {
                path: base.to_owned(),
                reason: "layers cannot be merged into a qcow2 image, which is read-only".into(),
            });
        }
        check_parent(storage, upper, Parent::Base, base)?;
        let lower = RawDisk::open(storage, base)?;
        let frozen = FrozenDelta::open(storage, upper)?;
        // Below it nothing is checked any more: what goes there is checked last.
        if let Some(crc) = sums {
            frozen.attach_sums(storage, crc)?;
        }
        let plan = Plan::new(&[], &frozen.runs()?, Some(Direction::Commit));
        // One that was cut short may have grown it.
        let grow = (may_grow && lower.len() == frozen.below()).then_some(frozen.size());
        if grow.is_none() {
            check_size(upper, frozen.size(), base, lower.len())?;
        }
        Ok(Self {
            below: (Parent::Base, frozen.size()),
            size: frozen.size(),
            source_size: frozen.size(),
            grow: grow.filter(|size| *size != lower.len()),
            lower: Lower::Base(lower),
            upper: None,
            source: frozen,
            upper_spec: upper.clone(),
            plan,
            at: (0, 0),
            done: 0,
        })
    }

    pub fn direction(&self) -> Direction {
        self.plan.direction
    }

    pub fn upper(&self) -> &LayerSpec {
        &self.upper_spec
    }

    /// Copies from this handle of the layer that it copies from.
    pub(super) fn read_through(&mut self, source: Arc<FrozenDelta>) {
        debug_assert_eq!(source.id(), self.source.id());
        self.source = source;
    }

    pub fn progress(&self) -> Progress {
        Progress { done: self.done, total: self.plan.bytes() }
    }

    /// Moves about `max_bytes`, at least one block.
    pub fn step(&mut self, max_bytes: u64) -> Result<Progress> {
        if let (Some(size), Lower::Base(base)) = (self.grow, &mut self.lower) {
            base.grow(size)?;
            self.grow = None;
        }
        let mut left = (max_bytes / BLOCK).max(1);
        let mut buf = Vec::new();
        while left > 0
            && let Some(run) = self.plan.runs.get(self.at.0)
        {
            let start = run.start + self.at.1;
            let blocks = start..run.end.min(start + left.min(CHUNK));
            let moved = blocks.end - blocks.start;
            let run_done = blocks.end == run.end;
            self.copy(blocks, &mut buf)?;
            self.at = if run_done { (self.at.0 + 1, 0) } else { (self.at.0, self.at.1 + moved) };
            self.done += moved * BLOCK;
            left -= moved;
        }
        Ok(self.progress())
    }

    fn copy(&self, blocks: Range<u64>, buf: &mut Vec<u8>) -> Result<()> {
        let start = blocks.start * BLOCK;
        // What lies past the end of the disk in its last block is nobody's.
        let len = (blocks.end * BLOCK).min(self.size) - start;
        buf.clear();
        buf.resize(len as usize, 0);
        let there = self.source_size.saturating_sub(start).min(len) as usize;
        self.source.read_data(&mut buf[..there], start)?;
        match (&self.upper, &self.lower) {
            (Some(upper), _) => put(upper, blocks, buf),
            (None, lower) => lower.put(blocks, buf),
        }
    }

    /// Makes what was moved so far durable.
    pub fn sync(&self) -> Result<()> {
        match &self.upper {
            Some(upper) => upper.sync(),
            None => self.lower.sync(),
        }
    }

    /// Moves what is left, makes it durable and relinks; see the order above.
    /// Returns the file that is left over. May be called again after an error
    /// of a relink; after any other the merge has to be begun anew.
    pub fn finish(&mut self, storage: &Storage, children: &[LayerSpec]) -> Result<PathBuf> {
        while !self.step(u64::MAX)?.is_done() {}
        match (&self.lower, &self.upper) {
            (Lower::Base(base), _) => {
                base.flush()?;
                for child in children {
                    relink(storage, child, Parent::Base)?;
                }
                base.lock(Lock::Shared)?;
                Ok(self.upper_spec.path.clone())
            }
            (Lower::Delta(lower), None) => {
                lower.sync()?;
                for child in children {
                    relink(storage, child, Parent::Delta(lower.id()))?;
                }
                lower.lock(Lock::Shared)?;
                Ok(self.upper_spec.path.clone())
            }
            (Lower::Delta(lower), Some(upper)) => {
                upper.sync()?;
                // A commit that failed at its end may have relinked some.
                for child in children {
                    relink(storage, child, Parent::Delta(self.upper_spec.id))?;
                }
                relink_over(storage, &self.upper_spec, self.below.0, Some(self.below.1))?;
                lower.lock(Lock::Shared)?;
                Ok(lower.path().to_owned())
            }
        }
    }

    /// Lets others read the lower layer again, before the handles go.
    pub fn release(&self) -> Result<()> {
        match &self.lower {
            Lower::Base(base) => base.lock(Lock::Shared),
            Lower::Delta(lower) => lower.lock(Lock::Shared),
        }
    }
}

/// Brings a merge of two deltas that was cut short to its end. To be called with
/// what it was begun with, wherever it was cut; returns the file that is left over.
pub fn resume(
    storage: &Storage,
    lower: &LayerSpec,
    upper: &LayerSpec,
    direction: Direction,
    children: &[LayerSpec],
) -> Result<PathBuf> {
    // A pull relinks as its last act, of which perhaps only the sync is missing.
    if direction == Direction::Pull
        && inspect(storage, &upper.path)?.parent == inspect(storage, &lower.path)?.parent
    {
        return relink_all(storage, lower, upper, direction, children);
    }
    Merge::open(storage, lower, upper, Some(direction), None)?.finish(storage, children)
}

/// Brings a merge of two deltas to its end, of which all is copied and durable; returns the file
/// that is left over.
pub fn relink_all(
    storage: &Storage,
    lower: &LayerSpec,
    upper: &LayerSpec,
    direction: Direction,
    children: &[LayerSpec],
) -> Result<PathBuf> {
    let (left, gone) = match direction {
        Direction::Commit => (lower, upper),
        Direction::Pull => (upper, lower),
    };
    // Of a pull, too: a commit that failed at its end may have relinked some.
    for child in children {
        relink(storage, child, Parent::Delta(left.id))?;
    }
    if direction == Direction::Pull {
        let lower = inspect(storage, &lower.path)?;
        relink_over(storage, upper, lower.parent, Some(lower.below))?;
    }
    Ok(gone.path.clone())
}

/// After a merge into a base that was given up: a base that had grown by then is what the layer on it
/// lies on.
pub fn base_has_grown(storage: &Storage, base: &Path, upper: &LayerSpec) -> Result<()> {
    let (len, layer) = (storage.metadata(base)?.len, inspect(storage, &upper.path)?);
    if layer.below < layer.size && len == layer.size {
        relink_over(storage, upper, layer.parent, Some(len))?;
    }
    Ok(())
}

fn put(into: &Delta, blocks: Range<u64>, buf: &[u8]) -> Result<()> {
    if is_zero(buf) {
        into.clear_data(blocks.clone())?;
    } else {
        into.write_data(buf, blocks.start * BLOCK)?;
    }
    into.mark(blocks);
    Ok(())
}

fn is_zero(buf: &[u8]) -> bool {
    // Every byte equals the one before it, and the first is 0.
    matches!(buf, [0, rest @ ..] if *rest == buf[..rest.len()])
}

fn check_parent(storage: &Storage, upper: &LayerSpec, parent: Parent, below: &Path) -> Result<()> {
    let found = inspect(storage, &upper.path)?.parent;
    if found == parent {
        return Ok(());
    }
    Err(DiskError::WrongParent {
        path: upper.path.clone(),
        found: found.to_string(),
        expected: format!("{parent} ({})", below.display()),
    })
}

fn check_size(upper: &LayerSpec, size: u64, below: &Path, below_size: u64) -> Result<()> {
    if size == below_size {
        return Ok(());
    }
    Err(DiskError::WrongSize { path: upper.path.clone(), size, below: below.to_owned(), below_size })
}
