//! Out of one PITON_HOME and into another: what comes out is what went in, memory and disks.

mod ckpt_common;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_common::{Lab, MIB, files, pattern, same};
use common::{GUEST, Home, Terminal, skip};
use serde_json::{Value, json};

fn dir(lab: &Lab, name: &str) -> String {
    lab.beside(name).to_str().unwrap().to_owned()
}

fn export_json(dir: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(dir).join("export.json")).unwrap()).unwrap()
}

/// Restores the checkpoint of an imported VM and attaches to its console.
#[track_caller]
fn restore(home: &Home, name: &str) -> Terminal {
    home.piton(&format!("checkpoint revert {name} --yes")).ok();
    let terminal = home.attach(name);
    home.piton(&format!("resume {name}")).ok();
    terminal
}

#[track_caller]
fn end(home: &Home, name: &str) {
    home.piton(&format!("stop {name} --force")).ok();
    home.ended(name);
    assert_eq!(home.piton(&format!("doctor {name} --json")).json(), json!([]));
}

#[test]
fn a_chain_of_three_comes_back_in_another_home() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("journal tick 5");
    vm.ok("fill 8 1");
    vm.ok("blk 0 write 0 1M 1");
    lab.create("one");
    let dirs = ["e1", "e2", "e3"].map(|name| dir(&lab, name));
    lab.cp(&format!("export demo@one {}", dirs[0])).ok();
    vm.ok("fill 8 2");
    vm.ok("blk 0 write 256K 64K 2");
    vm.ok("blk 1 write 1M 64K 2");
    let two = (vm.ok("sum"), lab.create("two")["id"].clone());
    lab.cp(&format!("export demo@two {} --since one", dirs[1])).ok();
    vm.journal_goes_on(5);
    vm.ok("fill 8 3");
    vm.ok("blk 0 discard 0 128K");
    vm.ok("blk 0 write 512K 4K 3");
    let (three, created) = (vm.ok("sum"), lab.create("three"));
    let said = lab.cp(&format!("export demo@three {} --since two", dirs[2])).ok();
    assert!(said.contains("from `two` to `three`") && said.contains(&dirs[2]), "{said}");
    vm.journal();
    vm.power_off();
    let nodes = lab.nodes();

    // Only what changed: the guest wrote 68 KiB and its journal.
    let delta = fs::metadata(Path::new(&dirs[2]).join("disks/a.delta")).unwrap();
    assert!(delta.blocks() * 512 < 768 << 10, "{} bytes", delta.blocks() * 512);
    let increment = export_json(&dirs[2]);
    assert_eq!(increment["since"], json!({ "id": two.1, "name": "two" }));
    assert_eq!(
        (&increment["memory"]["changes"], &increment["disks"]["a"]["changes"]),
        (&json!(true), &json!(true))
    );

    let other = Home::new();
    let checked = other.piton(&format!("import {} --check --json", dirs.join(" "))).json();
    assert_eq!(
        checked,
        json!({ "imported": false, "vm": "demo", "checkpoint": created["id"], "problems": [] })
    );
    other.is_empty();
    let imported = other.piton(&format!("import {} --json", dirs.join(" "))).json();
    assert_eq!((&imported["imported"], &imported["checkpoint"]), (&json!(true), &created["id"]));
    let list = other.piton("checkpoint list demo --json").json();
    assert_eq!((list["checkpoints"].as_array().unwrap().len(), &list["now"]), (1, &created["id"]));
    assert_eq!(
        (&list["checkpoints"][0]["name"], &list["checkpoints"][0]["type"]),
        (&json!("three"), &json!("standard"))
    );
    let verified = other.piton("checkpoint verify demo@three --json").json();
    // Bases have no checksums unless they are asked for; all else has.
    let unchecked = verified["unchecked"].as_array().unwrap();
    assert!(unchecked.iter().all(|what| what.as_str().unwrap().starts_with("the base image")), "{verified}");

    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), three);
    guest.ok("blk 0 verify 512K 4K 3");
    guest.ok("blk 0 verify 256K 64K 2");
    guest.ok("blk 0 verify 640K 384K 1");
    guest.ok("blk 1 verify 1M 64K 2");
    let seq = guest.journal();
    guest.journal_goes_on(seq + 2);
    end(&other, "demo");
    // Exported from there it is the same again.
    let again = dir(&lab, "again");
    other.piton(&format!("checkpoint export demo@three {again}")).ok();
    for (disk, content) in &nodes["three"].disks {
        same(disk, content, &fs::read(Path::new(&again).join(format!("disks/{disk}.raw"))).unwrap());
    }
    // A part of the chain, under another name and with an id of its own.
    other.piton(&format!("import {} {} --name second --new-id", dirs[0], dirs[1])).ok();
    let second = other.piton("checkpoint list second --json").json()["checkpoints"][0].clone();
    assert_eq!(second["name"], "two");
    assert_ne!(second["id"], two.1);
    let mut guest = restore(&other, "second");
    assert_eq!(guest.ok("sum"), two.0);
    guest.ok("blk 0 verify 256K 64K 2");
    end(&other, "second");
    lab.template_is_untouched();
    lab.tidy();
}

