//! Checkpoints while the guest runs: memory of one instant at every rate of writing, only what
//! changed stored, whatever the VM goes back to.

mod ckpt_common;
mod common;

use ckpt_common::{Lab, MIB};
use common::Vm;
use serde_json::{Value, json};

fn stored(checkpoint: &Value) -> u64 {
    checkpoint["memory_stored"].as_u64().unwrap()
}

/// Goes to each checkpoint; there no page is torn, lost or of another moment.
fn all_restore(lab: &Lab, vm: &mut Vm, names: &[&str]) {
    for name in names {
        lab.apply(name, "--run");
        vm.ok("dirty check");
        let seq = vm.journal();
        vm.journal_goes_on(seq + 2);
        vm.ok("journal check");
    }
}

fn at_rate(cpus: u32, rate: &str) {
    let lab = Lab::new();
    let line = format!("run demo {} --memory 192M --cpus {cpus}", lab.disks());
    let mut command = lab.command(line.split(' '));
    // Every image is compared with a copy of memory taken in the pause.
    command.env("PITON_SHADOW", "1");
    let mut vm = Vm::spawn(command);
    vm.ready();
    vm.ok("journal tick 5");
    vm.ok("fill 64 9");
    vm.ok(&format!("dirty 48 {rate}"));
    vm.journal_goes_on(2);
    let mut before = lab.create("c0");
    assert_eq!(before["memory_parent"], Value::Null);
    for name in ["c1", "c2", "c3"] {
        let seq = vm.journal();
        vm.journal_goes_on(seq + 2);
        let next = lab.create(name);
        assert_eq!(next["memory_parent"], before["id"]);
        assert_eq!(next["capture"]["mode"], "live");
        assert!(stored(&next) < 60 * MIB, "more than what changed: {next}");
        before = next;
    }
    all_restore(&lab, &mut vm, &["c0", "c2", "c3", "c1"]);
    // What comes after an apply is stored as what changed since.
    let next = lab.create("after");
    let c1 = lab.cp("show demo@c1 --json").json();
    assert_eq!(next["memory_parent"], c1["id"]);
    all_restore(&lab, &mut vm, &["after", "c3", "after"]);
    let console = vm.power_off().console;
    assert!(!console.contains("MISMATCH"), "memory and disks are not of one instant");
}

#[test]
fn an_idle_guest() {
    at_rate(1, "0");
}

#[test]
fn fifty_megabytes_a_second() {
    at_rate(1, "50");
}

#[test]
fn five_hundred_megabytes_a_second_on_two_vcpus() {
    at_rate(2, "500");
}

#[test]
fn a_guest_that_writes_as_fast_as_it_can() {
    at_rate(2, "max");
}

#[test]
fn modes_can_be_chosen() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 128M");
    vm.ok("fill 48 5");
    let sum = vm.ok("sum");
    let first = lab.cp("create demo first --mode stop --json").json();
    assert_eq!(first["capture"], json!({"mode": "stop", "rounds": 0, "slowed": 0, "rest_bytes": 0}));
    let changed = lab.cp("create demo changed --mode stop --json").json();
    assert_eq!(changed["memory_parent"], first["id"]);
    assert!(stored(&changed) < 4 * MIB, "{changed}");
    let full = lab.cp("create demo full --full --json").json();
    assert_eq!(full["memory_parent"], Value::Null);
    assert!(stored(&full) > 48 * MIB, "{full}");
    let after = lab.create("after");
    assert_eq!(after["memory_parent"], full["id"]);
    for name in ["first", "changed", "full", "after"] {
        vm.ok("fill 48 6");
        lab.apply(name, "--run");
        assert_eq!(vm.ok("sum"), sum, "{name}");
    }
    lab.home.piton("checkpoint create demo x --mode slow").fails(2, &["invalid value 'slow'"]);
    drop(vm);
}

#[test]
fn a_paused_guest_stores_nothing_new() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 128M");
    vm.ok("fill 32 5");
    let first = lab.cp("create demo first --pause-after --json").json();
    let again = lab.create("again");
    assert_eq!(again["pause_us"], Value::Null, "it did not run");
    assert_eq!(again["memory_parent"], first["id"]);
    assert!(stored(&again) <= MIB, "{again}");
    lab.apply("again", "");
    let third = lab.create("third");
    // The page with the generation.
    assert_eq!((stored(&third), &third["memory_parent"]), (4096, &again["id"]));
    lab.piton("resume demo").ok();
    vm.ok("sum");
    drop(vm);
}

#[test]
fn a_reset_begins_anew() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 128M");
    lab.create("before");
    vm.send("reboot");
    vm.ready();
    let after = lab.create("after");
    assert_eq!(after["memory_parent"], Value::Null);
    lab.apply("after", "--run");
    vm.ok("info");
    drop(vm);
}

#[test]
fn hardly_any_pause_is_allowed() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 192M");
    vm.ok("dirty 64 max");
    lab.cp("create demo tight --max-pause 0").ok();
    lab.apply("tight", "--run");
    vm.ok("dirty check");
    drop(vm);
}

#[test]
fn what_is_deleted_below_is_not_lost() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 128M");
    vm.ok("journal tick 5");
    vm.ok("fill 48 1");
    vm.ok("dirty 16 20");
    let ids = ["c0", "c1", "c2", "c3"].map(|name| {
        vm.ok(&format!("fill 8 {}", name.as_bytes()[1]));
        lab.create(name)["id"].clone()
    });
    // Now's parent, with what it holds, and the one before.
    lab.delete("c3");
    lab.delete("c2");
    vm.ok("fill 4 9");
    let sum = vm.ok("sum");
    let next = lab.create("next");
    assert_eq!(next["memory_parent"], ids[1]);
    assert!(stored(&next) < 32 * MIB, "{next}");
    vm.ok("fill 20 3");
    lab.apply("next", "--run");
    assert_eq!(vm.ok("sum"), sum);
    vm.ok("dirty check");
    lab.delete("c0");
    lab.delete("c1");
    lab.apply("next", "--run");
    assert_eq!(vm.ok("sum"), sum);
    // Its parent's image went into it.
    lab.delete("next");
    let last = lab.create("last");
    assert_eq!(last["memory_parent"], Value::Null);
    lab.apply("last", "--run");
    assert_eq!(vm.ok("sum"), sum);
    vm.ok("journal check");
    drop(vm);
}

#[test]
fn nothing_is_tracked_where_checkpoints_are_disabled() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 128M");
    vm.ok("fill 32 5");
    let first = lab.create("first");
    lab.piton("set demo --checkpoint-type disabled").ok();
    vm.ok("fill 32 6");
    let sum = vm.ok("sum");
    lab.piton("set demo --checkpoint-type standard").ok();
    let second = lab.create("second");
    assert_eq!((&second["memory_parent"], &second["parent"]), (&Value::Null, &first["id"]));
    let third = lab.create("third");
    assert_eq!(third["memory_parent"], second["id"]);
    vm.ok("fill 32 7");
    lab.apply("third", "--run");
    assert_eq!(vm.ok("sum"), sum);
    drop(vm);
}
