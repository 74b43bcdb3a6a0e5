//! A delta layer: [`Delta`] is the writable top of a chain, [`FrozenDelta`] one that
//! something lies on. Both are the same open file; freezing changes the type,
//! and with it what can be called, and touches no file.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::bitmap::Bitmap;
use super::delta_file::Core;
use super::delta_format::{BLOCK, FormatError, Geometry, Header, LayerId, Parent, header_offset};
use super::delta_header::format_error;
use super::layer::{LayerInfo, LayerSpec};
use super::sums::{self, Chunk, Seal, Sums};
use super::{DiskError, Result};
use crate::storage::{Access, Lock, Storage};

/// The writable top of a chain, under an exclusive lock.
#[derive(Debug)]
pub struct Delta {
    core: Arc<Core>,
}

/// A layer that is not written any more. One that was just frozen may still
/// have to be made durable: [`FrozenDelta::sync`].
#[derive(Debug)]
pub struct FrozenDelta {
    core: Arc<Core>,
    /// If there, data is checked when it is first read.
    sums: RwLock<Option<Sums>>,
}

impl Delta {
    /// A new empty layer, durable when this returns.
    pub fn create(storage: &Storage, path: &Path, size: u64, parent: Parent) -> Result<Self> {
        Self::create_over(storage, path, size, parent, size)
    }

    /// The same over a disk of another size, `below`, which is at most as large.
    pub fn create_over(
        storage: &Storage,
        path: &Path,
        size: u64,
        parent: Parent,
        below: u64,
    ) -> Result<Self> {
        let delta = Self::make_over(storage, path, size, parent, below)?;
        if let Err(e) = delta.making(storage)() {
            // The first error is the one to report.
            let _ = storage.remove_file(path);
            return Err(e);
        }
        Ok(delta)
    }

    /// The same, which is not durable before [`Delta::making`] has run.
    pub fn make_over(storage: &Storage, path: &Path, size: u64, parent: Parent, below: u64) -> Result<Self> {
        if below > size {
            return Err(format_error(path, FormatError::Below { size, below }));
        }
        let geometry = Geometry::new(size).map_err(|source| format_error(path, source))?;
        let id = LayerId::random().map_err(DiskError::Random)?;
        let file = storage.create_new(path)?;
        let header = Header { generation: 1, size, below, id, parent };
        let written = file
            .lock(Lock::Exclusive)
            .and_then(|()| file.set_len(geometry.file_len))
            .and_then(|()| file.write_at(&header.encode(geometry.data_offset), header_offset(0)));
        if let Err(e) = written {
            // The first error is the one to report.
            let _ = storage.remove_file(path);
            return Err(e.into());
        }
        let bitmap = Bitmap::new(&geometry);
        Ok(Self { core: Core::new(file, geometry, &header, Some(bitmap)) })
    }

    /// Makes a new layer durable, with its name, in whatever thread.
    pub fn making(&self, storage: &Storage) -> impl FnOnce() -> Result<()> + Send + use<> {
        let (storage, core) = (storage.clone(), Arc::clone(&self.core));
        move || {
            core.file.sync_data()?;
            Ok(storage.sync_parent(core.file.path())?)
        }
    }

    pub fn open(storage: &Storage, spec: &LayerSpec) -> Result<Self> {
        Self::open_locked(storage, spec, Lock::Exclusive)
    }

    pub(super) fn open_locked(storage: &Storage, spec: &LayerSpec, lock: Lock) -> Result<Self> {
        let file = storage.open(&spec.path, Access::ReadWrite)?;
        file.lock(lock)?;
        // A killed process may have written bitmap pages and not synced them. Were one taken for
        // durable, the next flush would overwrite the copy that is.
        file.sync_data()?;
        Ok(Self { core: Core::open(file, spec)? })
    }

    /// To be merged into: nobody knows what an earlier attempt left unsynced.
    pub(super) fn open_again(storage: &Storage, spec: &LayerSpec, lock: Lock) -> Result<Self> {
        let delta = Self::open_locked(storage, spec, lock)?;
        delta.core.rewrite()?;
        Ok(delta)
    }

    /// Cannot fail and touches no file: it runs while the guest is paused.
    pub fn freeze(self) -> Arc<FrozenDelta> {
        Arc::new(FrozenDelta { core: self.core, sums: RwLock::new(None) })
    }

