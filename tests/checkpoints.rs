//! Checkpoints by hand, on the bundled guest: it notices when memory and disks are not of the
//! same instant.

mod ckpt_common;
mod common;

use std::collections::{BTreeMap, BTreeSet};

use ckpt_common::{Lab, MIB, owned, same, unchanged};
use common::{Home, field};
use serde_json::json;

#[test]
fn many_checkpoints_under_load_are_each_of_one_instant() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("journal tick 1");
    vm.ok("dirty 16 50");
    let mut seqs = Vec::new();
    for n in 0..12 {
        lab.create(&format!("c{n}"));
        let seq = vm.journal();
        seqs.push(seq);
        vm.journal_goes_on(seq);
    }
    let before = lab.nodes();
    for n in [11, 0, 6, 3, 10, 1] {
        lab.apply(&format!("c{n}"), "--run");
        let seq = vm.journal();
        vm.journal_goes_on(seq + 3);
        vm.ok("dirty check");
    }
    unchanged(&before, &lab.nodes());
    assert!(!vm.power_off().console.contains("MISMATCH"));
    lab.tidy();
}

#[test]
fn apply_lands_paused() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("blk 0 write 0 64K 1");
    lab.create("one");
    vm.ok("blk 0 write 0 64K 2");
    let said = lab.cp("apply demo@one --discard-current").ok();
    assert!(said.contains("paused") && said.contains("piton resume demo"), "{said}");
    assert_eq!(lab.state(), "paused");
    vm.send("blk 0 verify 0 64K 1");
    let console = lab.console_log("demo");
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(lab.console_log("demo"), console, "a paused guest does nothing");
    lab.piton("resume demo").ok();
    assert!(vm.line(&["ok", "err"]).starts_with("ok verified"));
    // The same process, console and socket.
    let mut attached = lab.attach("demo");
    lab.apply("one", "--run");
    attached.ok("echo still attached");
    vm.line(&["ok still attached"]);
    vm.power_off();
}

#[test]
fn apply_saves_the_current_state_first() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("fill 4 1");
    let one = vm.ok("sum");
    lab.create("one");
    vm.ok("fill 4 2");
    vm.ok("blk 0 write 0 64K 2");
    let two = vm.ok("sum");
    lab.cp("apply demo@one --save-current=two --run").ok();
    assert_eq!(vm.ok("sum"), one);
    let tree = [("one", "-"), ("two", "one"), ("Now", "one")].map(owned);
    assert_eq!(lab.parents(), BTreeMap::from(tree));
    // Its name may be the next word, and where to go may follow.
    lab.cp("apply demo@two --save-current three --run").ok();
    lab.cp("apply --save-current demo@two --run").ok();
    assert_eq!(vm.ok("sum"), two);
    vm.ok("blk 0 verify 0 64K 2");
    let parents = lab.parents();
    assert_eq!(parents.len(), 5, "{parents:?}");
    assert_eq!((&*parents["Now"], &*parents["three"]), ("two", "one"));
    // Named by the time.
    let third = parents.keys().find(|name| name.starts_with("20")).expect("named by the time");
    assert_eq!(parents[third], "two");
    // A name that is taken: nothing happens.
    lab.cp("apply demo@one --save-current=two").fails(3, &["two", "exists"]);
    assert_eq!(lab.parents(), parents);
    assert_eq!(lab.state(), "running");
    vm.journal();
    vm.power_off();
    lab.tidy();
}

#[test]
fn revert_goes_to_the_parent() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    lab.cp("revert demo --yes").fails(3, &["no checkpoint to revert to"]);
    vm.ok("blk 0 write 0 64K 1");
    lab.create("one");
    vm.ok("blk 0 write 0 64K 2");
    lab.create("two");
    vm.ok("blk 0 write 0 64K 3");
    lab.cp("revert demo").fails(3, &["--yes"]);
    vm.ok("blk 0 verify 0 64K 3");
    lab.cp("revert demo --yes --run").ok();
    vm.ok("blk 0 verify 0 64K 2");
    lab.delete("two");
    let said = lab.cp("revert demo --yes").ok();
    assert!(said.contains("`one`") && said.contains("paused"), "{said}");
    lab.piton("resume demo").ok();
    vm.ok("blk 0 verify 0 64K 1");
    vm.journal();
    assert_eq!(lab.parents(), BTreeMap::from([("one", "-"), ("Now", "one")].map(owned)));
    assert!(!vm.power_off().console.contains("MISMATCH"));
    // Off, it is started paused.
    lab.cp("revert demo --yes").ok();
    assert_eq!(lab.state(), "paused");
    lab.stop();
    lab.tidy();
}

