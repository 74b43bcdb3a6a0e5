//! What keeps people from losing data: pins, the trash and undo.

mod common;

use common::{GUEST, Home, Vm, until};
use serde_json::{Value, json};

#[test]
fn a_pinned_checkpoint_stays() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 32M");
    home.piton("checkpoint create demo root").ok();
    home.piton("checkpoint create demo leaf").ok();
    let told = home.piton("checkpoint pin demo@leaf").ok();
    assert_eq!(told, "checkpoint `leaf` is pinned: it cannot be deleted\n");
    assert!(home.piton("checkpoint list demo").ok().contains("leaf  standard, pinned"));
    assert!(home.piton("checkpoint show demo@leaf").ok().contains("\npinned "));
    // Neither by itself, nor with what is above it; what would go is told all the same.
    for line in ["demo@leaf", "demo@root --subtree", "demo@leaf --dry-run"] {
        let refused = home.piton(&format!("checkpoint delete {line} --yes"));
        assert_eq!(refused.code, Some(3), "{refused}");
        assert!(refused.stderr.contains("`piton checkpoint unpin demo@leaf`"), "{refused}");
    }
    let refused = home.http("demo", "DELETE", "/vm/checkpoints/leaf", "");
    assert_eq!(refused.status, 409, "{refused:?}");
    vm.power_off();
    // The same of a VM that is off.
    let refused = home.piton("checkpoint delete demo@leaf --yes");
    assert_eq!(refused.code, Some(3), "{refused}");
    let info = home.piton("checkpoint unpin demo@leaf --json").json();
    assert_eq!(info.get("pinned"), None, "{info}");
    assert_eq!(home.piton("checkpoint pin demo@root --json").json()["pinned"], json!(true));
    home.piton("checkpoint delete demo@leaf --yes").ok();
    let tree = home.piton("checkpoint list demo --json").json();
    assert_eq!(tree["checkpoints"].as_array().unwrap().len(), 1, "{tree}");
}

/// The names of all checkpoints, each with its parent's, and Now's.
fn parents(home: &Home) -> Vec<(String, String)> {
    let tree = home.piton("checkpoint list demo --json").json();
    let all = tree["checkpoints"].as_array().unwrap();
    let name = |id: &Value| {
        let found = all.iter().find(|one| one["id"] == *id);
        found.map_or("-".to_owned(), |one| one["name"].as_str().unwrap().to_owned())
    };
    let mut parents: Vec<_> = all.iter().map(|one| (name(&one["id"]), name(&one["parent"]))).collect();
    parents.push(("Now".into(), name(&tree["now"])));
    parents
}

fn are(parents: &[(String, String)], expected: &[(&str, &str)]) {
    let found: Vec<_> = parents.iter().map(|(name, parent)| (name.as_str(), parent.as_str())).collect();
    assert_eq!(found, expected);
}

const WHOLE: &[(&str, &str)] = &[("root", "-"), ("mid", "root"), ("leaf", "mid"), ("Now", "leaf")];

