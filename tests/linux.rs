//! Stock Debian boots, works and ends. Only where stock Linux can run: on kvm_intel or kvm_amd, or
//! in the throw-away host (scripts/vm-host --guest).

mod common;

use std::path::Path;

use common::{Home, LinuxGuest, Vm};

const CONSOLE: &str = "console=ttyS0 quiet panic=-1";

/// Boots a kernel with the initramfs of scripts/lib/linux-guest; `run` is its scenario.
fn boot(home: &Home, guest: &LinuxGuest, kernel: &Path, options: &[&str], cmdline: &str) -> Vm {
    let (kernel, initrd) = (kernel.to_str().unwrap(), guest.initrd.to_str().unwrap());
    let cmdline = format!("{CONSOLE} {cmdline}");
    let mut args = vec!["run", "demo", "--kernel", kernel, "--initrd", initrd, "--cmdline", &cmdline];
    args.extend(options);
    let mut vm = home.args_vm(&args);
    vm.expect("LINUX-GUEST-UP");
    vm
}

/// A copy of the root disk to write to.
fn root_disk(home: &Home, guest: &LinuxGuest) -> String {
    let copy = home.beside("root.ext4");
    // Sparse, since in the throw-away host this is memory.
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--"])
        .args([&guest.rootfs, &copy])
        .status()
        .unwrap();
    assert!(copied.success());
    copy.to_str().unwrap().to_owned()
}

fn to_userland(kernel: impl Fn(&LinuxGuest) -> &Path) {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let mut vm = boot(&home, &guest, kernel(&guest), &["--cpus", "2"], "piton.run=selftest");
    vm.expect("cpus 2");
    vm.expect("SELFTEST-OK");
    vm.exits_well();
}

#[test]
fn bzimage_boots_to_userland() {
    to_userland(|guest| &guest.kernel);
}

#[test]
fn pvh_vmlinux_boots_to_userland() {
    to_userland(|guest| &guest.vmlinux);
}

#[test]
fn a_disk_keeps_what_linux_writes() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let disk = root_disk(&home, &guest);
    let options = ["--cpus", "2", "--disk", &disk];
    let mut vm = boot(&home, &guest, &guest.kernel, &options, "root=/dev/vda piton.run=selftest");
    vm.expect("disk vda bytes 268435456 ro 0");
    vm.expect("SELFTEST-OK sha256");
    vm.exits_well();
}

#[test]
fn boots_to_a_login_and_powers_off() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let disk = root_disk(&home, &guest);
    let mut vm = boot(&home, &guest, &guest.kernel, &["--disk", &disk], "root=/dev/vda");
    vm.expect("login:");
    vm.send("root");
    vm.expect("# ");
    vm.send("echo $((6 * 7))-nproc-$(nproc)");
    vm.expect("42-nproc-1");
    vm.send("poweroff");
    vm.exits_well();
    // What it wrote before it went off is whole.
    let fsck = std::process::Command::new("/sbin/e2fsck").args(["-fn", &disk]).output();
    match fsck {
        Ok(fsck) => assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout)),
        Err(e) => eprintln!("e2fsck: {e}"),
    }
}

#[test]
fn reboots() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let disk = root_disk(&home, &guest);
    let options = ["--cpus", "2", "--disk", &disk];
    let mut vm = boot(&home, &guest, &guest.kernel, &options, "root=/dev/vda piton.run=reboot-once");
    vm.expect("FIRST-BOOT");
    vm.expect("LINUX-GUEST-UP");
    vm.expect("SECOND-BOOT");
    vm.exits_well();
}

#[test]
fn heeds_the_power_button() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let mut vm = boot(&home, &guest, &guest.kernel, &[], "piton.run=acpid");
    vm.expect("ACPID-READY");
    home.piton("stop demo --timeout 120").ok();
    assert!(vm.exits_well().console.contains("POWER-BUTTON"));
}

#[test]
fn works_at_its_console() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let mut vm = boot(&home, &guest, &guest.kernel, &["--memory", "256M"], "piton.run=shell");
    vm.expect("# ");
    // The random number generator.
    vm.send("head -c 64 /dev/hwrng | wc -c | sed s/^/random-/");
    vm.expect("random-64");
    // Paused and resumed, its processes go on and its clock did not lose its mind.
    vm.send("(while usleep 100000; do echo beat; done) & echo go");
    vm.expect("beat\r\n");
    for _ in 0..3 {
        home.piton("pause demo").ok();
        home.piton("resume demo").ok();
        vm.expect("beat\r\n");
    }
    vm.send("kill %1; poweroff -f");
    vm.exits_well();
    assert!(!home.console_log("demo").contains("BUG:"));
}

#[test]
fn sixteen_vcpus_come_up() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let mut vm = boot(&home, &guest, &guest.kernel, &["--cpus", "16"], "piton.run=selftest");
    vm.expect("cpus 16");
    vm.expect("SELFTEST-OK");
    vm.exits_well();
}

#[test]
fn a_truncated_bzimage_is_refused() {
    let Some(guest) = LinuxGuest::find() else { return };
    let home = Home::new();
    let bytes = std::fs::read(&guest.kernel).unwrap();
    for len in [600, 10_000, bytes.len() - 4096] {
        let kernel = home.file("vmlinuz", &bytes[..len]);
        home.piton(&format!("run demo --kernel {kernel}")).fails(3, &["vmlinuz", "truncated"]);
    }
    let kernel = guest.kernel.display();
    home.piton(&format!("run demo --memory 16M --kernel {kernel}")).fails(3, &["too big", "--memory"]);
    home.is_empty();
}
