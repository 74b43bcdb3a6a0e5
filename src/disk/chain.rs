//! A chain of layers as the disk of a running guest: frozen ones, and on top
//! the delta that the guest writes to.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::block_map::Layer;
use super::delta::{Delta, FrozenDelta};
use super::delta_format::{BLOCK, LayerId, Parent};
use super::frozen::FrozenChain;
use super::layer::LayerSpec;
use super::merge::{CHUNK, Direction, Lower, Merge};
use super::outlook::Outlook;
use super::raw::RawDisk;
use super::{Backing, Base, Disk, DiskError, MAX_LAYERS, Result, check_range};
use crate::storage::{Lock, Storage};

/// A chain with a writable top: what a running VM's disk is.
pub struct Chain {
    size: u64,
    inner: RwLock<Inner>,
}

struct Inner {
    below: FrozenChain,
    top: Delta,
}

/// A fresh overlay for one chain, on disk already.
#[derive(Debug)]
pub struct PreparedOverlay {
    delta: Delta,
    parent: LayerId,
}

impl Chain {
    pub fn open(storage: &Storage, base: Base, deltas: &[LayerSpec], top: &LayerSpec) -> Result<Self> {
        let below = FrozenChain::open(storage, base, deltas)?;
        Self::new(below, Delta::open(storage, top)?)
    }

    pub fn new(mut below: FrozenChain, top: Delta) -> Result<Self> {
        below.check(top.path(), top.parent(), top.below())?;
        below.grow(top.size());
        let layer = below.top_layer();
        for run in top.runs()? {
            below.map.set(run, layer);
        }
        Ok(Self { size: below.len(), inner: RwLock::new(Inner { below, top }) })
    }

    /// The writable layer, and the frozen ones from the base upwards.
    pub fn layers(&self) -> (LayerSpec, Vec<LayerSpec>) {
        let inner = self.read();
        let frozen = inner.below.deltas.iter().map(|d| d.spec()).collect();
        (inner.top_spec(), frozen)
    }

    /// All that can fail of [`Chain::push_overlay`]: the file of a fresh
    /// overlay, empty and durable, so that it may be named before it is used.
    pub fn prepare_overlay(&self, storage: &Storage, path: &Path) -> Result<PreparedOverlay> {
        let (parent, layers) = {
            let inner = self.read();
            (inner.top.id(), inner.below.deltas.len() + 3)
        };
        if layers > MAX_LAYERS {
            return Err(DiskError::TooLong(layers));
        }
        let delta = Delta::create(storage, path, self.size, Parent::Delta(parent))?;
        Ok(PreparedOverlay { delta, parent })
    }

    /// Freezes the top and puts the overlay on it. Touches no file and cannot
    /// fail, so that it can run while the guest is paused. What is returned
    /// still has to be synced; a flush of the chain does that too.
    ///
    /// # Panics
    /// If the overlay was prepared for another top; nothing on disk leads there.
    pub fn push_overlay(&self, overlay: PreparedOverlay) -> Arc<FrozenDelta> {
        let mut inner = self.write();
        assert_eq!(overlay.parent, inner.top.id(), "an overlay for another top");
        let frozen = std::mem::replace(&mut inner.top, overlay.delta).freeze();
        inner.below.deltas.push(Arc::clone(&frozen));
        frozen
    }

