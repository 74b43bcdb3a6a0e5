//! What the process may ask of the kernel once its VM runs: a filter for each kind of thread.
//!
//! A thread that does anything else ends the process, with a line on standard error that names
//! thread and call. A thread that is started later is bound by its starter's filter, too.

mod tables;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use tables::{FAIL, When};

/// Exit status after a forbidden call: 128 and the number of SIGSYS, as a shell tells it.
const EXIT_FORBIDDEN: libc::c_int = 128 + libc::SIGSYS;

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("the seccomp filter of thread {thread} cannot be made: {error}")]
    Compile { thread: &'static str, error: seccompiler::BackendError },
    #[error("the kernel does not take the seccomp filter of thread {thread}: {error}")]
    Install { thread: &'static str, error: seccompiler::Error },
    #[error("forbidden calls cannot be caught: {0}")]
    Handler(std::io::Error),
}

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    Main,
    Vcpu,
    Disk,
    Devices,
    Console,
    Control,
    /// Fills memory of a restored guest.
    Fill,
    Signals,
    Terminal,
}

impl Thread {
    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Disk => "disk",
            Self::Devices => "devices",
            Self::Console => "console",
            Self::Control => "control",
            Self::Fill => "fill",
            Self::Signals => "signals",
            Self::Terminal => "terminal",
        }
    }
}

static ENABLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Read by the signal handler: no destructor, and initialised without a call.
    static CONFINED: Cell<&'static str> = const { Cell::new("?") };
}

/// From now on [`confine`] does something. Before that threads may do what they like.
pub fn enable() -> Result<(), SeccompError> {
    catch_forbidden_calls().map_err(SeccompError::Handler)?;
    ENABLED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Binds the calling thread, for good. A kernel that knows no seccomp is complained about once.
pub fn confine(thread: Thread) {
    static COMPLAINED: Once = Once::new();
    if !ENABLED.load(Ordering::SeqCst) {
        return;
    }
    CONFINED.set(thread.name());
    if let Err(e) = install(thread) {
        COMPLAINED.call_once(|| log::warn!("{e}; the VM runs without"));
    }
    #[cfg(debug_assertions)]
    try_forbidden_call(thread);
}

/// For tests of the real binary: what a thread does that somebody took over.
#[cfg(debug_assertions)]
fn try_forbidden_call(thread: Thread) {
    if std::env::var("PITON_TEST_FORBIDDEN_CALL").is_ok_and(|name| name == thread.name()) {
        // SAFETY: without a path it fails, and touches no memory.
        unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) };
    }
}

fn install(thread: Thread) -> Result<(), SeccompError> {
    let name = thread.name();
    // The stricter verdict counts, so each says nothing about what is the other's. The last one
    // forbids to install more.
    for compile in [compile_failing, compile] {
        let program = compile(thread).map_err(|error| SeccompError::Compile { thread: name, error })?;
        seccompiler::apply_filter(&program).map_err(|error| SeccompError::Install { thread: name, error })?;
    }
    Ok(())
}

fn failing(thread: Thread) -> impl Iterator<Item = i64> {
    let allowed = move |call| thread.tables().iter().copied().flatten().any(|rule| rule.0 == call);
    FAIL.iter().copied().filter(move |call| !allowed(*call))
}

fn compile_failing(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = failing(thread).map(|call| (call, Vec::new())).collect();
    let fail = SeccompAction::Errno(libc::EACCES as u32);
    SeccompFilter::new(calls, SeccompAction::Allow, fail, TargetArch::x86_64)?.try_into()
}

fn compile(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = failing(thread).map(|call| (call, Vec::new())).collect();
    let rules = || thread.tables().iter().copied().flatten();
    for &(call, when, _) in rules() {
        // No rule at all is what the crate takes for "always".
        let conditions = calls.entry(call).or_default();
        let always = rules().any(|rule| rule.0 == call && rule.1 == When::Always);
        if let When::Bits { index, mask, value } = when
            && !always
        {
            let bits = SeccompCmpOp::MaskedEq(mask);
            let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, bits, value)?;
            conditions.push(SeccompRule::new(vec![condition])?);
        }
    }
    SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The call itself is not done whatever the handler does; SIGSYS cannot be held up by a thread
/// either, as the kernel then ends the process.
fn catch_forbidden_calls() -> std::io::Result<()> {
    // SAFETY: sigaction is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_forbidden_call as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is valid, and its handler calls only what a handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

extern "C" fn on_forbidden_call(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Where the kernel puts the number of the call: three words of a common head, an address.
    const SYSCALL: usize = 6;
    // SAFETY: the kernel passes a siginfo_t of 128 bytes, with a number there if it is SIGSYS.
    let call = unsafe { *info.cast::<libc::c_int>().add(SYSCALL) };
    let mut digits = [0; 10];
    let parts: [&[u8]; 5] = [
        b"piton: error: thread ",
        CONFINED.get().as_bytes(),
        b" made system call ",
        decimal(call.unsigned_abs(), &mut digits),
        b", which its seccomp filter forbids: the VM ends\r\n",
    ];
    // In one piece, so that nothing that others say comes in between.
    let mut text = [0; 160];
    let mut len = 0;
    for byte in parts.into_iter().flatten() {
        if let Some(place) = text.get_mut(len) {
            *place = *byte;
            len += 1;
        }
    }
    // SAFETY: the first `len` bytes of the array live across the call; write is async-signal-safe.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), len) };
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(EXIT_FORBIDDEN) };
}

/// Without an allocation.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Thread; 9] = [
        Thread::Main,
        Thread::Vcpu,
        Thread::Disk,
        Thread::Devices,
        Thread::Console,
        Thread::Control,
        Thread::Fill,
        Thread::Signals,
        Thread::Terminal,
    ];

    #[test]
    fn every_filter_compiles() {
        for thread in ALL {
            // The kernel takes no longer ones.
            let len = compile(thread).unwrap().len();
            assert!((50..4096).contains(&len), "{thread:?}: {len}");
        }
    }

    #[test]
    fn who_starts_threads_allows_what_they_do() {
        let main: Vec<_> = Thread::Main.tables().concat();
        for thread in ALL {
            for rule in thread.tables().concat() {
                assert!(main.contains(&rule), "{thread:?}: {rule:?}");
            }
        }
    }

    #[test]
    fn nobody_may_become_somebody_else() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_setuid,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
        ];
        for thread in ALL {
            for (call, ..) in thread.tables().concat() {
                assert!(!never.contains(&call), "{thread:?}: {call}");
            }
        }
        let files = [libc::SYS_unlink, libc::SYS_rename, libc::SYS_clone3, libc::SYS_accept4];
        for thread in [Thread::Vcpu, Thread::Disk, Thread::Devices, Thread::Fill] {
            for (call, ..) in thread.tables().concat() {
                assert!(!files.contains(&call), "{thread:?}: {call}");
            }
        }
        // A vCPU opens files to read them, and the others no file at all.
        let opens = |thread: Thread| {
            thread.tables().concat().iter().filter(|rule| rule.0 == libc::SYS_openat).count()
        };
        assert_eq!([Thread::Vcpu, Thread::Disk, Thread::Devices, Thread::Fill].map(opens), [1, 0, 0, 0]);
    }

    #[test]
    fn numbers_are_told_whole() {
        let mut digits = [0; 10];
        for number in [0, 7, 59, 435, u32::MAX] {
            assert_eq!(decimal(number, &mut digits), number.to_string().as_bytes());
        }
    }
}
