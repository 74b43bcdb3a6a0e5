//! Checkpoints whose memory lies compressed: what changes is the room that they take.

mod ckpt_common;
mod common;

use std::os::unix::fs::{FileExt, MetadataExt};

use ckpt_common::{Lab, MIB, unchanged};
use common::{Home, Vm};
use serde_json::Value;

/// Each image is compared with a copy of memory taken in the pause.
fn boot(lab: &Lab, options: &str) -> Vm {
    let line = format!("run demo {} {options}", lab.disks());
    let mut command = lab.command(line.split(' '));
    command.env("PITON_SHADOW", "1");
    let mut vm = Vm::spawn(command);
    vm.ready();
    vm
}

fn compressed(checkpoint: &Value) -> Option<u64> {
    checkpoint["memory_compressed"].as_u64()
}

/// Bytes of the file that are not holes.
fn room(lab: &Lab, name: &str) -> u64 {
    std::fs::metadata(lab.folder(&lab.show(name)).join("memory")).unwrap().blocks() * 512
}

/// A chain c0 to c3 of which c0 and c2 are compressed, and what `sum` says in each.
fn chain(lab: &Lab, vm: &mut Vm) -> Vec<String> {
    vm.ok("journal tick 5");
    (0..4)
        .map(|n| {
            // 48 MiB, then 36, 24 and 12 of them anew.
            vm.ok(&format!("fill {} {n} 300", 48 - n * 12));
            let sum = vm.ok("sum");
            let option = if n % 2 == 0 { "--compress" } else { "" };
            let made = lab.cp(&format!("create demo c{n} {option} --json").replace("  ", " ")).json();
            assert_eq!(compressed(&made).is_some(), n % 2 == 0, "{made}");
            if let Some(bytes) = compressed(&made) {
                let stored = made["memory_stored"].as_u64().unwrap();
                assert!(stored >= (48 - n * 12) * MIB && bytes < stored / 4, "{made}");
                assert!(room(lab, &format!("c{n}")) < bytes + MIB);
            }
            sum
        })
        .collect()
}

#[track_caller]
fn all_restore(lab: &Lab, vm: &mut Vm, sums: &[String], names: &[usize]) {
    for n in names {
        lab.apply(&format!("c{n}"), "--run");
        assert_eq!(vm.ok("sum"), sums[*n], "c{n}");
        let seq = vm.journal();
        vm.journal_goes_on(seq + 2);
        vm.ok("journal check");
    }
}

#[test]
fn a_chain_of_both_kinds_restores_and_merges() {
    let lab = Lab::new();
    let mut vm = boot(&lab, "--memory 128M --cpus 2");
    let sums = chain(&lab, &mut vm);
    all_restore(&lab, &mut vm, &sums, &[0, 2, 3, 1]);
    // Of memory that has hardly come yet.
    lab.apply("c2", "");
    let full = lab.cp("create demo full --full --compress --json").json();
    assert_eq!(full["memory_parent"], Value::Null);
    assert!(compressed(&full).unwrap() < 24 * MIB, "{full}");
    lab.apply("full", "--run");
    assert_eq!(vm.ok("sum"), sums[2]);
    lab.apply("c3", "--run");
    vm.journal();
    assert!(!vm.power_off().console.contains("MISMATCH"), "memory and disks are not of one instant");

    let before = lab.nodes();
    let took = room(&lab, "c0");
    lab.delete("c1");
    unchanged(&before, &lab.nodes());
    // c1's image, which lay as it was, went into c2's.
    let [c2, c3] = ["c2", "c3"].map(|name| lab.show(name));
    assert_eq!(c2["memory"]["parent"], lab.show("c0")["id"]);
    assert!(c2["memory"]["compressed_bytes"].as_u64() < c2["memory"]["stored_bytes"].as_u64(), "{c2}");
    assert_eq!(c3["memory"]["compressed_bytes"], Value::Null);
    assert_eq!(room(&lab, "c0"), took);
    lab.delete("c0");
    unchanged(&before, &lab.nodes());
    let c2 = lab.show("c2");
    assert_eq!(c2["memory"]["parent"], Value::Null);
    assert!(c2["memory"]["compressed_bytes"].as_u64().unwrap() < 24 * MIB, "{c2}");
    lab.tidy();
    let said = lab.cp("list demo").ok();
    assert!(said.contains(" (compressed to "), "{said}");

    assert_eq!(sum_at(&lab.home, "demo", "c2"), sums[2]);
    lab.tidy();
}

/// What the guest's memory is at a checkpoint of a VM that is off.
#[track_caller]
fn sum_at(home: &Home, vm: &str, checkpoint: &str) -> String {
    home.piton(&format!("checkpoint apply {vm}@{checkpoint} --discard-current")).ok();
    let mut terminal = home.attach(vm);
    home.piton(&format!("resume {vm}")).ok();
    let sum = terminal.ok("sum");
    home.piton(&format!("stop {vm} --force")).ok();
    home.ended(vm);
    sum
}

#[test]
fn exports_imports_and_clones_stay_compressed() {
    let lab = Lab::new();
    let mut vm = boot(&lab, "--memory 128M");
    let sums = chain(&lab, &mut vm);
    lab.piton("clone demo@c2 twin").ok();
    let dir = lab.home.beside("out").display().to_string();
    lab.cp(&format!("export demo@c2 {dir}")).ok();
    vm.power_off();
    assert!(std::fs::metadata(format!("{dir}/memory")).unwrap().blocks() * 512 < 24 * MIB);
    let changed = lab.home.piton("checkpoint diff demo@c2 twin@c2 --json").json();
    assert_eq!(changed["memory"]["bytes"], 0, "{changed}");

    let other = Home::new();
    other.piton(&format!("import {dir}")).ok();
    let there = other.piton("checkpoint show demo@c2 --json").json();
    assert!(there["memory_compressed"].as_u64().unwrap() < 24 * MIB, "{there}");
    other.piton("checkpoint verify demo@c2").ok();
    assert_eq!(sum_at(&other, "demo", "c2"), sums[2]);
    assert_eq!(sum_at(&lab.home, "twin", "c2"), sums[2]);
}

#[test]
fn damage_is_named_and_never_given_to_a_guest() {
    let lab = Lab::new();
    let mut vm = boot(&lab, "--memory 128M");
    vm.ok("fill 48 7 300");
    lab.cp("create demo one --compress").ok();
    vm.power_off();
    let path = lab.folder(&lab.show("one")).join("memory");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let bytes_at = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    // The last chunk that begins as a Zstandard frame does.
    let mut chunks = (0..512).rev().map(|chunk| chunk * 64 * 4096);
    let at = chunks.find(|at| bytes_at(*at) == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    file.write_all_at(&bytes_at(at + 20).map(|byte| !byte), at + 20).unwrap();
    let says = format!("{} is damaged: a wrong checksum of compressed pages at offset {at}", path.display());
    lab.cp("verify demo@one").fails(1, &[&says]);
}
