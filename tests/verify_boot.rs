//! `checkpoint verify --boot`: a checkpoint is tried in a temporary clone, of which nothing stays but
//! what came of it.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::{Home, until};
use serde_json::Value;

/// What is in a VM's folder, and what is in the files, but for what a verify is to leave.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file() && entry.file_name() != "verified.json")
        .map(|entry| (entry.path().to_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

fn names(home: &Home) -> Vec<String> {
    home.piton("list --quiet").ok().lines().map(str::to_owned).collect()
}

fn shown(home: &Home, checkpoint: &str) -> Value {
    home.piton(&format!("checkpoint show demo@{checkpoint} --json")).json()["verified"].clone()
}

/// A stopped VM with the checkpoint `off`.
fn stopped() -> Home {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 32M --net none");
    vm.power_off();
    home.piton("checkpoint create demo off").ok();
    home
}

#[test]
fn a_stopped_vm_is_booted_and_nothing_stays_of_it() {
    let home = stopped();
    let before = contents(&home.vm("demo"));
    assert_eq!(shown(&home, "off"), Value::Null);
    let words = ["checkpoint", "verify", "demo@off", "--boot", "--wait-for", r"ready\s+vcpus=\d"];
    let told = home.args(words).ok();
    assert!(told.contains("checkpoint `off` works: it was booted") && told.contains("matched"), "{told}");
    assert_eq!((names(&home), contents(&home.vm("demo"))), (vec!["demo".into()], before));
    let verified = shown(&home, "off");
    assert_eq!((&verified["passed"], &verified["began"]), (&true.into(), &"booted".into()), "{verified:#}");
    assert!(verified["console"].as_str().unwrap().contains("piton guest ready"), "{verified:#}");
    let list = home.piton("checkpoint list demo --json").json();
    assert_eq!(list["checkpoints"][0]["verified"]["passed"], true);
    assert_eq!(list["checkpoints"][0]["verified"]["console"], Value::Null);
    assert!(home.piton("checkpoint list demo").ok().contains("offline, verified"));
    assert!(home.piton("checkpoint show demo@off").ok().contains("it was booted, and its console matched"));

    // The last one counts, and one that fails is no secret.
    let failed = home.piton("checkpoint verify demo@off --boot --wait-for never --timeout 0.5 --json");
    assert_eq!(failed.code, Some(1), "{failed}");
    let result: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!((&result["passed"], result["why"].is_string()), (&false.into(), true), "{result:#}");
    let failed = home.piton("checkpoint verify demo@off --boot --wait-for never --timeout 0.5");
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""), "{failed}");
    assert!(failed.stderr.contains("within 0.5 s it was not seen"), "{failed}");
    assert!(home.piton("checkpoint list demo").ok().contains("failed to come back"));
    assert_eq!(names(&home), ["demo"]);

    // What cannot be.
    home.piton("checkpoint verify demo@off --boot --wait-for (").fails(2, &["regex"]);
    home.piton("checkpoint verify demo@off --agent").fails(2, &["required"]);
    home.piton("checkpoint verify demo@off --boot --agent --exec true").fails(2, &["cannot be used with"]);
    home.piton("checkpoint verify demo@nothing --boot").fails(3, &["nothing"]);
}

#[test]
fn a_running_vm_is_resumed_beside_itself() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 32M");
    vm.ok("agent on");
    home.piton("checkpoint create demo live --type standard").ok();
    let told = home.piton("checkpoint verify demo@live --boot --agent").ok();
    assert!(told.contains("it was resumed") && told.contains("its guest agent answered"), "{told}");
    let told = home.piton("checkpoint verify demo@live --boot --timeout 0.5 --json").json();
    assert_eq!((&told["passed"], &told["until"]), (&true.into(), &"it ran for 0.5 s".into()));
    assert_eq!(home.http("demo", "GET", "/vm/checkpoints/live", "").json()["verified"]["passed"], true);
    let files = home.manifest("demo", "live");
    assert_eq!(files["memory"]["flat"], Value::Null, "no copy was made for the clone");
    assert_eq!(names(&home), ["demo"]);
    vm.power_off();
}

/// One that waits for what does not come, and the name of its clone.
fn waiting(home: &Home) -> (Child, String) {
    let mut command =
        home.command("checkpoint verify demo@off --boot --wait-for never --timeout 600".split(' '));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let name = until("the clone to run", || {
        let list = home.piton("list --json").json();
        let clone = list.as_array().unwrap().iter().find(|vm| vm["state"] == "running");
        clone.map(|vm| vm["name"].as_str().unwrap().to_owned())
    });
    assert!(name.starts_with("verify-"), "{name}");
    (child, name)
}

