//! What happens when the disk cannot give what a mapped image has: the kernel sends SIGBUS to
//! whoever touches the page. Nothing can stand in for it, so the process ends and says why. (A vCPU
//! gets no signal: KVM fails, and the VM ends in the ordinary way.)

use std::io;
use std::sync::OnceLock;

const TEXT: &[u8] = b"piton: error: the memory image that the guest's memory is mapped from cannot be read; \
piton exits (the host's kernel log says why; `piton checkpoint verify` checks the image)\r\n";

/// From here on it is so, in all threads.
pub(super) fn catch() -> io::Result<()> {
    static CAUGHT: OnceLock<Option<i32>> = OnceLock::new();
    let failed = CAUGHT.get_or_init(|| {
        // SAFETY: sigaction is plain data, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the action is valid, and its handler calls only what a handler may.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
            0 => None,
            _ => io::Error::last_os_error().raw_os_error(),
        }
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

extern "C" fn on_bus_error(_: libc::c_int) {
    // SAFETY: the text lives for ever; write and _exit are async-signal-safe, and _exit does not
    // return.
    unsafe {
        libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
        libc::_exit(1);
    }
}
