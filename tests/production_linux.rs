//! Production checkpoints of stock Debian with the real qemu-guest-agent, and its kernel's driver
//! of the VM generation id. Only where stock Linux can run: on kvm_intel or kvm_amd, or in the
//! throw-away host (scripts/vm-host --guest).

mod common;

use common::{Home, LinuxGuest, Vm, e2fsck, flatten, until};
use serde_json::json;

const CONSOLE: &str = "console=ttyS0 quiet panic=-1";

/// Writes files on the disk that the agent freezes, syncs some, and says so.
const LOAD: &str = "(n=0; while true; do n=$((n+1)); head -c 100000 /dev/urandom > /mnt/f$((n%30)); \
    mkdir -p /mnt/d$n; rmdir /mnt/d$((n-5)) 2>/dev/null; [ $((n%7)) = 0 ] && sync; echo LOAD-$n; done) & echo LOAD-BEG'UN'";

fn boot_agent(home: &Home, guest: &LinuxGuest, disk: &std::path::Path, how: &str) -> Vm {
    let (kernel, initrd) = (guest.vmlinux.to_str().unwrap(), guest.initrd.to_str().unwrap());
    let cmdline = format!("{CONSOLE} root=/dev/vda piton.run=agent");
    let disk = format!("{},id=root,overlay", disk.display());
    let mut vm = match how {
        "run" => home.args_vm(&[
            "run",
            "demo",
            "--kernel",
            kernel,
            "--initrd",
            initrd,
            "--cmdline",
            &cmdline,
            "--cpus",
            "2",
            "--memory",
            "256M",
            "--disk",
            &disk,
        ]),
        _ => home.args_vm(&["start", "demo", "--attach"]),
    };
    vm.expect("LINUX-GUEST-UP");
    vm
}

#[test]
fn disks_are_switched_inside_the_freeze() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let disk = home.beside("root.ext4");
    let copy = std::process::Command::new("cp")
        .args(["--sparse=always", "--"])
        .args([&guest.rootfs, &disk])
        .status();
    assert!(copy.unwrap().success());
    let mut vm = boot_agent(&home, &guest, &disk, "run");
    vm.expect("AGENT-READY");
    vm.expect("# ");
    vm.send(LOAD);
    vm.expect("LOAD-BEGUN");
    vm.expect("LOAD-3");
    let create = "checkpoint create demo quiesced --type production-only --freeze-timeout 60 --json";
    let info = until("the agent to open its port", || {
        let made = home.piton(create);
        assert!(made.code == Some(0) || made.stderr.contains("no guest agent is connected"), "{made}");
        (made.code == Some(0)).then(|| made.json())
    });
    assert_eq!((&info["type"], &info["lands"]), (&json!("production"), &json!("stopped")), "{info}");
    let (frozen, pause) = (info["frozen_us"].as_u64().unwrap(), info["pause_us"].as_u64().unwrap());
    assert!(0 < pause && pause < frozen && frozen < 60_000_000, "{info}");
    assert_eq!((&info["warnings"], &info["memory"]), (&json!([]), &json!(null)));
    vm.expect("HOOK-freeze");
    vm.expect("HOOK-thaw");
    // Writing goes on.
    vm.expect("LOAD-");
    vm.send("sync; cp /mnt/f1 /mnt/copy && sync && echo THA'WED'");
    vm.expect("THAWED");
    let manifest = home.manifest("demo", "quiesced");
    assert_eq!((&manifest["kind"], &manifest["memory"]), (&json!("production"), &json!(null)));
    assert_eq!(manifest["state"], json!(null));
    assert!(home.piton("checkpoint list demo").ok().contains("quiesced  production"));

    // Nothing is left to replay, and nothing to mend.
    let image = flatten(&home, "quiesced", &disk);
    if let Some((code, text)) = e2fsck("-fn", &image) {
        assert_eq!(code, 0, "{text}");
        assert!(!text.contains("journal"), "{text}");
    }
    home.piton("checkpoint verify demo@quiesced").ok();

    let told = home.piton("checkpoint apply demo@quiesced --discard-current").ok();
    assert!(told.contains("stopped"), "{told}");
    vm.exits_well();
    let mut vm = boot_agent(&home, &guest, &disk, "start");
    // The hook was called before the freeze, and the disk is of a moment before the thaw.
    vm.expect("HOOK-CALLS freeze end");
    vm.expect("AGENT-READY");
    vm.expect("# ");
    vm.send("[ ! -e /mnt/copy ] && echo NOT'-YET'; ls /mnt | grep -c ^f | sed s/^/FILES-/");
    vm.expect("NOT-YET");
    vm.expect("FILES-");
    vm.send("poweroff -f");
    let console = vm.exits_well().console;
    for complaint in ["EXT4-fs error", "recovery", "BUG:", "I/O error"] {
        assert!(!console.contains(complaint), "{complaint}");
    }
    assert_eq!(home.piton("doctor demo --json").json(), json!([]));
}

#[test]
fn linux_reseeds_after_it_went_back() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let (kernel, initrd) = (guest.generic.to_str().unwrap(), guest.initrd.to_str().unwrap());
    let cmdline = format!("{CONSOLE} piton.run=shell");
    let mut vm = home.args_vm(&[
        "run",
        "demo",
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        &cmdline,
        "--memory",
        "256M",
    ]);
    vm.expect("LINUX-GUEST-UP");
    vm.expect("# ");
    let count = "dmesg | grep -c 'reseeded due to virtual machine fork' | sed s/^/RESEEDED-/";
    home.piton("pause demo").ok();
    home.piton("resume demo").ok();
    home.piton("checkpoint create demo one --type standard").ok();
    vm.send(count);
    vm.expect("RESEEDED-0");
    for _ in 0..2 {
        home.piton("checkpoint apply demo@one --discard-current --run").ok();
        vm.send(&format!("until dmesg | grep -q 'virtual machine fork'; do usleep 100000; done; {count}"));
        // The guest went back to before it was asked: once, each time.
        vm.expect("RESEEDED-1");
    }
    vm.send("poweroff -f");
    vm.exits_well();
}
