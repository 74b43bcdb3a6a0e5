//! Production checkpoints, what a VM's settings say of checkpoints, and the VM generation id, with
//! the bundled guest, which has no agent. What an agent can do wrong: src/agent/tests.rs. With a
//! real one: tests/production_linux.rs.

mod ckpt_common;
mod common;

use ckpt_common::Lab;
use common::Home;
use serde_json::json;

const NO_AGENT: &str = "no guest agent is connected";

#[test]
fn without_an_agent_it_is_a_standard_one_and_says_why() {
    let lab = Lab::new();
    let mut vm = lab.boot("");
    let told = lab.cp("create demo one").ok();
    assert!(
        told.contains("checkpoint \"one\" created (standard): paused") && told.contains("memory"),
        "{told}"
    );
    assert!(told.contains("not a production checkpoint") && told.contains(NO_AGENT), "{told}");
    // Once: after that the word in the line says it.
    let told = lab.cp("create demo again").ok();
    assert!(told.contains("\"again\" created (standard)") && !told.contains(NO_AGENT), "{told}");
    let shown = lab.home.piton("show demo").ok();
    assert!(shown.contains("standard while no agent is connected"), "{shown}");
    for kind in ["", "--type production"] {
        let info = lab.cp(&format!("create demo {kind} --json")).json();
        assert_eq!((&info["type"], &info["lands"]), (&json!("standard"), &json!("paused")), "{info}");
        assert!(info["fallback"].as_str().unwrap().contains(NO_AGENT), "{info}");
    }
    let manifest = lab.show("one");
    assert_eq!(manifest["kind"], "standard");
    assert!(manifest["fallback"].as_str().unwrap().contains(NO_AGENT), "{manifest}");
    assert!(lab.cp("show demo@one").ok().contains(NO_AGENT));
    // Asked for, it is nothing that fell back.
    let told = lab.cp("create demo two --type standard").ok();
    assert!(!told.contains("production"), "{told}");
    assert_eq!(lab.show("two")["fallback"], json!(null));
    vm.journal();
    lab.home.piton("pause demo").ok();
    let info = lab.cp("create demo three --json").json();
    assert!(info["fallback"].as_str().unwrap().contains("paused"), "{info}");
    lab.home.piton("resume demo").ok();
    vm.power_off();
    // Off, there is nothing to freeze.
    let info = lab.cp("create demo four --json").json();
    assert_eq!((&info["type"], &info["fallback"]), (&json!("offline"), &json!(null)), "{info}");
    lab.tidy();
}

#[test]
fn production_only_makes_no_other() {
    let lab = Lab::new();
    let mut vm = lab.boot("");
    for (asked, refused) in [("--type production-only", true), ("--type production", false)] {
        let finished = lab.cp(&format!("create demo {asked}"));
        if refused {
            finished.fails(3, &["cannot create a production checkpoint", NO_AGENT]);
        } else {
            finished.ok();
        }
    }
    lab.home.piton("set demo --checkpoint-type production-only").ok();
    lab.cp("create demo").fails(3, &["cannot create a production checkpoint", NO_AGENT]);
    let answer = lab.home.http("demo", "POST", "/vm/checkpoints", "");
    assert!(answer.error(409).contains(NO_AGENT));
    lab.home.piton("pause demo").ok();
    lab.cp("create demo").fails(3, &["cannot create a production checkpoint", "paused"]);
    lab.home.piton("resume demo").ok();
    // The settings are what is meant if nothing else is said.
    let info = lab.cp("create demo exception --type standard --json").json();
    assert_eq!((&info["type"], &info["fallback"]), (&json!("standard"), &json!(null)));
    vm.journal();
    vm.power_off();
    assert_eq!(lab.names().len(), 2);
    lab.tidy();
}

#[test]
fn disabled_makes_none_in_any_way() {
    let lab = Lab::new();
    let mut vm = lab.boot("");
    lab.create("one");
    lab.home.piton("set demo --checkpoint-type disabled").ok();
    let sentence = ["disabled", "when-not-to.md", "piton set demo --checkpoint-type"];
    lab.cp("create demo").fails(3, &sentence);
    lab.cp("create demo --type standard").fails(3, &sentence);
    lab.cp("apply demo@one --save-current").fails(3, &sentence);
    assert_eq!(lab.home.http("demo", "POST", "/vm/checkpoints", "").status, 409);
    vm.journal();
    vm.power_off();
    lab.cp("create demo").fails(3, &sentence);
    assert_eq!(lab.names(), ["one"]);
    lab.home.piton("set demo --checkpoint-type standard").ok();
    lab.create("two");
    lab.tidy();
}