#[test]
fn deleted_checkpoints_come_back_where_they_were() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 32M --disk {image},id=a,overlay"));
    for (step, name) in ["root", "mid", "leaf"].iter().enumerate() {
        vm.ok(&format!("blk 0 write 0 64K {}", step + 1));
        home.piton(&format!("checkpoint create demo {name}")).ok();
    }
    let told = home.piton("checkpoint delete demo@mid --yes").ok();
    assert!(told.contains("`piton undo demo` undoes this, for 1d"), "{told}");
    are(&parents(&home), &[("root", "-"), ("leaf", "root"), ("Now", "leaf")]);
    // It is hidden wherever checkpoints are named, and its place is not taken by a merge.
    home.piton("checkpoint show demo@mid").fails(3, &["`mid`"]);
    assert_eq!(home.piton("checkpoint list demo --json").json()["pending_merges"], 0);
    // Made below one that is not seen.
    home.piton("checkpoint delete demo@leaf --yes").ok();
    assert_eq!(home.piton("checkpoint create demo next --json").json()["parent"], {
        home.piton("checkpoint show demo@root --json").json()["id"].clone()
    });
    are(&parents(&home), &[("root", "-"), ("next", "root"), ("Now", "next")]);
    let trash = home.http("demo", "GET", "/vm/trash", "").json();
    assert_eq!(trash, home.piton("trash list demo --json").json());
    let whats: Vec<_> =
        trash["entries"].as_array().unwrap().iter().map(|e| &e["checkpoints"][0]["name"]).collect();
    assert_eq!(whats, [&json!("leaf"), &json!("mid")]);
    assert!(trash["bytes"].as_u64().unwrap() > 0, "{trash}");
    let listed = home.piton("trash list demo").ok();
    assert!(
        listed.contains("delete: `leaf`") && listed.contains("emptying the trash would free"),
        "{listed}"
    );

    // The last first, and then there is no more.
    assert_eq!(home.piton("undo demo").ok(), "checkpoint `leaf` has been restored\n");
    are(&parents(&home), &[("root", "-"), ("leaf", "root"), ("next", "leaf"), ("Now", "next")]);
    home.piton("undo demo").ok();
    home.piton("undo demo").fails(3, &["nothing to undo", "is empty"]);
    home.piton("checkpoint delete demo@next --yes --no-undo").ok();
    are(&parents(&home), WHOLE);
    home.piton("undo demo").fails(3, &["nothing to undo"]);
    // What comes back is all there.
    for name in ["root", "mid", "leaf"] {
        home.piton(&format!("checkpoint verify demo@{name}")).ok();
    }
    home.piton("checkpoint apply demo@mid --discard-current --run --no-undo").ok();
    vm.ok("blk 0 verify 0 64K 2");
    home.piton("checkpoint apply demo@leaf --discard-current --run --no-undo").ok();

    // A subtree in one go; a name that is taken meanwhile; one entry of several; of a VM that is off.
    home.piton("checkpoint delete demo@mid --subtree --yes").ok();
    home.piton("checkpoint create demo leaf").ok();
    home.piton("undo demo").fails(3, &["a checkpoint named `leaf` already exists"]);
    home.piton("checkpoint delete demo@leaf --yes").ok();
    vm.power_off();
    home.piton("trash empty demo leaf --yes").ok();
    assert_eq!(
        home.piton("trash restore demo mid --json").json()["entry"]["checkpoints"].as_array().unwrap().len(),
        2
    );
    let tree = parents(&home);
    are(&tree[..3], &WHOLE[..3]);
    home.piton("checkpoint delete demo@root --subtree --yes").ok();
    are(&parents(&home), &[("Now", "-")]);
    home.piton("undo demo").ok();
    are(&parents(&home)[..3], &WHOLE[..3]);
    home.piton("doctor demo").ok();
    // For good, all of it.
    home.piton("checkpoint delete demo@root --subtree --yes").ok();
    assert!(home.piton("trash empty demo --yes").ok().contains("permanently deleted"));
    assert_eq!(home.piton("trash list demo").ok(), "the trash of the VM `demo` is empty\n");
    let left = std::fs::read_dir(home.vm("demo").join("checkpoints")).unwrap().count();
    let deltas = std::fs::read_dir(home.vm("demo").join("disks")).unwrap();
    assert_eq!(
        (
            left,
            deltas.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "delta")).count()
        ),
        (0, 1)
    );
}