#[test]
fn a_stopped_vm_is_started_paused() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("fill 4 1");
    let sum = vm.ok("sum");
    lab.create("one");
    vm.journal_goes_on(2);
    vm.power_off();
    let said = lab.cp("apply demo@one --discard-current").ok();
    assert!(said.contains("paused"), "{said}");
    let shown = lab.piton("show demo --json").json();
    assert_eq!(shown["state"], "paused");
    assert!(shown["pid"].as_u64().is_some());
    let mut console = lab.attach("demo");
    lab.piton("resume demo").ok();
    assert_eq!(console.ok("sum"), sum);
    let seq = console.journal();
    console.journal_goes_on(seq + 2);
    lab.stop();
    // And with --run it runs.
    lab.apply("one", "--run");
    assert_eq!(lab.state(), "running");
    let mut console = lab.attach("demo");
    assert_eq!(console.ok("sum"), sum);
    // Saving the state of a VM that is off makes a checkpoint of its disks.
    lab.stop();
    lab.cp("apply demo@one --save-current=off").ok();
    assert_eq!(lab.show("off")["kind"], "offline");
    assert_eq!(lab.show("off")["parent"], lab.show("one")["id"]);
    assert_eq!(lab.parents()["Now"], "one");
    lab.stop();
    lab.tidy();
}

/// It is a copy of the command's process, and has nothing of it.
#[test]
fn the_process_of_a_restored_vm_is_its_own() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 1");
    lab.create("one");
    vm.power_off();
    lab.apply("one", "");
    let pid = lab.piton("show demo --json").json()["pid"].as_u64().unwrap();
    let about = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let words = about("cmdline");
    let words: Vec<&str> = words.split_terminator('\0').collect();
    assert_eq!(words[1..3], ["start", "demo"], "{words:?}");
    let stat = about("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Its parent is gone, and group and session are its own.
    assert_eq!(fields[2..4], [pid.to_string(), pid.to_string()], "{stat}");
    let open = |fd: &str| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    assert_eq!(open("0"), std::path::Path::new("/dev/null"));
    assert!(open("1").ends_with("demo/piton.log") && open("2") == open("1"), "{:?}", open("1"));
    let pipes = |of: &str| -> BTreeSet<String> {
        let files = std::fs::read_dir(format!("/proc/{of}/fd")).unwrap().flatten();
        let names = files
            .filter_map(|file| std::fs::read_link(file.path()).ok()?.into_os_string().into_string().ok());
        names.filter(|name| name.starts_with("pipe:")).collect()
    };
    // Some may be whoever's who started this test.
    assert!(pipes(&pid.to_string()).is_subset(&pipes("self")));
    // Others find a VM there, and no command.
    let refused = lab.piton("rm demo --yes");
    assert!(refused.code == Some(3) && refused.stderr.contains("is paused"), "{refused}");
    common::send_signal(i32::try_from(pid).unwrap(), libc::SIGTERM);
    let off = || (lab.state() == "stopped").then_some(());
    common::until("the end of the VM", off);
    // What goes wrong in it is told as by the command itself.
    std::fs::write(lab.folder(&lab.show("one")).join("state"), "{}").unwrap();
    let failed = lab.cp("apply demo@one --discard-current");
    assert!(failed.code == Some(1) && failed.stderr.contains("state"), "{failed}");
    assert_eq!(lab.state(), "stopped");
}

