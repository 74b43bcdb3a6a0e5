//! Files of released versions are read: `tests/fixtures/VERSION` was made by that version, and is restored
//! by this one. `scripts/fixtures` makes one. And memory of a version that nobody reads any more leaves
//! the disks.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Finished, Home};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Of a host whose processor lacks what the guest had.
const MISFIT: &str = "processor";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tar(words: &[&str]) {
    let mut command = Command::new("tar");
    command.args(words);
    Finished::run(command).ok();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A VM that is off, with `one` and `two`, whose memory is `one`'s and what changed since, compressed;
/// a raw and a qcow2 disk under overlays; and an export of `one` with an increment to `two`.
#[test]
#[ignore = "scripts/fixtures runs it"]
fn make() {
    let to = fixtures().join(env!("CARGO_PKG_VERSION"));
    std::fs::create_dir_all(&to).unwrap();
    let home = Home::new();
    let images = home.beside("images");
    std::fs::create_dir(&images).unwrap();
    let (a, b) = (images.join("a.raw"), images.join("b.qcow2"));
    std::fs::write(&a, vec![0x5a; MIB as usize]).unwrap();
    let mut qcow2 = Command::new("qemu-img");
    qcow2.args(["create", "-q", "-f", "qcow2", text(&b), "1M"]);
    Finished::run(qcow2).ok();
    let disks = [format!("{},id=a,overlay", text(&a)), format!("{},id=b,overlay", text(&b))];
    let mut vm = home.args_vm(&["run", "demo", "--memory", "16M", "--disk", &disks[0], "--disk", &disks[1]]);
    let mut sums = Vec::new();
    for (name, seed, more) in [("one", 1, ""), ("two", 2, " --compress")] {
        vm.ok(&format!("fill 1 {seed}"));
        vm.ok(&format!("blk 0 write {}K 64K {seed}", seed * 128));
        vm.ok(&format!("blk 1 write {}K 64K {seed}", seed * 128));
        sums.push(vm.ok("sum"));
        home.piton(&format!("checkpoint create demo {name} --type standard{more}")).ok();
    }
    vm.ok("blk 0 write 512K 64K 3");
    vm.power_off();
    let exports = home.beside("exports");
    std::fs::create_dir(&exports).unwrap();
    home.args(["checkpoint", "export", "demo@one", text(&exports.join("one"))]).ok();
    home.args(["checkpoint", "export", "demo@two", text(&exports.join("two")), "--since", "one"]).ok();
    // Only what a restore needs.
    for file in ["console.log", "piton.log", "reserve"] {
        let _ = std::fs::remove_file(home.vm("demo").join(file));
        let _ = std::fs::remove_file(home.vm("demo").join("checkpoints").join(file));
    }
    let beside = home.beside("");
    let packed = to.join("files.tar.xz");
    std::fs::rename(home.vm("demo"), home.beside("demo")).unwrap();
    let words = ["--format=posix", "-S", "--owner=0", "--group=0", "--numeric-owner"];
    tar(&[&words[..], &["-C", text(&beside), "-cJf", text(&packed), "demo", "images", "exports"]].concat());
    let expected = json!({ "images": text(&images), "one": sums[0], "two": sums[1] });
    std::fs::write(to.join("expected.json"), format!("{expected:#}\n")).unwrap();
}

/// A released version's files, unpacked, with the sums that the guest told.
fn unpacked(version: &Path) -> (Home, Value) {
    let home = Home::new();
    let beside = home.beside("");
    tar(&["-C", text(&beside), "-xJf", text(&version.join("files.tar.xz"))]);
    std::fs::create_dir_all(home.root()).unwrap();
    std::fs::rename(home.beside("demo"), home.vm("demo")).unwrap();
    let expected = std::fs::read(version.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    (home, expected)
}

/// What the guest has to see at a checkpoint.
fn is_as_it_was(home: &Home, vm: &str, seed: u32, sum: Option<&Value>) {
    let mut guest = home.console(vm);
    for disk in [0, 1] {
        for seed in 1..=seed {
            guest.ok(&format!("blk {disk} verify {}K 64K {seed}", seed * 128));
        }
    }
    if let Some(sum) = sum {
        assert_eq!(&guest.ok("sum"), sum.as_str().unwrap());
    }
    home.piton(&format!("stop {vm} --force")).ok();
}

#[test]
fn released_versions_are_read() {
    let mut versions: Vec<_> =
        std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        let (home, expected) = unpacked(&version);
        for (disk, file) in [("a", "a.raw"), ("b", "b.qcow2")] {
            let image = home.beside("images").join(file);
            home.args(["disk", "relocate", "demo", disk, text(&image)]).ok();
        }
        home.piton("doctor demo").ok();
        for name in ["one", "two"] {
            let verified = home.piton(&format!("checkpoint verify demo@{name} --json"));
            assert_eq!(verified.code, Some(0), "{version:?}: {verified}");
        }
        // With memory where the processor allows it, and the disks in any case.
        for (name, seed) in [("two", 2), ("one", 1)] {
            let apply = home.piton(&format!("checkpoint apply demo@{name} --discard-current --run"));
            match apply.code {
                Some(0) => is_as_it_was(&home, "demo", seed, Some(&expected[name])),
                _ => assert!(apply.stderr.contains(MISFIT), "{version:?}: {apply}"),
            }
            home.piton(&format!("checkpoint apply demo@{name} --discard-current --cold --run")).ok();
            is_as_it_was(&home, "demo", seed, None);
        }
        // Exports, whole and with what came after.
        let (one, two) = (home.beside("exports").join("one"), home.beside("exports").join("two"));
        home.args(["import", text(&one), "--name", "first"]).ok();
        home.args(["import", text(&one), text(&two), "--name", "second"]).ok();
        for (vm, name, seed) in [("first", "one", 1), ("second", "two", 2)] {
            let revert = home.piton(&format!("checkpoint revert {vm} --run --yes"));
            match revert.code {
                Some(0) => is_as_it_was(&home, vm, seed, Some(&expected[name])),
                _ => assert!(revert.stderr.contains(MISFIT), "{version:?}: {revert}"),
            }
        }
    }
}

/// Memory, or state, of a version that this piton does not read.
#[test]
fn memory_that_is_too_old_or_too_new_leaves_the_disks() {
    for (file, version) in [("memory", 0u32), ("memory", 99), ("state", 0), ("state", 99)] {
        let home = Home::new();
        let image = home.image("a.raw", MIB);
        let mut vm = home.boot(&format!("run demo --memory 32M --disk {image},id=a,overlay"));
        vm.ok("fill 1 1");
        vm.ok("blk 0 write 0 64K 1");
        home.piton("checkpoint create demo old --type standard").ok();
        vm.ok("blk 0 write 0 64K 2");
        vm.power_off();
        let id = home.piton("checkpoint show demo@old --json").json()["id"].as_str().unwrap().to_owned();
        let path = home.vm("demo").join("checkpoints").join(id).join(file);
        let handle = std::fs::File::options().write(true).open(&path).unwrap();
        let at = if file == "memory" { handle.metadata().unwrap().len() - 4096 + 8 } else { 8 };
        handle.write_all_at(&version.to_le_bytes(), at).unwrap();

        let said = format!("does not read its format version {version}");
        let said = said.as_str();
        let list = home.piton("checkpoint list demo --json").json();
        assert_eq!((&list["checkpoints"][0]["name"], &list["damaged"]), (&json!("old"), &json!([])));
        let shown = home.piton("checkpoint show demo@old").ok();
        assert!(shown.contains(said), "{shown}");
        home.piton("checkpoint apply demo@old --discard-current").fails(1, &[said, "--cold"]);
        let verified = home.piton("checkpoint verify demo@old");
        assert_eq!(verified.code, Some(1), "{verified}");
        assert!(verified.stderr.contains("only the disks") && verified.stderr.contains(said), "{verified}");

        // Copies have the disks, and it is said.
        let cloned = home.piton("clone demo@old copy");
        assert!(cloned.code == Some(0) && cloned.stderr.contains(said), "{cloned}");
        let kept = home.piton("checkpoint list copy --json").json()["checkpoints"][0].clone();
        assert_eq!(kept["type"], "offline");
        assert!(kept["warnings"].to_string().contains(said), "{kept:#}");
        let export = home.beside("export");
        let exported = home.args(["checkpoint", "export", "demo@old", text(&export)]);
        assert!(exported.code == Some(0) && exported.stderr.contains(said), "{exported}");
        home.args(["import", text(&export), "--name", "back"]).ok();
        let found = home.piton("checkpoint diff demo@old demo --json");
        assert!(found.stderr.contains(said), "{found}");
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        assert_eq!(found["memory"], Value::Null);
        assert!(found["disks"]["a"]["bytes"].as_u64().unwrap() >= 64 << 10, "{found:#}");
        let tried = home.piton("checkpoint verify --boot demo@old --wait-for ready");
        assert!(tried.code == Some(0) && tried.stderr.contains(said), "{tried}");
        for vm in ["copy", "back"] {
            let mut guest = home.boot(&format!("start {vm} --attach"));
            guest.ok("blk 0 verify 0 64K 1");
            guest.power_off();
        }
        home.piton("checkpoint apply demo@old --discard-current --cold --run").ok();
        home.console("demo").ok("blk 0 verify 0 64K 1");
        home.piton("stop demo --force").ok();
        home.piton("checkpoint delete demo@old --yes").ok();
    }
}
