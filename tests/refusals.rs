//! What cannot be done is refused with one sentence and an exit code, and leaves nothing behind.

mod common;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use common::{Finished, GUEST, Home, is_root, skip};

/// Each of these runs `piton run demo` with the words, and finds nothing left.
#[track_caller]
fn refused(home: &Home, words: &str, code: i32, says: &[&str]) {
    home.piton(&format!("run demo {words}")).fails(code, says);
    home.is_empty();
}

#[test]
fn names() {
    let home = Home::new();
    let long = "x".repeat(300);
    for name in ["", "/", "a/b", "..", ".", ".hidden", "-a", "a b", "a@b", "ä", &long] {
        for command in ["run", "start", "show", "rm"] {
            let finished = home.args([command, "--", name]);
            finished.fails(2, &["is not a VM name", "1 to 64 letters"]);
        }
    }
    home.is_empty();
    home.piton("run").fails(2, &["required"]);
    home.piton("").code.unwrap();
    home.piton("fly demo").fails(2, &["fly"]);
    home.piton("run demo --cpus many").fails(2, &["many"]);
    home.is_empty();
}

#[test]
fn a_name_that_is_taken() {
    let home = Home::new();
    home.boot("run demo").power_off();
    let before = std::fs::read(home.vm("demo").join("vm.json")).unwrap();
    home.piton("run demo")
        .fails(3, &["a VM named `demo` already exists", "piton start demo", "piton rm demo"]);
    assert_eq!(std::fs::read(home.vm("demo").join("vm.json")).unwrap(), before);
    assert!(home.vm("demo").join("disks/root.raw").exists());
    home.boot("start demo --attach").power_off();
}

#[test]
fn memory() {
    let home = Home::new();
    refused(&home, "--memory 0", 2, &["too little", "8M"]);
    refused(&home, "--memory 1K", 2, &["too little", "8M"]);
    refused(&home, "--memory 10000K", 2, &["whole number of MiB"]);
    refused(&home, "--memory lots", 2, &["`lots` is not a memory size", "512M"]);
    refused(&home, "--memory 512X", 2, &["is not a memory size"]);
    refused(&home, "--memory 99999999999999999999G", 2, &["is not a memory size"]);
    refused(&home, "--memory 200T", 2, &["too much", "4T"]);
    refused(&home, "--memory 16000000T", 2, &["too much"]);
    // More than any host that these tests run on has.
    refused(&home, "--memory 4T", 3, &["4 TiB", "the host has", "--memory"]);
    // As on a host that has no room for it.
    shell(&home, "ulimit -v 1000000; exec $PITON run demo --memory 2G")
        .fails(3, &["cannot map 2048 MiB", "--memory"]);
    home.is_empty();
}

#[test]
fn cpus() {
    let home = Home::new();
    refused(&home, "--cpus 0", 2, &["1 to 254"]);
    refused(&home, "--cpus 255", 2, &["255", "1 to 254"]);
    refused(&home, "--cpus 100000", 2, &["1 to 254"]);
    refused(&home, "--cpus 99999999999", 2, &["99999999999"]);
    refused(&home, "--cpus=-1", 2, &["-1"]);
}

