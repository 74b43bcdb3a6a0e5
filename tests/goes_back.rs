//! The guest itself checks that memory and disks are of one instant. In both lanes.

mod ckpt_common;
mod common;

use std::collections::BTreeMap;

use ckpt_common::{Lab, MIB, owned, unchanged};

fn under_load(cpus: u32) {
    let lab = Lab::new();
    let mut vm = lab.boot(&format!("--memory 128M --cpus {cpus}"));
    vm.ok("journal tick 5");
    vm.ok("fill 16 9");
    vm.ok("blk 0 write 0 1M 1");
    vm.ok("blk 1 write 0 1M 2");
    // Under emulation each first write to a page after the log was read takes a long way.
    vm.ok(if common::is_emulated() { "dirty 8 10" } else { "dirty 32 100" });
    let sum = vm.ok("sum");
    vm.journal_goes_on(3);
    let at = lab.create("before");
    assert_eq!(at["type"], "standard");
    assert_eq!(at["lands"], "paused");
    assert_eq!(at["memory"], 128 * MIB);
    assert!(at["pause_us"].as_u64().unwrap() > 0, "{at}");
    let before = lab.nodes();

    for round in 0..3 {
        let seq = vm.journal();
        vm.journal_goes_on(seq + 5);
        vm.ok("fill 16 10");
        vm.ok("blk 0 write 0 1M 3");
        vm.ok("blk 1 write 512K 256K 4");
        vm.ok("blk 1 flush");
        let later = vm.journal();
        lab.apply("before", if round == 0 { "" } else { "--run" });
        if round == 0 {
            assert_eq!(lab.state(), "paused");
            lab.piton("resume demo").ok();
        }
        assert_eq!(lab.state(), "running");
        // Under emulation it may be past that again when it is asked; the sum tells there, too.
        assert!(common::is_emulated() || vm.journal() <= later + 5, "the journal went back");
        assert_eq!(vm.ok("sum"), sum);
        vm.ok("blk 0 verify 0 1M 1");
        vm.ok("blk 1 verify 0 1M 2");
        let seq = vm.journal();
        vm.journal_goes_on(seq + 2);
        if round == 2 {
            vm.ok("dirty check");
        }
    }
    unchanged(&before, &lab.nodes());
    assert_eq!(lab.parents(), BTreeMap::from([("before", "-"), ("Now", "before")].map(owned)));
    let console = vm.power_off().console;
    assert!(!console.contains("MISMATCH"), "memory and disks are not of one instant");
    unchanged(&before, &lab.nodes());
    lab.tidy();
    lab.template_is_untouched();
}

#[test]
fn goes_back_under_load() {
    under_load(1);
}

#[test]
fn goes_back_under_load_with_two_vcpus() {
    under_load(2);
}
