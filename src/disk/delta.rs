//! A delta layer as a file.
//!
//! [`Delta`] is the writable top of a chain, [`FrozenDelta`] one that something
//! lies on. Both are the same open file; freezing changes the type, and with
//! it what can be called, and touches no file.
//!
//! A bit is set in the file only after the data that it stands for is durable.
//! So whatever a crash leaves, every block reads as it was at the last flush or
//! as something that was written to it since, which is what a disk promises.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::bitmap::{Bitmap, Page};
use super::delta_format::{
    BLOCK, FormatError, Geometry, Header, LayerId, PAGE, Parent, Slot, decode_page, encode_page,
    header_offset,
};
use super::sums::{self, Seal, Sums};
use super::{DiskError, MAX_LAYERS, Result};
use crate::storage::{Access, File, Lock, Storage};

/// What the header of a layer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    pub path: PathBuf,
    pub id: LayerId,
    pub parent: Parent,
    pub size: u64,
}

/// Where a layer is and which one has to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    pub path: PathBuf,
    pub id: LayerId,
}

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

#[derive(Debug)]
struct Core {
    file: File,
    geometry: Geometry,
    id: LayerId,
    parent: Parent,
    /// Data was written and not synced. Apart from `state`, because data is
    /// written without its lock.
    unsynced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once frozen and durable: the map of the chain knows it all, and
    /// the file can be asked again.
    bitmap: Option<Bitmap>,
    /// After a failed fdatasync the kernel forgets what it could not write, so
    /// a later one that succeeds means nothing.
    failed: bool,
}

impl Delta {
    /// A new empty layer, durable when this returns.
    pub fn create(storage: &Storage, path: &Path, size: u64, parent: Parent) -> Result<Self> {
        let geometry = Geometry::new(size).map_err(|source| format_error(path, source))?;
        let id = random_id()?;
        let file = storage.create_new(path)?;
        let header = Header {
            generation: 1,
            size,
            id,
            parent,
        };
        let written = file
            .lock(Lock::Exclusive)
            .and_then(|()| file.set_len(geometry.file_len))
            .and_then(|()| file.write_at(&header.encode(geometry.data_offset), header_offset(0)))
            .and_then(|()| file.sync_data())
            .and_then(|()| storage.sync_parent(path));
        if let Err(e) = written {
            // The first error is the one to report.
            let _ = storage.remove_file(path);
            return Err(e.into());
        }
        let bitmap = Bitmap::new(&geometry);
        Ok(Self {
            core: Core::new(file, geometry, &header, Some(bitmap)),
        })
    }

    pub fn open(storage: &Storage, spec: &LayerSpec) -> Result<Self> {
        Self::open_locked(storage, spec, Lock::Exclusive)
    }

    pub(super) fn open_locked(storage: &Storage, spec: &LayerSpec, lock: Lock) -> Result<Self> {
        let file = storage.open(&spec.path, Access::ReadWrite)?;
        file.lock(lock)?;
        Ok(Self {
            core: Core::open(file, spec)?,
        })
    }

    /// Cannot fail and touches no file: it runs while the guest is paused.
    pub fn freeze(self) -> Arc<FrozenDelta> {
        Arc::new(FrozenDelta {
            core: self.core,
            sums: RwLock::new(None),
        })
    }