#[test]
fn a_discarded_state_comes_back_to_the_instant() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 64M --disk {image},id=a"));
    vm.ok("fill 4 1");
    vm.ok("blk 0 write 0 64K 1");
    let one = vm.ok("sum");
    home.piton("checkpoint create demo clean").ok();
    vm.ok("fill 4 2");
    vm.ok("blk 0 write 0 64K 2");
    let two = vm.ok("sum");
    home.piton("checkpoint apply demo@clean --discard-current --run").ok();
    assert_eq!(vm.ok("sum"), one);
    vm.ok("blk 0 verify 0 64K 1");
    are(&parents(&home), &[("clean", "-"), ("Now", "clean")]);
    let told = home.piton("undo demo").ok();
    assert_eq!(told, "the VM `demo` is back to its state before the apply of `clean`, running\n");
    assert_eq!(vm.ok("sum"), two);
    vm.ok("blk 0 verify 0 64K 2");
    are(&parents(&home), &[("clean", "-"), ("Now", "clean")]);
    // What the undo took the place of is there, and is no undo's business.
    let text = home.piton("undo demo").fails_saying(3, &["nothing more to undo", "piton trash restore demo"]);
    let id = text.split("trash restore demo ").nth(1).unwrap()[..8].to_owned();
    home.piton(&format!("trash restore demo {id}")).ok();
    assert_eq!(vm.ok("sum"), one);
    assert_eq!(
        home.piton("undo demo").ok(),
        "the VM `demo` is back to its state before the restore from the trash, running\n"
    );
    assert_eq!(vm.ok("sum"), two);

    // A checkpoint made after that is a whole one.
    home.piton("checkpoint create demo later").ok();
    home.piton("checkpoint verify demo@later").ok();
    // Revert, of one that is paused; and it stays so.
    vm.ok("fill 4 3");
    let three = vm.ok("sum");
    home.piton("pause demo").ok();
    home.piton("checkpoint revert demo --yes").ok();
    home.piton("undo demo").ok();
    assert_eq!(home.piton("show demo --json").json()["state"], "paused");
    home.piton("resume demo").ok();
    assert_eq!(vm.ok("sum"), three);
    // Gone at once, if that is asked for; a refused apply leaves nothing.
    home.piton("trash empty demo --yes").ok();
    home.piton("checkpoint revert demo --yes --run --no-undo").ok();
    home.piton("undo demo").fails(3, &["nothing to undo"]);
    assert_eq!(vm.ok("sum"), two);
    vm.power_off();
    home.piton("doctor demo").ok();
}

#[test]
fn a_vm_that_is_off_comes_back_too() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 32M --disk {image},id=a"));
    vm.ok("blk 0 write 0 64K 1");
    vm.ok("fill 4 1");
    let one = vm.ok("sum");
    home.piton("checkpoint create demo warm").ok();
    vm.ok("blk 0 write 0 64K 2");
    vm.power_off();
    home.piton("checkpoint create demo cold").ok();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 write 0 64K 3");
    vm.power_off();
    // Disks to disks.
    home.piton("checkpoint revert demo --yes").ok();
    let told = home.piton("undo demo").ok();
    assert_eq!(told, "the VM `demo` is back to its state before the revert to `cold`, stopped\n");
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 3");
    vm.power_off();
    // Disks to memory, and back to being off.
    home.piton("trash empty demo --yes").ok();
    home.piton("checkpoint apply demo@warm --discard-current --run").ok();
    let console = home.attach("demo");
    drop(console);
    assert_eq!(home.piton("undo demo --json").json()["vm"]["state"], "stopped");
    until("its process to end", || home.piton("doctor demo").code.filter(|code| *code == 0));
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 3");
    vm.power_off();
    let trash = home.piton("trash list demo --json").json();
    let ran = trash["entries"].as_array().unwrap().iter().find(|entry| entry["ran"] == true).unwrap();
    let back = home.piton(&format!("trash restore demo {} --json", ran["id"].as_str().unwrap())).json();
    assert_eq!(back["vm"]["state"], "running", "{back}");
    let _ = one;
    home.piton("stop demo --force").ok();
}

