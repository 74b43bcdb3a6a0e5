//! The open file of a delta layer: its bitmap in memory, and the order of writes
//! that makes a flush.
//!
//! A bit is set in the file only after the data that it stands for is durable.
//! So whatever a crash leaves, every block reads as it was at the last flush or
//! as something that was written to it since, which is what a disk promises.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bitmap::{Bitmap, Page};
use super::delta_format::{
    Geometry, Header, LayerId, PAGE, Parent, Slot, decode_page, encode_page, header_offset,
};
use super::delta_header::{check_id, format_error, read_header};
use super::layer::LayerSpec;
use super::{DiskError, Result};
use crate::storage::File;

#[derive(Debug)]
pub(super) struct Core {
    pub file: File,
    pub geometry: Geometry,
    pub id: LayerId,
    pub parent: Parent,
    /// Size of the disk below.
    pub below: u64,
    /// Data was written and not synced. Apart from `state`, because data is
    /// written without its lock.
    pub unsynced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// `None` once frozen and durable: the map of the chain knows it all, and
    /// the file can be asked again.
    pub bitmap: Option<Bitmap>,
    /// After a failed fdatasync the kernel forgets what it could not write, so
    /// a later one that succeeds means nothing.
    failed: bool,
}

impl Core {
    pub fn new(file: File, geometry: Geometry, header: &Header, bitmap: Option<Bitmap>) -> Arc<Self> {
        Arc::new(Self {
            file,
            geometry,
            id: header.id,
            parent: header.parent,
            below: header.below,
            unsynced: AtomicBool::new(false),
            state: Mutex::new(State { bitmap, failed: false }),
        })
    }

    pub fn open(file: File, spec: &LayerSpec) -> Result<Arc<Self>> {
        let (header, _) = read_header(&file)?;
        check_id(&spec.path, header.id, spec.id)?;
        let geometry = Geometry::new(header.size).map_err(|e| format_error(&spec.path, e))?;
        let found = file.len()?;
        if found < geometry.file_len {
            return Err(DiskError::Truncated { path: spec.path.clone(), found, expected: geometry.file_len });
        }
        let bitmap = read_bitmap(&file, header.id, &geometry)?;
        Ok(Self::new(file, geometry, &header, Some(bitmap)))
    }

    /// The lock protects plain data that no panic leaves half changed.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn with_bitmap<T>(&self, ask: impl FnOnce(&Bitmap) -> T) -> Result<T> {
        if let Some(bitmap) = &self.state().bitmap {
            return Ok(ask(bitmap));
        }
        Ok(ask(&read_bitmap(&self.file, self.id, &self.geometry)?))
    }

    pub fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.file.read_at(buf, self.geometry.data_offset + offset)?)
    }

    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let start = self.geometry.data_offset;
        let found = self.file.next_data(start + offset)?;
        Ok(found.map(|data| data.start - start..data.end - start))
    }

    /// Writes again what was read of header and bitmap, where it was read, and makes it durable: a
    /// sync that failed before, whoever's it was, may have left it in memory only. Where it is
    /// on the disk nothing changes, however much of this gets there.
    pub fn rewrite(&self) -> Result<()> {
        let (header, slot) = read_header(&self.file)?;
        self.file.write_at(&header.encode(self.geometry.data_offset), header_offset(slot))?;
        let state = self.state();
        for (at, page) in state.bitmap.iter().flat_map(|bitmap| bitmap.pages()) {
            let bytes = encode_page(self.id, at, page.generation, &page.words);
            self.file.write_at(&bytes, self.geometry.page_offset(at, page.slot))?;
        }
        Ok(self.file.sync_data()?)
    }

    /// Data, fdatasync, changed bitmap pages, fdatasync; each only if needed.
    pub fn sync(&self) -> Result<()> {
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
        if let Some(content) =
            newest(slots).map_err(|what| DiskError::Corrupt { path: file.path().to_owned(), offset, what })?
        {
            bitmap.load(page, content);
        }
        at = offset + 2 * PAGE as u64;
    }
    Ok(bitmap)
}

/// What a page says. A crash spoils at most the slot that was being written,
/// so two damaged ones are something else.
fn newest(slots: [Slot; 2]) -> std::result::Result<Option<Page>, &'static str> {
    let page = |generation, words, slot| Page { words, generation, slot, dirty: false };
    match slots {
        [Slot::Empty, Slot::Empty] => Ok(None),
        // The first write of the page was torn.
        [Slot::Damaged, Slot::Empty] => Ok(None),
        [Slot::Valid { generation, words }, Slot::Empty | Slot::Damaged] => {
            Ok(Some(page(generation, words, 0)))
        }
        [Slot::Damaged, Slot::Valid { generation, words }] => Ok(Some(page(generation, words, 1))),
        [Slot::Valid { generation: a, words: one }, Slot::Valid { generation: b, words: two }] => {
            match a.abs_diff(b) {
                1 if a > b => Ok(Some(page(a, one, 0))),
                1 => Ok(Some(page(b, two, 1))),
                _ => Err("inconsistent copies of a bitmap page"),
            }
        }
        [Slot::Damaged, Slot::Damaged] => Err("both copies of a bitmap page"),
        // The first slot is written first.
        [Slot::Empty, _] => Err("a bitmap page whose first copy is missing"),
    }
}