#[test]
fn a_stopped_vm_has_checkpoints_without_memory() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("blk 0 write 0 64K 1");
    vm.ok("blk 1 write 0 64K 2");
    vm.ok("blk 0 flush");
    vm.ok("blk 1 flush");
    vm.power_off();
    let made = lab.create("off");
    assert_eq!(made["type"], "offline");
    assert_eq!(made["lands"], "stopped");
    assert!(made.get("memory").is_none() && made.get("pause_us").is_none(), "{made}");
    let said = lab.cp("create demo again").ok();
    assert!(!said.contains("memory") && !said.contains("paused"), "{said}");
    let before = lab.nodes();
    same("disk a", &before["off"].disks["a"], &before["again"].disks["a"]);

    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 write 0 64K 3");
    vm.ok("blk 1 write 0 64K 4");
    lab.create("running");
    // Lands off while it runs: the VM ends.
    let said = lab.cp("apply demo@off --discard-current").ok();
    assert!(said.contains("stopped") && said.contains("piton start demo"), "{said}");
    let exit = vm.exits_well();
    assert!(exit.stderr.contains("without memory"), "{}", exit.stderr);
    assert_eq!(lab.state(), "stopped");
    same("disk a", &before["off"].disks["a"], &lab.now("a"));
    same("disk b", &before["off"].disks["b"], &lab.now("b"));
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 1");
    vm.ok("blk 1 verify 0 64K 2");
    vm.journal_goes_on(1);
    vm.power_off();
    // Lands off while it is off.
    lab.apply("again", "");
    assert_eq!(lab.state(), "stopped");
    assert_eq!(lab.parents()["Now"], "again");
    same("disk b", &before["again"].disks["b"], &lab.now("b"));
    unchanged(&before, &lab.nodes());
    lab.tidy();
    lab.template_is_untouched();
}

#[test]
fn a_paused_vm_stays_paused() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("dirty 8 20");
    lab.piton("pause demo").ok();
    let made = lab.create("paused");
    assert!(made.get("pause_us").is_none(), "it did not run: {made}");
    assert_eq!(lab.state(), "paused");
    lab.piton("resume demo").ok();
    let seq = vm.journal();
    vm.journal_goes_on(seq + 3);
    lab.apply("paused", "--run");
    vm.ok("dirty check");
    vm.journal();
    // It was running and is left paused.
    let made = lab.cp("create demo after --pause-after --json").json();
    assert!(made["pause_us"].as_u64().is_some(), "{made}");
    assert_eq!(lab.state(), "paused");
    lab.piton("resume demo").ok();
    vm.journal();
    assert!(!vm.power_off().console.contains("MISMATCH"));
}

#[test]
fn checkpoint_apply_checkpoint_is_the_same_page_by_page() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("dirty 16 max");
    vm.journal_goes_on(3);
    lab.create("one");
    lab.apply("one", "");
    // Full, though most of it was not read from "one" into memory yet.
    lab.cp("create demo two --full").ok();
    let [one, two] = ["one", "two"].map(|name| {
        let folder = lab.folder(&lab.show(name));
        (std::fs::read(folder.join("memory")).unwrap(), std::fs::read(folder.join("state")).unwrap())
    });
    for page in 0..(64 * MIB / 4096) as usize {
        let mut range = page * 4096..(page + 1) * 4096;
        if range.start as u64 == piton::layout::GENERATION_PAGE {
            let id = range.start..range.start + 16;
            assert!(one.0[id.clone()] != two.0[id], "it went back and has no other generation id");
            range.start += 16;
        }
        assert!(one.0[range.clone()] == two.0[range], "page {page} differs");
    }
    let state = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(&bytes[24..]).unwrap();
    let differences = differing("", &state(&one.1), &state(&two.1));
    // Clocks go on between restore and save, and the guest has yet to be told of its generation.
    let others: Vec<_> =
        differences.iter().filter(|path| !is_clock(path) && path.as_str() != ".power_events: 0 2").collect();
    assert!(others.is_empty(), "the state differs at {others:?}");
    let (one, two) = (lab.node("one"), lab.node("two"));
    for disk in ["a", "b"] {
        same(disk, &one.disks[disk], &two.disks[disk]);
    }
    lab.piton("resume demo").ok();
    vm.ok("dirty check");
    vm.journal();
    vm.power_off();
}