    /// Starts to merge frozen layer `upper` with the one below it, while the
    /// guest runs on above both. No outlook: into the base, or without
    /// checksums; no direction: whichever way moves fewer bytes.
    pub fn begin_merge(
        &self,
        storage: &Storage,
        upper: LayerId,
        direction: Option<Direction>,
        sums: Option<u32>,
        outlook: Option<&Outlook>,
    ) -> Result<Merge> {
        let (at, upper, lower, base) = {
            let inner = self.read();
            let at = inner.below.position(upper, inner.top.path())?;
            let deltas = &inner.below.deltas;
            let lower = at.checked_sub(1).map(|below| Arc::clone(&deltas[below]));
            (at, Arc::clone(&deltas[at]), lower, Arc::clone(&inner.below.base))
        };
        // The merge reads what is allocated from the files. Not under the
        // lock: a sync takes long.
        upper.sync()?;
        if let Some(lower) = &lower {
            lower.sync()?;
        }
        // Another VM that reads the lower layer by itself holds a lock on it
        // and makes this fail; our own has to step aside.
        self.read().below.lock_below(at, Lock::None)?;
        let started = match &lower {
            Some(lower) => Merge::open(storage, &lower.spec(), &upper.spec(), direction, outlook),
            // Our own handle of the base would not know that it has grown.
            None => Merge::open_on_base(storage, base.path(), base.format(), &upper.spec(), sums, false),
        };
        let started = started.and_then(|mut merge| {
            match (merge.direction(), lower, outlook) {
                (Direction::Commit, Some(lower), Some(outlook)) => {
                    // What is read of it stays as it is; what the upper one hides does not.
                    lower.attach_sums(storage, outlook.meanwhile)?;
                    merge.read_through(upper);
                }
                (Direction::Commit, Some(lower), None) => {
                    lower.detach_sums();
                    merge.read_through(upper);
                }
                (Direction::Commit, None, _) => {}
                (Direction::Pull, Some(lower), _) => merge.read_through(lower),
                (Direction::Pull, None, _) => {}
            }
            Ok(merge)
        });
        match started {
            Ok(merge) => Ok(merge),
            Err(e) => {
                self.read().below.lock_below(at, Lock::Shared)?;
                Err(e)
            }
        }
    }

    /// Ends a merge whose steps are done: makes it durable, relinks what lies
    /// on the upper layer (in this chain, and `others`), and lets go of the
    /// file that is not needed any more, whose path is returned.
    pub fn finish_merge(
        &self,
        storage: &Storage,
        mut merge: Merge,
        others: &[LayerSpec],
        outlook: Option<&Outlook>,
    ) -> Result<PathBuf> {
        let mut children = others.to_vec();
        {
            let inner = self.read();
            let at = inner.below.position(merge.upper().id, inner.top.path())?;
            children.push(match inner.below.deltas.get(at + 1) {
                Some(delta) => delta.spec(),
                None => inner.top_spec(),
            });
        }
        // The guest goes on meanwhile; an overlay that is pushed now lies
        // above the child and changes none of this.
        let finished = merge.finish(storage, &children).and_then(|gone| {
            if let Some(outlook) = outlook {
                self.left(&merge)?.attach_sums(storage, outlook.merged)?;
            }
            Ok(gone)
        });
        let gone = match finished {
            Ok(gone) => gone,
            Err(e) => {
                self.cancel_merge(merge)?;
                return Err(e);
            }
        };
        let mut inner = self.write();
        let at = inner.below.position(merge.upper().id, inner.top.path())?;
        match merge.direction() {
            Direction::Commit => {
                inner.below.lock_below(at, Lock::Shared)?;
                inner.below.deltas.remove(at);
            }
            Direction::Pull => {
                inner.below.deltas.remove(at - 1);
            }
        }
        inner.below.map.collapse((at + 1) as Layer);
        Ok(gone)
    }

    /// Our handle of the layer that a merge of two deltas leaves.
    fn left(&self, merge: &Merge) -> Result<Arc<FrozenDelta>> {
        let inner = self.read();
        let upper = inner.below.position(merge.upper().id, inner.top.path())?;
        let at = match merge.direction() {
            Direction::Commit => upper.checked_sub(1),
            Direction::Pull => Some(upper),
        };
        let found = at.and_then(|at| inner.below.deltas.get(at));
        found
            .cloned()
            .ok_or_else(|| DiskError::NoSuchLayer { id: merge.upper().id, top: inner.top.path().to_owned() })
    }

    pub(super) fn frozen(&self) -> Vec<Arc<FrozenDelta>> {
        self.read().below.deltas.clone()
    }

    /// Gives a merge up; what it has moved changes nothing that is read.
    pub fn cancel_merge(&self, merge: Merge) -> Result<()> {
        let inner = self.read();
        let at = inner.below.position(merge.upper().id, inner.top.path())?;
        merge.release()?;
        inner.below.lock_below(at, Lock::Shared)
    }

