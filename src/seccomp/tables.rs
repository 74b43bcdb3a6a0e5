//! What each kind of thread may ask of the kernel, and why. All else is forbidden.

use super::thread::Thread;

/// An argument that a call may have. Of more than one for the same call, any will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// The bits of `mask` of argument number `index` are those of `value`.
    Bits {
        index: u8,
        mask: u64,
        value: u64,
    },
    /// Argument number `index` is the process's own number.
    Own {
        index: u8,
    },
}

/// A system call, when it is allowed, and what needs it.
pub type Rule = (libc::c_long, When, &'static str);

/// Type and number of an ioctl request. What else is in it follows from these.
const fn request(number: u64) -> When {
    When::Bits { index: 1, mask: 0xffff, value: number }
}

/// All ioctl requests of one driver.
const fn requests_of(kind: u8) -> When {
    When::Bits { index: 1, mask: 0xff00, value: (kind as u64) << 8 }
}

const fn argument(index: u8, value: u64) -> When {
    When::Bits { index, mask: 0xffff_ffff, value }
}

use When::Always;

/// Of mmap and mprotect: memory that no program can run from.
const WITHOUT_CODE: When = When::Bits { index: 2, mask: libc::PROT_EXEC as u64, value: 0 };

/// The run time of Rust and of glibc, in every thread.
const RUNTIME: &[Rule] = &[
    (libc::SYS_futex, Always, "locks and channels"),
    (libc::SYS_sched_yield, Always, "a lock is let to others first"),
    (libc::SYS_restart_syscall, Always, "a wait goes on after the process was stopped"),
    (libc::SYS_clock_gettime, Always, "time, where the vDSO cannot tell it"),
    (libc::SYS_clock_nanosleep, Always, "sleeping"),
    (libc::SYS_nanosleep, Always, "sleeping"),
    (libc::SYS_brk, Always, "memory"),
    (libc::SYS_mmap, WITHOUT_CODE, "memory"),
    (libc::SYS_munmap, Always, "memory, and a thread's stack at its end"),
    (libc::SYS_mremap, Always, "memory"),
    (libc::SYS_mprotect, WITHOUT_CODE, "memory of a new arena, and a thread's stack"),
    (libc::SYS_madvise, Always, "memory, and a thread's stack at its end"),
    (libc::SYS_getrandom, Always, "seeds of hash maps and of malloc"),
    (libc::SYS_write, Always, "event file descriptors, the log, the console"),
    (libc::SYS_read, Always, "event file descriptors"),
    (libc::SYS_close, Always, "the last owner of a file may be any thread"),
    (libc::SYS_fcntl, argument(1, libc::F_GETFD as u64), "debug builds look at a file before they close it"),
    (libc::SYS_ioctl, request(0x5401), "the log looks whether it goes to a terminal (TCGETS)"),
    (libc::SYS_sigaltstack, Always, "a thread's signal stack, at its begin and end"),
    (libc::SYS_rt_sigprocmask, Always, "a thread's begin and end"),
    (libc::SYS_rt_sigreturn, Always, "the end of a signal's handler"),
    (libc::SYS_sched_getaffinity, Always, "the bounds of a thread's stack"),
    (libc::SYS_set_robust_list, Always, "a thread's begin"),
    (libc::SYS_rseq, Always, "a thread's begin"),
    (libc::SYS_getpid, Always, "signals to threads"),
    (libc::SYS_gettid, Always, "signals to threads, panics"),
    (libc::SYS_tgkill, When::Own { index: 0 }, "kicks of vCPUs; abort after a panic"),
    (libc::SYS_rt_sigaction, Always, "abort after a panic"),
    (libc::SYS_exit, Always, "a thread's end"),
    (libc::SYS_exit_group, Always, "the end of the process after a panic or a forbidden call"),
];

/// Calls that fail with EACCES instead of ending the process, in threads that no table allows them.
/// glibc looks up `/proc/sys/vm/overcommit_memory` when it gives memory back, in any thread, and
/// takes a failure for an answer. So does a panic that looks for names of functions.
pub const FAIL: &[libc::c_long] = &[libc::SYS_openat];

/// A call whose flags lie in memory, where no filter can look: who may start threads is told that the
/// kernel has it not, and takes [`libc::SYS_clone`].
pub const UNKNOWN: libc::c_long = libc::SYS_clone3;

/// A vCPU: it runs the guest, and the one that stops last reads the machine's state.
const VCPU: &[Rule] = &[
    (libc::SYS_ioctl, request(0xae80), "KVM_RUN"),
    (libc::SYS_ioctl, request(0xae81), "KVM_GET_REGS"),
    (libc::SYS_ioctl, request(0xae83), "KVM_GET_SREGS"),
    (libc::SYS_ioctl, request(0xae88), "KVM_GET_MSRS"),
    (libc::SYS_ioctl, request(0xae8e), "KVM_GET_LAPIC"),
    (libc::SYS_ioctl, request(0xae91), "KVM_GET_CPUID2"),
    (libc::SYS_ioctl, request(0xae98), "KVM_GET_MP_STATE"),
    (libc::SYS_ioctl, request(0xae9f), "KVM_GET_VCPU_EVENTS, KVM_GET_PIT2"),
    (libc::SYS_ioctl, request(0xaea1), "KVM_GET_DEBUGREGS"),
    (libc::SYS_ioctl, request(0xaea4), "KVM_GET_XSAVE"),
    (libc::SYS_ioctl, request(0xaea6), "KVM_GET_XCRS"),
    (libc::SYS_ioctl, request(0xae62), "KVM_GET_IRQCHIP"),
    (libc::SYS_ioctl, request(0xae7c), "KVM_GET_CLOCK"),
    (libc::SYS_ioctl, request(0xae42), "KVM_GET_DIRTY_LOG"),
    (libc::SYS_ioctl, request(0xaec0), "KVM_CLEAR_DIRTY_LOG"),
    (libc::SYS_fcntl, argument(1, F_OFD_SETLK), "the lock of an image that is frozen"),
    (libc::SYS_ioctl, request(0x54d0), "what a tap device may send unfinished, as the driver begins"),
    // A checkpoint with `--mode stop` is written by the vCPU that stops last.
    (libc::SYS_pread64, Always, "which pages were touched (/proc/self/pagemap); a memory image"),
    (libc::SYS_pwrite64, Always, "a memory image"),
    (libc::SYS_sync_file_range, Always, "a memory image"),
    (libc::SYS_fadvise64, Always, "a memory image"),
];

/// Of openat: not for writing, and not a new file.
const READ_ONLY: When =
    When::Bits { index: 2, mask: (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64, value: 0 };

/// Fills memory of a restored guest from its image.
const FILL: &[Rule] = &[
    (libc::SYS_setpriority, Always, "it is not to be in the guest's way"),
    (libc::SYS_poll, Always, "waits for pages that are touched"),
    (libc::SYS_ioctl, requests_of(0xaa), "userfaultfd"),
    (libc::SYS_pread64, Always, "the image"),
    (libc::SYS_preadv, Always, "the image"),
    (libc::SYS_lseek, Always, "the image"),
    (libc::SYS_fstat, Always, "the image"),
    (libc::SYS_statx, Always, "the image"),
];

const F_OFD_SETLK: u64 = libc::F_OFD_SETLK as u64;

/// A disk's thread: files that are open already.
const DISK: &[Rule] = &[
    (libc::SYS_poll, Always, "waits for its doorbell"),
    (libc::SYS_pread64, Always, "reads"),
    (libc::SYS_preadv, Always, "reads of qcow2 images"),
    (libc::SYS_pwrite64, Always, "writes"),
    (libc::SYS_fallocate, Always, "discards"),
    (libc::SYS_fdatasync, Always, "flushes"),
    (libc::SYS_lseek, Always, "holes of an image"),
    (libc::SYS_fstat, Always, "the length of an image"),
    (libc::SYS_statx, Always, "the length of an image"),
    (libc::SYS_fcntl, argument(1, F_OFD_SETLK), "the lock of a layer that was frozen"),
];

/// A network card's thread: its back-end's socket or tap device, which is open already.
const NET: &[Rule] = &[
    (libc::SYS_poll, Always, "waits for its doorbell and for frames"),
    (libc::SYS_writev, Always, "frames"),
    (libc::SYS_recvfrom, Always, "frames"),
    (libc::SYS_sendto, Always, "frames"),
    (libc::SYS_sendmsg, Always, "frames"),
    (libc::SYS_ioctl, request(0x54d0), "what a tap device may send unfinished (TUNSETOFFLOAD)"),
];

/// Asks the keeper, a process of its own, to start passt, and takes tap devices.
const NETWORK: &[Rule] = &[
    (libc::SYS_socketpair, Always, "the line to passt"),
    (libc::SYS_sendmsg, Always, "requests to the keeper"),
    (libc::SYS_sendto, Always, "requests to the keeper"),
    (libc::SYS_recvmsg, Always, "its answers"),
    (libc::SYS_recvfrom, Always, "its answers"),
    (libc::SYS_shutdown, Always, "its end"),
    (libc::SYS_setsockopt, Always, "how long its end is waited for"),
    (libc::SYS_poll, Always, "waits for it"),
    (libc::SYS_eventfd2, Always, "cards"),
    (libc::SYS_openat, Always, "a tap device"),
    (libc::SYS_statx, Always, "whether there is a tap device"),
    (libc::SYS_fstat, Always, "whether there is a tap device"),
    (libc::SYS_fcntl, Always, "files of the standard library"),
    (libc::SYS_ioctl, requests_of(b'T'), "tap devices"),
    (libc::SYS_ioctl, request(0x5421), "sockets that do not block (FIONBIO)"),
];

/// The socket device's thread.
const VSOCK: &[Rule] = &[
    (libc::SYS_epoll_wait, Always, "waits for its doorbell and for sockets"),
    (libc::SYS_epoll_pwait, Always, "waits for its doorbell and for sockets"),
    (libc::SYS_epoll_ctl, Always, "sockets to wait for"),
    (libc::SYS_accept4, Always, "programs of the host that call the guest"),
    (libc::SYS_ioctl, request(0x5421), "sockets that do not block (FIONBIO)"),
    (libc::SYS_recvfrom, Always, "bytes for the guest"),
    (libc::SYS_sendto, Always, "bytes of the guest"),
    (libc::SYS_shutdown, Always, "one side has said all"),
];

/// The only thread that connects to anything, and to Unix sockets alone.
const VSOCK_CALLS: &[Rule] = &[
    (libc::SYS_socket, argument(0, libc::AF_UNIX as u64), "calls of the guest"),
    (libc::SYS_connect, Always, "calls of the guest"),
];

const DEVICES: &[Rule] = &[(libc::SYS_epoll_wait, Always, "waits for events")];

const CONSOLE: &[Rule] = &[
    (libc::SYS_openat, Always, "a fresh log when it is rotated"),
    (libc::SYS_rename, Always, "the former log when it is rotated"),
    (libc::SYS_unlink, Always, "the log before that"),
    (libc::SYS_ftruncate, Always, "the log when it is rotated"),
    (libc::SYS_fcntl, Always, "files of the standard library"),
    (libc::SYS_lseek, Always, "the length of the log"),
    (libc::SYS_fstat, Always, "the length of the log"),
    (libc::SYS_statx, Always, "the length of the log"),
];

/// Rotates piton.log.
const LOG: &[Rule] = &[
    (libc::SYS_openat, Always, "a fresh log"),
    (libc::SYS_rename, Always, "the former log"),
    (libc::SYS_dup2, Always, "standard output and standard error"),
    (libc::SYS_dup3, Always, "standard output and standard error"),
    (libc::SYS_fstat, Always, "the length of the log"),
    (libc::SYS_statx, Always, "the length of the log"),
];

/// The control socket.
const CONTROL: &[Rule] = &[
    (libc::SYS_epoll_wait, Always, "waits for clients"),
    (libc::SYS_epoll_ctl, Always, "watches clients"),
    (libc::SYS_accept4, Always, "clients"),
    (libc::SYS_getsockopt, Always, "who a client is"),
    (libc::SYS_getsockname, Always, "the address of the socket"),
    (libc::SYS_geteuid, Always, "who the clients must be"),
    (libc::SYS_recvfrom, Always, "requests"),
    (libc::SYS_sendto, Always, "answers"),
    (libc::SYS_writev, Always, "answers"),
    (libc::SYS_shutdown, Always, "the end of a connection"),
    (libc::SYS_fcntl, Always, "sockets that do not block"),
    (libc::SYS_ioctl, request(0x5421), "sockets that do not block (FIONBIO)"),
];

const fn argument_has(index: u8, bits: u64) -> When {
    When::Bits { index, mask: bits, value: bits }
}

const SIGNALS: &[Rule] = &[
    (libc::SYS_recvfrom, Always, "the signals that came in"),
    (libc::SYS_sendto, Always, "a signal's handler wakes the thread"),
    (libc::SYS_poll, Always, "waits for signals"),
];

/// The terminal's two threads.
const TERMINAL: &[Rule] = &[
    (libc::SYS_poll, Always, "waits for keys"),
    (libc::SYS_writev, Always, "output"),
    (libc::SYS_ioctl, requests_of(b'T'), "modes of the terminal"),
];

/// Files and folders of the host: what is there is read, written, and given another name.
const FILES: &[Rule] = &[
    (libc::SYS_openat, Always, "files"),
    (libc::SYS_newfstatat, Always, "files"),
    (libc::SYS_fstatfs, Always, "room on the file system"),
    (libc::SYS_statfs, Always, "room on the file system"),
    (libc::SYS_getdents64, Always, "folders"),
    (libc::SYS_mkdir, Always, "folders"),
    (libc::SYS_mkdirat, Always, "folders"),
    (libc::SYS_rmdir, Always, "folders"),
    (libc::SYS_unlink, Always, "files that are not needed any more"),
    (libc::SYS_unlinkat, Always, "files that are not needed any more"),
    (libc::SYS_rename, Always, "files that take another's place"),
    (libc::SYS_renameat2, Always, "files that take another's place"),
    (libc::SYS_link, Always, "files"),
    (libc::SYS_linkat, Always, "files"),
    (libc::SYS_readlink, Always, "files"),
    (libc::SYS_readlinkat, Always, "files"),
    (libc::SYS_getcwd, Always, "files"),
    (libc::SYS_fgetxattr, Always, "whether a memory image was checked"),
    (libc::SYS_fsetxattr, Always, "that a memory image was checked"),
    (libc::SYS_fcntl, Always, "locks, and files of the standard library"),
    (libc::SYS_fsync, Always, "folders"),
    (libc::SYS_sync_file_range, Always, "large files"),
    (libc::SYS_fadvise64, Always, "large files"),
    (libc::SYS_copy_file_range, Always, "copies"),
    (libc::SYS_ioctl, requests_of(0x12), "the capacity of a block device"),
    (libc::SYS_geteuid, Always, "the owner of the folder"),
    (libc::SYS_prlimit64, Always, "the size of stacks"),
    (libc::SYS_sysinfo, Always, "how much memory there is"),
];

/// What commands do besides, which read disks and write files.
const RESTORE: &[Rule] = &[(libc::SYS_symlinkat, Always, "links in folders that are restored")];

/// The owner of the machine. It makes, applies, merges and deletes checkpoints, and starts the
/// threads of the next machine, which are bound by this too: it allows all that any of them needs.
const MAIN: &[Rule] = &[
    (libc::SYS_clone, argument_has(0, libc::CLONE_THREAD as u64), "threads"),
    (libc::SYS_prctl, argument(0, libc::PR_SET_NAME as u64), "names of threads"),
    (libc::SYS_ioctl, requests_of(0xae), "KVM"),
    (libc::SYS_ioctl, requests_of(0xaa), "userfaultfd"),
    (libc::SYS_ioctl, requests_of(b'f'), "clones of files"),
    (libc::SYS_ioctl, requests_of(0x94), "clones of files"),
    (libc::SYS_userfaultfd, Always, "memory that is filled when it is touched"),
    (libc::SYS_seccomp, Always, "the filters of new threads"),
    (libc::SYS_prctl, argument(0, libc::PR_SET_NO_NEW_PRIVS as u64), "the filters of new threads"),
    (libc::SYS_eventfd2, Always, "doorbells and interrupts"),
    (libc::SYS_epoll_create1, Always, "the device loop"),
    (libc::SYS_pipe2, Always, "wakes threads"),
    (libc::SYS_access, Always, "files"),
    (libc::SYS_faccessat, Always, "files"),
    (libc::SYS_symlink, Always, "files"),
    (libc::SYS_chmod, Always, "modes of files"),
    (libc::SYS_fchmod, Always, "modes of files"),
    (libc::SYS_umask, Always, "modes of files"),
    (libc::SYS_sendfile, Always, "copies"),
    (libc::SYS_pwritev, Always, "writes"),
    (libc::SYS_pwritev2, Always, "writes"),
    (libc::SYS_preadv2, Always, "reads"),
    (libc::SYS_dup, Always, "files"),
    (libc::SYS_dup2, Always, "files"),
    (libc::SYS_dup3, Always, "files"),
    (libc::SYS_mincore, Always, "memory"),
    (libc::SYS_mlock, Always, "memory"),
    (libc::SYS_memfd_create, Always, "memory"),
    (libc::SYS_uname, Always, "the host"),
    (libc::SYS_getuid, Always, "the owner of the folder"),
    (libc::SYS_sched_setaffinity, Always, "threads"),
    (libc::SYS_clock_getres, Always, "time"),
];

/// A command without a machine; its threads are started under the same filter.
const COMMAND: &[Rule] = &[
    (libc::SYS_ftruncate, Always, "the length of a new file"),
    (libc::SYS_preadv, Always, "reads of qcow2 images"),
    (libc::SYS_writev, Always, "output"),
    (libc::SYS_fchmod, Always, "the mode of a restored file"),
    (libc::SYS_poll, Always, "waits"),
    (libc::SYS_clone, argument_has(0, libc::CLONE_THREAD as u64), "threads"),
    (libc::SYS_prctl, argument(0, libc::PR_SET_NAME as u64), "names of threads"),
];

const IMPORT: &[Rule] = &[
    (libc::SYS_ioctl, requests_of(0xae), "what the processor can do (KVM)"),
    (libc::SYS_eventfd2, Always, "a machine that is not run"),
];

/// Connections to object storage; addresses are looked up by glibc.
const DEPOT: &[Rule] = &[
    (libc::SYS_socket, argument(0, libc::AF_INET as u64), "connections"),
    (libc::SYS_socket, argument(0, libc::AF_INET6 as u64), "connections"),
    (libc::SYS_socket, argument(0, libc::AF_UNIX as u64), "the host's cache of names"),
    (libc::SYS_socket, argument(0, libc::AF_NETLINK as u64), "which addresses this host has"),
    (libc::SYS_connect, Always, "connections"),
    (libc::SYS_bind, Always, "which addresses this host has"),
    (libc::SYS_getsockname, Always, "which addresses this host has"),
    (libc::SYS_getpeername, Always, "connections"),
    (libc::SYS_getsockopt, Always, "whether a connection came about"),
    (libc::SYS_setsockopt, Always, "data that are not held back"),
    (libc::SYS_sendto, Always, "requests"),
    (libc::SYS_sendmsg, Always, "names that are looked up"),
    (libc::SYS_sendmmsg, Always, "names that are looked up"),
    (libc::SYS_recvfrom, Always, "answers"),
    (libc::SYS_recvmsg, Always, "answers"),
    (libc::SYS_readv, Always, "answers"),
    (libc::SYS_shutdown, Always, "the end of a connection"),
    (libc::SYS_ioctl, request(0x5421), "sockets that do not block (FIONBIO)"),
    (libc::SYS_ioctl, request(0x541b), "whether an answer is there (FIONREAD)"),
    (libc::SYS_epoll_create1, Always, "its loop"),
    (libc::SYS_epoll_ctl, Always, "its loop"),
    (libc::SYS_epoll_wait, Always, "its loop"),
    (libc::SYS_epoll_pwait, Always, "its loop"),
    (libc::SYS_ppoll, Always, "waits"),
    (libc::SYS_uname, Always, "names that are looked up"),
];

/// The socket of a server. It can be connected to, and cannot connect to others.
const SERVE: &[Rule] = &[
    (libc::SYS_accept4, Always, "clients"),
    (libc::SYS_getsockopt, Always, "who a client is"),
    (libc::SYS_setsockopt, Always, "how long a client may take"),
    (libc::SYS_recvfrom, Always, "requests, and the signals that came in"),
    (libc::SYS_sendto, Always, "answers; a signal's handler wakes the thread"),
    (libc::SYS_readv, Always, "requests"),
    (libc::SYS_shutdown, Always, "the end of a connection"),
    (libc::SYS_ioctl, request(0x5421), "sockets that do not block (FIONBIO)"),
];

/// The web manager reads folders, asks the VMs by their sockets and the process that starts commands by
/// one that is open already. It writes no file, and reaches nothing on a network but who came to it.
const MANAGER: &[Rule] = &[
    (libc::SYS_openat, READ_ONLY, "the VMs' folders, /proc"),
    (libc::SYS_newfstatat, Always, "files"),
    (libc::SYS_fstat, Always, "files"),
    (libc::SYS_statx, Always, "files"),
    (libc::SYS_getdents64, Always, "folders"),
    (libc::SYS_readlink, Always, "files"),
    (libc::SYS_readlinkat, Always, "files"),
    (libc::SYS_getcwd, Always, "files"),
    (libc::SYS_pread64, Always, "files"),
    (libc::SYS_preadv, Always, "files"),
    (libc::SYS_lseek, Always, "files"),
    (libc::SYS_fgetxattr, Always, "whether a memory image was checked"),
    (libc::SYS_socket, argument(0, libc::AF_UNIX as u64), "the VMs' sockets"),
    (libc::SYS_connect, Always, "the VMs' sockets"),
    (libc::SYS_socketpair, argument(0, libc::AF_UNIX as u64), "the line of a command"),
    (libc::SYS_sendmsg, Always, "requests to the process that starts commands"),
    (libc::SYS_pipe2, Always, "what a command prints"),
    (libc::SYS_setsockopt, Always, "answers that are not held back, and how long one is waited for"),
    (libc::SYS_getpeername, Always, "who a client is"),
    (libc::SYS_readv, Always, "requests"),
    (libc::SYS_poll, Always, "waits"),
    (libc::SYS_ppoll, Always, "waits"),
    (libc::SYS_epoll_pwait, Always, "waits for clients"),
    (libc::SYS_epoll_create1, Always, "its loop"),
    (libc::SYS_eventfd2, Always, "its loop"),
    (libc::SYS_clone, argument_has(0, libc::CLONE_THREAD as u64), "threads"),
    (libc::SYS_prctl, argument(0, libc::PR_SET_NAME as u64), "names of threads"),
    (libc::SYS_prlimit64, Always, "how many files it may have open, and the size of stacks"),
    (libc::SYS_getuid, Always, "the owner of a folder"),
];

impl Thread {
    /// The tables whose rules hold for it.
    pub fn tables(self) -> &'static [&'static [Rule]] {
        match self {
            Self::Vcpu => &[RUNTIME, VCPU],
            Self::Disk => &[RUNTIME, DISK],
            Self::Devices => &[RUNTIME, DEVICES],
            Self::Console => &[RUNTIME, CONSOLE],
            Self::Fill => &[RUNTIME, FILL],
            Self::Net => &[RUNTIME, NET],
            Self::Network => &[RUNTIME, NETWORK],
            Self::Vsock => &[RUNTIME, VSOCK],
            Self::VsockCalls => &[RUNTIME, VSOCK_CALLS],
            Self::Control => &[RUNTIME, CONTROL],
            // Locks, and the doorbell of the agent's port.
            Self::Agent => &[RUNTIME],
            Self::Signals => &[RUNTIME, SIGNALS],
            Self::Manager => &[RUNTIME, CONTROL, MANAGER],
            Self::Log => &[RUNTIME, LOG],
            Self::Terminal => &[RUNTIME, TERMINAL],
            Self::Main => &[
                RUNTIME, VCPU, DISK, NET, NETWORK, VSOCK, DEVICES, CONSOLE, CONTROL, FILL, LOG, SIGNALS,
                TERMINAL, FILES, MAIN,
            ],
            Self::Files => &[RUNTIME, DISK, FILES, COMMAND, RESTORE],
            Self::Import => &[RUNTIME, DISK, FILES, COMMAND, IMPORT],
            Self::Depot => &[RUNTIME, DISK, FILES, COMMAND, IMPORT, DEPOT],
            Self::Serve => &[RUNTIME, DISK, FILES, COMMAND, SERVE],
        }
    }
}
