//! What KVM's dirty log has to be able to do, and when it begins.

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES,
};
use kvm_ioctls::Kvm;

/// When a VM's log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyLog {
    /// With [`super::Vm::start_dirty_log`], and every page as written.
    Later,
    /// At once, and no page as written.
    FromTheStart,
}

impl DirtyLog {
    pub(super) fn slot_flags(self) -> u32 {
        match self {
            Self::Later => 0,
            Self::FromTheStart => KVM_MEM_LOG_DIRTY_PAGES,
        }
    }
}

pub(super) const MODE: u32 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

pub(super) fn is_supported(kvm: &Kvm) -> bool {
    let flags = kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    u32::try_from(flags).is_ok_and(|flags| flags & MODE == MODE)
}
