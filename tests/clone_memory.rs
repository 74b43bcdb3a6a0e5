//! Clones that share the memory of the checkpoint that they begin at.

mod ckpt_common;
mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ckpt_common::{Lab, MIB};
use common::{Finished, Terminal};
use serde_json::Value;

/// What an idle clone may have of its own beyond what its guest wrote: piton itself.
const OWN: u64 = 6 * MIB;

/// A running guest that wrote to 24 MiB of its memory, and what that is.
fn running() -> (Lab, Terminal, String) {
    let lab = Lab::new();
    lab.piton(&format!("run demo --detach --memory 64M {}", lab.disks())).ok();
    let mut guest = lab.attach("demo");
    guest.ready();
    guest.ok("fill 24 3");
    let sum = guest.ok("sum");
    (lab, guest, sum)
}

fn show(lab: &Lab, vm: &str) -> Value {
    lab.piton(&format!("show {vm} --json")).json()
}

/// Memory that belongs to the process of a VM alone.
fn own_memory(lab: &Lab, vm: &str) -> u64 {
    let pid = show(lab, vm)["pid"].as_u64().expect("it runs");
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (kib("Private_Clean:") + kib("Private_Dirty:")) << 10
}

fn copy_of(lab: &Lab, name: &str) -> PathBuf {
    lab.folder(&lab.show(name)).join("memory-flat")
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// Somewhere in what the guest filled first and does not fill again: it fills from the same place
/// on.
fn data_in(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let (start, middle) = (4 * MIB as usize, 12 * MIB as usize);
    let first = bytes[start..].iter().position(|byte| *byte != 0).unwrap();
    let next = bytes[start + first + middle..].iter().position(|byte| *byte != 0).unwrap();
    (start + first + middle + next) as u64
}

#[test]
fn running_clones_share_memory_and_keep_what_they_write() {
    let (lab, mut demo, sum) = running();
    lab.create("one");
    // Every image is compared with a copy of memory taken in the pause.
    let mut clone = lab.command("clone demo@one web --count 3 --run".split(' '));
    clone.env("PITON_SHADOW", "1");
    Finished::run(clone).ok();
    lab.piton("clone demo@one alone --own-memory --run").ok();
    assert_eq!(show(&lab, "alone")["shares_memory"], false);
    let mut guests = ["web-1", "web-2", "web-3"].map(|vm| lab.console(vm));
    for (n, guest) in (1..).zip(&mut guests) {
        assert_eq!(guest.ok("sum"), sum);
        guest.ok(&format!("fill {n} {}", 10 + n));
    }
    for (n, vm) in (1..).zip(["web-1", "web-2", "web-3"]) {
        assert_eq!(show(&lab, vm)["shares_memory"], true);
        let own = own_memory(&lab, vm);
        assert!(own < OWN + n * MIB, "{vm} has {own} bytes of its own");
        let shown = lab.piton(&format!("show {vm}")).ok();
        assert!(shown.contains("64 MiB, shared except what it has written"), "{shown}");
    }
    let sums = guests.each_mut().map(|guest| guest.ok("sum"));
    assert!(sums[0] != sums[1] && sums[1] != sums[2] && sums[0] != sum);
    assert_eq!(demo.ok("sum"), sum);
    // A checkpoint of a clone holds what it wrote, a full one all of it; both are compared with
    // what its memory was.
    lab.piton("checkpoint create web-2 delta").ok();
    lab.piton("checkpoint create web-2 whole --full").ok();
    let stored = |name: &str| lab.manifest("web-2", name)["memory"]["stored_bytes"].as_u64().unwrap();
    assert!(stored("delta") < 8 * MIB, "{}", stored("delta"));
    assert!(stored("whole") > 24 * MIB, "{}", stored("whole"));
    guests[1].ok("fill 8 77");
    for (name, option) in [("delta", ""), ("whole", ""), ("delta", "--share"), ("whole", "--share")] {
        lab.cp(&format!("apply web-2@{name} --discard-current --run {option}")).ok();
        assert_eq!(guests[1].ok("sum"), sums[1]);
        // What is not in one file is only copied into one if that is asked for.
        assert_eq!(show(&lab, "web-2")["shares_memory"], option == "--share" || name == "whole");
        guests[1].ok("fill 8 78");
    }
    for reference in ["web-2@delta", "web-2@whole", "web-2@one"] {
        lab.piton(&format!("checkpoint verify {reference}")).ok();
    }
    // What they share goes, by name.
    lab.delete("one");
    lab.stop();
    lab.piton("rm demo --yes").ok();
    assert_eq!(guests[0].ok("sum"), sums[0]);
    assert_eq!(guests[2].ok("sum"), sums[2]);
    lab.piton("checkpoint revert web-1 --yes --run").ok();
    assert_eq!(guests[0].ok("sum"), sum);
    assert_eq!(show(&lab, "web-1")["shares_memory"], true);
}

#[test]
fn memory_in_parts_or_compressed_is_copied_once_for_all_clones() {
    let (lab, mut demo, _) = running();
    lab.create("one");
    demo.ok("fill 2 9");
    lab.create("part");
    lab.cp("create demo packed --compress").ok();
    let sum = demo.ok("sum");
    for name in ["part", "packed"] {
        assert!(!copy_of(&lab, name).exists());
        lab.piton(&format!("clone demo@{name} {name}-a --run")).ok();
        let inode = copy_of(&lab, name).metadata().unwrap().ino();
        let shown = lab.cp(&format!("show demo@{name}")).ok();
        assert!(shown.contains("for clones") && shown.contains("a copy that they share"), "{shown}");
        lab.piton(&format!("clone demo@{name} {name}-b --run")).ok();
        assert_eq!(copy_of(&lab, name).metadata().unwrap().ino(), inode);
        for vm in [format!("{name}-a"), format!("{name}-b")] {
            assert_eq!(lab.console(&vm).ok("sum"), sum);
            assert_eq!(show(&lab, &vm)["shares_memory"], true);
            let own = own_memory(&lab, &vm);
            assert!(own < OWN, "{vm} has {own} bytes of its own");
        }
        // One that vanished is made again.
        std::fs::remove_file(copy_of(&lab, name)).unwrap();
        lab.piton(&format!("clone demo@{name} {name}-c --run")).ok();
        assert_eq!(lab.console(&format!("{name}-c")).ok("sum"), sum);
        // And so is one that is damaged; who has the former keeps it.
        flip(&copy_of(&lab, name), data_in(&copy_of(&lab, name)));
        lab.piton(&format!("clone demo@{name} {name}-d --run")).ok();
        assert_eq!(lab.console(&format!("{name}-d")).ok("sum"), sum);
        assert_eq!(lab.console(&format!("{name}-a")).ok("sum"), sum);
    }
    lab.piton("checkpoint verify demo@part").ok();
    let folder = lab.folder(&lab.show("part"));
    lab.delete("part");
    assert!(!folder.exists());
    assert_eq!(lab.console("part-b").ok("sum"), sum);
    lab.stop();
    lab.piton("doctor demo").ok();
}

#[test]
fn damaged_memory_is_found_before_it_is_shared() {
    let (lab, mut demo, sum) = running();
    lab.create("one");
    lab.piton("clone demo@one first").ok();
    let image = lab.folder(&lab.show("one")).join("memory");
    let at = data_in(&image);
    lab.piton("clone demo@one early --run").ok();
    lab.console("early");
    // After it was checked.
    flip(&image, at);
    let place = format!("offset {}", at / 4096 * 4096);
    lab.piton("clone demo@one second").fails(1, &["damaged", "memory", &place]);
    lab.cp("apply demo@one --discard-current --share").fails(1, &["damaged", &place]);
    assert_eq!(demo.ok("sum"), sum);
    // Who has it mapped does not make a good page of it.
    lab.piton("checkpoint create early part --type standard").ok();
    lab.piton("checkpoint create early whole --full --type standard").fails(1, &["damaged", &place]);
    // It is found, too, where pages would be copied with their checksums.
    demo.ok("fill 1 5");
    let small = lab.create("part");
    assert_eq!(small["memory_parent"], lab.show("one")["id"]);
    lab.piton("clone demo@part third").fails(1, &["damaged", &place]);
    assert!(!copy_of(&lab, "part").exists());
    assert!(!lab.vm("second").exists() && !lab.vm("third").exists());
    // With memory of its own only who touches it is told.
    lab.piton("clone demo@one fourth --own-memory").ok();
    assert_eq!(show(&lab, "fourth")["state"], "paused");
    flip(&image, at);
    lab.piton("clone demo@part third --run").ok();
}

#[test]
fn the_copy_does_not_outlive_its_use() {
    let (lab, mut demo, _) = running();
    lab.create("one");
    demo.ok("fill 2 9");
    lab.create("part");
    demo.ok("fill 2 10");
    lab.create("top");
    lab.piton("clone demo@part web").ok();
    assert!(copy_of(&lab, "part").exists());
    // Once its own image is all in one, there is nothing that a copy would be for.
    let folder = lab.folder(&lab.show("part"));
    lab.delete("one");
    lab.stop();
    lab.piton("start demo").ok();
    lab.attach("demo").ready();
    lab.at_rest();
    let manifest = lab.show("part");
    assert!(manifest["memory"]["parent"].is_null() && manifest["memory"]["flat"].is_null(), "{manifest}");
    assert!(!folder.join("memory-flat").exists());
    lab.piton("clone demo@part again --run").ok();
    assert!(!folder.join("memory-flat").exists());
    assert_eq!(show(&lab, "again")["shares_memory"], true);
    lab.stop();
    lab.piton("doctor demo").ok();
}