#[test]
fn goes_back_to_disks_without_memory() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 64M --disk {image},id=a"));
    vm.ok("fill 4 1");
    vm.ok("blk 0 write 0 64K 1");
    home.piton("checkpoint create demo warm").ok();
    vm.ok("fill 4 2");
    let two = vm.ok("sum");
    vm.ok("blk 0 write 0 64K 2");
    home.piton("checkpoint apply demo@warm --discard-current --cold --share").fails(2, &["--share"]);
    let both = r#"{"discard_current": true, "cold": true, "share": true}"#;
    assert_eq!(home.http("demo", "POST", "/vm/checkpoints/warm/apply", both).status, 409);
    vm.ok("blk 0 verify 0 64K 2");
    // Its process ends.
    let told = home.piton("checkpoint apply demo@warm --discard-current --cold").ok();
    assert!(told.contains("is at checkpoint `warm`, stopped"), "{told}");
    home.ended("demo");
    home.piton("doctor demo").ok();
    // It boots, and what comes after descends from it, with memory of its own.
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 1");
    home.piton("checkpoint create demo next").ok();
    home.piton("checkpoint verify demo@next").ok();
    assert_eq!(home.piton("checkpoint show demo@next --json").json()["parent"], {
        home.piton("checkpoint show demo@warm --json").json()["id"].clone()
    });
    vm.power_off();
    // What was left comes back with its memory, and so does the checkpoint.
    home.piton("undo demo").ok();
    assert_eq!(home.console("demo").ok("sum"), two);
    // Over the socket, and of a VM that is off; --run boots.
    let cold = r#"{"discard_current": true, "cold": true, "no_undo": true}"#;
    let answer = home.http("demo", "POST", "/vm/checkpoints/warm/apply", cold);
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("stopped")));
    home.ended("demo");
    let told = home.piton("checkpoint apply demo@warm --discard-current --cold --run").ok();
    assert!(told.contains("running"), "{told}");
    home.piton("stop demo --force").ok();
    home.piton("checkpoint apply demo@warm --discard-current --run --no-undo").ok();
    home.piton("stop demo --force").ok();
}

#[test]
fn reverts_to_disks_without_memory() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 32M --disk {image},id=a"));
    vm.ok("fill 4 1");
    vm.ok("blk 0 write 0 64K 1");
    home.piton("checkpoint create demo warm").ok();
    vm.ok("fill 4 2");
    let two = vm.ok("sum");
    vm.ok("blk 0 write 0 64K 2");
    let told = home.piton("checkpoint revert demo --cold --yes").ok();
    assert!(told.contains("is at checkpoint `warm`, stopped"), "{told}");
    home.ended("demo");
    // What was left has its memory in the trash; of a VM that is off, --run boots.
    home.piton("undo demo").ok();
    assert_eq!(home.console("demo").ok("sum"), two);
    home.piton("stop demo --force").ok();
    let told = home.piton("checkpoint revert demo --cold --run --yes").ok();
    assert!(told.contains("is at checkpoint `warm`, running"), "{told}");
    home.console("demo").ok("blk 0 verify 0 64K 1");
    // Its memory is that of a boot, and the checkpoint still has its own.
    home.piton("checkpoint verify demo@warm").ok();
    let answer = home.http("demo", "POST", "/vm/revert", r#"{"cold": true, "no_undo": true}"#);
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("stopped")));
    home.ended("demo");
    home.piton("checkpoint revert demo --yes --run").ok();
    let mut vm = home.console("demo");
    assert_ne!(vm.ok("sum"), two);
    vm.ok("blk 0 verify 0 64K 1");
    home.piton("stop demo --force").ok();
}