#[test]
fn wrong_settings_and_types_are_refused() {
    let lab = Lab::new();
    let mut vm = lab.boot("");
    for line in [
        "set demo",
        "set --checkpoint-type standard",
        "set demo --checkpoint-type always",
        "set demo --auto-checkpoint maybe",
        "checkpoint create demo --type offline",
        "checkpoint create demo --freeze-timeout soon",
        "checkpoint create demo --freeze-timeout -1",
    ] {
        lab.home.piton(line).fails(2, &[]);
    }
    lab.cp("create demo --type disabled").fails(2, &["a setting"]);
    for time in ["0", "61", "1e9"] {
        lab.cp(&format!("create demo --freeze-timeout {time}")).fails(2, &["between 0.001 and 60 seconds"]);
    }
    lab.home.piton("set nobody --checkpoint-type standard").fails(3, &["nobody"]);
    lab.home.piton("set demo --checkpoint-dir /proc/nothing").fails(3, &["/proc/nothing", "create it first"]);
    for body in [r#"{"checkpoint_type": "x"}"#, r#"{"other": 1}"#, r#"{"auto_checkpoint": "on"}"#] {
        lab.home.http("demo", "PATCH", "/vm", body).error(400);
    }
    lab.home.http("demo", "POST", "/vm/checkpoints", r#"{"type": "never"}"#).error(400);
    assert_eq!(lab.home.http("demo", "PATCH", "/vm", "{}").status, 200);
    lab.home.piton("set demo --checkpoint-type disabled").ok();
    lab.home.piton("set demo --auto-checkpoint on").fails(3, &["disabled", "--checkpoint-type"]);
    let shown = lab.home.piton("show demo --json").json();
    assert_eq!((&shown["checkpoint_type"], &shown["auto_checkpoint"]), (&json!("disabled"), &json!(false)));
    assert!(lab.home.piton("show demo").ok().contains("disabled"));
    vm.journal();
    vm.power_off();
    assert_eq!(lab.names(), [""; 0]);
    lab.tidy();
}

#[test]
fn ten_vms_are_set_at_once() {
    let home = Home::new();
    let names: Vec<String> = (0..10).map(|n| format!("vm{n}")).collect();
    let mut running = Vec::new();
    for (n, name) in names.iter().enumerate() {
        // Those that run could not reach another folder.
        let mut vm = home.boot(&format!("run {name} --memory 32M --no-landlock"));
        if n % 2 == 0 {
            vm.power_off();
        } else {
            running.push(vm);
        }
    }
    let all = names.join(" ");
    let told = home.piton(&format!("set {all} --checkpoint-type standard --auto-checkpoint on")).ok();
    assert_eq!(told.lines().count(), 10, "{told}");
    let check = |kind: &str, automatic: bool| {
        for name in &names {
            // As its process knows it, and as it is written down.
            let shown = home.piton(&format!("show {name} --json")).json();
            let written = std::fs::read(home.vm(name).join("vm.json")).unwrap();
            let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
            assert_eq!(
                (&shown["checkpoint_type"], &written["checkpoint_type"]),
                (&json!(kind), &json!(kind))
            );
            assert_eq!(shown["auto_checkpoint"], json!(automatic), "{name}");
            assert_eq!(written["auto_checkpoint"].as_bool().unwrap_or(false), automatic, "{name}");
        }
    };
    check("standard", true);
    let shelf = home.beside("shelf");
    std::fs::create_dir(&shelf).unwrap();
    let line = format!("set {all} --checkpoint-dir {} --auto-checkpoint off --json", shelf.display());
    let set = home.piton(&line).json();
    assert_eq!(set.as_array().unwrap().len(), 10);
    check("standard", false);
    home.piton("checkpoint create vm0").ok();
    home.piton("checkpoint create vm1").ok();
    for name in ["vm0", "vm1"] {
        let mut names: Vec<_> =
            std::fs::read_dir(shelf.join(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "reserve");
        assert_eq!(names.len(), 1, "{names:?}");
    }
    // One that cannot does not keep the others from it; one that is not there does.
    let other = home.beside("other");
    std::fs::create_dir(&other).unwrap();
    let finished = home.piton(&format!("set {all} --checkpoint-dir {}", other.display()));
    assert_eq!(finished.code, Some(3), "{finished}");
    for name in ["vm0", "vm1"] {
        assert!(finished.stderr.contains(&format!("{name}: the VM `{name}` has checkpoints")), "{finished}");
    }
    let dir = |name: &str| home.piton(&format!("show {name} --json")).json()["checkpoint_dir"].clone();
    assert_eq!(["vm1", "vm2", "vm3"].map(dir), [json!(shelf), json!(other), json!(other)]);
    let into_itself = format!("set vm2 --checkpoint-dir {}", home.root().display());
    home.piton(&into_itself).fails(3, &["VM's folder"]);
    home.piton(&format!("set {all} vmx --checkpoint-type disabled")).fails(3, &["vmx"]);
    check("standard", false);
    for vm in &mut running {
        vm.journal();
        vm.power_off();
    }
}

#[test]
fn an_automatic_checkpoint_lives_from_start_to_shutdown() {
    let lab = Lab::new();
    lab.boot("").power_off();
    lab.home.piton("set demo --auto-checkpoint on").ok();
    let started = lab.home.boot("start demo --attach");
    drop(started);
    lab.ended();
    // Killed, so it is there: the state before the start.
    let [name] = &lab.names()[..] else { panic!("{:?}", lab.names()) };
    let info = &lab.list()["checkpoints"][0];
    assert_eq!((&info["automatic"], &info["type"]), (&json!(true), &json!("offline")), "{info}");
    assert!(lab.cp("list demo").ok().contains("automatic"));
    let before = lab.node(name);
    let mut vm = lab.home.boot("start demo --attach");
    assert_eq!(&lab.names(), std::slice::from_ref(name), "one is enough");
    vm.ok("blk 0 write 0 65536 1");
    vm.ok("blk 0 flush");
    assert!(before == lab.node(name));
    lab.create("mine");
    vm.power_off();
    assert_eq!(lab.names(), ["mine"], "a clean shutdown removes only what a start made");
    let mut vm = lab.home.boot("start demo --attach");
    assert_eq!(lab.names(), ["mine"], "there is one to go back to");
    vm.ok("blk 0 verify 0 65536 1");
    vm.power_off();
    lab.delete("mine");
    let mut vm = lab.home.boot("start demo --attach");
    assert_eq!(lab.names().len(), 1);
    // Back to where it was started.
    vm.ok("blk 0 write 0 65536 2");
    let name = lab.names().remove(0);
    lab.apply(&name, "");
    vm.exits_well();
    assert_eq!(lab.names(), [name]);
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 65536 1");
    vm.power_off();
    assert_eq!(lab.names(), [""; 0]);
    lab.home.piton("set demo --auto-checkpoint off").ok();
    let mut vm = lab.home.boot("start demo --attach");
    assert_eq!(lab.names(), [""; 0]);
    vm.power_off();
    lab.tidy();
}

#[test]
fn the_generation_changes_with_every_going_back_and_at_no_other_time() {
    let lab = Lab::new();
    let mut vm = lab.boot("--cpus 2");
    let first = vm.ok("generation");
    assert!(!first.contains("=00000000000000000000000000000000"), "{first}");
    lab.home.piton("pause demo").ok();
    lab.home.piton("resume demo").ok();
    lab.create("one");
    lab.home.piton("pause demo").ok();
    lab.create("two");
    lab.home.piton("resume demo").ok();
    vm.journal();
    assert_eq!(vm.ok("generation"), first);
    assert!(!vm.text().contains("evt generation"));

    let mut seen = vec![first];
    for (line, times) in [
        ("apply demo@one --discard-current --run", 1),
        ("apply demo@one --discard-current --run", 2),
        ("revert demo --run --yes", 3),
        ("apply demo@two --discard-current --run", 4),
    ] {
        lab.cp(line).ok();
        vm.expect("evt generation changed");
        let now = vm.ok("generation");
        assert!(!seen.contains(&now), "{line}: {now} was there before");
        seen.push(now);
        vm.journal();
        // Once each.
        assert_eq!(vm.text().matches("evt generation changed").count(), times, "{line}");
    }
    // A reboot and a cold start are no going back.
    vm.send("reboot");
    vm.ready();
    assert_eq!(vm.ok("generation"), seen[4]);
    vm.power_off();
    let mut vm = lab.home.boot("start demo --attach");
    assert_eq!(vm.ok("generation"), seen[4]);
    assert!(!vm.text().contains("evt generation"));
    vm.power_off();
    // With disks only, and while it was off.
    lab.create("three");
    lab.apply("three", "");
    let mut vm = lab.home.boot("start demo --attach");
    let now = vm.ok("generation");
    assert!(!seen.contains(&now));
    seen.push(now);
    vm.power_off();
    lab.apply("one", "--run");
    let mut vm = lab.home.attach("demo");
    vm.send("generation");
    let now = vm.line(&["ok generation"]);
    assert!(!seen.contains(&now));
    assert!(vm.text().contains("evt generation changed"));
    lab.stop();
    // What a restored VM was never told before it was saved again is told to whoever comes of that.
    lab.apply("one", "");
    lab.create("untold");
    lab.apply("untold", "--run");
    lab.home.attach("demo").expect("evt generation changed");
    lab.stop();
    lab.tidy();
}