/// The TSC, its deadline and adjustment, KVM's clock, and the PIT's times of loading: bytes 16 to
/// 23 of each of its three channels.
fn is_clock(path: &str) -> bool {
    let pit = |path: &str| {
        let byte: usize = path.strip_prefix(".vm.pit[")?.split(']').next()?.parse().ok()?;
        Some(byte < 72 && byte % 24 >= 16)
    };
    // The current count of the local APIC's timer.
    let timer = (0x390..0x394).any(|byte| path.contains(&format!(".lapic[{byte}]:")));
    timer || path.contains(".msrs.16:") || path.starts_with(".vm.clock") || pit(path) == Some(true)
}

/// Paths at which two JSON values differ.
fn differing(at: &str, a: &serde_json::Value, b: &serde_json::Value) -> Vec<String> {
    use serde_json::Value::{Array, Object};
    match (a, b) {
        (Object(x), Object(y)) if x.keys().eq(y.keys()) => {
            x.iter().flat_map(|(key, value)| differing(&format!("{at}.{key}"), value, &y[key])).collect()
        }
        (Array(x), Array(y)) if x.len() == y.len() => {
            let each = x.iter().zip(y).enumerate();
            each.flat_map(|(n, (x, y))| differing(&format!("{at}[{n}]"), x, y)).collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![format!("{at}: {a} {b}")],
    }
}

/// r -> m -> l1, m -> l2 -> Now, r -> s; each with other content on both disks.
fn planted(lab: &Lab, vm: &mut common::Vm) {
    let mut grow = |name: &str, seed: u64| {
        // Some of it overwrites what came before, some is new.
        vm.ok(&format!("blk 0 write 0 64K {seed}"));
        vm.ok(&format!("blk 0 write {} 64K {seed}", seed * 128 * 1024));
        vm.ok(&format!("blk 1 write {} 20K {seed}", 4096 * seed));
        vm.ok(&format!("fill 2 {seed}"));
        lab.create(name);
    };
    grow("r", 1);
    grow("m", 2);
    grow("l1", 3);
    lab.apply("m", "--run");
    grow("x", 4);
    lab.apply("r", "--run");
    grow("s", 5);
    lab.apply("m", "--run");
    grow("l2", 6);
    lab.delete("x");
    vm.ok("blk 0 write 3M 64K 7");
    vm.ok("blk 0 flush");
    let tree = [("r", "-"), ("m", "r"), ("l1", "m"), ("s", "r"), ("l2", "m"), ("Now", "l2")];
    assert_eq!(lab.parents(), BTreeMap::from(tree.map(owned)));
}

/// Deletes with each way of `delete`, and looks at what is left while the VM runs, when it is off
/// and after another start.
fn deleting(victim: &str, options: &str, left: &[(&str, &str)]) {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    planted(&lab, &mut vm);
    let before = lab.nodes();
    let parents = lab.parents();
    let line = format!("delete demo@{victim} {options}");
    let dry = lab.cp(&format!("{line} --dry-run --json")).json();
    assert_eq!(dry["dry_run"], true);
    assert_eq!(lab.parents(), parents, "a dry run does nothing");
    lab.cp(&line).fails(3, &["--yes"]);
    let said = lab.cp(&format!("{line} --yes --json")).json();
    assert_eq!(said["deleted"], dry["deleted"]);
    let left: BTreeMap<_, _> = left.iter().copied().map(owned).collect();
    assert_eq!(said["deleted"].as_array().unwrap().len(), parents.len() - left.len());
    let check = || {
        assert_eq!(lab.parents(), left);
        unchanged(&before, &lab.nodes());
    };
    check();
    let seq = vm.journal();
    vm.journal_goes_on(seq + 2);
    vm.ok("blk 0 verify 3M 64K 7");
    vm.ok("sum");
    assert!(!vm.power_off().console.contains("MISMATCH"));
    check();
    lab.tidy();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 3M 64K 7");
    vm.ok("blk 1 verify 24K 20K 6");
    let seq = vm.journal();
    vm.journal_goes_on(seq + 2);
    for name in lab.names() {
        lab.apply(&name, "--run");
        vm.ok("sum");
        vm.journal();
    }
    assert!(!vm.power_off().console.contains("MISMATCH"));
    check_left(&lab, &before, &left);
    lab.template_is_untouched();
}

fn check_left(lab: &Lab, before: &BTreeMap<String, ckpt_common::Node>, left: &BTreeMap<String, String>) {
    let names: Vec<_> = left.keys().filter(|name| *name != "Now").cloned().collect();
    assert_eq!(lab.names(), names);
    unchanged(before, &lab.nodes());
    lab.tidy();
}

#[test]
fn deletes_a_leaf() {
    deleting("l1", "", &[("r", "-"), ("m", "r"), ("s", "r"), ("l2", "m"), ("Now", "l2")]);
}

#[test]
fn deletes_the_parent_of_now() {
    deleting("l2", "", &[("r", "-"), ("m", "r"), ("l1", "m"), ("s", "r"), ("Now", "m")]);
}

#[test]
fn deletes_one_with_several_children() {
    deleting("m", "", &[("r", "-"), ("l1", "r"), ("s", "r"), ("l2", "r"), ("Now", "l2")]);
}

#[test]
fn deletes_the_root() {
    deleting("r", "", &[("m", "-"), ("l1", "m"), ("s", "-"), ("l2", "m"), ("Now", "l2")]);
}

#[test]
fn deletes_a_subtree() {
    deleting("m", "--subtree", &[("r", "-"), ("s", "r"), ("Now", "r")]);
}

#[test]
fn deletes_a_subtree_without_now() {
    deleting("s", "--subtree", &[("r", "-"), ("m", "r"), ("l1", "m"), ("l2", "m"), ("Now", "l2")]);
}

#[test]
fn deletes_everything() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    planted(&lab, &mut vm);
    lab.cp("delete demo@r --subtree --yes").ok();
    assert_eq!(lab.parents(), BTreeMap::from([("Now", "-")].map(owned)));
    let list = lab.cp("list demo").ok();
    assert!(list.contains("Now (running)"), "{list}");
    let seq = vm.journal();
    vm.journal_goes_on(seq);
    vm.power_off();
    // Back on its own base; the template keeps its overlay.
    assert_eq!(lab.deltas("a"), Vec::<std::path::PathBuf>::new());
    assert_eq!(lab.deltas("b").len(), 1);
    assert_eq!(lab.definition()["now"]["tops"].as_object().unwrap().len(), 1);
    assert!(ckpt_common::files(&lab.vm("demo").join("checkpoints")).is_empty());
    let base = std::fs::read(&lab.a).unwrap();
    same("the base", &ckpt_common::pattern(7, 3 * MIB, 64 << 10), &base[3 << 20..][..64 << 10]);
    lab.tidy();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 6");
    vm.ok("blk 0 verify 3M 64K 7");
    vm.ok("blk 1 verify 24K 20K 6");
    vm.journal_goes_on(seq);
    vm.power_off();
    lab.template_is_untouched();
}

