//! The bundled guest boots on what it was promised, and ends as it was told.

mod common;

use common::{Home, field, has_word};

#[test]
fn boots_and_powers_off() {
    let home = Home::new();
    let mut vm = home.spawn("run demo");
    vm.expect("piton guest");
    let ready = vm.ready();
    assert_eq!(field(&ready, "vcpus"), 1);
    assert_eq!(field(&ready, "disks"), 1, "a disk of its own");
    let exit = vm.power_off();
    assert!(exit.console.contains("evt poweroff"));
    assert!(exit.stderr.contains("Ctrl-A x"), "what keys do is said: {}", exit.stderr);
    assert!(exit.stderr.contains("has shut down"), "{}", exit.stderr);
    assert!(!home.socket("demo").exists());
}

#[test]
fn has_what_was_asked_for() {
    let home = Home::new();
    let (a, b) = (home.image("a.raw", 4 << 20), home.image("b.raw", 8 << 20));
    let mut vm = home.boot(&format!("run demo --cpus 2 --memory 256M --disk {a},id=first --disk {b}"));
    let info = vm.ok("info");
    assert_eq!((field(&info, "vcpus"), field(&info, "memory"), field(&info, "disks")), (2, 256, 2), "{info}");
    let text = vm.text();
    assert!(text.contains("evt disk=0 mib=4 bytes=4194304 ro=0 flush=1"));
    assert!(text.contains("evt disk=1 mib=8 bytes=8388608 ro=0 flush=1"));
    assert!(has_word(&vm.ok("blk 0 id"), "id=first"));
    assert!(has_word(&vm.ok("blk 1 id"), "id=disk1"));
    vm.power_off();
}

#[test]
fn obeys_its_command_line() {
    let home = Home::new();
    let mut vm =
        home.args_vm(&["run", "demo", "--cmdline", r#"quiet piton.run="echo one; info; poweroff" last=1"#]);
    vm.line(&["ok one"]);
    let info = vm.line(&["ok vcpus="]);
    assert!(info.contains("last=1"), "{info}");
    vm.exits_well();
}

#[test]
fn two_vcpus_run() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    let smp = vm.ok("smp");
    assert_eq!(field(&smp, "vcpus"), 2);
    vm.power_off();
}

#[test]
fn sixteen_vcpus_come_up() {
    let home = Home::new();
    let mut vm = home.spawn("run demo --cpus 16");
    assert_eq!(field(&vm.ready(), "vcpus"), 16);
    assert_eq!(home.piton("show demo --json").json()["config"]["cpus"], 16);
    // They share what CPUs the host has, so one may miss its turn in the time that the guest waits.
    common::until("all vCPUs to run at once", || vm.ask("smp").contains("vcpus=16").then_some(()));
    vm.power_off();
}

#[test]
fn memory_reaches_above_4_gib() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 6G --cpus 2");
    let info = vm.ok("info");
    assert_eq!(field(&info, "memory"), 6144);
    assert!(field(&info, "usable") > 6000, "{info}");
    vm.ok("fill 64 3");
    let sum = vm.ok("sum");
    // The end of memory, two GiB above the hole.
    vm.ok("dirty 16 50");
    common::until("pages to be dirtied", || (field(&vm.ok("dirty"), "written") > 500).then_some(()));
    vm.ok("dirty check");
    assert_eq!(vm.ok("sum"), sum);
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = resident.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 1 << 20, "untouched memory costs nothing: {resident}");
    vm.power_off();
}

#[test]
fn memory_keeps_what_is_in_it() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 128M");
    vm.ok("fill 64 11");
    let sum = vm.ok("sum");
    vm.ok("blk write 0 1M 5");
    assert_eq!(vm.ok("sum"), sum);
    vm.ok("fill 64 12");
    assert_ne!(vm.ok("sum"), sum);
    vm.power_off();
}

#[test]
fn reboots() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    let before = vm.journal_goes_on(3);
    let pid = vm.pid();
    for _ in 0..2 {
        vm.send("reboot");
        vm.line(&["evt reboot"]);
        assert_eq!(field(&vm.ready(), "vcpus"), 2);
        assert!(vm.journal() >= before);
    }
    vm.journal_goes_on(before + 5);
    let shown = home.piton("show demo --json").json();
    assert_eq!((&shown["state"], &shown["pid"]), (&"running".into(), &pid.into()));
    vm.power_off();
}

#[test]
fn a_crash_is_told_and_its_console_kept() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.ok("echo last words");
    vm.send("crash");
    let exit = vm.exit();
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("triple fault"), "{}", exit.stderr);
    assert!(exit.stderr.contains("console.log"), "{}", exit.stderr);
    assert!(home.console_log("demo").contains("ok last words"));
    assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
    // Nothing is lost: it starts again.
    let mut vm = home.boot("start demo --attach");
    vm.journal();
    vm.power_off();
}

#[test]
fn the_console_log_has_what_was_shown() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.ok("help");
    let exit = vm.power_off();
    assert_eq!(home.console_log("demo"), exit.console);
    let mut vm = home.boot("start demo --attach");
    let second = vm.power_off();
    assert_eq!(home.console_log("demo"), exit.console + &second.console, "the log is appended to");
}

#[test]
fn runs_on_with_its_input_closed() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.close_input();
    let mut other = home.attach("demo");
    other.ok("echo still here");
    assert!(vm.is_running());
    other.send("poweroff");
    vm.exits_well();
}

#[test]
fn a_long_line_of_output_is_whole() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    for round in 0..50 {
        let text = format!("{round} {}", "0123456789".repeat(8));
        assert_eq!(vm.ok(&format!("echo {text}")), format!("ok {text}"));
    }
    vm.power_off();
}