#[test]
fn every_format_holds_the_same_and_holes_stay_holes() {
    let lab = Lab::new();
    let big = lab.image("big.raw", 300 * MIB);
    let mut vm = lab.boot(&format!("--memory 64M --disk {big},id=big"));
    vm.ok("blk 2 write 0 1M 7");
    vm.ok("blk 2 write 299M 64K 8");
    vm.ok("fill 4 1");
    let sum = vm.ok("sum");
    lab.create("one");
    vm.ok("blk 2 write 0 1M 9");
    for format in ["raw", "qcow2", "piton"] {
        let dir = dir(&lab, format);
        lab.cp(&format!("export demo@one {dir} --format {format}")).ok();
        let taken: u64 =
            walk(Path::new(&dir)).iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum();
        assert!(taken < 24 * MIB, "{format} takes {taken} bytes");
        for path in walk(Path::new(&dir)) {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
        let other = Home::new();
        other.piton(&format!("import {dir}")).ok();
        let mut guest = restore(&other, "demo");
        assert_eq!(guest.ok("sum"), sum);
        guest.ok("blk 2 verify 0 1M 7");
        guest.ok("blk 2 verify 299M 64K 8");
        guest.journal();
        end(&other, "demo");
    }
    vm.journal();
    vm.power_off();
    let raw = fs::read(lab.beside("raw/disks/big.raw")).unwrap();
    same("the raw image", &lab.nodes()["one"].disks["big"], &raw);
    assert!(raw[..MIB as usize] == pattern(7, 0, MIB));
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skip("qemu-img is not there");
    }
    for disk in ["a", "b", "big"] {
        let (raw, qcow2) =
            (dir(&lab, &format!("raw/disks/{disk}.raw")), dir(&lab, &format!("qcow2/disks/{disk}.qcow2")));
        qemu_img(&["check", &qcow2]);
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
    }
}

#[track_caller]
fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {out:?}");
}

/// All files below a folder.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let (folders, mut found): (Vec<_>, Vec<_>) = files(dir).into_iter().partition(|path| path.is_dir());
    folders.iter().for_each(|folder| found.extend(walk(folder)));
    found
}

#[test]
fn a_checkpoint_is_compared_with_the_current_state() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("fill 4 1");
    lab.create("one");
    vm.ok("blk 0 write 128K 64K 3");
    vm.ok("blk 0 flush");
    vm.ok("fill 4 2");
    lab.cp("diff demo@one demo").fails(3, &["--live", "piton stop demo"]);
    lab.cp("diff demo demo@one").fails(2, &["VM@CHECKPOINT"]);
    let bytes = |changes: &Value, disk: &str| changes["disks"][disk]["bytes"].as_u64().unwrap();
    let changes = lab.cp("diff demo@one demo --live --json").json();
    assert!(bytes(&changes, "a") >= 64 << 10, "{changes}");
    assert!(changes["memory"]["bytes"].as_u64().unwrap() >= 4 << 20, "{changes}");
    assert_eq!(lab.names(), ["one"], "the checkpoint is gone again");
    vm.power_off();
    let off = lab.cp("diff demo@one demo --json").json();
    assert!(bytes(&off, "a") >= 64 << 10, "{off}");
    assert_eq!(off["memory"], Value::Null);
    lab.tidy();
}

