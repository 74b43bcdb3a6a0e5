//! What the process may ask of the kernel once its VM runs, and while a command reads what others
//! may have written: a filter for each kind of thread.
//!
//! A thread that does anything else ends the process, with a line on standard error that names
//! thread and call. A thread that is started later is bound by its starter's filter, too.

mod tables;
mod thread;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use tables::{FAIL, UNKNOWN, When};

pub use thread::Thread;

/// Exit status after a forbidden call: 128 and the number of SIGSYS, as a shell tells it.
const EXIT_FORBIDDEN: libc::c_int = 128 + libc::SIGSYS;

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("cannot build the seccomp filter of thread {thread}: {error}")]
    Compile { thread: &'static str, error: seccompiler::BackendError },
    #[error("the kernel rejected the seccomp filter of thread {thread}: {error}")]
    Install { thread: &'static str, error: seccompiler::Error },
    #[error("cannot catch forbidden system calls: {0}")]
    Handler(std::io::Error),
}

static ENABLED: AtomicBool = AtomicBool::new(false);
/// A thread was bound.
static ACTIVE: AtomicBool = AtomicBool::new(false);

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

/// Whether threads of this process are bound.
pub fn in_force() -> bool {
    ACTIVE.load(Ordering::SeqCst)
}

/// Binds the calling thread, for good. A kernel that knows no seccomp is complained about once.
pub fn confine(thread: Thread) {
    static COMPLAINED: Once = Once::new();
    if !ENABLED.load(Ordering::SeqCst) {
        return;
    }
    CONFINED.set(thread.name());
    match install(thread) {
        Ok(()) => ACTIVE.store(true, Ordering::SeqCst),
        Err(e) => COMPLAINED.call_once(|| log::warn!("{e}: it runs without one")),
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
    let program = compile(thread).map_err(|error| SeccompError::Compile { thread: name, error })?;
    seccompiler::apply_filter(&program).map_err(|error| SeccompError::Install { thread: name, error })
}

/// One program, for one more is one more that every call goes through and every start waits for.
fn compile(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = || thread.tables().iter().copied().flatten();
    let always: BTreeSet<i64> = rules().filter(|rule| rule.1 == When::Always).map(|rule| rule.0).collect();
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &(call, when, _) in rules() {
        // No rule at all is what the crate takes for "always".
        let conditions = calls.entry(call).or_default();
        let (index, mask, value) = match when {
            When::Always => continue,
            When::Bits { index, mask, value } => (index, mask, value),
            When::Own { index } => (index, u32::MAX.into(), std::process::id().into()),
        };
        if !always.contains(&call) {
            let bits = SeccompCmpOp::MaskedEq(mask);
            let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, bits, value)?;
            conditions.push(SeccompRule::new(vec![condition])?);
        }
    }
    // The crate knows one verdict beside "allowed"; those of the others come before.
    let fail = FAIL.iter().filter(|call| !calls.contains_key(call)).map(|call| (*call, libc::EACCES));
    let unknown = calls.contains_key(&libc::SYS_clone).then_some((UNKNOWN, libc::ENOSYS));
    let mut program: BpfProgram =
        fail.chain(unknown).flat_map(|(call, error)| failing(call, error)).collect();
    let filter = SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    program.extend(BpfProgram::try_from(filter)?);
    Ok(program)
}

/// Instructions that let a call fail with an error, and go on with any other
/// (Documentation/userspace-api/seccomp_filter.rst: the call's number is the first word).
fn failing(call: i64, error: libc::c_int) -> [sock_filter; 3] {
    let instruction = |code: u32, k: u32, jf| sock_filter { code: code as u16, jt: 0, jf, k };
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 1),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error as u32, 0),
    ]
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
        b", which its seccomp filter forbids; piton exits\r\n",
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

    const ALL: [Thread; 14] = [
        Thread::Main,
        Thread::Vcpu,
        Thread::Disk,
        Thread::Devices,
        Thread::Console,
        Thread::Control,
        Thread::Fill,
        Thread::Net,
        Thread::Network,
        Thread::Vsock,
        Thread::VsockCalls,
        Thread::Signals,
        Thread::Terminal,
        Thread::Log,
    ];

    const COMMANDS: [Thread; 5] =
        [Thread::Files, Thread::Import, Thread::Depot, Thread::Serve, Thread::Manager];

    #[test]
    fn every_filter_compiles() {
        for thread in ALL.into_iter().chain(COMMANDS) {
            // The kernel takes no longer ones.
            let len = compile(thread).unwrap().len();
            assert!((50..4096).contains(&len), "{thread:?}: {len}");
        }
    }

    #[test]
    fn what_glibc_looks_up_fails_and_does_no_harm() {
        let confined = std::thread::spawn(|| {
            install(Thread::Disk).unwrap();
            std::fs::File::open("/proc/sys/vm/overcommit_memory").map(drop).map_err(|e| e.kind())
        });
        assert_eq!(confined.join().unwrap(), Err(std::io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn who_starts_threads_allows_what_they_do() {
        let main: Vec<_> = Thread::Main.tables().concat();
        // One begins before who starts it is confined.
        for thread in ALL.into_iter().filter(|thread| *thread != Thread::VsockCalls) {
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
            libc::SYS_clone3,
            libc::SYS_unshare,
            libc::SYS_setns,
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
        for thread in ALL.into_iter().chain(COMMANDS) {
            for (call, ..) in thread.tables().concat() {
                let calls = [Thread::VsockCalls, Thread::Manager, Thread::Depot].contains(&thread)
                    && [libc::SYS_socket, libc::SYS_connect].contains(&call);
                assert!(calls || !never.contains(&call), "{thread:?}: {call}");
            }
        }
        let files = [libc::SYS_unlink, libc::SYS_rename, libc::SYS_clone, libc::SYS_accept4];
        for thread in
            [Thread::Vcpu, Thread::Disk, Thread::Devices, Thread::Fill, Thread::Net, Thread::Network]
        {
            for (call, ..) in thread.tables().concat() {
                assert!(!files.contains(&call), "{thread:?}: {call}");
            }
        }
        // No file at all.
        let opens = |thread: Thread| {
            thread.tables().concat().iter().filter(|rule| rule.0 == libc::SYS_openat).count()
        };
        let threads = [Thread::Vcpu, Thread::Disk, Thread::Devices, Thread::Fill, Thread::Net];
        assert_eq!(threads.map(opens), [0; 5]);
    }

    #[test]
    fn numbers_are_told_whole() {
        let mut digits = [0; 10];
        for number in [0, 7, 59, 435, u32::MAX] {
            assert_eq!(decimal(number, &mut digits), number.to_string().as_bytes());
        }
    }
}
