//! What people type who come from other tools, and several VMs at once.

mod common;

use common::Home;

#[test]
fn several_vms_at_once() {
    let home = Home::new();
    for name in ["a", "b", "c"] {
        home.piton(&format!("run {name} -d --memory 32M")).ok();
    }
    // A name that is wrong changes nothing.
    home.piton("pause a nobody b").fails(3, &["there is no VM `nobody`"]);
    assert_eq!(home.piton("list -q --state running").ok(), "a\nb\nc\n");
    assert_eq!(home.piton("pause a c a").ok(), "the VM `a` is paused\nthe VM `c` is paused\n");
    assert_eq!(home.piton("ls --quiet --state paused").ok(), "a\nc\n");
    // Each by itself: two cannot shut down, one does.
    let said = home.piton("stop a b c --json");
    assert_eq!(said.code, Some(3), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(told[0]["error"].as_str().unwrap().contains("piton resume a"), "{told}");
    assert_eq!((&told[1]["state"], &told[2]["name"]), (&"stopped".into(), &"c".into()), "{told}");
    assert_eq!(home.piton("resume a c --json").json().as_array().unwrap().len(), 2);
    let killed = home.piton("kill a c b").ok();
    assert_eq!(killed.lines().filter(|line| line.ends_with("is stopped")).count(), 3, "{killed}");
    assert_eq!(home.piton("show a --json").json()["last_run"]["by"], "piton kill");

    home.piton("start a b --attach").fails(2, &["only one VM"]);
    home.piton("start a b --attach --detach").fails(2, &["cannot be used with"]);
    let started = home.piton("start a b").ok();
    assert_eq!(started.matches("is running").count(), 2, "{started}");
    let said = home.piton("start a c");
    assert!(said.code == Some(3) && said.stderr.contains("a: the VM `a` is already running"), "{said}");
    assert!(said.stdout.contains("`c` is running"), "{said}");
    home.piton("kill a b c").ok();
    home.piton("delete a c --yes").ok();
    assert_eq!(home.piton("ps -q").ok(), "b\n");
}

#[test]
fn a_forced_stop_gives_the_guest_its_time() {
    let home = Home::new();
    home.piton("run deaf --detach --memory 32M").ok();
    home.piton("pause deaf").ok();
    // A paused guest cannot shut down.
    home.piton("stop --force deaf").ok();
    home.piton("start deaf").ok();
    let answer = home.http("deaf", "POST", "/vm/stop", r#"{"force": true, "timeout": 60}"#);
    assert_eq!((answer.status, &answer.json()["state"]), (200, &"running".into()), "{answer:?}");
    home.ended("deaf");
    assert!(home.console_log("deaf").trim_end().ends_with("evt power button"));
    assert_eq!(home.piton("show deaf --json").json()["last_run"]["how"], "off");
}

#[test]
fn a_vm_gets_another_name() {
    let home = Home::new();
    let mut vm = home.boot("run old --memory 32M");
    home.piton("checkpoint create old one").ok();
    home.piton("rename old new").fails(3, &["`old` is running", "piton stop old"]);
    vm.power_off();
    home.piton("run other --detach --memory 32M").ok();
    home.piton("rename old other").fails(3, &["a VM named `other` already exists"]);
    home.piton("rename old bad/name").fails(2, &["name"]);
    assert_eq!(home.piton("rename old new").ok(), "the VM `old` has been renamed to `new`\n");
    home.piton("show old").fails(3, &["there is no VM `old`"]);
    assert_eq!(home.piton("show new --json").json()["checkpoints"], 1);
    home.piton("checkpoint apply new@one --discard-current --run").ok();
    home.piton("checkpoint verify new@one").ok();
    home.piton("kill new other").ok();

    // What is elsewhere has the VM's name, too.
    let dir = home.beside("elsewhere");
    std::fs::create_dir(&dir).unwrap();
    home.piton(&format!("set other --checkpoint-dir {}", dir.display())).ok();
    home.piton("rename other third").fails(3, &["its checkpoints are in", "elsewhere/other"]);
}

#[test]
fn a_near_miss_is_told() {
    let home = Home::new();
    home.piton("run database --detach --memory 32M").ok();
    home.piton("show databse").fails(3, &["did you mean `database`?"]);
    home.piton("stop databse").fails(3, &["did you mean `database`?"]);
    home.piton("show web").fails(3, &["there is no VM `web`", "piton list"]);
    let said = home.piton("strat database");
    assert!(said.code == Some(2) && said.stderr.contains("'start'"), "{said}");
    let said = home.piton("rollback database");
    assert!(said.code == Some(2) && said.stderr.contains("`piton checkpoint revert VM`"), "{said}");
    let said = home.piton("restart database");
    assert!(said.code == Some(2) && said.stderr.contains("`piton start VM`"), "{said}");
    home.piton("kill database").ok();
}

#[test]
fn times_are_local_and_say_so() {
    let home = Home::new();
    home.piton("run demo --detach --memory 32M").ok();
    home.piton("kill demo").ok();
    let shown = |zone: &str| {
        let mut command = home.command(["show", "demo"]);
        command.env("TZ", zone);
        let told = common::Finished::run(command).ok();
        told.lines().find_map(|line| line.strip_prefix("created")).unwrap().trim().to_owned()
    };
    let utc = shown("UTC");
    let time = chrono::DateTime::parse_from_rfc3339(&utc.replace(' ', "T")).unwrap();
    assert!(utc.ends_with('Z'), "{utc}");
    // Five hours and a half before Greenwich, as POSIX writes it.
    let other = shown("XYZ-5:30");
    assert!(other.ends_with("+05:30"), "{other}");
    assert_eq!(chrono::DateTime::parse_from_rfc3339(&other.replace(' ', "T")).unwrap(), time);
}

#[test]
fn a_long_line_of_checkpoints_stays_flat() {
    let home = Home::new();
    home.piton("run demo --detach --memory 32M").ok();
    home.piton("stop demo").ok();
    for n in 0..5 {
        home.piton(&format!("checkpoint create demo c{n}")).ok();
    }
    home.piton("checkpoint restore demo@c1 --discard-current").ok();
    let tree = home.piton("checkpoint list demo").ok();
    let marks: Vec<&str> = tree.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(marks, ["demo", "●", "●", "├─●", "│ ●", "│ ●", "○"], "{tree}");
    let list = home.piton("list").ok();
    assert!(list.contains("UPTIME") && list.contains("ADDRESS"), "{list}");
}