#[test]
fn deletes_one_after_another_while_off() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    planted(&lab, &mut vm);
    vm.power_off();
    let before = lab.nodes();
    let (a, b) = (lab.now("a"), lab.now("b"));
    for name in ["m", "r", "l2", "s", "l1"] {
        lab.delete(name);
        unchanged(&before, &lab.nodes());
        same("disk a", &a, &lab.now("a"));
        same("disk b", &b, &lab.now("b"));
        lab.tidy();
    }
    assert!(lab.deltas("a").is_empty());
    assert_eq!(lab.deltas("b").len(), 1);
    lab.template_is_untouched();
}

/// Its checkpoint is gone, and others still read it.
#[test]
fn a_layer_that_outlives_its_checkpoint_keeps_its_checksums() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    planted(&lab, &mut vm);
    for name in ["l1", "l2"] {
        assert_eq!(lab.unchecked_layers(name), Vec::<String>::new());
    }
    lab.delete("m");
    for name in ["l1", "l2"] {
        assert_eq!(lab.unchecked_layers(name), Vec::<String>::new(), "{name} while it runs");
    }
    vm.power_off();
    for name in ["l1", "l2"] {
        assert_eq!(lab.unchecked_layers(name), Vec::<String>::new(), "{name} when it is off");
    }
}

