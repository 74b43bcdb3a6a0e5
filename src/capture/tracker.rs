//! Which pages of guest memory changed since a checkpoint was captured.
//!
//! KVM logs what the guest writes, the bitmap of vm-memory what piton's devices write; a page has
//! changed if either says so.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::chain::MemoryChain;
use super::image::ImageError;
use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::pages::PageSet;
use crate::vm::{Vm, VmError};

pub struct Tracker {
    vm: Arc<Vm>,
    parent: Option<Id>,
    /// Changed since the parent, as far as harvested.
    since: PageSet,
    /// Written by devices and not harvested.
    own: PageSet,
    /// Whether `own` may hold any.
    any_own: bool,
    /// What was read of the log last, with `own`.
    fresh: PageSet,
}

impl Tracker {
    pub fn new(vm: Arc<Vm>) -> Self {
        let none = || PageSet::new(vm.pages());
        Self { since: none(), own: none(), any_own: false, fresh: none(), parent: None, vm }
    }

    /// The checkpoint that changes are known since.
    pub fn parent(&self) -> Option<Id> {
        self.parent
    }

    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Memory is as checkpoint `id` has it, and the guest has not run since its log began.
    pub fn start_from(&mut self, id: Id) {
        self.note_own_writes();
        self.forget_own();
        self.since.clear();
        self.parent = Some(id).filter(|_| self.vm.logs());
    }

    /// The parent is gone: from here on `id` is it. `below` are the images that the parent's memory
    /// is read through, its own first. If none of them was made on `id`, nothing is known since it.
    pub fn go_up(&mut self, id: Option<Id>, below: &MemoryChain) -> Result<(), ImageError> {
        let mut more = PageSet::new(self.vm.pages());
        for image in below.images() {
            if Some(image.id()) == id {
                self.since.union(&more);
                self.parent = id;
                return Ok(());
            }
            for run in image.present()? {
                self.insert(&mut more, run);
            }
        }
        self.parent = None;
        Ok(())
    }

    /// Adds a run of guest addresses, which lies in one region.
    fn insert(&self, set: &mut PageSet, run: Range<u64>) {
        let mut first = 0;
        for region in self.vm.memory().iter() {
            let start = region.start_addr().raw_value();
            if (start..start + region.len()).contains(&run.start) {
                let page = first + (run.start - start) / PAGE_SIZE;
                let count = (run.end - run.start) / PAGE_SIZE;
                (page..page + count).for_each(|page| set.insert(page));
            }
            first += region.len() / PAGE_SIZE;
        }
    }

    /// Begins anew: nothing is known since any checkpoint. What comes now is for a full capture,
    /// which clears the log piece by piece.
    pub fn start_over(&mut self) -> Result<(), VmError> {
        self.vm.start_dirty_log()?;
        self.note_own_writes();
        self.forget_own();
        self.since.clear();
        self.parent = None;
        Ok(())
    }

    /// No more checkpoints are to come.
    pub fn stop(&mut self) -> Result<(), VmError> {
        self.parent = None;
        self.vm.stop_dirty_log()
    }

    /// Logs the next write to each page of a part of memory, which begins with a word of the set.
    pub fn clear(&mut self, within: Range<u64>) -> Result<(), VmError> {
        let words = (within.start / 64) as usize..within.end.div_ceil(64) as usize;
        if let Some(words) = self.fresh.words_mut().get_mut(words) {
            words.fill(u64::MAX);
        }
        self.vm.clear_dirty_log(&self.fresh, within)
    }

    /// Takes over what devices wrote. With the devices standing still, nothing more comes.
    pub fn note_own_writes(&mut self) {
        let mut words = self.own.words_mut().iter_mut();
        for region in self.vm.memory().iter() {
            // Regions are whole words long.
            for (word, more) in words.by_ref().zip(MmapRegion::bitmap(region).get_and_reset()) {
                *word |= more;
                self.any_own |= more != 0;
            }
        }
    }

    fn forget_own(&mut self) {
        if std::mem::take(&mut self.any_own) {
            self.own.clear();
        }
    }

    /// What changed since the last harvest. Allocates nothing.
    pub fn peek(&mut self) -> Result<&PageSet, VmError> {
        self.vm.read_dirty_log(&mut self.fresh)?;
        if self.any_own {
            self.fresh.union(&self.own);
        }
        Ok(&self.fresh)
    }

    /// How many pages changed since the parent; none: nothing is known since it. The guest may run.
    pub fn count_changed(&mut self) -> Result<Option<u64>, VmError> {
        if self.parent.is_none() || !self.vm.logs() {
            return Ok(None);
        }
        self.note_own_writes();
        self.peek()?;
        self.harvest()?;
        Ok(Some(self.since.count()))
    }

    /// Counts what was peeked as changed since the parent, and logs it anew. Returns it.
    pub fn harvest(&mut self) -> Result<&PageSet, VmError> {
        // First: a page that is logged no more must not be forgotten.
        self.since.union(&self.fresh);
        self.forget_own();
        self.vm.clear_dirty_log(&self.fresh, 0..self.vm.pages())?;
        Ok(&self.fresh)
    }

    /// All that changed since the parent, with what was peeked last.
    pub fn changed(&self) -> PageSet {
        let mut all = self.since.clone();
        all.union(&self.fresh);
        all
    }

    /// Checkpoint `id` was captured when the log was peeked last. What was logged then counts as
    /// changed since: it may have been written again before it is cleared here.
    pub fn captured(&mut self, id: Id) -> Result<(), VmError> {
        self.parent = Some(id);
        self.since.clear();
        self.harvest().map(|_| ())
    }
}
