//! What stands between a VM and its host: a host that runs out of room, and other users.

mod ckpt_common;
mod common;

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ckpt_common::{Lab, files};
use common::{Home, Mount, Vm, is_root, skip, until};

/// Waits until the VM is paused; returns the reason that is shown.
#[track_caller]
fn paused(home: &Home) -> String {
    until("the VM to be paused", || {
        let shown = home.piton("show demo --json").json();
        (shown["state"] == "paused").then(|| shown["reason"].as_str().expect("a reason is given").to_owned())
    })
}

/// Asserts that everything that shows VMs says why this one stands still.
#[track_caller]
fn is_told(home: &Home, vm: &Vm, file: &Path) {
    let reason = paused(home);
    assert!(reason.contains("no space left for") && reason.contains(file.to_str().unwrap()), "{reason}");
    for line in ["show demo", "list"] {
        let text = home.piton(line).ok();
        assert!(text.contains("paused") && text.contains(&reason), "{text}");
    }
    assert_eq!(home.piton("list --json").json()[0]["reason"], *reason);
    assert_eq!(home.http("demo", "GET", "/vm", "").json()["reason"], *reason);
    let told = vm.stderr();
    assert!(told.contains(&reason) && told.contains("piton resume demo"), "{told}");
}

#[test]
fn a_raw_disk_without_room_pauses_the_guest_until_there_is_some() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let home = Home::new();
    let mount = Mount::tmpfs("4m", &home.root());
    // Its own disk is sparse and larger than the file system.
    let mut vm = home.boot("run demo --memory 32M");
    vm.ok("journal off");
    vm.send("blk 0 write 0 12M 5");
    let file = home.vm("demo").join("disks/root.raw");
    is_told(&home, &vm, &file);
    home.piton("stop demo --timeout 1").fails(3, &["paused", "resume"]);
    // Too early: it stands still again.
    home.piton("resume demo").ok();
    is_told(&home, &vm, &file);
    mount.resize("40m");
    home.piton("resume demo").ok();
    vm.line(&["ok"]);
    vm.ok("blk 0 flush");
    vm.ok("blk 0 verify 0 12M 5");
    let shown = home.piton("show demo --json").json();
    assert_eq!((&shown["state"], shown.get("reason")), (&"running".into(), None));
    vm.power_off();
    let log = home.console_log("demo");
    assert!(!log.lines().any(|line| line.starts_with("err")), "the guest saw an error");
}

#[test]
fn a_checkpoint_holds_the_request_that_waits_for_room() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let mount = Mount::tmpfs("40m", &lab.root());
    let mut vm = lab.boot("--memory 32M");
    vm.ok("journal off");
    vm.ok("blk 1 write 0 64K 3");
    vm.ok("blk 1 flush");
    lab.create("before");
    let nodes = lab.nodes();
    let ballast = mount.fill("ballast");
    vm.send("blk 1 write 32K 1M 7");
    let reason = paused(&lab);
    assert!(reason.contains("disk b: no space left"), "{reason}");
    // Not enough for a checkpoint; it is refused and the VM is as it was.
    assert_eq!(lab.cp("create demo none").code, Some(1));
    assert_eq!(paused(&lab), reason);
    std::fs::remove_file(&ballast).unwrap();
    lab.create("held");
    assert_eq!(paused(&lab), reason);
    lab.piton("resume demo").ok();
    vm.line(&["ok"]);
    vm.ok("blk 1 verify 32K 1M 7");
    vm.ok("blk 1 write 32K 1M 8");

    // In the checkpoint it was not done yet, and the guest still waits for it.
    lab.apply("held", "--run");
    vm.line(&["ok"]);
    vm.ok("blk 1 verify 0 32K 3");
    vm.ok("blk 1 verify 32K 1M 7");
    // From there the other ways out: to another checkpoint, and to the end.
    for out in ["checkpoint apply demo@before --discard-current --run", "stop demo --force"] {
        // What is there already needs no room: only a fresh overlay does.
        lab.apply("before", "--run");
        let ballast = mount.fill("ballast");
        vm.send("blk 1 write 2M 1M 9");
        paused(&lab);
        if out.starts_with("checkpoint") {
            // It takes an overlay.
            std::fs::remove_file(&ballast).unwrap();
        }
        lab.piton(out).ok();
        let _ = std::fs::remove_file(&ballast);
    }
    vm.exits_well();
    let after = lab.nodes();
    ckpt_common::unchanged(&nodes, &after);
    lab.tidy();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 1 verify 0 64K 3");
    vm.power_off();
}

/// Asserts the modes of everything below a folder.
fn is_private(path: &Path) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let mode = meta.mode() & 0o777;
    let kind = meta.file_type();
    if kind.is_dir() {
        assert_eq!(mode, 0o700, "{}", path.display());
        files(path).iter().for_each(|path| is_private(path));
    } else {
        assert!(kind.is_file() || kind.is_socket(), "{}", path.display());
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[test]
fn everything_is_the_owners_alone() {
    let lab = Lab::new();
    // The most careless of users.
    let open = |line: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_piton")]);
        shell.args(line.split_ascii_whitespace());
        lab.equip(&mut shell);
        common::Finished::run(shell).ok();
    };
    open(&format!("run demo --detach --memory 32M {}", lab.disks()));
    lab.attach("demo").line(&["type help"]);
    open("checkpoint create demo one");
    open("checkpoint create demo two");
    assert!(lab.vm("demo").join("piton.log").exists() && lab.socket("demo").exists());
    is_private(&lab.root());
    open("checkpoint apply demo@one --discard-current --run");
    open("checkpoint delete demo@two --yes");
    is_private(&lab.root());
    open("stop demo --force");
    lab.ended();
    open("checkpoint create demo off");
    is_private(&lab.root());
}