#[test]
fn the_trash_empties_itself() {
    let home = Home::with_trash();
    let mut vm = home.boot("run demo --memory 32M");
    for name in ["a", "b"] {
        home.piton(&format!("checkpoint create demo {name}")).ok();
        home.piton(&format!("checkpoint delete demo@{name} --yes")).ok();
    }
    assert_eq!(home.piton("show demo --json").json()["trash_seconds"], 86400);
    assert!(home.piton("set demo --trash 1s").ok().contains("kept for 1s"));
    let is_empty = || {
        let trash = home.piton("trash list demo --json").json();
        (trash["entries"] == json!([])).then_some(())
    };
    until("the trash to be empty", is_empty);
    // One that comes right after others went waits for its own end only.
    for name in ["c", "d"] {
        home.piton(&format!("checkpoint create demo {name}")).ok();
        home.piton(&format!("checkpoint delete demo@{name} --yes")).ok();
        until("the trash to be empty again", is_empty);
    }
    assert_eq!(std::fs::read_dir(home.vm("demo").join("checkpoints")).unwrap().count(), 0);
    assert!(home.piton("set demo --trash 0").ok().contains("not kept"));
    home.piton("checkpoint create demo c").ok();
    let told = home.piton("checkpoint delete demo@c --yes --json").json();
    assert_eq!(told.get("trash"), None, "{told}");
    home.piton("set demo --trash nonsense").fails(2, &["24h"]);
    vm.power_off();
}

#[test]
fn rules_say_what_stays_and_why() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 32M");
    home.piton("checkpoint prune demo --yes").fails(3, &["has no rule", "--keep"]);
    vm.ok("fill 4 1");
    for name in ["a", "b", "c", "d"] {
        home.piton(&format!("checkpoint create demo {name}")).ok();
    }
    home.piton("checkpoint pin demo@a").ok();
    let told = home.piton("set demo --keep last=2 --keep-within 0").ok();
    assert!(told.contains("keeps: last=2 (scheduled checkpoints only)"), "{told}");
    // What a user made is the user's.
    let pruned = home.piton("checkpoint prune demo --yes --json").json();
    assert!(pruned["checkpoints"].as_array().unwrap().iter().all(|one| one["stays"] == true), "{pruned}");
    home.piton("set demo --keep-all on").ok();
    let told = home.piton("checkpoint prune demo --dry-run").ok();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "stays    d  it is the parent of the current state",
            "stays    c  last 2 of 2",
            "goes     b  no rule keeps it",
            "stays    a  it is pinned"
        ]
    );
    assert!(lines[4].ends_with("would be freed"), "{told}");
    are(&parents(&home)[..2], &[("a", "-"), ("b", "a")]);
    home.piton("checkpoint prune demo --yes").ok();
    are(&parents(&home), &[("a", "-"), ("c", "a"), ("d", "c"), ("Now", "d")]);
    for name in ["a", "c", "d"] {
        home.piton(&format!("checkpoint verify demo@{name}")).ok();
    }
    // A size, and of a VM that is off.
    vm.power_off();
    home.piton("set demo --keep none --max-size 1M").ok();
    let told = home.piton("checkpoint prune demo --yes").ok();
    assert!(told.contains("deleted  c  all of them take more than --max-size"), "{told}");
    are(&parents(&home), &[("a", "-"), ("d", "a"), ("Now", "d")]);
    for wrong in ["--keep sometimes", "--keep last=x", "--keep-within 3", "--max-size 1X", "--every often"] {
        home.piton(&format!("set demo {wrong}")).fails(2, &[]);
    }
}

