//! A chain of layers that is only read: a base, and deltas over it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::block_map::{BlockMap, Layer};
use super::delta::FrozenDelta;
use super::delta_format::{BLOCK, LayerId, Parent};
use super::layer::LayerSpec;
use super::{Backing, Base, DiskError, MAX_LAYERS, Result, check_range};
use crate::storage::{Lock, Storage};

/// A chain that nobody writes: what a checkpoint's disk was.
pub struct FrozenChain {
    /// Of the disk: of its topmost layer.
    len: u64,
    pub(super) base: Arc<Base>,
    pub(super) deltas: Vec<Arc<FrozenDelta>>,
    /// Layer 0 is the base, layer n is `deltas[n - 1]`. Inside a [`super::chain::Chain`] the
    /// last layer is its top.
    pub(super) map: BlockMap,
}

impl FrozenChain {
    /// `deltas` from the base upwards. Every one has to be the layer that is
    /// named and to have been made over the one before it.
    pub fn open(storage: &Storage, base: Base, deltas: &[LayerSpec]) -> Result<Self> {
        Self::open_checked(storage, base, deltas, &BTreeMap::new())
    }

    /// The same; of a layer in `sums`, the checksums of its checksums, every block is checked when
    /// it is first read.
    pub fn open_checked(
        storage: &Storage,
        base: Base,
        deltas: &[LayerSpec],
        sums: &BTreeMap<LayerId, u32>,
    ) -> Result<Self> {
        Self::open_sharing(storage, base, deltas, sums, None)
    }

    /// The same; a layer in `shared` is open already, and one open file is enough.
    pub fn open_sharing(
        storage: &Storage,
        base: impl Into<Arc<Base>>,
        deltas: &[LayerSpec],
        sums: &BTreeMap<LayerId, u32>,
        shared: Option<&BTreeMap<LayerId, Arc<FrozenDelta>>>,
    ) -> Result<Self> {
        let base = base.into();
        let mut chain = Self {
            len: base.len(),
            map: BlockMap::new(base.len().div_ceil(BLOCK), 0),
            base,
            deltas: Vec::with_capacity(deltas.len()),
        };
        for spec in deltas {
            // What a merge gave another parent since it was opened does not know of it.
            let open =
                shared.and_then(|all| all.get(&spec.id)).filter(|layer| layer.parent() == chain.parent());
            let delta = open.cloned().map_or_else(|| FrozenDelta::open(storage, spec), Ok)?;
            if let Some(crc) = sums.get(&spec.id) {
                delta.attach_sums(storage, *crc)?;
            }
            chain.add(delta)?;
        }
        Ok(chain)
    }

    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    pub fn deltas(&self) -> &[Arc<FrozenDelta>] {
        &self.deltas
    }

    /// What a layer on top of this has for a parent.
    pub fn parent(&self) -> Parent {
        self.deltas.last().map_or(Parent::Base, |delta| Parent::Delta(delta.id()))
    }

    fn add(&mut self, delta: Arc<FrozenDelta>) -> Result<()> {
        self.check(delta.path(), delta.parent(), delta.below())?;
        self.grow(delta.size());
        let layer = self.top_layer();
        for run in delta.runs()? {
            self.map.set(run, layer);
        }
        // The map knows its blocks from here on; this lets go of its own.
        delta.sync()?;
        self.deltas.push(delta);
        Ok(())
    }

    /// What lies on this is larger: past the end of what is here, all is zeros.
    pub(super) fn grow(&mut self, size: u64) {
        self.len = self.len.max(size);
        self.map.grow(self.len.div_ceil(BLOCK));
    }

    /// Whether a delta over a disk of `size` may lie on this chain.
    pub(super) fn check(&self, path: &Path, parent: Parent, size: u64) -> Result<()> {
        // The base, those here, the new one.
        let layers = self.deltas.len() + 2;
        if layers > MAX_LAYERS {
            return Err(DiskError::TooLong(layers));
        }
        if parent != self.parent() {
            return Err(DiskError::WrongParent {
                path: path.to_owned(),
                found: parent.to_string(),
                expected: format!("{} ({})", self.parent(), self.top_path().display()),
            });
        }
        if size != self.len() {
            return Err(DiskError::WrongSize {
                path: path.to_owned(),
                size,
                below: self.top_path().to_owned(),
                below_size: self.len(),
            });
        }
        Ok(())
    }

