//! Long work is listed, watched and called off, whatever the VM's owner is busy with.

mod ckpt_common;
mod common;

use ckpt_common::{Lab, files};
use common::until;
use serde_json::{Value, json};

fn job(lab: &Lab, id: &str) -> Value {
    lab.http("demo", "GET", &format!("/vm/jobs/{id}"), "").json()
}

fn over(lab: &Lab, id: &str) -> Value {
    until("the job to be over", || {
        let job = job(lab, id);
        (job["state"] != "queued" && job["state"] != "running").then_some(job)
    })
}

fn id(job: &Value) -> String {
    job["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_job_is_not_waited_for_and_keeps_its_result() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    assert_eq!(lab.cp("jobs demo --json").json(), json!({ "jobs": [] }));
    let asked = lab.http("demo", "POST", "/vm/checkpoints", r#"{"name": "one", "no_wait": true}"#);
    assert_eq!((asked.status, &asked.json()["kind"]), (202, &json!("create")), "{asked:?}");
    let first = id(&asked.json());
    let done = over(&lab, &first);
    assert_eq!((&done["state"], &done["subject"]), (&json!("done"), &json!("one")), "{done}");
    assert_eq!(done["result"]["name"], "one");
    assert_eq!(lab.names(), ["one"]);
    // One that fails keeps why.
    let second = lab.cp("create demo one --no-wait").ok().trim().to_owned();
    let failed = over(&lab, &second);
    assert_eq!(failed["state"], "failed");
    assert!(failed["error"].as_str().unwrap().contains("exists"), "{failed}");
    // One that is waited for is listed, too; its id can be chosen, once.
    let chosen = "00112233445566778899aabbccddeeff";
    let body = format!(r#"{{"name": "two", "job": "{chosen}"}}"#);
    assert_eq!(lab.http("demo", "POST", "/vm/checkpoints", &body).json()["name"], "two");
    lab.http("demo", "POST", "/vm/checkpoints", &body).error(409);
    let list = lab.cp("jobs demo --json").json();
    let listed: Vec<String> = list["jobs"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(listed, [&first, &second, chosen]);
    let text = lab.cp("jobs demo").ok();
    assert_eq!((text.lines().count(), text.matches("create").count()), (4, 3), "{text}");
    // What is over cannot be cancelled, and what is not there not be found.
    lab.cp(&format!("cancel demo {}", &chosen[..8])).fails(3, &["has finished"]);
    lab.cp("cancel demo 99999999").fails(3, &["no job"]);
    lab.cp("cancel demo ../..").fails(2, &["a job's id"]);
    lab.http("demo", "GET", "/vm/jobs/ffff", "").error(404);
    lab.http("demo", "DELETE", &format!("/vm/jobs/{first}"), "").error(409);
    vm.journal();
    vm.power_off();
    assert_eq!(lab.cp("jobs demo --json").json(), json!({ "jobs": [] }));
    lab.cp("create demo three --no-wait").fails(3, &["is stopped", "piton start demo"]);
    lab.tidy();
}

#[test]
fn work_that_waits_can_be_called_off_before_it_begins() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 256M");
    vm.ok("fill 200");
    let ask = |name: &str| {
        let body = format!(r#"{{"name": "{name}", "no_wait": true}}"#);
        id(&lab.http("demo", "POST", "/vm/checkpoints", &body).json())
    };
    // The owner is busy with the first; jobs are told of and called off all the same.
    let first = ask("first");
    let waiting: Vec<String> = (0..4).map(|n| ask(&format!("n{n}"))).collect();
    for job in &waiting {
        let path = format!("/vm/jobs/{job}");
        assert_eq!(lab.http("demo", "DELETE", &path, "").status, 202);
    }
    assert_eq!(over(&lab, &first)["state"], "done");
    for job in &waiting {
        let job = over(&lab, job);
        assert_eq!(job["state"], "cancelled", "{job}");
    }
    assert_eq!(lab.names(), ["first"]);
    vm.journal();
    vm.power_off();
    lab.tidy();
}

/// Ctrl-C, `kill`, and a terminal that is closed.
#[test]
fn a_signal_cancels_the_work() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let lab = Lab::new();
        let mut vm = lab.boot("--memory 512M");
        vm.ok("fill 440");
        let sum = vm.ok("sum");
        let mut command = common::Vm::spawn(lab.command(["checkpoint", "create", "demo", "one"]));
        // Once the memory is being written, it is too early to be done.
        until("the job to begin", || {
            let jobs = lab.cp("jobs demo --json").json();
            (jobs["jobs"][0]["done"].as_u64() > Some(0)).then_some(())
        });
        command.signal(signal);
        let exit = command.exit();
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert!(exit.stderr.contains("cancelled") && exit.stderr.trim().lines().count() == 1, "{exit:?}");
        assert_eq!(lab.cp("jobs demo --json").json()["jobs"][0]["state"], "cancelled");
        assert_eq!(files(&lab.vm("demo").join("checkpoints")), Vec::<std::path::PathBuf>::new());
        assert_eq!(vm.ok("sum"), sum);
        lab.create("two");
        vm.journal();
        vm.power_off();
        assert_eq!(lab.names(), ["two"]);
        lab.tidy();
    }
}

/// Whoever is killed while it waits for its turn does not get what it asked for behind its back.
#[test]
fn a_request_whose_asker_left_before_its_turn_is_not_done() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 512M");
    vm.ok("fill 440");
    let first = lab.http("demo", "POST", "/vm/checkpoints", r#"{"name": "one", "no_wait": true}"#).json();
    until("the job to begin", || (job(&lab, &id(&first))["done"].as_u64() > Some(0)).then_some(()));
    let mut second = common::Vm::spawn(lab.command(["checkpoint", "create", "demo", "two"]));
    until("the second to wait", || {
        (lab.cp("jobs demo --json").json()["jobs"][1]["state"] == "queued").then_some(())
    });
    second.signal(libc::SIGKILL);
    second.exit();
    until("both to be over", || {
        let jobs = lab.cp("jobs demo --json").json();
        let states = [0, 1].map(|index| jobs["jobs"][index]["state"].as_str().unwrap().to_owned());
        (!states.iter().any(|state| state == "queued" || state == "running")).then_some(states)
    });
    assert_eq!(lab.names(), ["one"]);
    vm.journal();
    vm.power_off();
    lab.tidy();
}

#[test]
fn the_end_of_a_vm_calls_its_work_off() {
    for forced in [true, false] {
        let lab = Lab::new();
        let mut vm = lab.boot("--memory 512M");
        vm.ok("fill 440");
        let asked = lab.http("demo", "POST", "/vm/checkpoints", r#"{"no_wait": true}"#).json();
        until("the job to begin", || (job(&lab, &id(&asked))["done"].as_u64() > Some(0)).then_some(()));
        if forced {
            assert_eq!(lab.http("demo", "POST", "/vm/kill", "").status, 200);
        } else {
            vm.signal(libc::SIGTERM);
        }
        vm.exits_well();
        assert_eq!(lab.names(), Vec::<String>::new());
        lab.tidy();
    }
}

#[test]
fn bodies_are_what_is_documented() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    lab.create("one");
    for body in ["[]", "7", r#"{"no_wait": 1}"#, r#"{"job": "x"}"#, r#"{"other": 1}"#] {
        lab.http("demo", "POST", "/vm/checkpoints", body).error(400);
        lab.http("demo", "POST", "/vm/checkpoints/one/apply", body).error(400);
    }
    lab.http("demo", "POST", "/vm/stop", "[]").error(400);
    lab.http("demo", "PATCH", "/vm/checkpoints/%ff", "{}").error(400);
    lab.http("demo", "GET", "/vm/jobs/%ff", "").error(400);
    assert_eq!(lab.names(), ["one"]);
    vm.power_off();
}