#[test]
fn kernels() {
    let home = Home::new();
    let bytes = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = GUEST.to_vec();
        edit(&mut bytes);
        bytes
    };
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", Vec::new(), "empty"),
        ("text", b"#!/bin/sh\necho no kernel\n".to_vec(), "not a kernel that piton can boot"),
        ("zeros", vec![0; 1 << 20], "not a kernel that piton can boot"),
        ("half", GUEST[..GUEST.len() / 2].to_vec(), "truncated"),
        ("header", GUEST[..40].to_vec(), "truncated"),
        ("magic", GUEST[..4].to_vec(), "truncated"),
        ("old", bytes(|bytes| bytes[4] = 1), "32-bit"),
        ("arm", bytes(|bytes| bytes[18] = 183), "another processor"),
    ];
    for (name, content, says) in cases {
        let path = home.file(name, &content);
        refused(&home, &format!("--kernel {path}"), 3, &["the kernel", name, says]);
    }
    let program = std::env::current_exe().unwrap();
    refused(&home, &format!("--kernel {}", program.display()), 3, &["a program, library or module"]);
    refused(&home, "--kernel /nowhere/vmlinuz", 3, &["/nowhere/vmlinuz", "No such file"]);
    refused(&home, "--kernel /tmp", 3, &["/tmp", "a folder"]);
    refused(&home, "--kernel /dev/null", 3, &["/dev/null", "not a regular file"]);
    let mut command = home.command(["run", "demo", "--kernel"]);
    command.arg(std::ffi::OsStr::from_bytes(b"/tmp/kernel-\xff"));
    Finished::run(command).fails(3, &["/tmp/kernel-", "is not UTF-8", "rename it"]);
    let fifo = home.beside("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    refused(&home, &format!("--kernel {}", fifo.display()), 3, &["fifo", "not a regular file"]);
}

#[test]
fn initrds() {
    let home = Home::new();
    let kernel = home.file("kernel", GUEST);
    let big = home.image("big", 100 << 20);
    let run = |rest: &str| format!("--kernel {kernel} {rest}");
    refused(&home, &run(&format!("--memory 64M --initrd {big}")), 3, &["100 MiB", "64 MiB", "--memory"]);
    let huge = home.image("huge", 1 << 40);
    refused(&home, &run(&format!("--initrd {huge}")), 3, &["does not fit", "--memory"]);
    refused(&home, &run("--initrd /nowhere/initrd"), 3, &["initrd", "/nowhere/initrd"]);
    refused(&home, &run("--initrd /tmp"), 3, &["/tmp", "a folder"]);
    let empty = home.file("empty", b"");
    refused(&home, &run(&format!("--initrd {empty}")), 3, &["initrd", "empty"]);
    refused(&home, &format!("--initrd {big}"), 2, &["required"]);
}

#[test]
fn command_lines() {
    let home = Home::new();
    let long = "x".repeat(10_000);
    home.args(["run", "demo", "--cmdline", &long]).fails(2, &["command line", "10000 characters"]);
    home.args(["run", "demo", "--cmdline", "a\nb"]).fails(2, &["printable ASCII"]);
    home.args(["run", "demo", "--cmdline", "ä"]).fails(2, &["printable ASCII"]);
    home.is_empty();
}

