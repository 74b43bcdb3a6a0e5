//! Stock Debian goes back: its processes go on and its files are back. Only where stock Linux can
//! run: on kvm_intel or kvm_amd, or in the throw-away host (scripts/vm-host --guest).

mod common;

use std::path::PathBuf;

use common::{Home, LinuxGuest, Vm};

const CONSOLE: &str = "console=ttyS0 quiet panic=-1";

/// Writes a file, syncs it and checks it, again and again; says so every tenth time.
const LOOP: &str = "(n=0; while true; do n=$((n+1)); head -c 65536 /dev/urandom > /mnt/f$((n%20)); \
    s=$(sha256sum < /mnt/f$((n%20))); sync; [ \"$s\" = \"$(sha256sum < /mnt/f$((n%20)))\" ] || echo LOOP-DIFFERS; \
    echo \"$s\" > /mnt/s$((n%20)); sync; [ $((n%10)) = 0 ] && echo LOOP-$n; done) & echo LOOP-BEGUN";
/// Says whether every file is as its checksum has it, but for the one that is being written.
const CHECK: &str = "bad=0; for n in $(seq 0 19); do [ -e /mnt/s$n ] || continue; \
    [ \"$(sha256sum < /mnt/f$n)\" = \"$(cat /mnt/s$n)\" ] || bad=$((bad+1)); done; echo CHECKED-$bad-bad";

/// Two processes that check what they have in memory, and say so every fifth time.
const SUMS: &str = "for p in 1 2; do head -c 100000 /dev/urandom > /dev/shm/d$p; (s=$(sha256sum < /dev/shm/d$p); \
    n=0; while true; do n=$((n+1)); [ \"$s\" = \"$(sha256sum < /dev/shm/d$p)\" ] || echo SUM-DIFFERS; \
    [ $((n%5)) = 0 ] && echo SUM-$p-$n; done) & done; echo SUMS-BEGUN";

/// Debian with two vCPUs at a shell, on an overlay over its disk.
fn boot(home: &Home, guest: &LinuxGuest) -> (Vm, PathBuf) {
    let disk = home.beside("root.ext4");
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--"])
        .args([&guest.rootfs, &disk])
        .status()
        .unwrap();
    assert!(copied.success());
    let (kernel, initrd) = (guest.kernel.to_str().unwrap(), guest.initrd.to_str().unwrap());
    let cmdline = format!("{CONSOLE} piton.run=shell");
    let disk_arg = format!("{},id=root,overlay", disk.display());
    let mut args = vec!["run", "demo", "--kernel", kernel, "--initrd", initrd, "--cmdline", &cmdline];
    args.extend(["--cpus", "2", "--memory", "256M", "--disk", &disk_arg]);
    let mut vm = home.args_vm(&args);
    vm.expect("LINUX-GUEST-UP");
    vm.expect("# ");
    (vm, disk)
}

/// In the echo of what was typed a complaint stands amid other words.
fn has_no_complaint(console: &str) {
    let lines = ["LOOP-DIFFERS", "SUM-DIFFERS"];
    assert!(
        !console.lines().any(|line| lines.contains(&line.trim())),
        "something was read other than written"
    );
    for complaint in ["BUG:", "EXT4-fs error", "I/O error", "Call Trace"] {
        assert!(!console.contains(complaint), "{complaint}");
    }
}

#[test]
fn twenty_live_checkpoints_of_two_busy_vcpus() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let (mut vm, _) = boot(&home, &guest);
    vm.send("mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; echo MOUNT'ED'");
    vm.expect("MOUNTED");
    vm.send(SUMS);
    vm.expect("SUMS-BEGUN");
    let mut parent = serde_json::Value::Null;
    for n in 1..=20 {
        vm.expect("SUM-");
        let compress = n % 3 == 1;
        let option = if compress { " --compress" } else { "" };
        let made = home.piton(&format!("checkpoint create demo c{n}{option} --json")).json();
        assert_eq!(made["memory_compressed"].is_u64(), compress, "{made}");
        assert_eq!(made["memory_parent"], parent);
        assert_eq!(made["capture"]["mode"], "live");
        parent = made["id"].clone();
    }
    for n in (1..=20).rev() {
        home.piton(&format!("checkpoint apply demo@c{n} --discard-current --run")).ok();
        for process in 1..=2 {
            vm.expect(&format!("SUM-{process}-"));
        }
    }
    vm.send("kill %1 %2; echo DO'NE'");
    vm.expect("DONE");
    vm.send("poweroff -f");
    has_no_complaint(&vm.exits_well().console);
    assert_eq!(home.piton("doctor demo --json").json(), serde_json::json!([]));
}

#[test]
fn processes_go_on_and_files_are_back() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let (mut vm, disk) = boot(&home, &guest);
    vm.send("mkdir -p /mnt; mount -t ext4 /dev/vda /mnt && echo MOUNT'ED'");
    vm.expect("MOUNTED");
    vm.send("head -c 1000000 /dev/urandom > /mnt/keep; sha256sum /mnt/keep > /keep.sum; sync; echo KEP'T'");
    vm.expect("KEPT");
    vm.send(LOOP);
    vm.expect("LOOP-BEGUN");
    vm.expect("LOOP-10");
    home.piton("checkpoint create demo before").ok();
    vm.expect("LOOP-");
    for round in 1..=3 {
        vm.send(&format!("rm -f /mnt/keep; echo gone > /mnt/gone; sync; echo DELETED'-{round}'"));
        vm.expect(&format!("DELETED-{round}"));
        home.piton("checkpoint apply demo@before --discard-current --run").ok();
        // The loop goes on in the same shell.
        vm.expect("LOOP-");
        vm.send(&format!("sha256sum -c /keep.sum && [ ! -e /mnt/gone ] && echo BACK'-{round}'"));
        vm.expect(&format!("BACK-{round}"));
    }
    vm.expect("LOOP-");
    vm.send("kill %1; sleep 1; sync; echo 3 > /proc/sys/vm/drop_caches");
    vm.send(CHECK);
    vm.expect("CHECKED-");
    vm.expect("-bad");
    let console = vm.text();
    let bad = console.rsplit("CHECKED-").next().unwrap();
    assert!(bad.starts_with("0-bad") || bad.starts_with("1-bad"), "{bad}");
    vm.send("umount /mnt && echo UMOUNT'ED'");
    vm.expect("UMOUNTED");
    vm.send("poweroff -f");
    has_no_complaint(&vm.exits_well().console);
    fsck_is_clean(&home, &disk);
    assert_eq!(home.piton("doctor demo --json").json(), serde_json::json!([]));
}

/// What the checkpoint holds of the disk, after its journal is replayed.
fn fsck_is_clean(home: &Home, base: &std::path::Path) {
    let image = common::flatten(home, "before", base);
    // The first replays the journal, the second finds nothing.
    for options in ["-fy", "-fn"] {
        if let Some((code, text)) = common::e2fsck(options, &image) {
            assert!(code == 0 || options == "-fy" && code == 1, "{options}: {code}: {text}");
        }
    }
}