#[test]
fn a_command_that_is_ended_leaves_no_clone() {
    let home = stopped();
    let (child, _) = waiting(&home);
    // SAFETY: it is a child that was not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let ended = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(1) && told.contains("cancelled"), "{ended:?}");
    assert_eq!((names(&home), shown(&home, "off")), (vec!["demo".into()], Value::Null));

    // Killed, it leaves one, which is found.
    let (mut child, name) = waiting(&home);
    home.piton("doctor demo").ok();
    child.kill().unwrap();
    child.wait().unwrap();
    let told = home.piton("doctor demo").ok();
    assert!(told.contains(&format!("the temporary VM `{name}`")) && told.contains("--repair"), "{told}");
    assert_eq!(names(&home).len(), 2);
    home.piton("doctor demo --repair").ok();
    assert_eq!(names(&home), ["demo"]);
    assert_eq!(home.processes(), Vec::<i32>::new());
    // Or by the next one.
    let (mut child, _) = waiting(&home);
    child.kill().unwrap();
    child.wait().unwrap();
    home.piton("checkpoint verify demo@off --boot --wait-for ready").ok();
    assert_eq!((names(&home), home.processes()), (vec!["demo".into()], Vec::new()));
}

#[test]
fn what_is_due_is_tried() {
    let home = stopped();
    home.boot("run other --memory 32M --net none").power_off();
    let due = |more: &str| home.piton(&format!("checkpoint verify-due{more}"));
    assert_eq!(due("").ok(), "no checkpoint is due\n");
    home.piton("set demo --verify-every 1d --wait-for ready --agent").fails(2, &["--wait-for", "--agent"]);
    home.piton("set demo --trash 1d --exec true").fails(2, &["required arguments"]);
    home.piton("set demo --verify-every 1d --wait-for (").fails(3, &["not a regular expression"]);
    let told = home.piton("set demo other --verify-every 1d --wait-for ready --timeout 60").ok();
    assert!(
        told.contains("verify-due` tries its newest checkpoint every 1d, until its console matches `ready`"),
        "{told}"
    );
    assert!(
        home.piton("show demo").ok().contains("verify       every 1d, until its console matches `ready`")
    );
    let plan = serde_json::json!({ "every_seconds": 86400, "wait_for": "ready", "timeout_seconds": 60 });
    assert_eq!(home.piton("show demo --json").json()["verify"], plan);
    // The newest one; and one that has none has nothing to be tried.
    home.piton("checkpoint create demo newest").ok();
    let told = due("").ok();
    assert!(told.contains("the VM `demo`:\ncheckpoint `newest` works: it was booted"), "{told}");
    assert_eq!((shown(&home, "off"), &shown(&home, "newest")["passed"]), (Value::Null, &true.into()));
    assert_eq!(names(&home), ["demo", "other"]);
    assert_eq!(due(" --json").json(), serde_json::json!([]));

    // A day later it is tried again, and so it is if the clock was ahead then.
    let id = home.piton("checkpoint show demo@newest --json").json()["id"].as_str().unwrap().to_owned();
    let file = home.vm("demo").join("checkpoints").join(id).join("verified.json");
    let set_time = |time: &str| {
        let mut verified: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        verified["when"] = time.into();
        std::fs::write(&file, verified.to_string()).unwrap();
    };
    for time in ["2020-01-01T00:00:00Z", "2199-01-01T00:00:00Z"] {
        set_time(time);
        let tried = due(" demo --json").json();
        assert_eq!((&tried[0]["vm"], &tried[0]["passed"]), (&"demo".into(), &true.into()), "{tried:#}");
        assert_eq!(due(" demo").ok(), "no checkpoint is due\n");
    }
    // Of a VM that runs, over its socket; what fails is told, and fails the timer's unit.
    let mut vm = home.boot("start demo --attach");
    let body = r#"{"verify": {"every_seconds": 60, "wait_for": "never", "timeout_seconds": 1}}"#;
    assert_eq!(home.http("demo", "PATCH", "/vm", body).json()["verify"]["wait_for"], "never");
    for body in [
        r#"{"verify": {"every_seconds": 60, "exec": "true", "agent": true}}"#,
        r#"{"verify": {"every_seconds": 60, "wait_for": "("}}"#,
        r#"{"verify": {"every_seconds": 60, "timeout_seconds": 0}}"#,
    ] {
        assert_eq!(home.http("demo", "PATCH", "/vm", body).status, 409, "{body}");
    }
    set_time("2020-01-01T00:00:00Z");
    let failed = due("");
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(failed.stderr.contains("checkpoint `newest` was booted, but within 1 s"), "{failed}");
    assert_eq!(shown(&home, "newest")["passed"], false);
    home.piton("set demo --verify-every 0").ok();
    assert_eq!(home.piton("show demo --json").json()["verify"], Value::Null);
    vm.power_off();
}