#[test]
fn disks() {
    let home = Home::new();
    let good = home.image("good.raw", 1 << 20);
    refused(&home, "--disk /nowhere/a.raw", 3, &["/nowhere/a.raw", "does not exist"]);
    refused(&home, "--disk /tmp", 3, &["/tmp", "a folder"]);
    refused(&home, "--disk /dev/null", 3, &["/dev/null", "neither a file nor a block device"]);
    let odd = home.image("odd.raw", 1000);
    refused(&home, &format!("--disk {odd}"), 3, &["odd.raw", "1000 bytes", "512"]);
    let empty = home.image("empty.raw", 0);
    refused(&home, &format!("--disk {empty}"), 3, &["empty.raw", "empty"]);
    refused(&home, &format!("--disk {good} --disk /nowhere/b.raw"), 3, &["b.raw", "does not exist"]);
    refused(&home, &format!("--disk {good},id=a --disk {odd},id=a"), 2, &["two disks", "`a`"]);
    refused(&home, &format!("--disk {good},id="), 2, &["is not a disk id"]);
    refused(&home, &format!("--disk {good},id=a/b"), 2, &["`a/b` is not a disk id"]);
    refused(&home, &format!("--disk {good},id=x,id=y"), 2, &["the option `id` twice"]);
    // The words are looked at before any file is.
    refused(&home, "--disk /nowhere/a.raw --cmdline \u{e4}", 2, &["printable ASCII"]);
    refused(&home, &format!("--disk {good},fast"), 2, &["`fast` is not a disk option"]);
    refused(&home, &format!("--disk {good},readonly,overlay"), 2, &["readonly", "overlay"]);
    refused(&home, "--disk ,readonly", 2, &["has no path"]);
    let many = format!("--disk {good},readonly ").repeat(30);
    refused(&home, &many, 2, &["30 disks", "up to 14"]);
    let twice = format!("--disk {good},id=a --disk {good},id=b");
    refused(&home, &twice, 3, &["`a` and `b` are the same file", "good.raw"]);
    let link = home.beside("link.raw");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    refused(&home, &format!("--disk {good} --disk {},overlay", link.display()), 3, &["are the same file"]);
    let comma = home.image("a,b.raw", 1000);
    refused(&home, &format!("--disk {comma}"), 2, &["`b.raw` is not a disk option", "double each comma"]);
    refused(&home, &format!("--disk {}", comma.replace(',', ",,")), 3, &["a,b.raw", "1000 bytes"]);
    let mut command = home.command(["run", "demo", "--kernel"]);
    command.arg(std::ffi::OsStr::from_bytes(b"/tmp/kernel-\xff"));
    Finished::run(command).fails(3, &["/tmp/kernel-", "is not UTF-8", "rename it"]);
    let fifo = home.beside("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    refused(&home, &format!("--disk {}", fifo.display()), 3, &["neither a file nor a block device"]);
    assert_eq!(std::fs::metadata(&good).unwrap().len(), 1 << 20);
}

#[test]
fn a_qcow2_image_is_not_written() {
    let home = Home::new();
    let mut header = vec![0; 1 << 16];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let image = home.file("a.qcow2", &header);
    refused(&home, &format!("--disk {image}"), 3, &["qcow2", ",overlay"]);
    refused(&home, &format!("--disk {image},readonly"), 3, &["a.qcow2"]);
}

#[test]
fn a_disk_that_went_away_is_named_at_start() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    home.boot(&format!("run demo --disk {image}")).power_off();
    std::fs::remove_file(&image).unwrap();
    home.piton("start demo").fails(3, &["a.raw", "is missing", "piton disk relocate demo disk0 PATH"]);
    home.image("a.raw", 1000);
    home.piton("start demo").fails(3, &["a.raw", "1000 bytes"]);
    home.image("a.raw", 1 << 20);
    home.piton("start demo").ok();
    home.piton("stop demo --force").ok();
}

#[test]
fn a_socket_path_that_is_too_long() {
    let home = Home::new();
    let long = home.beside(&"x".repeat(90));
    let mut command = home.command(["run", "demo"]);
    command.env("PITON_HOME", &long);
    Finished::run(command).fails(3, &["control socket", "107", "PITON_HOME"]);
    assert!(!long.exists());
}

