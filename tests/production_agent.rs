//! Production checkpoints with the bundled guest playing the agent, an honest one and bad ones.
//! With a real one: tests/production_linux.rs.

mod ckpt_common;
mod common;

use std::process::Stdio;
use std::time::Duration;

use ckpt_common::kills::{kill_vm, running, whole};
use ckpt_common::{Dice, Lab, pattern};
use common::{Terminal, Vm, send_signal};
use serde_json::json;

fn boot(behaviour: &str) -> (Lab, Vm) {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok(&format!("agent {behaviour}"));
    (lab, vm)
}

/// The journal's step that a line of the guest names.
fn seq(line: &str) -> u64 {
    line.rsplit_once("seq=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
}

fn frozen_at(console: &mut Terminal) -> u64 {
    seq(&console.line(&["evt frozen"]))
}

#[test]
fn what_was_flushed_is_in_it_and_nothing_after() {
    let (lab, mut vm) = boot("on");
    let before = vm.journal();
    vm.ok("blk 0 write 0 256K 1");
    let info = lab.cp("create demo one --type production-only --json").json();
    assert_eq!((&info["type"], &info["lands"]), (&json!("production"), &json!("stopped")), "{info}");
    assert_eq!((&info["warnings"], &info["fallback"]), (&json!([]), &json!(null)), "{info}");
    let (pause, frozen) = (info["pause_us"].as_u64().unwrap(), info["frozen_us"].as_u64().unwrap());
    assert!(0 < pause && pause < frozen, "{info}");
    let at = frozen_at(&mut vm);
    assert!(at >= before);
    assert_eq!(seq(&vm.line(&["evt thawed"])), at, "nothing is written while all is frozen");
    vm.ok("blk 0 write 0 256K 2");
    vm.journal_goes_on(at);
    assert!(lab.node("one").disks["a"][..256 << 10] == pattern(1, 0, 256 << 10));
    lab.apply("one", "");
    vm.exits_well();
    let mut vm = lab.home.boot("start demo --attach");
    // The step of the freeze, neither the one before nor the one after, on both disks.
    for disk in 0..2 {
        let found = vm.line(&[&format!("evt journal found disk={disk}")]);
        assert_eq!(seq(&found), at, "{found}");
    }
    vm.ok("blk 0 verify 0 256K 1");
    vm.journal();
    vm.power_off();
    lab.tidy();
}

/// An agent with which there is no production checkpoint: `why` is told; the guest is left frozen
/// only if it is one that nobody can reach.
fn bad(behaviour: &str, why: &str, stays_frozen: bool) {
    let (lab, mut vm) = boot(behaviour);
    let only = "create demo --type production-only --freeze-timeout 1";
    let refused = lab.cp(only);
    refused.fails(1, &["cannot create a production checkpoint", why]);
    assert_eq!(lab.names(), [""; 0]);
    assert_eq!(
        lab.deltas("a").len() + lab.deltas("b").len(),
        lab.definition()["now"]["tops"].as_object().unwrap().len()
    );
    let thaw = |vm: &mut Vm| {
        vm.ok("agent on");
        vm.line(&["evt thawed"]);
        vm.ok(&format!("agent {behaviour}"));
    };
    if stays_frozen {
        vm.line(&["evt frozen"]);
        thaw(&mut vm);
    }
    let begun = vm.journal();
    vm.journal_goes_on(begun);
    let info = lab.cp("create demo one --freeze-timeout 1 --json").json();
    assert_eq!(info["type"], "standard", "{info}");
    assert!(info["fallback"].as_str().unwrap().contains(why), "{info}");
    assert!(lab.show("one")["fallback"].as_str().unwrap().contains(why));
    if stays_frozen {
        // The memory of a frozen guest is in it; it is thawed when its agent is back.
        vm.line(&["evt frozen"]);
        for _ in 0..2 {
            thaw(&mut vm);
            let begun = vm.journal();
            vm.journal_goes_on(begun);
            lab.apply("one", "--run");
        }
        vm.ok("agent on");
        vm.line(&["evt thawed"]);
    }
    let begun = vm.journal();
    vm.journal_goes_on(begun);
    vm.ok("agent on");
    assert_eq!(lab.cp("create demo two --json").json()["type"], "production", "it is trusted again");
    vm.power_off();
    lab.tidy();
}

#[test]
fn a_silent_one() {
    bad("silent", "did not respond", false);
}

#[test]
fn one_that_talks_garbage() {
    bad("garbage", "did not respond", false);
}

#[test]
fn one_whose_line_does_not_end() {
    bad("endless", "did not respond", false);
}

#[test]
fn a_late_one() {
    bad("late", "did not respond to guest-fsfreeze-freeze within 1000 ms", false);
}

#[test]
fn one_that_dies_frozen() {
    bad("dies", "disconnected during guest-fsfreeze-freeze", true);
}

#[test]
fn one_that_falls_silent_frozen() {
    bad("mute", "did not respond to guest-fsfreeze-status", true);
}

#[test]
fn one_that_freezes_nothing() {
    bad("zero", "did not freeze any file system", false);
}

#[test]
fn one_that_refuses() {
    bad("refuses", "not today", false);
}

#[test]
fn one_that_lies() {
    bad("lies", "thawed before the disks were switched", false);
}

#[test]
fn one_that_opens_its_port_anew() {
    bad("reopens", "guest-fsfreeze-freeze", false);
}

#[test]
fn a_cancel_in_the_freeze_thaws() {
    let (lab, mut vm) = boot("late");
    let line = "checkpoint create demo one --type production-only --freeze-timeout 60";
    let mut command = lab.home.command(line.split_ascii_whitespace());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let at = frozen_at(&mut vm);
    // Neither the console nor who asks is held up: else the answer came before the cancel.
    vm.ok("echo still here");
    assert!(lab.home.piton("show demo").ok().contains("running"));
    send_signal(child.id() as i32, libc::SIGINT);
    assert!(!child.wait().unwrap().success());
    assert_eq!(seq(&vm.line(&["evt thawed"])), at);
    vm.journal_goes_on(at);
    lab.at_rest();
    assert_eq!(lab.names(), [""; 0]);
    vm.power_off();
    lab.tidy();
}

#[test]
fn killed_in_the_freeze_all_is_whole() {
    let lab = Lab::new();
    lab.piton(&format!("run demo --detach --memory 64M {}", lab.disks())).ok();
    let mut dice = Dice::from_env("killed_in_the_freeze_all_is_whole");
    let mut before = lab.nodes();
    for round in 0..8 {
        let mut console = running(&lab);
        let late = dice.coin();
        console.ok(if late { "agent late" } else { "agent on" });
        let name = format!("n{round}");
        let line = format!("checkpoint create demo {name} --type production-only --freeze-timeout 60");
        let mut command = lab.home.command(line.split_ascii_whitespace());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if late {
            console.line(&["evt frozen"]);
        }
        std::thread::sleep(Duration::from_micros(dice.below(60_000)));
        kill_vm(&lab);
        let done = child.wait().unwrap().success();
        let names = whole(&lab, &before, None);
        assert!(!done || names.contains(&name), "round {round}: a checkpoint that was told of is lost");
        before = lab.nodes();
    }
    lab.stop();
    lab.tidy();
}

/// An agent that hangs with its port open, and is asked until it answers.
#[test]
fn one_that_hangs_frozen_thaws_as_soon_as_it_answers() {
    let (lab, mut vm) = boot("mute");
    let warnings = || lab.home.piton("show demo --json").json()["warnings"].clone();
    assert_eq!(warnings(), json!(null));
    lab.cp("create demo one --type production-only").fails(1, &["guest-fsfreeze-status"]);
    let at = frozen_at(&mut vm);
    assert!(warnings()[0].as_str().unwrap().contains("may be frozen"), "{}", warnings());
    assert!(lab.home.piton("show demo").ok().contains("may be frozen"));
    vm.ok("agent wake");
    assert_eq!(seq(&vm.line(&["evt thawed"])), at);
    common::until("the warning to go", || (warnings() == json!(null)).then_some(()));
    vm.journal_goes_on(at);
    vm.power_off();
    lab.tidy();
}

#[test]
fn one_without_memory_in_between_makes_the_next_no_larger() {
    let (lab, mut vm) = boot("on");
    vm.ok("fill 24 1");
    lab.cp("create demo s1 --type standard").ok();
    let memory = |name: &str| lab.show(name)["memory"].clone();
    for (production, standard) in [("p2", "s2"), ("p3", "s3")] {
        lab.cp(&format!("create demo {production} --type production-only")).ok();
        vm.ok("fill 1 2");
        lab.cp(&format!("create demo {standard} --type standard")).ok();
        assert!(memory(standard)["stored_bytes"].as_u64() < Some(16 << 20), "{}", memory(standard));
    }
    let id = |name: &str| lab.show(name)["id"].clone();
    assert_eq!((memory("s2")["parent"].clone(), memory("s3")["parent"].clone()), (id("s1"), id("s2")));
    let before = lab.nodes();
    // What lies in between goes, and then what the memory lies on; the next one follows.
    for name in ["p2", "s1", "p3", "s2"] {
        lab.delete(name);
    }
    vm.ok("fill 1 3");
    lab.cp("create demo p4 --type production-only").ok();
    lab.delete("s3");
    lab.cp("create demo s4 --type standard").ok();
    assert_eq!(memory("s4")["parent"], json!(null));
    lab.cp("create demo s5 --type standard").ok();
    assert_eq!(memory("s5")["parent"], id("s4"));
    ckpt_common::unchanged(&before, &lab.nodes());
    lab.apply("s5", "--run");
    vm.ok("agent on");
    vm.journal();
    vm.power_off();
    lab.tidy();
}