#[test]
fn the_active_state_is_exported_running_and_off() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("blk 0 write 0 64K 1");
    vm.ok("fill 4 1");
    let sum = vm.ok("sum");
    let (live, off) = (dir(&lab, "live"), dir(&lab, "off"));
    lab.piton(&format!("export demo {live}")).fails(3, &["is running", "--live", "piton stop demo"]);
    assert!(!Path::new(&live).exists());
    lab.piton(&format!("export demo {live} --live")).ok();
    assert_eq!(lab.names(), [""; 0], "the checkpoint is gone again");
    assert_eq!(lab.state(), "running");
    let seq = vm.journal();
    vm.journal_goes_on(seq);
    vm.ok("blk 0 write 0 64K 2");
    lab.create("one");
    vm.ok("blk 0 write 128K 64K 3");
    vm.ok("blk 0 flush");
    vm.power_off();
    lab.piton(&format!("export demo {off}")).ok();
    assert_eq!(lab.names(), ["one"]);
    let increment = dir(&lab, "increment");
    lab.piton(&format!("export demo {increment} --since other@one")).fails(2, &["`other`", "`demo`"]);
    lab.piton(&format!("export demo {increment} --since demo@one")).ok();
    lab.cp(&format!("export demo@one {}", dir(&lab, "one"))).ok();
    lab.tidy();

    let other = Home::new();
    other.piton(&format!("import {live} --name live")).ok();
    let mut guest = restore(&other, "live");
    assert_eq!(guest.ok("sum"), sum);
    guest.ok("blk 0 verify 0 64K 1");
    guest.journal();
    end(&other, "live");
    for (name, dirs) in [("off", off), ("chain", format!("{} {increment}", dir(&lab, "one")))] {
        other.piton(&format!("import {dirs} --name {name}")).ok();
        let list = other.piton(&format!("checkpoint list {name} --json")).json();
        assert_eq!(list["checkpoints"][0]["type"], "offline");
        other.piton(&format!("start {name}")).ok();
        let mut guest = other.attach(name);
        guest.send("echo here");
        guest.line(&["ok here"]);
        guest.ok("blk 0 verify 0 64K 2");
        guest.ok("blk 0 verify 128K 64K 3");
        // Its first checkpoint can go, and what it held stays.
        let first = list["checkpoints"][0]["id"].as_str().unwrap();
        other.piton(&format!("checkpoint delete {name}@{first} --yes")).ok();
        other.piton(&format!("stop {name} --force")).ok();
        other.ended(name);
        other.piton(&format!("start {name}")).ok();
        let mut guest = other.attach(name);
        guest.send("echo again");
        guest.line(&["ok again"]);
        guest.ok("blk 0 verify 128K 64K 3");
        end(&other, name);
    }
}

#[test]
fn what_a_vm_boots_from_goes_along() {
    let lab = Lab::new();
    let kernel = lab.file("vmlinux", GUEST);
    let mut vm = lab.home.boot(&format!("run demo --kernel {kernel} --memory 64M --disk {},id=a", lab.a));
    vm.ok("fill 1 1");
    lab.create("one");
    let (whole, without) = (dir(&lab, "whole"), dir(&lab, "without"));
    lab.cp(&format!("export demo@one {whole}")).ok();
    assert_eq!(export_json(&whole)["config"]["kernel"], "kernel");
    fs::write(&kernel, "another").unwrap();
    let exported = lab.cp(&format!("export demo@one {without}"));
    assert!(exported.stderr.contains("warning") && exported.stderr.contains(&kernel), "{exported}");
    exported.ok();
    vm.power_off();
    fs::remove_file(&kernel).unwrap();

    let other = Home::new();
    other.piton(&format!("import {without}")).fails(3, &[&kernel, "--kernel FILE"]);
    other.is_empty();
    other.piton(&format!("import {whole}")).ok();
    let own = lab.file("own", GUEST);
    other.piton(&format!("import {without} --name own --kernel {own}")).ok();
    for name in ["demo", "own"] {
        other.piton(&format!("start {name}")).ok();
        let mut guest = other.attach(name);
        guest.send("echo booted");
        guest.line(&["ok booted"]);
        let shown = other.piton(&format!("show {name} --json")).json();
        let kernel = shown["config"]["kernel"].as_str().unwrap();
        assert!(kernel == own || kernel == other.vm(name).join("kernel").to_str().unwrap(), "{kernel}");
        end(&other, name);
        other.piton(&format!("checkpoint verify {name}@one")).ok();
    }
}