    /// The same open file to read from, while this lives on.
    pub(super) fn as_frozen(&self) -> Arc<FrozenDelta> {
        Arc::new(FrozenDelta { core: Arc::clone(&self.core), sums: RwLock::new(None) })
    }

    pub fn id(&self) -> LayerId {
        self.core.id
    }

    /// As it was when this was opened.
    pub fn parent(&self) -> Parent {
        self.core.parent
    }

    pub fn path(&self) -> &Path {
        self.core.file.path()
    }

    /// What its header says.
    pub fn info(&self) -> LayerInfo {
        let (path, id) = (self.path().to_owned(), self.id());
        LayerInfo { path, id, parent: self.parent(), size: self.size(), below: self.below() }
    }

    pub fn size(&self) -> u64 {
        self.core.geometry.size
    }

    /// Size of the disk below, as it was when this was opened.
    pub fn below(&self) -> u64 {
        self.core.below
    }

    pub fn allocated_bytes(&self) -> Result<u64> {
        self.core.with_bitmap(|bitmap| bitmap.count() * BLOCK)
    }

    /// Everything written so far survives a power cut when this returns.
    pub fn sync(&self) -> Result<()> {
        self.core.sync()
    }

    pub(super) fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.core.read_data(buf, offset)
    }

    /// Of blocks that are not marked, nothing else can see what is written.
    pub(super) fn write_data(&self, buf: &[u8], offset: u64) -> Result<()> {
        let at = self.core.geometry.data_offset + offset;
        let written = self.core.file.write_at(buf, at);
        // After the write, also a failed one: a sync that came in between
        // must not be taken for one that covered it.
        self.core.unsynced.store(true, Ordering::Release);
        Ok(written?)
    }

    /// Whole blocks become holes. Also where nothing was written yet: a
    /// write that a crash kept from being marked may have left something.
    pub(super) fn clear_data(&self, blocks: Range<u64>) -> Result<()> {
        let at = self.core.geometry.data_offset + blocks.start * BLOCK;
        let len = (blocks.end - blocks.start) * BLOCK;
        let cleared = self.core.file.punch_hole(at, len);
        self.core.unsynced.store(true, Ordering::Release);
        Ok(cleared?)
    }

    /// From here on these blocks are read here and not in the parent.
    pub(super) fn mark(&self, blocks: Range<u64>) {
        if let Some(bitmap) = &mut self.core.state().bitmap {
            bitmap.set(blocks);
        }
    }

    pub(super) fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.core.next_data(offset)
    }

    pub(super) fn runs(&self) -> Result<Vec<Range<u64>>> {
        self.core.with_bitmap(|bitmap| bitmap.runs().collect())
    }

    pub(super) fn lock(&self, lock: Lock) -> Result<()> {
        Ok(self.core.file.lock(lock)?)
    }
}

impl FrozenDelta {
    /// Under a shared lock.
    pub fn open(storage: &Storage, spec: &LayerSpec) -> Result<Arc<Self>> {
        let file = storage.open(&spec.path, Access::ReadOnly)?;
        file.lock(Lock::Shared)?;
        Ok(Arc::new(Self { core: Core::open(file, spec)?, sums: RwLock::new(None) }))
    }

    /// Makes durable what a killed process wrote to it, too: before anything is built on it.
    pub fn sync_former(&self) -> Result<()> {
        Ok(self.core.file.sync_data()?)
    }

    pub fn id(&self) -> LayerId {
        self.core.id
    }

    /// As it was when this was opened.
    pub fn parent(&self) -> Parent {
        self.core.parent
    }

    pub fn path(&self) -> &Path {
        self.core.file.path()
    }

    pub fn size(&self) -> u64 {
        self.core.geometry.size
    }

    /// Size of the disk below, as it was when this was opened.
    pub fn below(&self) -> u64 {
        self.core.below
    }

    pub fn spec(&self) -> LayerSpec {
        LayerSpec { path: self.path().to_owned(), id: self.id() }
    }

    pub fn allocated_bytes(&self) -> Result<u64> {
        self.core.with_bitmap(|bitmap| bitmap.count() * BLOCK)
    }

    /// The blocks that this layer holds, as runs of block numbers: what
    /// changed since its parent. Its checksums know better than its bitmap, in
    /// which an unfinished merge may have left more.
    pub fn runs(&self) -> Result<Vec<Range<u64>>> {
        if let Some(sums) = &*self.sums() {
            return Ok(sums.runs());
        }
        self.core.with_bitmap(|bitmap| bitmap.runs().collect())
    }

