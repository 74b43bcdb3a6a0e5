//! What the process of a VM cannot do even if somebody else decides what it does: each thing is tried
//! under the very rules and filters that its threads have.

mod ckpt_common;
mod common;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_common::Lab;
use common::{Home, skip};
use piton::folder::Home as VmHome;
use piton::history::reach;
use piton::sandbox::{self, Confinement};
use piton::seccomp::{self, Thread};
use piton::storage::Storage;

/// What the process of the VM `name` is bound by; none: this kernel cannot.
fn confinement(root: &Path, name: &str) -> Option<Confinement> {
    let folder = VmHome::at(root.to_owned(), Storage::os()).folder(&name.parse().unwrap());
    let definition = folder.load().unwrap();
    Confinement::new(&reach::rules(&folder, &definition, None, None)).unwrap()
}

/// Does `work` in a thread that is bound, as all threads of the VM are.
fn bound<T: Send>(confinement: &Confinement, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            confinement.bind().unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[track_caller]
fn refused<T>(what: io::Result<T>) {
    match what {
        // A link or a move that would gain rights is one between file systems, as Landlock tells it.
        Err(e) if e.kind() == ErrorKind::PermissionDenied || e.kind() == ErrorKind::CrossesDevices => {}
        Err(e) => panic!("it fails for another reason: {e}"),
        Ok(_) => panic!("it is allowed"),
    }
}

fn write(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// A home with `demo`, whose disks are an overlay on `base` and `pass`, and `other`.
fn two_vms() -> (Home, PathBuf, PathBuf) {
    let home = Home::new();
    let [base, pass] = ["base.raw", "pass.raw"].map(|name| {
        let path = home.beside(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    });
    let disks = format!("--disk {},id=a,overlay --disk {},id=b,passthrough", base.display(), pass.display());
    for (name, disks) in [("demo", disks.as_str()), ("other", "")] {
        home.boot(&format!("run {name} --memory 32M {disks}")).power_off();
    }
    (home, base, pass)
}

#[test]
fn a_vm_reaches_its_own_files_alone() {
    if sandbox::version().is_none() {
        return skip("this kernel has no Landlock");
    }
    let (home, base, pass) = two_vms();
    let (own, other) = (home.vm("demo"), home.vm("other"));
    let secret = home.beside("secret");
    fs::write(&secret, "secret").unwrap();
    let rules = confinement(&home.root(), "demo").unwrap();
    bound(&rules, || {
        // What it needs.
        fs::write(own.join("new"), "new").unwrap();
        fs::rename(own.join("new"), own.join("disks/moved")).unwrap();
        fs::remove_file(own.join("disks/moved")).unwrap();
        File::open(&base).unwrap();
        write(&pass).unwrap();
        File::open("/proc/self/pagemap").unwrap();
        File::open("/dev/kvm").unwrap();
        // What it does not.
        for path in [&secret, &other.join("vm.json"), &other.join("disks/root.raw"), Path::new("/etc/passwd")]
        {
            refused(File::open(path));
            refused(write(path));
        }
        refused(write(&base));
        refused(fs::read_dir("/"));
        refused(fs::read_dir("/proc"));
        refused(File::open("/dev/net/tun"));
        refused(fs::write(home.root().join("planted"), ""));
        refused(fs::write(home.beside("planted"), ""));
        refused(fs::write(other.join("planted"), ""));
        refused(fs::remove_file(other.join("vm.json")));
        refused(fs::remove_file(&secret));
        refused(fs::rename(&other, home.root().join("renamed")));
        refused(fs::rename(&other, own.join("stolen")));
        refused(fs::hard_link(&secret, own.join("stolen")));
        refused(fs::hard_link(other.join("vm.json"), own.join("stolen")));
        // A link leads to what it leads to.
        refused(std::os::unix::fs::symlink(&secret, own.join("door")));
        refused(Command::new("/bin/true").status());
    });
    assert!(other.join("vm.json").exists() && secret.exists());
}

#[test]
fn what_is_merged_into_may_be_others_as_well() {
    if sandbox::version().is_none() {
        return skip("this kernel has no Landlock");
    }
    let (home, _, _) = two_vms();
    let (own, demo) = (home.vm("other"), home.vm("demo"));
    bound(&confinement(&home.root(), "other").unwrap(), || {
        // Its own disk is written to without an overlay.
        write(&own.join("disks/root.raw")).unwrap();
        File::open(demo.join("vm.json")).unwrap();
        refused(write(&demo.join("vm.json")));
        refused(fs::remove_file(demo.join("vm.json")));
        refused(fs::rename(&demo, home.root().join("renamed")));
        refused(File::open("/etc/passwd"));
    });
}

#[test]
fn a_vm_talks_to_nobody_and_signals_nobody() {
    let Some(version) = sandbox::version() else { return skip("this kernel has no Landlock") };
    let (home, _, _) = two_vms();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = door.local_addr().unwrap();
    let name = format!("piton-test-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(name).unwrap();
    let _socket = UnixListener::bind_addr(&name).unwrap();
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = stranger.id() as i32;
    bound(&confinement(&home.root(), "demo").unwrap(), || {
        if version >= 4 {
            refused(TcpListener::bind("127.0.0.1:0"));
            refused(TcpStream::connect(address));
        }
        if version >= 6 {
            refused(UnixStream::connect_addr(&name));
            // SAFETY: kill touches no memory.
            refused(match unsafe { libc::kill(pid, libc::SIGTERM) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        // Nor does it look into others.
        refused(fs::read_link(format!("/proc/{pid}/exe")));
    });
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

const ATTEMPT: &str = "PITON_TEST_ATTEMPT";

fn call(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Not a test of its own: what the process that [`attempt`] starts tries, under one thread's filter.
#[test]
fn in_a_process_of_its_own() {
    let Ok(attempt) = std::env::var(ATTEMPT) else { return };
    let (thread, what) = attempt.split_once(' ').unwrap();
    let thread = match thread {
        "main" => Thread::Main,
        "vcpu" => Thread::Vcpu,
        "disk" => Thread::Disk,
        "files" => Thread::Files,
        _ => panic!("{thread}"),
    };
    let parent = std::os::unix::process::parent_id() as libc::c_long;
    let kvm = File::open("/dev/kvm").map(std::os::fd::IntoRawFd::into_raw_fd).unwrap_or(-1);
    seccomp::enable().unwrap();
    let tried = std::thread::spawn({
        let what = what.to_owned();
        move || {
            seccomp::confine(thread);
            let (anywhere, page) = (std::ptr::null_mut::<libc::c_void>(), 4096usize);
            let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let (write, exec) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_EXEC);
            // SAFETY: each call maps fresh memory, or fails, or ends the process.
            unsafe {
                let map =
                    |prot: libc::c_int| libc::syscall(libc::SYS_mmap, anywhere, page, prot, private, -1, 0);
                call(match what.as_str() {
                    "map" => map(write),
                    "map code" => map(libc::PROT_READ | exec),
                    "make code" => {
                        libc::syscall(libc::SYS_mprotect, map(write), page, libc::PROT_READ | exec)
                    }
                    "open" => libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), 0),
                    "slot" => libc::syscall(libc::SYS_ioctl, kvm, 0x4020_ae46u64, 0),
                    "run" => libc::syscall(libc::SYS_ioctl, -1, 0xae80u64, 0),
                    "clone3" => libc::syscall(libc::SYS_clone3, 0, 0),
                    "fork" => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
                    "namespace" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
                    "execve" => libc::syscall(libc::SYS_execve, 0, 0, 0),
                    "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
                    "signal others" => libc::syscall(libc::SYS_tgkill, parent, parent, 0),
                    "signal itself" => {
                        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), 0)
                    }
                    "ptrace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, parent, 0, 0),
                    "mount" => libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0),
                    "uring" => libc::syscall(libc::SYS_io_uring_setup, 1, 0),
                    what => panic!("{what}"),
                })
                .map_or_else(|e| e.raw_os_error().unwrap(), |_| 0)
            }
        }
    });
    // SAFETY: _exit does not return.
    unsafe { libc::_exit(tried.join().unwrap()) }
}

/// The exit code of a process that tries something: an error's number, or that of a forbidden call.
fn attempt(thread: &str, what: &str) -> i32 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "in_a_process_of_its_own", "--nocapture"]);
    let output = command.env(ATTEMPT, format!("{thread} {what}")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    output.status.code().unwrap_or_else(|| panic!("{thread} {what}: {}: {told}", output.status))
}

#[test]
fn threads_make_no_other_calls_than_they_need() {
    const FORBIDDEN: i32 = 128 + libc::SIGSYS;
    for (thread, what, expected) in [
        // What is allowed is allowed, so that what follows is forbidden for its own sake.
        ("vcpu", "map", 0),
        ("vcpu", "signal itself", 0),
        ("vcpu", "run", libc::EBADF),
        ("vcpu", "map code", FORBIDDEN),
        ("vcpu", "make code", FORBIDDEN),
        ("vcpu", "slot", FORBIDDEN),
        ("vcpu", "open", libc::EACCES),
        ("vcpu", "fork", FORBIDDEN),
        ("vcpu", "clone3", FORBIDDEN),
        ("vcpu", "signal others", FORBIDDEN),
        ("disk", "open", libc::EACCES),
        ("disk", "run", FORBIDDEN),
        ("disk", "make code", FORBIDDEN),
        ("main", "map", 0),
        ("main", "map code", FORBIDDEN),
        ("main", "make code", FORBIDDEN),
        // glibc takes the other call then.
        ("main", "clone3", libc::ENOSYS),
        ("main", "fork", FORBIDDEN),
        ("main", "namespace", FORBIDDEN),
        ("main", "execve", FORBIDDEN),
        ("main", "socket", FORBIDDEN),
        ("main", "signal others", FORBIDDEN),
        ("main", "ptrace", FORBIDDEN),
        ("main", "mount", FORBIDDEN),
        ("main", "uring", FORBIDDEN),
        ("files", "map code", FORBIDDEN),
        ("files", "fork", FORBIDDEN),
        ("files", "socket", FORBIDDEN),
    ] {
        assert_eq!(attempt(thread, what), expected, "{thread}: {what}");
    }
}

#[test]
fn a_running_vm_shows_what_it_is_kept_to() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    let expected = sandbox::version().map_or("no Landlock".into(), |n| format!("Landlock ABI {n}"));
    let shown = |lab: &Lab| lab.piton("show demo").ok();
    assert!(shown(&lab).contains(&format!("seccomp, {expected}\n")), "{}", shown(&lab));
    let told = lab.piton("show demo --json").json()["sandbox"].clone();
    let version = sandbox::version().map(serde_json::Value::from);
    assert_eq!((&told["seccomp"], told.get("landlock")), (&true.into(), version.as_ref()));
    let limits = fs::read_to_string(format!("/proc/{}/limits", vm.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_ascii_whitespace().nth(4), Some("0"), "{core}");
    vm.power_off();
    assert!(lab.piton("show demo --json").json().get("sandbox").is_none());
    let mut vm = lab.home.boot("start demo --attach --no-landlock --no-seccomp");
    assert!(shown(&lab).contains("no seccomp, no Landlock\n"));
    vm.power_off();
}

#[test]
fn a_running_vm_says_that_it_cannot_reach_a_file() {
    if sandbox::version().is_none() {
        return skip("this kernel has no Landlock");
    }
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    let elsewhere = lab.beside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let set = format!("set demo --checkpoint-dir {}", elsewhere.display());
    lab.piton(&set).fails(3, &["while the VM is off", "piton stop demo", "--no-landlock"]);
    vm.power_off();
    lab.piton(&set).ok();
    // From the next start on it can.
    let mut vm = lab.home.boot("start demo --attach");
    lab.create("one");
    vm.power_off();
    assert!(elsewhere.join("demo").exists());
    // What another file took the place of is another file.
    let mut vm = lab.home.boot("start demo --attach");
    let base = Path::new(&lab.a);
    fs::copy(base, base.with_extension("copy")).unwrap();
    fs::rename(base.with_extension("copy"), base).unwrap();
    lab.piton("checkpoint apply demo@one --discard-current --force").fails(1, &["--no-landlock"]);
    vm.power_off();
}