#[test]
fn applies_leave_no_layers_behind() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    for _ in 0..8 {
        vm.ok("blk 0 write 0 64K 1");
        lab.cp("revert demo --yes --run").ok();
    }
    // Disk a: Now's overlay on its base. Disk b: the frozen first overlay and Now's.
    assert_eq!(lab.deltas("a").len(), 1);
    assert_eq!(lab.deltas("b").len(), 2);
    vm.journal();
    vm.power_off();
    lab.tidy();
}

#[test]
fn passthrough_and_readonly_disks_are_left_out() {
    let lab = Lab::new();
    let (pass, read) = (lab.image("pass.raw", MIB), lab.image("read.raw", MIB));
    let options = format!("--memory 64M --disk {pass},id=pass,passthrough --disk {read},id=read,readonly");
    let mut vm = lab.boot(&options);
    vm.ok("journal off");
    vm.ok("blk 2 write 0 64K 1");
    let said = lab.cp("create demo one").ok();
    for (disk, why) in [("pass", "passthrough"), ("read", "read")] {
        let told = said.lines().any(|line| line.contains(&format!("`{disk}`")) && line.contains(why));
        assert!(told, "{disk}: {said}");
    }
    let manifest = lab.show("one");
    let out = json!([{ "disk": "pass", "why": "passthrough" }, { "disk": "read", "why": "readonly" }]);
    assert_eq!(manifest["left_out"], out);
    assert_eq!(manifest["disks"].as_object().unwrap().len(), 2);
    assert!(lab.cp("show demo@one").ok().contains("`pass`"));
    vm.ok("blk 0 write 0 64K 2");
    vm.ok("blk 2 write 0 64K 2");
    lab.apply("one", "--run");
    // Whatever the VM goes back to, they stay as they are.
    vm.ok("blk 2 verify 0 64K 2");
    vm.ok("blk 2 write 64K 64K 3");
    vm.err("blk 3 write 0 64K 3");
    vm.power_off();
    let base = std::fs::read(&pass).unwrap();
    same("it", &ckpt_common::pattern(3, 64 << 10, 64 << 10), &base[64 << 10..128 << 10]);
    assert!(lab.deltas("pass").is_empty() && lab.deltas("read").is_empty());
    lab.tidy();
}

#[test]
fn a_vm_with_passthrough_disks_only_still_has_memory() {
    let lab = Lab::new();
    let pass = lab.image("pass.raw", MIB);
    let mut vm = lab.home.boot(&format!("run demo --memory 64M --disk {pass},id=p,passthrough"));
    vm.ok("journal off");
    vm.ok("fill 4 1");
    let sum = vm.ok("sum");
    let made = lab.create("one");
    assert_eq!(made["type"], "standard");
    vm.ok("fill 4 2");
    lab.apply("one", "--run");
    assert_eq!(vm.ok("sum"), sum);
    vm.power_off();
    lab.tidy();
}

#[test]
fn the_own_disk_of_a_vm_goes_back_too() {
    let lab = Lab::new();
    let mut vm = lab.home.boot("run demo --memory 64M");
    vm.ok("blk write 0 1M 1");
    lab.create("one");
    vm.ok("blk write 0 1M 2");
    lab.apply("one", "--run");
    vm.ok("blk verify 0 1M 1");
    vm.journal();
    lab.delete("one");
    vm.power_off();
    assert!(lab.deltas("root").is_empty());
    lab.piton("rm demo --yes").ok();
    lab.is_empty();
}