#[test]
fn a_schedule_makes_checkpoints_and_rules_delete_them() {
    let home = Home::new();
    let image = home.image("a.raw", 4 << 20);
    let mut vm = home.boot(&format!("run demo --memory 32M --disk {image},id=a"));
    home.piton("checkpoint create demo mine").ok();
    let told = home.piton("set demo --every 1s --every-type standard --keep last=2").ok();
    assert!(told.contains("every 1s, standard"), "{told}");
    let scheduled = || {
        let tree = home.piton("checkpoint list demo --json").json();
        let all = tree["checkpoints"].as_array().unwrap().clone();
        let ours = all.iter().filter(|one| one["scheduled"] == true);
        ours.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = until("two checkpoints", || Some(scheduled()).filter(|names| names.len() == 2));
    // The older ones go.
    until("newer ones", || Some(scheduled()).filter(|now| now.len() <= 2 && !now.contains(&first[0])));
    assert!(home.piton("checkpoint list demo").ok().contains(", scheduled"));
    home.piton("checkpoint show demo@mine").ok();
    // Nothing was written, so there is nothing to make; and then there is.
    home.piton("set demo --only-if-changed on").ok();
    let quiet = scheduled();
    vm.ok("blk 0 write 0 64K 1");
    until("one more", || (scheduled().last() != quiet.last()).then_some(()));
    // A VM that is paused is left alone, and one that is off as well.
    home.piton("pause demo").ok();
    let paused = scheduled();
    home.piton("resume demo").ok();
    vm.ok("blk 0 write 0 64K 2");
    until("one after the pause", || (scheduled().last() != paused.last()).then_some(()));
    assert!(home.piton("set demo --every 0").ok().lines().all(|line| !line.contains("every")));
    vm.power_off();
    home.piton("doctor demo").ok();
}

#[test]
fn a_schedule_that_fails_says_so_and_goes_on() {
    let home = Home::new();
    let (dir, aside) = (home.beside("checkpoints"), home.beside("aside"));
    std::fs::create_dir(&dir).unwrap();
    let mut vm = home.boot("run demo --memory 32M --no-landlock");
    home.piton(&format!("set demo --checkpoint-dir {}", dir.display())).ok();
    home.piton("set demo --every 1s --every-type standard --keep last=2").ok();
    let warning = || {
        let shown = home.piton("show demo --json").json();
        shown["warnings"][0].as_str().map(ToOwned::to_owned)
    };
    let count = || std::fs::read_dir(dir.join("demo")).map_or(0, Iterator::count);
    until("a checkpoint", || (count() > 1).then_some(()));
    assert_eq!(warning(), None);
    std::fs::rename(&dir, &aside).unwrap();
    let why = until("a warning", warning);
    assert!(why.contains("scheduled checkpoint could not be created") && why.contains("mounted?"), "{why}");
    assert!(home.piton("show demo").ok().contains("\nwarning "));
    std::fs::rename(&aside, &dir).unwrap();
    until("the warning to go", || warning().is_none().then_some(()));
    // Each was a job.
    let jobs = home.piton("checkpoint jobs demo --json").json();
    let states: Vec<_> = jobs["jobs"].as_array().unwrap().iter().map(|job| &job["state"]).collect();
    assert!(states.contains(&&json!("failed")) && states.contains(&&json!("done")), "{jobs}");
    vm.power_off();
}

#[test]
fn an_idle_guest_needs_no_checkpoint() {
    let home = Home::new();
    // The guest that comes with piton writes a journal to its disk all the time.
    let kernel = home.file("guest.elf", GUEST);
    let mut command = home.command(["run", "demo", "--memory", "64M", "--kernel", &kernel]);
    command.env("PITON_LOG", "info");
    let mut vm = Vm::spawn(command);
    vm.ready();
    home.piton("checkpoint create demo first").ok();
    home.piton("set demo --every 1s --every-type standard --only-if-changed on --keep last=2").ok();
    let scheduled = || {
        let tree = home.piton("checkpoint list demo --json").json();
        let all = tree["checkpoints"].as_array().unwrap().clone();
        all.iter().filter(|one| one["scheduled"] == true).count()
    };
    // It is looked at, and there is nothing; two looks, as the second would see what the first broke.
    let looks = || vm.stderr().matches("nothing has changed").count();
    until("two looks", || (looks() > 1).then_some(()));
    assert_eq!(scheduled(), 0);
    vm.ok("fill 4 1");
    until("a checkpoint of what was written", || (scheduled() > 0).then_some(()));
    vm.power_off();
}
