//! Gets a vCPU out of KVM_RUN from another thread, without a lost wake-up.
//!
//! The kicker sets `pending`, then `immediate_exit` in the page shared with KVM, then sends a
//! signal. A vCPU in the guest is taken out by the signal; one that is about to enter finds
//! `immediate_exit` set. Once out, the vCPU clears `immediate_exit` and then looks at `pending`,
//! so a kick that comes in between is seen either way.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Interrupting the system call is all that is wanted.
}

/// Shared by a vCPU's thread and whoever kicks it.
pub struct Kick {
    pending: AtomicBool,
    /// `kvm_run.immediate_exit`.
    immediate_exit: *const AtomicU8,
    /// The vCPU's thread while it lives; the pointer above is good exactly as long.
    thread: Mutex<Option<libc::pthread_t>>,
}

// SAFETY: `immediate_exit` points to an atomic, which any thread may use; it is only followed
// under `thread`'s lock while the vCPU's thread, which owns the mapping, is alive, or by that
// thread itself.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    pub fn new(fd: &mut VcpuFd) -> Self {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            if let Err(e) = register_signal_handler(kick_signal(), on_signal) {
                log::error!("cannot set the vCPU signal handler: {e}");
            }
        });
        let immediate_exit = &raw mut fd.get_kvm_run().immediate_exit;
        Self {
            pending: AtomicBool::new(false),
            immediate_exit: immediate_exit.cast::<AtomicU8>(),
            thread: Mutex::new(None),
        }
    }

    /// Called on the vCPU's thread before anything else.
    pub fn enter_thread(&self) {
        // SAFETY: pthread_self has no preconditions.
        let this = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(this);
    }

    /// Called on the vCPU's thread last, before its VcpuFd is dropped.
    pub fn leave_thread(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the vCPU's thread is alive (it clears `thread` under this lock before it
            // ends), so its kvm_run mapping and its pthread_t are valid.
            unsafe {
                (*self.immediate_exit).store(1, Ordering::SeqCst);
                libc::pthread_kill(thread, kick_signal());
            }
        }
    }

    /// True once for every run of kicks.
    pub fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }
}