    /// Everything that was written before it was frozen survives a power cut
    /// when this returns, and others may open it for reading. Does nothing if
    /// that is so already; safe from several threads.
    pub fn sync(&self) -> Result<()> {
        self.core.sync()?;
        let mut state = self.core.state();
        if self.core.file.access() == Access::ReadWrite && state.bitmap.is_some() {
            self.core.file.lock(Lock::Shared)?;
        }
        state.bitmap = None;
        Ok(())
    }

    /// Checksums of all its data, into the file [`sums::path_of`]. Sync first. Only of a layer
    /// that never had any: what rotted since would be sealed as if it were good.
    pub fn seal(&self, storage: &Storage) -> Result<Seal> {
        self.seal_while(storage, &|_| Ok(()))
    }

    /// The same; `go_on` is told of the bytes read between one read and the next, and ends it with
    /// its error.
    pub fn seal_while(&self, storage: &Storage, go_on: &dyn Fn(u64) -> Result<()>) -> Result<Seal> {
        let read = |buf: &mut [u8], at: u64| {
            go_on(buf.len() as u64)?;
            self.core.read_data(buf, at)
        };
        let runs = self.runs()?;
        sums::seal(storage, self.path(), self.id(), self.size(), &runs, &read)
    }

    /// From here on data is checked against its checksums when it is first
    /// read. `crc` is the [`Seal::crc`] that was recorded.
    pub fn attach_sums(&self, storage: &Storage, crc: u32) -> Result<()> {
        let runs = self.core.with_bitmap(|bitmap| bitmap.runs().collect::<Vec<_>>())?;
        let sums = Sums::load(storage, self.path(), self.id(), self.size(), crc, &runs)?;
        *self.sums.write().unwrap_or_else(PoisonError::into_inner) = Some(sums);
        Ok(())
    }

    /// Reads everything again and checks it, if checksums are attached.
    /// `go_on` is told the bytes of the disk after each part, and ends it with its error.
    pub fn verify(&self, mut go_on: impl FnMut(u64) -> Result<()>) -> Result<()> {
        const STEP: u64 = 16 << 20;
        if let Some(sums) = &*self.sums() {
            sums.forget();
        }
        let mut at = 0;
        while at < self.size() {
            let end = self.size().min(at + STEP);
            self.check(at..end)?;
            go_on(end - at)?;
            at = end;
        }
        Ok(())
    }

    /// It is about to be written again.
    pub(super) fn detach_sums(&self) {
        *self.sums.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn has_sums(&self) -> bool {
        self.sums().is_some()
    }

    /// Chunks with their masks and checksums; none without checksums.
    pub(super) fn chunks(&self) -> Vec<(u32, u32, u32)> {
        self.sums().as_ref().map(|sums| sums.chunks().collect()).unwrap_or_default()
    }

    /// Reads a chunk whole, and checks the very bytes that it returns.
    pub(super) fn read_chunk(&self, into: &mut Chunk, (number, mask, crc): (u32, u32, u32)) -> Result<()> {
        into.read(number, mask, &|buf, at| self.core.read_data(buf, at))?;
        if into.crc(mask) == crc { Ok(()) } else { Err(self.rotten(sums::start_of(number))) }
    }

    fn rotten(&self, at: u64) -> DiskError {
        DiskError::Corrupt {
            path: self.path().to_owned(),
            offset: self.core.geometry.data_offset + at,
            what: "wrong checksum of the 128 KiB of data",
        }
    }

    fn sums(&self) -> RwLockReadGuard<'_, Option<Sums>> {
        self.sums.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, range: Range<u64>) -> Result<()> {
        let sums = self.sums();
        let Some(sums) = &*sums else {
            return Ok(());
        };
        let read = |buf: &mut [u8], at: u64| self.core.read_data(buf, at);
        match sums.check(range, self.size(), &read)? {
            None => Ok(()),
            Some(at) => Err(self.rotten(at)),
        }
    }

    pub(super) fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset..offset + buf.len() as u64)?;
        self.core.read_data(buf, offset)
    }

    /// The first data at or after `offset` of the disk, as far as this file
    /// goes; only means something for blocks that it holds.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.core.next_data(offset)
    }

    pub(super) fn lock(&self, lock: Lock) -> Result<()> {
        Ok(self.core.file.lock(lock)?)
    }
}