    /// See [`Base::attach_sums`].
    pub fn attach_base_sums(&self, storage: &Storage, path: &Path) -> Result<()> {
        let base = Arc::clone(&self.read().below.base);
        base.attach_sums(storage, path)
    }

    /// Makes a frozen layer durable; with others above it that takes nobody's time.
    pub fn sync_layer(&self, id: LayerId) -> Result<()> {
        let layer = {
            let inner = self.read();
            Arc::clone(&inner.below.deltas[inner.below.position(id, inner.top.path())?])
        };
        layer.sync()
    }

    /// Copies what the writable top holds down into what lies below it, durably. Nothing that is
    /// read changes. The caller keeps writers away, records that the guest writes there from now
    /// on, and calls [`Chain::drop_top`], or [`Chain::keep_top`] if it could not.
    pub(super) fn fold(&self, storage: &Storage) -> Result<Lower> {
        let inner = self.write();
        let below = &inner.below;
        if inner.top.below() != inner.top.size() {
            return Err(DiskError::WrongSize {
                path: inner.top.path().to_owned(),
                size: inner.top.size(),
                below: below.deltas.last().map_or(below.base.path(), |delta| delta.path()).to_owned(),
                below_size: inner.top.below(),
            });
        }
        if let Some(delta) = below.deltas.last() {
            // What it holds is read from its file.
            delta.sync()?;
        }
        below.lock_below(below.deltas.len(), Lock::None)?;
        let folded = (|| {
            let lower = match below.deltas.last() {
                Some(delta) => {
                    // Nobody vouches for them any more: it is about to be written again.
                    delta.detach_sums();
                    Lower::Delta(Delta::open_again(storage, &delta.spec(), Lock::Exclusive)?)
                }
                None => Lower::Base(RawDisk::open(storage, below.base.path())?),
            };
            let mut data = Vec::new();
            for run in inner.top.runs()? {
                for start in run.clone().step_by(CHUNK as usize) {
                    let blocks = start..run.end.min(start + CHUNK);
                    let end = (blocks.end * BLOCK).min(self.size);
                    data.resize((end - start * BLOCK) as usize, 0);
                    inner.top.read_data(&mut data, start * BLOCK)?;
                    lower.put(blocks, &data)?;
                }
            }
            lower.sync()?;
            Ok(lower)
        })();
        if folded.is_err() {
            below.lock_below(below.deltas.len(), Lock::Shared)?;
        }
        folded
    }

    /// The guest writes to the layer below, which the top was folded into.
    pub(super) fn drop_top(&self, lower: Delta) {
        let mut inner = self.write();
        let top = inner.below.top_layer();
        inner.below.deltas.pop();
        inner.top = lower;
        inner.below.map.collapse(top);
    }

    /// Everything stays as it was before [`Chain::fold`].
    pub(super) fn keep_top(&self, lower: Lower) -> Result<()> {
        // Its lock is exclusive.
        drop(lower);
        let inner = self.read();
        inner.below.lock_below(inner.below.deltas.len(), Lock::Shared)
    }

    /// Whether the writable layer is of a larger disk than what lies below it.
    pub(super) fn top_is_larger(&self) -> bool {
        let inner = self.read();
        inner.top.below() != inner.top.size()
    }

    /// Bytes that the writable layer holds.
    pub fn overlay_bytes(&self) -> Result<u64> {
        self.read().top.allocated_bytes()
    }

    /// Bytes of memory that the map of the chain takes.
    pub fn map_memory(&self) -> usize {
        self.read().below.map.memory()
    }

    /// A request that panicked left the layers as they were or one bit behind;
    /// a checkpoint has to be able to go on.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn top_spec(&self) -> LayerSpec {
        LayerSpec { path: self.top.path().to_owned(), id: self.top.id() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_with(buf, offset, |part, at| self.top.read_data(part, at))
    }

    /// `blocks` are in the top now.
    fn claim(&mut self, blocks: Range<u64>) {
        let layer = self.below.top_layer();
        self.top.mark(blocks.clone());
        self.below.map.set(blocks, layer);
    }

    fn is_fresh(&self, block: u64) -> bool {
        self.below.map.get(block) != self.below.top_layer()
    }

