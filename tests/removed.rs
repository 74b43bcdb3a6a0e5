//! VMs that were removed: they come back, or go when their time is over.

mod common;

use common::{Home, until};
use serde_json::{Value, json};

/// The removed VMs of the list, the last one first.
fn removed(home: &Home) -> Vec<Value> {
    home.piton("trash list --json").json()["removed"].as_array().unwrap().clone()
}

fn id(vm: &Value) -> &str {
    vm["id"].as_str().unwrap()
}

/// What lies in the home beside VMs.
fn leftovers(home: &Home) -> Vec<String> {
    let names = std::fs::read_dir(home.root()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_removed_vm_comes_back() {
    let home = Home::with_trash();
    let mut vm = home.boot("run demo --memory 32M");
    vm.ok("blk 0 write 0 64K 1");
    home.piton("checkpoint create demo warm").ok();
    vm.ok("blk 0 write 0 64K 2");
    vm.power_off();
    let told = home.piton("rm demo --yes").ok();
    assert_eq!(told, "the VM `demo` has been removed\n`piton undo demo` restores it, for 1d\n");
    assert!(home.piton("list").ok().contains("no VMs yet"));
    home.piton("start demo").fails(3, &["has been removed", "`piton undo demo`"]);
    let listed = home.piton("trash list").ok();
    assert!(listed.contains("  demo\n") && listed.contains("would free"), "{listed}");
    assert!(removed(&home)[0]["bytes"].as_u64().unwrap() > 64 << 10);
    assert_eq!(home.piton("undo demo").ok(), "the VM `demo` has been restored\n");
    assert!(removed(&home).is_empty() && leftovers(&home).is_empty());
    home.piton("doctor demo").ok();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 2");
    home.piton("checkpoint apply demo@warm --discard-current --run --no-undo").ok();
    vm.ok("blk 0 verify 0 64K 1");
    vm.power_off();

    // Its name is taken meanwhile, twice; the last one is meant.
    home.piton("rm demo --yes").ok();
    home.boot("run demo --memory 32M").power_off();
    home.piton("undo demo").fails(3, &["nothing to undo"]);
    home.piton("trash restore demo").fails(3, &["already exists", "--name NEW"]);
    let trash = home.piton("rm demo --yes --json").json()["trash"].clone();
    assert_eq!(removed(&home).iter().map(|vm| &vm["id"]).next(), Some(&trash));
    home.boot("run demo --memory 32M").power_off();
    let first = id(&removed(&home)[1])[..8].to_owned();
    let back = home.piton(&format!("trash restore {first} --name old --json")).json();
    assert_eq!((&back["vm"]["name"], &back["restored"]["name"]), (&json!("old"), &json!("demo")));
    home.piton("checkpoint verify old@warm").ok();
    assert_eq!(removed(&home).len(), 1);
    home.piton("trash restore nobody").fails(3, &["no removed VM `nobody`"]);
    home.piton("trash restore old").fails(3, &["was not removed"]);

    // For good: one, all, at once.
    home.piton("rm old --yes").ok();
    let told = home.piton("trash empty old --yes").ok();
    assert!(told.starts_with("permanently deleted: the removed VM `old`\n"), "{told}");
    home.piton("trash empty").fails(3, &["--yes"]);
    assert_eq!(home.piton("trash empty --yes --json").json()["removed"].as_array().unwrap().len(), 1);
    assert_eq!(home.piton("trash empty --yes").ok(), "no removed VM is in the trash\n");
    let told = home.piton("rm demo --yes --no-undo --json").json();
    assert_eq!((&told["removed"], told.get("trash")), (&json!("demo"), None));
    home.piton("undo demo").fails(3, &["no VM `demo`"]);
    home.is_empty();
}

#[test]
fn its_time_is_its_own() {
    let home = Home::with_trash();
    for name in ["short", "long", "never"] {
        home.boot(&format!("run {name} --memory 32M")).power_off();
    }
    home.piton("set short --trash 1s").ok();
    home.piton("set never --trash 0").ok();
    assert_eq!(home.piton("rm short long never --yes").ok().matches("restores it").count(), 2);
    until("one to be gone", || (!home.piton("trash list").ok().contains("short")).then_some(()));
    assert_eq!(removed(&home).iter().map(|vm| &vm["name"]).collect::<Vec<_>>(), [&json!("long")]);
    assert_eq!(leftovers(&home).len(), 1);
}

#[test]
fn what_is_shared_stays_and_is_not_counted() {
    let home = Home::with_trash();
    let mut vm = home.boot("run demo --memory 64M");
    vm.ok("fill 20 1");
    vm.ok("blk 0 write 0 4M 1");
    home.piton("checkpoint create demo warm").ok();
    vm.power_off();
    home.piton("clone demo@warm web").ok();
    let alone = home.piton("trash list --json").json()["bytes"].as_u64().unwrap();
    assert_eq!(alone, 0);
    home.piton("rm demo --yes").ok();
    let with_clone = removed(&home)[0]["bytes"].as_u64().unwrap();
    home.piton("checkpoint verify web@warm").ok();
    home.piton("stop web --force").ok();
    home.ended("web");
    home.piton("rm web --yes").ok();
    // Together they free what neither frees alone.
    let all = home.piton("trash list --json").json()["bytes"].as_u64().unwrap();
    let apart: u64 = removed(&home).iter().map(|vm| vm["bytes"].as_u64().unwrap()).sum();
    assert!(all > apart && apart >= with_clone, "{all} {apart} {with_clone}");
    home.piton("undo web").ok();
    home.piton("trash empty --yes").ok();
    home.piton("checkpoint verify web@warm").ok();
    home.piton("doctor web").ok();
}

#[test]
fn checkpoints_that_lie_elsewhere_go_along() {
    let home = Home::with_trash();
    let dir = home.beside("checkpoints");
    std::fs::create_dir(&dir).unwrap();
    let place = dir.to_str().unwrap().to_owned();
    let make = |name: &str| {
        home.boot(&format!("run {name} --memory 32M")).power_off();
        home.piton(&format!("set {name} --checkpoint-dir {place}")).ok();
        let mut vm = home.boot(&format!("start {name} --attach"));
        home.piton(&format!("checkpoint create {name} a")).ok();
        vm.power_off();
    };
    make("demo");
    home.piton("rm demo --yes").ok();
    assert!(!dir.join("demo").exists());
    let first = id(&removed(&home)[0])[..8].to_owned();
    // Another one of that name, at the same place.
    make("demo");
    home.piton(&format!("trash restore {first}")).fails(3, &["already exists"]);
    home.piton(&format!("trash restore {first} --name x")).fails(3, &["needs its own name"]);
    home.piton("rm demo --yes").ok();
    home.piton(&format!("trash restore {first}")).ok();
    home.piton("checkpoint verify demo@a").ok();
    // As if the power had gone before they were taken along, and before they came back.
    home.piton("rm demo --yes").ok();
    let aside = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let mine = aside.into_iter().find(|path| path.to_str().unwrap().contains(&id(&removed(&home)[0])[..8]));
    std::fs::rename(mine.as_ref().unwrap(), dir.join("demo")).unwrap();
    home.piton("list").ok();
    assert!(mine.as_ref().unwrap().exists() && !dir.join("demo").exists());
    // Its file system is not there.
    std::fs::rename(&dir, home.beside("unmounted")).unwrap();
    home.piton("undo demo").fails(3, &["is its file system mounted?"]);
    std::fs::rename(home.beside("unmounted"), &dir).unwrap();
    home.piton("undo demo").ok();
    home.piton("checkpoint verify demo@a").ok();
    home.piton("rm demo --yes").ok();
    home.piton("trash empty --yes").ok();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    home.is_empty();
}

#[test]
fn what_is_broken_or_needed() {
    let home = Home::with_trash();
    home.boot("run demo --memory 32M").power_off();
    // Another VM's disk lies in its folder.
    let image = home.vm("demo").join("disks/root.raw");
    home.boot(&format!("run user --memory 32M --disk {},overlay", image.display())).power_off();
    home.piton("rm demo --yes").fails(3, &["the VM `user` uses an image"]);
    home.piton("rm demo --yes --no-undo").fails(3, &["the VM `user` uses an image"]);
    home.piton("rm user --yes").ok();
    // Nobody can read its definition; it comes back as it was.
    let path = home.vm("demo").join("vm.json");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, "garbage").unwrap();
    home.piton("rm demo --yes").ok();
    assert_eq!(home.piton("undo demo --json").json()["vm"], Value::Null);
    home.piton("show demo").fails(3, &["damaged"]);
    std::fs::write(&path, &whole).unwrap();
    home.piton("doctor demo").ok();
    home.piton("undo user").ok();
    home.boot("start user --attach").power_off();

    // What a crash left of one that was going, and one that does not say since when it is here.
    home.piton("rm user --yes").ok();
    let at = |name: &str| home.root().join(name);
    let going = at(".removed-gone-00112233445566778899aabbccddeeff");
    std::fs::create_dir(&going).unwrap();
    std::fs::write(going.join("removed.json"), "{}").unwrap();
    let user = at(&format!(".removed-user-{}", id(&removed(&home)[0])));
    std::fs::write(user.join("removed.json"), "garbage").unwrap();
    home.piton("list").ok();
    assert!(!going.exists());
    let record: Value = serde_json::from_slice(&std::fs::read(user.join("removed.json")).unwrap()).unwrap();
    assert!(record["when"]["at"].is_string(), "{record}");
    home.piton("undo user").ok();
}