#[test]
fn shows_lists_renames_and_notes() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    let nothing = json!({ "checkpoints": [], "damaged": [], "now": null, "pending_merges": 0 });
    assert_eq!(lab.list(), nothing);
    let args = ["checkpoint", "create", "demo", "before upgrade", "--note", "all is well", "--json"];
    let one = lab.args(args).json();
    assert_eq!(one["name"], "before upgrade");
    assert_eq!(one["note"], "all is well");
    let said = lab.cp("create demo two").ok();
    for word in ["checkpoint \"two\" created (standard): paused", " ms, memory ", " of 64 MiB, disk "] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(lab.cp("list demo").ok().contains("\"all is well\""));
    let unnamed = lab.cp("create demo --json").json();
    let unnamed = unnamed["name"].as_str().unwrap();
    assert!(unnamed.starts_with("20") && unnamed.contains('T') && unnamed.ends_with('Z'), "{unnamed}");

    let tree = lab.cp("list demo").ok();
    let at = |text: &str| tree.find(text).unwrap_or_else(|| panic!("{text}: {tree}"));
    assert!(at("before upgrade") < at("two") && at("two") < at(unnamed), "{tree}");
    assert!(at(unnamed) < at("Now (running)"), "{tree}");
    assert_eq!(lab.cp("ls demo --flat").ok().lines().count(), 3);
    assert_eq!(lab.piton("cp list demo").ok(), tree);

    // By name, id and the start of an id.
    let id = one["id"].as_str().unwrap();
    for reference in [id, &id[..8], &id.to_uppercase()[..12]] {
        assert_eq!(lab.show(reference)["name"], "before upgrade");
    }
    let text = lab.args(["checkpoint", "show", "demo@before upgrade"]).ok();
    for word in [id, "all is well", "standard", "64 MiB", "the bundled guest"] {
        assert!(text.contains(word), "{word}: {text}");
    }

    let sums = lab.nodes();
    lab.args(["checkpoint", "rename", "demo@before upgrade", "one"]).ok();
    lab.args(["checkpoint", "note", "demo@one", "has changed"]).ok();
    assert_eq!(lab.show("one")["note"], "has changed");
    assert_eq!(lab.show("one")["id"], id);
    lab.cp("show demo@before").fails(3, &["before"]);
    // To the name it has already.
    lab.cp("rename demo@one one").ok();
    lab.cp("rename demo@one two").fails(3, &["two", "exists"]);
    vm.journal();
    vm.power_off();
    // The same while it is off.
    lab.cp("rename demo@one uno").ok();
    lab.cp("note demo@uno short").ok();
    assert_eq!(lab.show("uno")["note"], "short");
    assert!(lab.cp("list demo").ok().contains("Now (stopped)"));
    unchanged(&sums, &lab.nodes());
    let said = lab.cp("verify demo@uno").ok();
    assert!(said.contains("is intact"), "{said}");
    lab.tidy();
}