#[test]
fn the_control_socket_answers_nobody_else() {
    if !is_root() {
        return skip("another user can be had as root only");
    }
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    // Should the modes be changed, it still asks who is there.
    let socket = lab.socket("demo");
    for (path, mode) in [(lab.root(), 0o755), (lab.vm("demo"), 0o755), (socket.clone(), 0o666)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::set_permissions(lab.root().parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let ask = move || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(common::patience())).unwrap();
        let mut answer = Vec::new();
        // It may be closed before all was sent.
        let _ = stream.write_all(b"GET /vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    let stranger = ask.clone();
    let answer = std::thread::spawn(move || {
        // SAFETY: the raw call changes the user of this thread alone and touches no memory.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        stranger()
    });
    assert_eq!(answer.join().unwrap(), "");
    until("the log to say so", || vm.stderr().contains("user 65534").then_some(()));
    assert!(ask().starts_with("HTTP/1.1 200"));
    vm.power_off();
}

#[test]
fn a_forbidden_call_ends_the_vm() {
    let lab = Lab::new();
    let run = |thread: &str, option: &str| {
        let line = format!("run demo --memory 32M {option} {}", lab.disks());
        let mut command = lab.command(line.split_ascii_whitespace());
        command.env("PITON_TEST_FORBIDDEN_CALL", thread);
        Vm::spawn(command)
    };
    for thread in ["main", "vcpu", "disk", "devices", "console", "control", "signals", "terminal"] {
        let exit = run(thread, "").exit();
        assert_eq!(exit.code, Some(128 + libc::SIGSYS), "{thread}: {}", exit.stderr);
        // 59 is execve.
        assert!(exit.stderr.contains(&format!("thread {thread} made system call 59")), "{}", exit.stderr);
        lab.piton("rm demo --yes");
        // It may have ended before the definition was saved.
        let _ = std::fs::remove_dir_all(lab.vm("demo"));
        // Without the filters it is an error like any other.
        let mut vm = run(thread, "--no-seccomp");
        vm.ready();
        vm.ok("blk 0 flush");
        vm.power_off();
        lab.piton("rm demo --yes").ok();
    }
}

/// The threads of a process that have no filter, or could get rights by running a program.
fn unbound(pid: u32) -> Vec<String> {
    let tasks = files(Path::new(&format!("/proc/{pid}/task")));
    let status = tasks.iter().filter_map(|task| std::fs::read_to_string(task.join("status")).ok());
    status
        .filter(|status| !status.contains("Seccomp:\t2") || !status.contains("NoNewPrivs:\t1"))
        .map(|status| status.lines().next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn commands_that_read_what_others_wrote_are_bound() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    for (n, name) in ["one", "two"].iter().enumerate() {
        vm.ok(&format!("blk 0 write {n}M 64K {n}"));
        lab.create(name);
    }
    let path = |name: &str| lab.beside(name).to_str().unwrap().to_owned();
    // What a running VM has to be asked for is still asked.
    lab.piton(&format!("export demo {} --live", path("live"))).ok();
    assert_eq!(lab.names(), ["one", "two"]);
    lab.cp(&format!("export demo@one {} --format qcow2", path("out"))).ok();
    vm.power_off();
    let other = Home::new();
    let again = path("again");
    for (home, line, thread) in [
        (&lab.home, "checkpoint verify demo@two", "files"),
        (&lab.home, "checkpoint diff demo@one demo@two", "files"),
        (&lab.home, &format!("checkpoint export demo@two {again}"), "files"),
        (&lab.home, &format!("export demo {again}"), "files"),
        (&other, &format!("import {}", path("out")), "import"),
        (&lab.home, &format!("checkpoint serve demo@one --socket {}", path("nbd")), "serve"),
    ] {
        let run = |option: &str| {
            let line = format!("{line} {option}");
            let mut command = home.command(line.split_ascii_whitespace());
            command.env("PITON_TEST_FORBIDDEN_CALL", thread);
            common::Finished::run(command)
        };
        let finished = run("");
        assert_eq!(finished.code, Some(128 + libc::SIGSYS), "{finished}");
        assert!(finished.stderr.contains(&format!("thread {thread} made system call 59")), "{finished}");
        if thread != "serve" {
            run("--no-seccomp").ok();
            let _ = std::fs::remove_dir_all(lab.beside("again"));
        }
    }
    other.piton("checkpoint revert demo --yes").ok();
    other.piton("stop demo --force").ok();
    let socket = path("nbd");
    let _ = std::fs::remove_file(&socket);
    let mut server = lab.command(["checkpoint", "serve", "demo@one", "--socket", &socket]);
    let mut server = server.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = [0];
    server.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let mut client = UnixStream::connect(&socket).unwrap();
    client.read_exact(&mut [0; 8]).unwrap();
    assert_eq!(unbound(server.id()), [""; 0]);
    common::send_signal(server.id() as i32, libc::SIGTERM);
    server.wait().unwrap();
    assert!(!lab.beside("nbd").exists());
}

#[test]
fn every_thread_has_its_filter() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M --cpus 2");
    lab.attach("demo");
    assert_eq!(unbound(vm.pid()), [""; 0]);
    lab.create("one");
    lab.apply("one", "--run");
    assert_eq!(unbound(vm.pid()), [""; 0], "after another machine took its place");
    vm.power_off();
    let mut vm = lab.home.boot("start demo --attach --no-seccomp");
    assert!(unbound(vm.pid()).len() > 5);
    vm.power_off();
}
