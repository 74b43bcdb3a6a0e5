//! Making room must not need any; and other limits of the host that a command runs into half-way.

mod ckpt_common;
mod common;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use ckpt_common::{Dice, Lab, files, unchanged};
use common::{Finished, Mount, is_root, skip};

/// Names of memory images of other checkpoints, in any folder.
fn links(lab: &Lab) -> Vec<std::path::PathBuf> {
    let folders = files(&lab.vm("demo").join("checkpoints"));
    let all = folders.iter().flat_map(|folder| files(folder));
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("memory.")).collect()
}

/// A chain of memory images: whoever reads the last reads through all.
fn chain(lab: &Lab, vm: &mut common::Vm, names: &[&str]) {
    for (at, name) in names.iter().enumerate() {
        vm.ok(&format!("blk 1 write {}K 64K {}", 64 * at, at + 1));
        vm.ok(&format!("fill 2 {}", at + 1));
        lab.create(name);
    }
}

#[test]
fn with_no_room_at_all_a_checkpoint_can_be_deleted() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let mount = Mount::tmpfs("60m", &lab.root());
    let mut vm = lab.boot("--memory 32M");
    vm.ok("journal off");
    chain(&lab, &mut vm, &["one", "two", "three", "four", "five", "six"]);
    let before = lab.nodes();
    let ballast = mount.fill("ballast");
    // While it runs: the first of a chain, which others read through, and one in the middle.
    for name in ["one", "three"] {
        lab.delete(name);
        lab.at_rest();
        mount.fill("ballast2");
    }
    vm.ok("blk 1 verify 0 64K 1");
    vm.signal(libc::SIGKILL);
    vm.exit();
    for path in [&ballast, &lab.root().join("ballast2")] {
        let _ = std::fs::remove_file(path);
    }
    lab.piton("doctor demo --repair").ok();
    // And while it is off.
    mount.fill("ballast");
    lab.delete("two");
    let _ = std::fs::remove_file(&ballast);
    lab.piton("doctor demo --repair").ok();
    assert_eq!(lab.names(), ["five", "four", "six"]);
    unchanged(&before, &lab.nodes());
    lab.tidy();
}

#[test]
fn a_delete_on_a_full_disk_may_be_killed() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let mut dice = Dice::from_env("a_delete_on_a_full_disk_may_be_killed");
    let mount = Mount::tmpfs("80m", &lab.root());
    let mut vm = lab.boot("--memory 32M");
    let names: Vec<String> = (0..10).map(|at| format!("c{at}")).collect();
    chain(&lab, &mut vm, &names.iter().map(String::as_str).collect::<Vec<_>>());
    vm.power_off();
    let before = lab.nodes();
    for name in &names[..8] {
        let ballast = mount.fill("ballast");
        let delete = lab.command(["checkpoint", "delete", &format!("demo@{name}"), "--yes"]);
        let mut child = { delete }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(dice.below(25_000)));
        let _ = child.kill();
        child.wait().unwrap();
        std::fs::remove_file(&ballast).unwrap();
        lab.piton("doctor demo --repair").ok();
        unchanged(&before, &lab.nodes());
        lab.tidy();
    }
}

#[test]
fn a_refused_delete_leaves_no_links() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let mount = Mount::tmpfs("60m", &lab.root());
    let mut vm = lab.boot("--memory 32M");
    chain(&lab, &mut vm, &["one", "two", "three"]);
    vm.power_off();
    let before = lab.nodes();
    // Nor is there the room that is kept for it.
    std::fs::remove_file(lab.vm("demo").join("reserve")).unwrap();
    let ballast = mount.fill("ballast");
    let refused = lab.cp("delete demo@one --yes");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(links(&lab), Vec::<std::path::PathBuf>::new());
    std::fs::remove_file(&ballast).unwrap();
    lab.tidy();
    assert_eq!(lab.names(), ["one", "three", "two"]);
    unchanged(&before, &lab.nodes());
}

#[test]
fn going_back_needs_no_second_descriptor_for_each_layer() {
    let lab = Lab::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 180 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_piton")]);
    let line = format!("run demo --detach --memory 32M {}", lab.disks());
    shell.args(line.split_ascii_whitespace());
    lab.equip(&mut shell);
    Finished::run(shell).ok();
    for at in 0..45 {
        lab.create(&format!("c{at} --full"));
    }
    lab.apply("c44", "--run");
    lab.apply("c20", "--run");
    lab.stop();
    lab.sound();
}

#[test]
fn whoever_reads_while_others_delete_sees_no_damage() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    vm.ok("journal off");
    chain(&lab, &mut vm, &["a", "old", "b"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for line in ["diff demo@a demo@b", "verify demo@b", "verify demo@a"] {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let read = lab.cp(line);
                    assert!([Some(0), Some(3)].contains(&read.code), "{read:?}");
                }
            });
        }
        let changes = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for at in 0..12 {
                vm.ok(&format!("blk 1 write {}K 256K {at}", at * 32));
                vm.ok(&format!("fill 2 {at}"));
                lab.create(&format!("t{at}"));
                lab.create(&format!("b{at}"));
                let old = if at == 0 { "old".into() } else { format!("t{}", at - 1) };
                for gone in [old.as_str(), "b"] {
                    // One that is read at the moment stays.
                    while lab.cp(&format!("delete demo@{gone} --yes --no-wait")).code == Some(3) {}
                }
                lab.cp(&format!("rename demo@b{at} b")).ok();
            }
        }));
        done.store(true, Ordering::Relaxed);
        changes.unwrap();
    });
    vm.power_off();
    lab.tidy();
}
