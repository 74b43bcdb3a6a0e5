//! Layers merge while the guest runs, and neither it nor any checkpoint notices.

mod ckpt_common;
mod common;

use std::collections::BTreeMap;

use ckpt_common::{Lab, MIB, pattern, same, unchanged};
use common::{Mount, Vm, is_root, skip, until};
use serde_json::{Value, json};

/// Both disks of the lab, and one that takes a while to merge.
fn lab_with_a_big_disk(options: &str) -> (Lab, Vm) {
    let lab = Lab::new();
    let big = lab.image("big.raw", 256 * MIB);
    let vm = lab.boot(&format!("--disk {big},id=big {options}"));
    (lab, vm)
}

/// With all of its memory: these tests are about disks.
#[track_caller]
fn create(lab: &Lab, name: &str) -> Value {
    lab.create(&format!("{name} --full"))
}

/// The jobs that merged or merge.
fn merges(lab: &Lab) -> Vec<Value> {
    let jobs = lab.cp("jobs demo --json").json();
    jobs["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] == "merge").cloned().collect()
}

/// Waits for all that merge and asserts that they came to their end.
#[track_caller]
fn merged(lab: &Lab) {
    lab.at_rest();
    for job in merges(lab) {
        assert_eq!(job["state"], "done", "{job}");
    }
    assert_eq!(lab.list()["pending_merges"], 0);
}

/// Waits until a merge has moved something and is not done.
#[track_caller]
fn merge_under_way(lab: &Lab) {
    until("a merge to be under way", || {
        let merging = merges(lab).pop().unwrap_or_default();
        (merging["phase"] == "merge" && merging["done"].as_u64() > Some(0)).then_some(())
    });
}

#[test]
fn deleting_every_checkpoint_lands_on_the_base_while_the_journal_runs() {
    let (lab, mut vm) = lab_with_a_big_disk("--memory 64M --cpus 2");
    vm.ok("journal tick 1");
    for seed in 1..5 {
        vm.ok(&format!("blk 0 write {} 256K {seed}", seed * 128 * 1024));
        vm.ok(&format!("blk 1 write {} 256K {seed}", seed * 128 * 1024));
        vm.ok(&format!("blk 2 write {}M 24M {seed}", seed * 16));
        create(&lab, &format!("c{seed}"));
    }
    vm.ok("blk 2 write 100M 8M 9");
    let seq = vm.journal();
    let deleted = lab.cp("delete demo@c1 --subtree --yes --json").json();
    assert_eq!((&deleted["merge_later"], deleted["merge_job"].is_string()), (&json!(true), true));
    // The guest writes on while it goes on.
    vm.ok("blk 2 write 120M 4M 10");
    vm.ok("blk 0 write 64K 64K 11");
    merged(&lab);
    vm.journal_goes_on(seq + 5);
    // Back on its own bases, live: what it writes is in the file.
    for disk in ["a", "big"] {
        assert_eq!(lab.deltas(disk), Vec::<std::path::PathBuf>::new());
    }
    assert_eq!(lab.deltas("b").len(), 1, "a template is not written");
    assert_eq!(lab.definition()["now"]["tops"].as_object().unwrap().len(), 1);
    vm.ok("blk 0 write 0 64K 12");
    vm.ok("blk 0 flush");
    let base = std::fs::read(&lab.a).unwrap();
    same("the base", &pattern(12, 0, 64 << 10), &base[..64 << 10]);
    let check = |vm: &mut dyn FnMut(&str)| {
        for (disk, offset, len, seed) in [
            (2, "16M", "16M", 1),
            (2, "32M", "16M", 2),
            (2, "64M", "24M", 4),
            (2, "100M", "8M", 9),
            (2, "120M", "4M", 10),
            (0, "64K", "64K", 11),
            (0, "0", "64K", 12),
            (1, "128K", "128K", 1),
            (1, "512K", "256K", 4),
        ] {
            vm(&format!("blk {disk} verify {offset} {len} {seed}"));
        }
    };
    check(&mut |line| {
        vm.ok(line);
    });
    // A checkpoint on the bare bases again, and back to it.
    create(&lab, "again");
    vm.ok("blk 0 write 0 64K 13");
    lab.apply("again", "--run");
    check(&mut |line| {
        vm.ok(line);
    });
    let seq = vm.journal();
    lab.delete("again");
    merged(&lab);
    vm.journal_goes_on(seq + 2);
    assert!(!vm.power_off().console.contains("MISMATCH"));
    lab.tidy();
    let mut vm = lab.home.boot("start demo --attach");
    check(&mut |line| {
        vm.ok(line);
    });
    vm.power_off();
    lab.template_is_untouched();
}

#[test]
fn a_middle_one_is_merged_under_the_guest_and_all_others_stay() {
    let (lab, mut vm) = lab_with_a_big_disk("--memory 32M");
    for seed in 1..5 {
        vm.ok(&format!("blk 0 write {} 64K {seed}", seed * 32 * 1024));
        vm.ok(&format!("blk 2 write {}M 8M {seed}", seed * 4));
        vm.ok(&format!("fill 2 {seed}"));
        create(&lab, &format!("c{seed}"));
    }
    lab.apply("c2", "--run");
    vm.ok("blk 0 write 0 64K 9");
    create(&lab, "side");
    lab.apply("c4", "--run");
    let before = lab.nodes();
    // In the chain of the guest, beside it, and what it lies on.
    for victim in ["c3", "side", "c1", "c4"] {
        lab.delete(victim);
        merged(&lab);
        unchanged(&before, &lab.nodes());
        vm.journal();
        vm.ok("blk 0 verify 128K 64K 4");
        vm.ok("blk 2 verify 16M 8M 4");
    }
    assert_eq!(lab.names(), ["c2"]);
    // Layers: of the checkpoint and of Now.
    assert_eq!((lab.deltas("a").len(), lab.deltas("big").len()), (1, 1), "{:?}", lab.deltas("a"));
    assert_eq!(lab.unchecked_layers("c2"), Vec::<String>::new());
    vm.power_off();
    lab.tidy();
    unchanged(&before, &lab.nodes());
}

/// Layers on disk of a size that leaves time to do something while they merge.
fn long_merge(options: &str) -> (Lab, Vm) {
    let (lab, mut vm) = lab_with_a_big_disk(options);
    vm.ok("blk 2 write 0 96M 1");
    create(&lab, "one");
    vm.ok("blk 2 write 48M 96M 2");
    vm.ok("fill 4 5");
    create(&lab, "two");
    vm.ok("blk 2 write 160M 64M 3");
    vm.ok("blk 0 write 0 64K 3");
    (lab, vm)
}

fn check_long(vm: &mut Vm) {
    vm.ok("blk 2 verify 0 48M 1");
    vm.ok("blk 2 verify 48M 96M 2");
    vm.ok("blk 2 verify 160M 64M 3");
}

#[test]
fn everything_else_goes_on_during_a_merge() {
    let (lab, mut vm) = long_merge("--memory 64M");
    lab.delete("one");
    merge_under_way(&lab);
    // Requests are answered, a checkpoint is made above it.
    assert_eq!(lab.piton("pause demo --json").json()["state"], "paused");
    assert_eq!(lab.piton("resume demo --json").json()["state"], "running");
    create(&lab, "three");
    let before = lab.names();
    assert_eq!(before, ["three", "two"]);
    vm.ok("blk 0 write 0 64K 4");
    // Another delete goes into the same work.
    lab.delete("two");
    check_long(&mut vm);
    merged(&lab);
    check_long(&mut vm);
    let node = lab.nodes();
    vm.ok("blk 0 write 0 64K 5");
    lab.apply("three", "--run");
    vm.ok("blk 0 verify 0 64K 3");
    check_long(&mut vm);
    unchanged(&node, &lab.nodes());
    vm.journal();
    vm.power_off();
    lab.tidy();
    unchanged(&node, &lab.nodes());
}

#[test]
fn going_back_and_ending_park_a_merge() {
    let (lab, mut vm) = long_merge("--memory 64M");
    let before = lab.nodes();
    lab.delete("one");
    merge_under_way(&lab);
    lab.apply("two", "--run");
    vm.ok("blk 0 write 0 64K 6");
    vm.ok("blk 2 verify 0 48M 1");
    vm.ok("blk 2 verify 48M 96M 2");
    merged(&lab);
    unchanged(&before, &lab.nodes());
    // A reset of the guest in the middle.
    vm.ok("blk 2 write 0 96M 7");
    create(&lab, "three");
    vm.ok("blk 2 write 32M 96M 8");
    lab.delete("three");
    vm.send("reboot");
    vm.ready();
    vm.ok("blk 2 verify 0 32M 7");
    vm.ok("blk 2 verify 32M 96M 8");
    vm.journal();
    merged(&lab);
    vm.ok("blk 2 verify 32M 96M 8");
    // Its end: what is left is merged then.
    vm.ok("blk 2 write 0 96M 9");
    create(&lab, "four");
    vm.ok("blk 2 write 64M 96M 10");
    lab.delete("four");
    vm.power_off();
    lab.tidy();
    unchanged(&before, &lab.nodes());
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 2 verify 0 64M 9");
    vm.ok("blk 2 verify 64M 96M 10");
    vm.power_off();
}

#[test]
fn a_cancelled_merge_is_left_for_later() {
    let (lab, mut vm) = long_merge("--memory 64M");
    let before = lab.nodes();
    let deleted = lab.cp("delete demo@one --yes --json").json();
    let job = deleted["merge_job"].as_str().unwrap();
    merge_under_way(&lab);
    lab.cp(&format!("cancel demo {job}")).ok();
    lab.at_rest();
    let merge = merges(&lab).pop().unwrap();
    assert_eq!(merge["state"], "cancelled", "{merge}");
    assert_ne!(lab.list()["pending_merges"], 0);
    let list = lab.cp("list demo");
    assert!(list.stderr.contains("pending"), "{list:?}");
    unchanged(&before, &lab.nodes());
    check_long(&mut vm);
    vm.journal();
    vm.power_off();
    assert_eq!(lab.list()["pending_merges"], 0);
    lab.tidy();
    unchanged(&before, &lab.nodes());
}

#[test]
fn what_a_killed_vm_had_to_merge_is_merged_after_its_start() {
    let (lab, mut vm) = long_merge("--memory 64M");
    vm.ok("blk 2 flush");
    let before = lab.nodes();
    lab.delete("one");
    merge_under_way(&lab);
    vm.signal(libc::SIGKILL);
    vm.exit();
    let mut vm = lab.home.boot("start demo --attach");
    check_long(&mut vm);
    until("the merges to be done", || (lab.list()["pending_merges"] == 0).then_some(()));
    merged(&lab);
    check_long(&mut vm);
    unchanged(&before, &lab.nodes());
    vm.power_off();
    lab.tidy();
    let nodes: BTreeMap<_, _> = lab.nodes();
    unchanged(&before, &nodes);
}

/// A base into which half of a layer was merged is not as any checkpoint knows it, and not changed by
/// somebody else either.
#[test]
fn what_was_merged_into_a_base_is_no_change_of_it() {
    for what in
        ["checkpoint apply demo@two --discard-current", "checkpoint revert demo --yes", "clone demo@two twin"]
    {
        let (lab, mut vm) = long_merge("--memory 32M");
        let before = lab.nodes();
        lab.delete("one");
        merge_under_way(&lab);
        vm.signal(libc::SIGKILL);
        vm.exit();
        let verified = lab.cp("verify demo@two");
        assert!(!verified.stderr.contains("has changed"), "{verified}");
        lab.piton(what).ok();
        lab.cp("verify demo@two").ok();
        if what.starts_with("checkpoint") {
            lab.piton("stop demo --force").ok();
        }
        unchanged(&before, &lab.nodes());
        lab.piton("doctor demo --repair").ok();
        lab.cp("verify demo@two").ok();
        unchanged(&before, &lab.nodes());
    }
}

#[test]
fn killed_at_any_moment_of_a_merge() {
    let lab = Lab::new();
    let big = lab.image("big.raw", 64 * MIB);
    let mut dice = ckpt_common::Dice::from_env("killed_at_any_moment_of_a_merge");
    let mut vm = lab.boot(&format!("--disk {big},id=big --memory 32M"));
    for round in 0..8 {
        let mut now = Vec::new();
        for n in 0..3u64 {
            let seed = round * 10 + n + 1;
            // Each hides a part of the one before.
            let offset = n * 6 * MIB + dice.below(8) * 4096;
            vm.ok(&format!("blk 2 write {offset} 8M {seed}"));
            vm.ok(&format!("blk 0 write {} 256K {seed}", n * 128 * 1024));
            now.push((offset, seed));
            create(&lab, &format!("r{round}n{n}"));
        }
        vm.ok(&format!("blk 2 write 40M 6M {}", round + 100));
        for disk in 0..3 {
            vm.ok(&format!("blk {disk} flush"));
        }
        let before = lab.nodes();
        let names = lab.names();
        let victims: Vec<String> = match round % 3 {
            0 => names.clone(),
            1 => vec![dice.pick(&names).clone()],
            _ => vec![format!("r{round}n2"), names[0].clone()],
        };
        for victim in &victims {
            lab.delete(victim);
        }
        std::thread::sleep(std::time::Duration::from_micros(dice.below(120_000)));
        vm.signal(libc::SIGKILL);
        vm.exit();
        drop(vm);
        vm = lab.home.boot("start demo --attach");
        let seq = vm.journal();
        let check = |vm: &mut Vm| {
            for (at, (offset, seed)) in now.iter().enumerate() {
                // Up to where the next one begins.
                let end = now.get(at + 1).map_or(offset + 8 * MIB, |next| next.0);
                vm.ok(&format!("blk 2 verify {offset} {} {seed}", end - offset));
            }
            vm.ok(&format!("blk 2 verify 40M 6M {}", round + 100));
        };
        check(&mut vm);
        until("the merges to be done", || (lab.list()["pending_merges"] == 0).then_some(()));
        merged(&lab);
        check(&mut vm);
        vm.journal_goes_on(seq);
        let left: Vec<String> = names.iter().filter(|name| !victims.contains(name)).cloned().collect();
        assert_eq!(lab.names(), left);
        unchanged(&before, &lab.nodes());
        for name in &left {
            assert_eq!(lab.unchecked_layers(name), Vec::<String>::new(), "{name}");
        }
    }
    assert!(!vm.power_off().console.contains("MISMATCH"));
    for name in lab.names() {
        lab.delete(&name);
    }
    lab.tidy();
    assert!(lab.deltas("a").is_empty() && lab.deltas("big").is_empty());
    lab.template_is_untouched();
}

#[test]
fn a_merge_without_room_is_put_off_and_the_guest_goes_on() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let dir = lab.beside("small");
    let _mount = Mount::new(&["-t", "tmpfs", "-o", "size=24m", "tmpfs"], &dir);
    let small = dir.join("small.raw");
    std::fs::File::create(&small).unwrap().set_len(16 * MIB).unwrap();
    let mut vm = lab.boot(&format!("--disk {},id=small --memory 32M", small.display()));
    vm.ok("blk 2 write 0 2M 1");
    create(&lab, "one");
    vm.ok("blk 2 write 1M 12M 2");
    vm.ok("blk 2 flush");
    let junk = dir.join("junk");
    let filled = std::fs::write(&junk, vec![1; 24 << 20]);
    assert!(filled.is_err(), "it has to be full");
    let seq = vm.journal();
    lab.delete("one");
    lab.at_rest();
    let failed = merges(&lab).pop().unwrap();
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("small.raw"), "{failed}");
    assert_ne!(lab.list()["pending_merges"], 0);
    let check = |vm: &mut Vm| {
        vm.ok("blk 2 verify 0 1M 1");
        vm.ok("blk 2 verify 1M 12M 2");
    };
    check(&mut vm);
    vm.journal_goes_on(seq + 2);
    // With room again, and a reason to look, it works.
    std::fs::remove_file(&junk).unwrap();
    create(&lab, "two");
    lab.delete("two");
    lab.at_rest();
    assert_eq!(lab.list()["pending_merges"], 0);
    assert!(lab.deltas("small").is_empty());
    check(&mut vm);
    vm.power_off();
    lab.tidy();
}