    /// The same open file to read from, while this lives on.
    pub(super) fn as_frozen(&self) -> Arc<FrozenDelta> {
        Arc::new(FrozenDelta {
            core: Arc::clone(&self.core),
            sums: RwLock::new(None),
        })
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
        Ok(Arc::new(Self {
            core: Core::open(file, spec)?,
            sums: RwLock::new(None),
        }))
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

    pub fn spec(&self) -> LayerSpec {
        LayerSpec {
            path: self.path().to_owned(),
            id: self.id(),
        }
    }

    pub fn allocated_bytes(&self) -> Result<u64> {
        self.core.with_bitmap(|bitmap| bitmap.count() * BLOCK)
    }

    /// The blocks that this layer holds, as runs of block numbers: what
    /// changed since its parent.
    pub fn runs(&self) -> Result<Vec<Range<u64>>> {
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

    /// Checksums of all its data, into the file [`sums::path_of`]. Sync first.
    /// Stale as soon as a merge changes this file, which removes them.
    pub fn seal(&self, storage: &Storage) -> Result<Seal> {
        let read = |buf: &mut [u8], at: u64| self.core.read_data(buf, at);
        let runs = self.runs()?;
        sums::seal(storage, self.path(), self.id(), self.size(), &runs, &read)
    }

    /// From here on data is checked against its checksums when it is first
    /// read. `crc` is the [`Seal::crc`] that was recorded.
    pub fn attach_sums(&self, storage: &Storage, crc: u32) -> Result<()> {
        let runs = self.runs()?;
        let sums = Sums::load(storage, self.path(), self.id(), self.size(), crc, &runs)?;
        *self.sums.write().unwrap_or_else(PoisonError::into_inner) = Some(sums);
        Ok(())
    }

    /// Reads everything again and checks it, if checksums are attached.
    /// `progress` is told how far it is, in bytes of the disk.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<()> {
        const STEP: u64 = 64 << 20;
        if let Some(sums) = &*self.sums() {
            sums.forget();
        }
        let mut at = 0;
        while at < self.size() {
            let end = self.size().min(at + STEP);
            self.check(at..end)?;
            progress(end);
            at = end;
        }
        Ok(())
    }

    /// A commit is about to change what they are of.
    pub(super) fn detach_sums(&self) {
        *self.sums.write().unwrap_or_else(PoisonError::into_inner) = None;
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
            Some(at) => Err(DiskError::Corrupt {
                path: self.path().to_owned(),
                offset: self.core.geometry.data_offset + at,
                what: "data with a wrong checksum in the 128 KiB",
            }),
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

/// Reads a header and nothing else; takes no lock.
pub fn inspect(storage: &Storage, path: &Path) -> Result<LayerInfo> {
    let file = storage.open(path, Access::ReadOnly)?;
    let (header, _) = read_header(&file)?;
    Ok(LayerInfo {
        path: path.to_owned(),
        id: header.id,
        parent: header.parent,
        size: header.size,
    })
}

/// The layers from the base up to `top`, found by their parents.
pub fn ancestry(layers: &[LayerInfo], top: LayerId) -> Result<Vec<LayerSpec>> {
    let mut chain = Vec::new();
    let mut next = Parent::Delta(top);
    while let Parent::Delta(id) = next {
        let found = layers.iter().find(|layer| layer.id == id);
        let layer = found.ok_or(DiskError::NoParent(id))?;
        chain.push(LayerSpec {
            path: layer.path.clone(),
            id,
        });
        // Also ends a ring.
        if chain.len() >= MAX_LAYERS {
            return Err(DiskError::TooLong(chain.len() + 1));
        }
        next = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// Gives a layer another parent. Only right where both read the same through
/// it, as after a merge. Written to the older slot: after a crash the layer
/// has the one parent or the other.
///
/// Takes no lock: whoever has the layer open has its layers open as well, and
/// the header is not read again. Two at a time are for the caller to prevent.
pub fn relink(storage: &Storage, layer: &LayerSpec, parent: Parent) -> Result<()> {
    let file = storage.open(&layer.path, Access::ReadWrite)?;
    let (mut header, slot) = read_header(&file)?;
    check_id(&layer.path, header.id, layer.id)?;
    if header.parent == parent {
        // Perhaps from a relink whose sync did not come to its end.
        return Ok(file.sync_data()?);
    }
    let geometry = Geometry::new(header.size).map_err(|e| format_error(&layer.path, e))?;
    header.parent = parent;
    header.generation += 1;
    file.write_at(
        &header.encode(geometry.data_offset),
        header_offset(1 - slot),
    )?;
    Ok(file.sync_data()?)
}

impl Core {
    fn new(file: File, geometry: Geometry, header: &Header, bitmap: Option<Bitmap>) -> Arc<Self> {
        Arc::new(Self {
            file,
            geometry,
            id: header.id,
            parent: header.parent,
            unsynced: AtomicBool::new(false),
            state: Mutex::new(State {
                bitmap,
                failed: false,
            }),
        })
    }

    fn open(file: File, spec: &LayerSpec) -> Result<Arc<Self>> {
        let (header, _) = read_header(&file)?;
        check_id(&spec.path, header.id, spec.id)?;
        let geometry = Geometry::new(header.size).map_err(|e| format_error(&spec.path, e))?;
        let found = file.len()?;
        if found < geometry.file_len {
            return Err(DiskError::Truncated {
                path: spec.path.clone(),
                found,
                expected: geometry.file_len,
            });
        }
        let bitmap = read_bitmap(&file, header.id, &geometry)?;
        Ok(Self::new(file, geometry, &header, Some(bitmap)))
    }

    /// The lock protects plain data that no panic leaves half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_bitmap<T>(&self, ask: impl FnOnce(&Bitmap) -> T) -> Result<T> {
        if let Some(bitmap) = &self.state().bitmap {
            return Ok(ask(bitmap));
        }
        Ok(ask(&read_bitmap(&self.file, self.id, &self.geometry)?))
    }

    fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.file.read_at(buf, self.geometry.data_offset + offset)?)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let start = self.geometry.data_offset;
        let found = self.file.next_data(start + offset)?;
        Ok(found.map(|data| data.start - start..data.end - start))
    }

    /// Data, fdatasync, changed bitmap pages, fdatasync; each only if needed.
    fn sync(&self) -> Result<()> {
        let mut state = self.state();
        if state.failed {
            return Err(DiskError::FlushFailed(self.file.path().to_owned()));
        }
        if self.unsynced.swap(false, Ordering::AcqRel) {
            self.fdatasync(&mut state)?;
        }
        let State { bitmap, .. } = &mut *state;
        let Some(bitmap) = bitmap.as_mut().filter(|b| b.is_dirty()) else {
            return Ok(());
        };
        for (at, page) in bitmap.dirty() {
            let bytes = encode_page(self.id, at, page.generation + 1, &page.words);
            let offset = self.geometry.page_offset(at, 1 - page.slot);
            self.file.write_at(&bytes, offset)?;
        }
        self.fdatasync(&mut state)?;
        // Only now: until then the other slot is all that is sure to be there.
        if let Some(bitmap) = &mut state.bitmap {
            for (_, page) in bitmap.dirty() {
                page.generation += 1;
                page.slot = 1 - page.slot;
                page.dirty = false;
            }
        }
        Ok(())
    }

    fn fdatasync(&self, state: &mut State) -> Result<()> {
        self.file.sync_data().map_err(|e| {
            state.failed = true;
            e.into()
        })
    }
}

fn read_header(file: &File) -> Result<(Header, usize)> {
    let mut slots = [[0; PAGE]; 2];
    for (at, slot) in slots.iter_mut().enumerate() {
        // A file too short for a header is one without the magic.
        file.read_up_to(slot, header_offset(at))?;
    }
    Header::newest([&slots[0], &slots[1]]).map_err(|e| format_error(file.path(), e))
}

fn read_bitmap(file: &File, id: LayerId, geometry: &Geometry) -> Result<Bitmap> {
    let mut bitmap = Bitmap::new(geometry);
    let end = geometry.page_offset(geometry.pages, 0);
    let mut at = geometry.page_offset(0, 0);
    let mut pair = [[0; PAGE]; 2];
    // Most of the pages of a large disk are holes.
    while let Some(data) = file.next_data(at)?.filter(|data| data.start < end) {
        let first = (data.start.max(at) - geometry.page_offset(0, 0)) / (2 * PAGE as u64);
        let page = first as usize;
        let offset = geometry.page_offset(page, 0);
        file.read_at(pair.as_flattened_mut(), offset)?;
        let slots = [0, 1].map(|slot| decode_page(&pair[slot], id, page, geometry));
        if let Some(content) = newest(slots).map_err(|what| DiskError::Corrupt {
            path: file.path().to_owned(),
            offset,
            what,
        })? {
            bitmap.load(page, content);
        }
        at = offset + 2 * PAGE as u64;
    }
    Ok(bitmap)
}

/// What a page says. A crash spoils at most the slot that was being written,
/// so two damaged ones are something else.
fn newest(slots: [Slot; 2]) -> std::result::Result<Option<Page>, &'static str> {
    let page = |generation, words, slot| Page {
        words,
        generation,
        slot,
        dirty: false,
    };
    match slots {
        [Slot::Empty, Slot::Empty] => Ok(None),
        // The first write of the page was torn.
        [Slot::Damaged, Slot::Empty] => Ok(None),
        [
            Slot::Valid { generation, words },
            Slot::Empty | Slot::Damaged,
        ] => Ok(Some(page(generation, words, 0))),
        [Slot::Damaged, Slot::Valid { generation, words }] => Ok(Some(page(generation, words, 1))),
        [
            Slot::Valid {
                generation: a,
                words: one,
            },
            Slot::Valid {
                generation: b,
                words: two,
            },
        ] => match a.abs_diff(b) {
            1 if a > b => Ok(Some(page(a, one, 0))),
            1 => Ok(Some(page(b, two, 1))),
            _ => Err("two copies of a bitmap page that do not follow each other"),
        },
        [Slot::Damaged, Slot::Damaged] => Err("both copies of a bitmap page"),
        // The first slot is written first.
        [Slot::Empty, _] => Err("a bitmap page whose first copy is gone"),
    }
}

fn check_id(path: &Path, found: LayerId, expected: LayerId) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(DiskError::WrongLayer {
        path: path.to_owned(),
        found,
        expected,
    })
}

fn format_error(path: &Path, source: FormatError) -> DiskError {
    DiskError::Format {
        path: path.to_owned(),
        source,
    }
}

fn random_id() -> Result<LayerId> {
    let mut bytes = [0u8; 16];
    // SAFETY: `bytes` is valid for writes of its length; up to 256 bytes come
    // whole or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) != Ok(bytes.len()) {
        return Err(DiskError::Random(std::io::Error::last_os_error()));
    }
    Ok(LayerId::from_bytes(bytes))
}