    fn top_path(&self) -> &Path {
        match self.deltas.last() {
            Some(delta) => delta.path(),
            None => self.base.path(),
        }
    }

    /// The index of a layer on top of this; `check` keeps it within a [`Layer`].
    pub(super) fn top_layer(&self) -> Layer {
        (self.deltas.len() + 1) as Layer
    }

    /// Calls `read` for each stretch that lies in one layer.
    pub(super) fn read_with(
        &self,
        buf: &mut [u8],
        offset: u64,
        mut top: impl FnMut(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let end = at + rest.len() as u64;
            let (layer, run) = self.map.run(at / BLOCK..end.div_ceil(BLOCK));
            let run_end = ((at / BLOCK + run) * BLOCK).min(end);
            let (part, after) = rest.split_at_mut((run_end - at) as usize);
            let delta = self.deltas.get(usize::from(layer).wrapping_sub(1));
            // Past the end of a layer below a larger one all is zeros.
            let its_own = self.len_of(layer).saturating_sub(at).min(part.len() as u64);
            let (part, zeros) = part.split_at_mut(its_own as usize);
            zeros.fill(0);
            match (layer, delta) {
                _ if part.is_empty() => {}
                (0, _) => self.base.read_at(part, at)?,
                (_, Some(delta)) => delta.read_data(part, at)?,
                (_, None) => top(part, at)?,
            }
            (rest, at) = (after, run_end);
        }
        Ok(())
    }

    /// Bytes of the disk when a layer was its topmost.
    fn len_of(&self, layer: Layer) -> u64 {
        match (layer, self.deltas.get(usize::from(layer).wrapping_sub(1))) {
            (0, _) => self.base.len(),
            (_, Some(delta)) => delta.size(),
            (_, None) => self.len,
        }
    }

    pub(super) fn next_data_with(
        &self,
        offset: u64,
        top: impl Fn(u64) -> Result<Option<Range<u64>>>,
    ) -> Result<Option<Range<u64>>> {
        let (mut at, size) = (offset, self.len());
        while at < size {
            let (layer, run) = self.map.run(at / BLOCK..size.div_ceil(BLOCK));
            let run_end = ((at / BLOCK + run) * BLOCK).min(size);
            let data_end = run_end.min(self.len_of(layer));
            let found = match (layer, self.deltas.get(usize::from(layer).wrapping_sub(1))) {
                _ if at >= data_end => None,
                (0, _) => self.base.next_data(at)?,
                (_, Some(delta)) => delta.next_data(at)?,
                (_, None) => top(at)?,
            };
            if let Some(data) = found.filter(|data| data.start < data_end) {
                return Ok(Some(data.start.max(at)..data.end.min(data_end)));
            }
            at = run_end;
        }
        Ok(None)
    }

    /// Which layer each stretch of `ranges`, of bytes, is read from (none: the base), and how many
    /// blocks of it. Where two chains say the same, and have the same base, they read the same.
    pub fn sources(&self, ranges: &[Range<u64>]) -> Vec<(Option<LayerId>, u64)> {
        let mut sources: Vec<(Option<LayerId>, u64)> = Vec::new();
        for range in ranges {
            let (mut at, end) = (range.start / BLOCK, range.end.min(self.len()).div_ceil(BLOCK));
            while at < end {
                let (layer, run) = self.map.run(at..end);
                let id = self.deltas.get(usize::from(layer).wrapping_sub(1)).map(|delta| delta.id());
                match sources.last_mut() {
                    Some((last, blocks)) if *last == id => *blocks += run,
                    _ => sources.push((id, run)),
                }
                at += run;
            }
        }
        sources
    }

    pub(super) fn position(&self, id: LayerId, top: &Path) -> Result<usize> {
        let found = self.deltas.iter().position(|delta| delta.id() == id);
        found.ok_or_else(|| DiskError::NoSuchLayer { id, top: top.to_owned() })
    }

    /// Our own lock on the layer below delta `at`.
    pub(super) fn lock_below(&self, at: usize, lock: Lock) -> Result<()> {
        match (at.checked_sub(1), self.base.as_raw()) {
            (Some(below), _) => self.deltas[below].lock(lock),
            (None, Some(image)) => image.lock(lock),
            (None, None) => Ok(()),
        }
    }
}

impl Backing for FrozenChain {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        // No layer above the last delta is in this map.
        self.read_with(buf, offset, |_, _| Err(DiskError::ReadOnly))
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.next_data_with(offset, |_| Err(DiskError::ReadOnly))
    }
}