#[test]
fn definitions() {
    let home = Home::new();
    home.boot("run demo").power_off();
    let path = home.vm("demo").join("vm.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let half = good[..good.len() / 2].to_owned();
    let many_cpus = good.replace("\"cpus\": 1", "\"cpus\": 1000");
    assert_ne!(many_cpus, good);
    for (text, says) in [
        ("garbage \u{0} {", "damaged"),
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "no format version"),
        (&half, "damaged"),
        (r#"{"format": 999, "new": {}}"#, "newer version of piton (format 999"),
        (r#"{"format": 1}"#, "damaged"),
        (&many_cpus, "invalid definition"),
    ] {
        std::fs::write(&path, text).unwrap();
        for command in ["start", "show"] {
            home.piton(&format!("{command} demo")).fails(3, &["vm.json", says]);
        }
        let list = home.piton("list").ok();
        assert!(list.contains("demo") && list.contains("broken"), "{list}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "what is there stays");
    }
    std::fs::write(&path, [0xff; 64]).unwrap();
    home.piton("start demo").fails(3, &["vm.json", "damaged"]);
    // A broken one can still be removed, and a whole one be put back.
    std::fs::write(&path, good).unwrap();
    home.boot("start demo --attach").power_off();
    std::fs::write(&path, "garbage").unwrap();
    home.piton("rm demo --yes").ok();
    home.is_empty();
}

#[test]
fn the_folder_of_another_user() {
    if !is_root() {
        return skip("only root can give a folder away");
    }
    let home = Home::new();
    home.boot("run demo").power_off();
    std::os::unix::fs::chown(home.vm("demo"), Some(65534), None).unwrap();
    for command in ["start demo", "run demo", "rm demo --yes"] {
        home.piton(command).fails(3, &["another user", "65534", "PITON_HOME"]);
    }
    assert!(home.vm("demo").join("vm.json").exists());
}

#[test]
fn what_others_could_have_written_is_not_believed() {
    let home = Home::new();
    home.boot("run demo").power_off();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let json = home.vm("demo").join("vm.json");
    for (path, open, closed) in [
        (home.vm("demo"), 0o777, 0o700),
        (home.vm("demo"), 0o770, 0o755),
        (json, 0o666, 0o600),
        (home.root(), 0o777, 0o755),
    ] {
        mode(&path, open);
        let shown = path.to_str().unwrap();
        for command in ["start demo", "show demo", "checkpoint list demo", "rm demo --yes", "doctor demo"] {
            home.piton(command).fails(3, &["other users can write", shown, "chmod go-w"]);
        }
        mode(&path, closed);
    }
    home.piton("show demo").ok();
    // As /tmp is.
    mode(&home.root(), 0o1777);
    home.piton("show demo").ok();
    mode(&home.root(), 0o700);
    // Checkpoints that lie elsewhere.
    let elsewhere = home.beside("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    mode(&elsewhere, 0o777);
    let set = format!("set demo --checkpoint-dir {}", elsewhere.display());
    home.piton(&set).fails(3, &["other users can write"]);
    mode(&elsewhere, 0o755);
    home.piton(&set).ok();
    mode(&elsewhere.join("demo"), 0o777);
    home.piton("checkpoint list demo").fails(3, &["elsewhere/demo", "other users can write"]);
}

#[test]
fn what_is_no_folder_of_a_vm() {
    let home = Home::new();
    home.boot("run demo").power_off();
    let fifo = |path: &std::path::Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    std::fs::write(home.vm("stray"), "x").unwrap();
    fifo(&home.vm("pipe"));
    std::fs::create_dir(home.vm("empty")).unwrap();
    std::os::unix::fs::symlink("nowhere", home.vm("dangling")).unwrap();
    let listed = home.piton("list --json").json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    home.piton("show stray").fails(3, &["stray", "is not a folder"]);
    home.piton("run pipe").fails(3, &["pipe", "is not a folder"]);
    // One that leads elsewhere is seen, and not used.
    std::fs::rename(home.vm("demo"), home.beside("moved")).unwrap();
    std::os::unix::fs::symlink(home.beside("moved"), home.vm("demo")).unwrap();
    assert!(home.piton("list").ok().contains("symbolic link"));
    home.piton("start demo").fails(3, &["demo is a symbolic link", "PITON_HOME"]);
    std::fs::remove_file(home.vm("demo")).unwrap();
    std::fs::rename(home.beside("moved"), home.vm("demo")).unwrap();
    // Nothing waits for what never comes.
    for (make, says) in [("fifo", "a FIFO"), ("link", "a symbolic link"), ("device", "a symbolic link")] {
        let (path, kept) = (home.vm("demo").join("vm.json"), home.beside("kept"));
        std::fs::rename(&path, &kept).unwrap();
        match make {
            "fifo" => fifo(&path),
            "link" => std::os::unix::fs::symlink(&kept, &path).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
        }
        assert!(home.piton("list").ok().contains(says), "{make}");
        home.piton("start demo").fails(1, &["vm.json", says]);
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&kept, &path).unwrap();
    }
    home.boot("start demo --attach").power_off();
}

#[test]
fn another_user_is_told_whose_the_vms_are() {
    if !is_root() {
        return skip("another user can be had as root only");
    }
    let home = Home::new();
    home.boot("run demo").power_off();
    std::fs::copy(env!("CARGO_BIN_EXE_piton"), home.beside("piton")).unwrap();
    for path in [home.beside(""), home.beside("piton"), home.root(), home.vm("demo")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let piton = home.beside("piton");
    let line = format!("exec setpriv --reuid 65534 --regid 65534 --clear-groups {} \"$@\"", piton.display());
    let as_nobody = |words: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &line, "sh"]).args(words);
        home.equip(&mut command);
        Finished::run(command)
    };
    std::fs::set_permissions(home.root(), std::fs::Permissions::from_mode(0o700)).unwrap();
    as_nobody(&["list"]).fails(3, &["another user (uid 0)", "PITON_HOME"]);
    as_nobody(&["show", "demo"]).fails(3, &["another user (uid 0)", "PITON_HOME"]);
    std::fs::set_permissions(home.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let listed = as_nobody(&["list"]);
    assert_eq!(listed.code, Some(3), "{listed}");
    assert!(listed.stdout.contains("foreign") && listed.stdout.contains("uid 0"), "{listed}");
    let listed = as_nobody(&["list", "--json"]);
    assert_eq!(listed.code, Some(3), "{listed}");
    let told: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(told[0]["error"].as_str().unwrap().contains("uid 0"), "{listed}");
    as_nobody(&["show", "demo"]).fails(3, &["another user (uid 0)", "PITON_HOME"]);
    std::fs::set_permissions(home.root(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    as_nobody(&["run", "mine", "--detach", "--no-seccomp"]);
    let listed = as_nobody(&["list"]);
    // Whether it may use /dev/kvm or not.
    assert!(listed.stdout.contains("foreign") && !listed.stdout.contains("broken"), "{listed}");
    std::os::unix::fs::chown(home.root(), Some(65534), None).unwrap();
    home.piton("list").fails(3, &["another user (uid 65534)"]);
}

#[test]
fn a_home_that_cannot_be_made() {
    let home = Home::new();
    let file = home.file("file", b"");
    let mut command = home.command(["run", "demo"]);
    command.env("PITON_HOME", format!("{file}/home"));
    let finished = Finished::run(command);
    assert!(matches!(finished.code, Some(1 | 3)), "{finished}");
    assert!(finished.stderr.starts_with("piton: ") && finished.stderr.lines().count() == 1, "{finished}");
    for command in ["list", "run demo"] {
        let mut command = home.command(command.split(' '));
        command.env_remove("PITON_HOME").env_remove("XDG_DATA_HOME").env_remove("HOME");
        Finished::run(command).fails(3, &["PITON_HOME"]);
    }
}

/// Runs `piton run demo` in a mount namespace of its own, after `prepare`, a line of shell.
fn in_namespace(home: &Home, prepare: &str, run: &str) -> Option<Finished> {
    if !is_root() {
        skip("only root can mount over a file");
        return None;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-ec"]);
    command.arg(format!("{prepare}\nexec {run}"));
    home.equip(&mut command);
    command.env("PITON", env!("CARGO_BIN_EXE_piton"));
    Some(Finished::run(command))
}

#[test]
fn no_kvm() {
    let home = Home::new();
    if let Some(finished) = in_namespace(&home, "mount -t tmpfs none /dev", "$PITON run demo") {
        finished.fails(3, &["there is no /dev/kvm", "firmware", "kvm_intel or kvm_amd"]);
        home.is_empty();
    }
}

#[test]
fn no_permission_for_kvm() {
    let home = Home::new();
    let closed = home.file("closed", b"");
    // Whoever runs it must get at the binary and a home of its own.
    std::fs::copy(env!("CARGO_BIN_EXE_piton"), home.beside("piton")).unwrap();
    let prepare = format!(
        "chmod 0600 {closed}; mount --bind {closed} /dev/kvm; cd {0}; chmod 0755 {0} piton; mkdir h; \
         chown 65534 h",
        home.beside("").display()
    );
    let run = "setpriv --reuid 65534 --regid 65534 --clear-groups ./piton run demo";
    if let Some(finished) = in_namespace(&home, &prepare, run) {
        finished.fails(3, &["no permission to open /dev/kvm", "group"]);
        home.is_empty();
    }
}

#[test]
fn what_is_not_kvm() {
    let home = Home::new();
    for other in ["/dev/null", "/dev/zero"] {
        let prepare = format!("mount --bind {other} /dev/kvm");
        if let Some(finished) = in_namespace(&home, &prepare, "$PITON run demo") {
            finished.fails(3, &["/dev/kvm", "is not a usable KVM device"]);
            home.is_empty();
        }
    }
}

#[test]
fn an_image_that_may_not_be_written() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    let run = format!("$PITON run demo --disk {image}");
    let finished = if is_root() {
        // Root may write any file but one that is mounted read-only.
        let prepare = format!("mount --bind {image} {image}; mount -o remount,bind,ro {image}");
        in_namespace(&home, &prepare, &run)
    } else {
        let mut permissions = std::fs::metadata(&image).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&image, permissions).unwrap();
        Some(home.piton(&format!("run demo --disk {image}")))
    };
    if let Some(finished) = finished {
        finished.fails(3, &["a.raw", "is not writable", ",readonly"]);
        home.is_empty();
    }
}

/// Runs a line of shell with `$PITON`, for what only a shell can do to a command's files.
fn shell(home: &Home, line: &str) -> Finished {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]);
    home.equip(&mut command);
    command.env("PITON", env!("CARGO_BIN_EXE_piton"));
    Finished::run(command)
}

#[test]
fn closed_standard_files() {
    let home = Home::new();
    let off = "--cmdline piton.run=poweroff";
    let finished = shell(&home, &format!("exec $PITON run demo {off} <&-"));
    assert!(finished.ok().contains("evt poweroff"));
    shell(&home, "exec $PITON start demo --attach >&-").ok();
    shell(&home, "exec $PITON start demo --attach 2>&-").ok();
    shell(&home, "exec $PITON start demo --attach <&- >&- 2>&-").ok();
    assert_eq!(home.console_log("demo").matches("evt poweroff").count(), 4);
    home.piton("rm demo --yes").ok();
    shell(&home, "exec $PITON run demo --detach <&-").ok();
    shell(&home, "exec $PITON stop demo --force <&- >&- 2>&-").ok();
    assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
}

#[test]
fn what_is_wrong_with_the_words_is_told_as_such_in_json_too() {
    let home = Home::new();
    for line in [
        "run demo --memory lots",
        "run demo --disk a,fast",
        "run demo --cmdline \u{e4}",
        "fly demo",
        "console demo",
    ] {
        let finished = home.piton(&format!("{line} --json"));
        assert_eq!(finished.code, Some(2), "{finished}");
        let told: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let sentence = told["error"].as_str().unwrap();
        assert!(finished.stderr.starts_with(&format!("error: {sentence}\n")), "{finished}");
    }
    home.is_empty();
}

#[test]
fn what_a_detached_vm_is_refused_for_is_told_in_json() {
    let home = Home::new();
    for how in ["--detach", ""] {
        let finished = home.piton(&format!("run demo --json --disk /nowhere/a.raw {how}"));
        assert_eq!(finished.code, Some(3), "{finished}");
        let told: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(finished.stderr, format!("piton: {}\n", told["error"].as_str().unwrap()));
    }
    home.is_empty();
}