    /// Writes part of a block that the top does not hold: the rest of it
    /// comes from below, and the whole goes in one write.
    fn fill(&mut self, block: u64, part: &[u8], within: usize) -> Result<()> {
        let start = block * BLOCK;
        let len = (self.below.len() - start).min(BLOCK) as usize;
        let mut whole = [0; BLOCK as usize];
        self.read_at(&mut whole[..len], start)?;
        whole[within..within + part.len()].copy_from_slice(part);
        self.top.write_data(&whole, start)?;
        self.claim(block..block + 1);
        Ok(())
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        let (mut buf, mut at) = (buf, offset);
        let head = at % BLOCK;
        if head != 0 && !buf.is_empty() && self.is_fresh(at / BLOCK) {
            let (part, rest) = buf.split_at(buf.len().min((BLOCK - head) as usize));
            self.fill(at / BLOCK, part, head as usize)?;
            (buf, at) = (rest, at + part.len() as u64);
        }
        let end = at + buf.len() as u64;
        let tail = (end % BLOCK) as usize;
        // The last block of the disk is whole if it is written up to the end:
        // were it begun in the middle, it would not be fresh any more here.
        let partial = tail != 0 && end != self.below.len();
        let mut last = None;
        if partial && self.is_fresh(end / BLOCK) {
            let (rest, part) = buf.split_at(buf.len() - tail);
            (buf, last) = (rest, Some(part));
        }
        if !buf.is_empty() {
            self.top.write_data(buf, at)?;
            self.claim(at / BLOCK..(at + buf.len() as u64).div_ceil(BLOCK));
        }
        match last {
            Some(part) => self.fill(end / BLOCK, part, 0),
            None => Ok(()),
        }
    }

    /// Blocks that lie in the range whole.
    fn clear(&mut self, blocks: Range<u64>) -> Result<()> {
        if !blocks.is_empty() {
            self.top.clear_data(blocks.clone())?;
            self.claim(blocks);
        }
        Ok(())
    }

    fn whole_blocks(&self, offset: u64, end: u64) -> Range<u64> {
        let last = if end == self.below.len() { end.div_ceil(BLOCK) } else { end / BLOCK };
        offset.div_ceil(BLOCK)..last
    }
}

impl Backing for Chain {
    fn len(&self) -> u64 {
        self.size
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read().read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let inner = self.read();
        inner.below.next_data_with(offset, |at| inner.top.next_data(at))
    }
}

impl Disk for Chain {
    fn is_read_only(&self) -> bool {
        false
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        self.write().write_at(buf, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        check_range(offset, len, self.size)?;
        let mut inner = self.write();
        let end = offset + len;
        let blocks = inner.whole_blocks(offset, end);
        if blocks.is_empty() {
            // Two parts at most, in neighbouring blocks.
            let middle = offset.next_multiple_of(BLOCK).min(end);
            inner.write_at(&ZEROS[..(middle - offset) as usize], offset)?;
            return inner.write_at(&ZEROS[..(end - middle) as usize], middle);
        }
        let (first, last) = (blocks.start * BLOCK, (blocks.end * BLOCK).min(end));
        inner.write_at(&ZEROS[..(first - offset) as usize], offset)?;
        inner.clear(blocks)?;
        inner.write_at(&ZEROS[..(end - last) as usize], last)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size)?;
        let mut inner = self.write();
        let blocks = inner.whole_blocks(offset, offset + len);
        inner.clear(blocks)
    }

    fn flush(&self) -> Result<()> {
        let inner = self.read();
        // What was written before the last switch is in frozen layers, perhaps
        // not synced yet. For one that is, this does nothing.
        inner.below.base.sync()?;
        for delta in &inner.below.deltas {
            delta.sync()?;
        }
        inner.top.sync()
    }
}

impl PreparedOverlay {
    pub fn spec(&self) -> LayerSpec {
        LayerSpec { path: self.delta.path().to_owned(), id: self.delta.id() }
    }

    /// Removes the file of an overlay that was not used.
    pub fn discard(self, storage: &Storage) -> Result<()> {
        Ok(storage.remove_file(self.delta.path())?)
    }
}