#[test]
fn a_diff_is_exact_in_every_direction() {
    let lab = Lab::new();
    let mut vm = lab.home.boot(&format!(
        "run demo --memory 64M --disk {},id=a,overlay --disk {},id=b,overlay",
        lab.b,
        lab.image("empty.raw", 8 * MIB)
    ));
    vm.ok("journal off");
    vm.ok("fill 4 1");
    vm.ok("blk 0 write 0 64K 1");
    lab.create("root");
    vm.ok("fill 4 1");
    // The second half of it is as it was.
    vm.ok("blk 0 write 60K 8K 1");
    vm.ok("blk 1 write 1M 4K 5");
    lab.create("left");
    lab.apply("root", "--run");
    vm.ok("blk 1 write 1M 8K 6");
    vm.ok("blk 0 discard 0 8K");
    lab.create("right");
    vm.power_off();
    let nodes = lab.nodes();
    let compare = |a: &str, b: &str, more: &[&str]| {
        let (a, b) = (format!("demo@{a}"), format!("demo@{b}"));
        lab.args([&["checkpoint", "diff", &a, &b, "--json"], more].concat()).json()
    };
    for (at, (a, b)) in
        [("root", "left"), ("left", "root"), ("left", "right"), ("root", "right")].iter().enumerate()
    {
        let file = lab.beside(&format!("data{at}"));
        let found = compare(a, b, &["--data", file.to_str().unwrap()]);
        let data = fs::read(&file).unwrap();
        for disk in ["a", "b"] {
            let (then, now) = (&nodes[*a].disks[disk], &nodes[*b].disks[disk]);
            let mut patched = then.clone();
            let mut told = 0;
            for range in found["disks"][disk]["ranges"].as_array().unwrap() {
                let number = |name: &str| range[name].as_u64().unwrap() as usize;
                let (offset, length, data_at) = (number("offset"), number("length"), number("data"));
                let blocks = offset..offset + length;
                for block in blocks.clone().step_by(4096) {
                    let block = block..(block + 4096).min(now.len());
                    assert_ne!(
                        then[block.clone()],
                        now[block],
                        "{a} {b} {disk}: the same, and told to differ"
                    );
                }
                patched[blocks].copy_from_slice(&data[data_at..data_at + length]);
                told += length as u64;
            }
            same(&format!("{a} {b} {disk}"), now, &patched);
            assert_eq!(found["disks"][disk]["bytes"], told);
        }
        assert!(found["memory"]["ranges"].is_array(), "{found}");
        // The file describes itself.
        let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) as usize;
        let (index_at, index_len) = (word(16), word(24));
        assert_eq!(data[..8], *b"PITONdif");
        let index: Value = serde_json::from_slice(&data[index_at..index_at + index_len]).unwrap();
        assert_eq!(index, found);
        assert_eq!(data[12..16], crc32fast::hash(&data[index_at..index_at + index_len]).to_le_bytes());
    }
    let (there, back) = (compare("root", "left", &[]), compare("left", "root", &[]));
    let ranges = |found: &Value| -> BTreeMap<u64, u64> {
        let ranges = found["memory"]["ranges"].as_array().unwrap();
        ranges
            .iter()
            .map(|range| (range["offset"].as_u64().unwrap(), range["length"].as_u64().unwrap()))
            .collect()
    };
    assert_eq!(ranges(&there), ranges(&back));
    let same = compare("left", "left", &[]);
    assert_eq!((&same["memory"]["bytes"], &same["disks"]["a"]["bytes"]), (&json!(0), &json!(0)));
    let said = lab.cp("diff demo@root demo@left").ok();
    assert!(said.contains("disk `b`: 4 KiB in 1 range\n") && said.contains("memory: "), "{said}");
    lab.tidy();
}
