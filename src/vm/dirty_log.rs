//! KVM's log of the pages that the guest writes, in the manual mode: reading it changes nothing,
//! and a page is logged again once it has been cleared (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 in the
//! kernel's Documentation/virt/kvm/api.rst).
//!
//! When the log begins later than the VM, every page counts as written at first, so that nothing has
//! to be protected at once.
//! Pages are numbered through all slots, in the order of their addresses.

use std::ops::Range;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_enable_cap,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::log_mode::{DirtyLog, MODE};
use super::{Vm, VmError};
use crate::layout::PAGE_SIZE;
use crate::pages::PageSet;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

fn last_error(what: &'static str) -> VmError {
    VmError::Kvm { what, error: kvm_ioctls::Error::last() }
}

impl Vm {
    pub(super) fn prepare_dirty_log(&self, log: DirtyLog) -> Result<(), VmError> {
        let mode = match log {
            DirtyLog::Later => MODE,
            DirtyLog::FromTheStart => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
        };
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [mode.into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd.enable_cap(&cap).map_err(VmError::kvm("log dirty pages"))
    }

    /// Pages of guest memory.
    pub fn pages(&self) -> u64 {
        self.memory.iter().map(|region| region.len() / PAGE_SIZE).sum()
    }

    /// Begins to log the guest's writes, unless that is done already.
    pub fn start_dirty_log(&self) -> Result<(), VmError> {
        if !self.logs.swap(true, Ordering::SeqCst)
            && let Err(e) = self.set_memory_slots(KVM_MEM_LOG_DIRTY_PAGES)
        {
            self.logs.store(false, Ordering::SeqCst);
            return Err(e);
        }
        Ok(())
    }

    /// Ends it: the guest's writes cost it nothing any more, after some time in which they cost
    /// more.
    pub fn stop_dirty_log(&self) -> Result<(), VmError> {
        if self.logs.swap(false, Ordering::SeqCst) {
            self.set_memory_slots(0)?;
        }
        Ok(())
    }

    pub fn logs(&self) -> bool {
        self.logs.load(Ordering::SeqCst)
    }

    /// Sets `pages` to those that the guest wrote since each was cleared. Allocates nothing.
    pub fn read_dirty_log(&self, pages: &mut PageSet) -> Result<(), VmError> {
        let mut rest = pages.words_mut();
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let words = (region.len() / PAGE_SIZE).div_ceil(64) as usize;
            let Some((part, after)) = rest.split_at_mut_checked(words) else {
                let error = kvm_ioctls::Error::new(libc::EINVAL);
                return Err(VmError::Kvm { what: "log so few pages", error });
            };
            rest = after;
            let log = kvm_dirty_log {
                slot,
                padding1: 0,
                __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: part.as_mut_ptr().cast() },
            };
            // SAFETY: KVM writes one bit for each page of the slot, in whole words, and `part` has
            // as many.
            if unsafe { ioctl_with_ref(&self.fd, KVM_GET_DIRTY_LOG(), &log) } != 0 {
                return Err(last_error("read the dirty log"));
            }
        }
        Ok(())
    }

    /// Logs the next write to each of `pages` that lies in `within`, which begins and ends with a
    /// word or a slot.
    pub fn clear_dirty_log(&self, pages: &PageSet, within: Range<u64>) -> Result<(), VmError> {
        let mut slot_start = 0;
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot_end = slot_start + region.len() / PAGE_SIZE;
            let (start, end) = (within.start.max(slot_start), within.end.min(slot_end));
            if start < end {
                let words = pages.words().get((start / 64) as usize..end.div_ceil(64) as usize);
                let mut clear = kvm_clear_dirty_log {
                    slot,
                    num_pages: (end - start) as u32,
                    first_page: start - slot_start,
                    __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                        dirty_bitmap: words.unwrap_or_default().as_ptr().cast_mut().cast(),
                    },
                };
                let enough = words.is_some();
                // SAFETY: KVM reads one bit for each page from the first on, in whole words, and
                // `words` has as many; it does not write there.
                if !enough || unsafe { ioctl_with_mut_ref(&self.fd, KVM_CLEAR_DIRTY_LOG(), &mut clear) } != 0
                {
                    return Err(last_error("clear the dirty log"));
                }
            }
            slot_start = slot_end;
        }
        Ok(())
    }
}