#[test]
fn checkpoints_over_the_control_socket() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    let one = lab.http("demo", "POST", "/vm/checkpoints", r#"{"name": "one", "note": "n"}"#);
    assert!(one.status < 300, "{one:?}");
    let one = one.json();
    assert_eq!(one["name"], "one");
    lab.http("demo", "POST", "/vm/checkpoints", r#"{"name": "one"}"#).error(409);
    vm.ok("blk 0 write 0 64K 1");
    let list = lab.http("demo", "GET", "/vm/checkpoints", "").json();
    assert_eq!(list, lab.list());
    let path = format!("/vm/checkpoints/{}", one["id"].as_str().unwrap());
    let changed = lab.http("demo", "PATCH", &path, r#"{"name": "uno"}"#).json();
    assert_eq!(changed["name"], "uno");
    lab.http("demo", "POST", &format!("{path}/apply"), r#"{"run": true}"#).error(409);
    let body = r#"{"discard_current": true, "run": true}"#;
    let applied = lab.http("demo", "POST", &format!("{path}/apply"), body);
    assert_eq!(applied.status, 200, "{applied:?}");
    assert_eq!(applied.json()["state"], "running");
    vm.err("blk 0 verify 0 64K 1");
    let reverted = lab.http("demo", "POST", "/vm/revert", r#"{"run": true}"#);
    assert_eq!(reverted.json()["state"], "running");
    vm.journal();
    let deleted = lab.http("demo", "DELETE", &path, "{}").json();
    assert_eq!(deleted["deleted"][0]["name"], "uno");
    lab.http("demo", "DELETE", &path, "{}").error(404);
    vm.power_off();
    assert!(lab.deltas("a").is_empty());
}

#[test]
fn doctor_finds_and_mends_what_a_crash_leaves() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    vm.power_off();
    lab.tidy();
    let before = lab.nodes();
    let (folder, id) = (lab.vm("demo"), "0123456789abcdef0123456789abcdef");
    let leave = || {
        let staging = folder.join(format!("checkpoints/.staging-{id}"));
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join("memory"), [1; 5000]).unwrap();
        let deleted = folder.join(format!("checkpoints/.deleted-{id}"));
        std::fs::create_dir(&deleted).unwrap();
        std::fs::write(deleted.join("state"), b"x").unwrap();
        std::fs::write(folder.join("disks/a-00000000.delta"), [0; 8192]).unwrap();
        std::fs::write(folder.join(".vm.json.99-0.tmp"), b"{").unwrap();
        std::fs::write(folder.join("disks/.a-00000000.delta.sums.99-0.tmp"), b"x").unwrap();
    };
    leave();
    let found = lab.piton("doctor demo --json").json();
    assert_eq!(found.as_array().unwrap().len(), 5, "{found}");
    let text = lab.piton("doctor demo").ok();
    assert_eq!(text.matches("(--repair fixes it)").count(), 5, "{text}");
    assert!(folder.join(format!("checkpoints/.staging-{id}")).exists(), "it only looks");
    let text = lab.piton("doctor demo --repair").ok();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(lab.piton("doctor demo").ok().contains("no problems found"));
    assert!(!folder.join("disks/a-00000000.delta").exists());
    unchanged(&before, &lab.nodes());
    // The same at every start.
    leave();
    lab.piton("start demo").ok();
    lab.attach("demo").journal();
    lab.piton("doctor demo").fails(3, &["`demo` is running", "piton stop demo"]);
    lab.stop();
    lab.tidy();
    unchanged(&before, &lab.nodes());
}

#[test]
fn restarts_and_reboots_keep_the_tree() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    vm.ok("blk 0 write 0 64K 1");
    lab.create("one");
    vm.ok("blk 0 write 0 64K 2");
    vm.ok("blk 0 flush");
    let before = lab.nodes();
    vm.send("reboot");
    vm.ready();
    vm.ok("blk 0 verify 0 64K 2");
    vm.journal_goes_on(1);
    lab.create("two");
    vm.signal(libc::SIGKILL);
    vm.exit();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 2");
    lab.apply("one", "--run");
    vm.ok("blk 0 verify 0 64K 1");
    let seq = field(&vm.ok("journal check"), "seq");
    vm.journal_goes_on(seq + 1);
    lab.apply("two", "--run");
    vm.ok("blk 0 verify 0 64K 2");
    vm.journal();
    unchanged(&before, &lab.nodes());
    vm.power_off();
    lab.tidy();
}

/// Only a power cut takes what was written and not flushed.
#[test]
fn a_reset_or_an_orderly_end_loses_nothing() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    vm.ok("journal off");
    vm.ok("blk 1 write 0 64K 1");
    vm.send("reboot");
    vm.ready();
    vm.ok("journal off");
    vm.ok("blk 1 verify 0 64K 1");
    vm.ok("blk 1 write 0 128K 2");
    vm.power_off();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("journal off");
    vm.ok("blk 1 verify 0 128K 2");
    vm.ok("blk 1 write 0 256K 3");
    lab.stop();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 1 verify 0 256K 3");
    vm.power_off();
}

#[test]
fn another_vm_on_the_same_template() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    let mut other = lab.home.boot(&format!("run other --memory 32M --disk {},overlay", lab.b));
    vm.ok("blk 1 write 0 64K 1");
    other.ok("blk 0 write 0 64K 2");
    lab.create("one");
    lab.piton("checkpoint create other one").ok();
    lab.apply("one", "--run");
    lab.piton("checkpoint apply other@one --discard-current --run").ok();
    vm.ok("blk 1 verify 0 64K 1");
    other.ok("blk 0 verify 0 64K 2");
    lab.delete("one");
    lab.piton("checkpoint delete other@one --yes").ok();
    vm.power_off();
    other.power_off();
    lab.template_is_untouched();
    assert!(Home::new().root() != lab.root());
}
