//! `POST /vm/agent`: calls to the guest's agent over the control socket, with the bundled guest
//! playing agents good and bad.

mod common;

use common::{Home, Vm, until};
use serde_json::{Value, json};

fn boot(behaviour: &str) -> (Home, Vm) {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 64M");
    vm.ok(&format!("agent {behaviour}"));
    (home, vm)
}

fn body(call: &str, arguments: &Value) -> String {
    json!({"execute": call, "arguments": arguments}).to_string()
}

#[track_caller]
fn call(home: &Home, call: &str, arguments: Value) -> Value {
    let answer = home.http("demo", "POST", "/vm/agent", &body(call, &arguments));
    assert_eq!(answer.status, 200, "{call} {arguments}: {answer:?}");
    answer.json()["return"].clone()
}

#[track_caller]
fn refused(home: &Home, call: &str, arguments: Value, status: u16, word: &str) {
    let text = home.http("demo", "POST", "/vm/agent", &body(call, &arguments)).error(status);
    assert!(text.contains(word), "{text}");
}

fn ended(home: &Home, pid: &Value) -> Value {
    until("the program to end", || {
        let status = call(home, "guest-exec-status", json!({"pid": pid}));
        (status["exited"] == true).then_some(status)
    })
}

#[test]
fn commands_run_and_files_are_kept() {
    let (home, mut vm) = boot("on");
    let info = call(&home, "guest-info", json!({}));
    assert!(info["supported_commands"].as_array().unwrap().iter().any(|one| one["name"] == "guest-exec"));
    let exec = json!({"path": "echo", "arg": ["two \"words\"", "\u{e4}"], "capture-output": true});
    let pid = call(&home, "guest-exec", exec)["pid"].clone();
    let status = ended(&home, &pid);
    assert_eq!((&status["exitcode"], &status["out-data"]), (&json!(0), &json!("b2sgdHdvICJ3b3JkcyIgw6QK")));
    refused(&home, "guest-exec-status", json!({"pid": pid}), 422, "pid");
    refused(&home, "guest-exec", json!({"path": "/bin/nothing"}), 422, "No such file or directory");

    refused(&home, "guest-file-open", json!({"path": "/a", "mode": "r"}), 422, "No such file or directory");
    let handle = call(&home, "guest-file-open", json!({"path": "/a", "mode": "w"}));
    let written = call(&home, "guest-file-write", json!({"handle": handle, "buf-b64": "aGVsbG8K"}));
    assert_eq!(written["count"], 6);
    call(&home, "guest-file-seek", json!({"handle": handle, "offset": 1, "whence": "set"}));
    let read = call(&home, "guest-file-read", json!({"handle": handle, "count": 100}));
    assert_eq!(read, json!({"count": 5, "buf-b64": "ZWxsbwo=", "eof": true}));
    call(&home, "guest-file-close", json!({"handle": handle}));
    refused(&home, "guest-file-close", json!({"handle": handle}), 422, "handle");
    vm.send("cat /a");
    vm.expect("hello");

    // It is another guest after going back, and after a restart, and who is meant is told.
    let asked = home.http("demo", "POST", "/vm/agent", &body("guest-info", &json!({}))).json();
    let again = json!({"guest": asked["guest"], "execute": "guest-info"}).to_string();
    assert_eq!(home.http("demo", "POST", "/vm/agent", &again).status, 200);
    home.piton("checkpoint create demo one --type standard").ok();
    assert_eq!(home.http("demo", "POST", "/vm/agent", &again).status, 200, "a checkpoint changes nothing");
    home.piton("checkpoint apply demo@one --discard-current --run").ok();
    let text = home.http("demo", "POST", "/vm/agent", &again).error(410);
    assert_eq!(text, "the guest went back to a checkpoint in the meantime");
    assert_eq!(call(&home, "guest-info", json!({}))["version"], "piton");
    let asked = home.http("demo", "POST", "/vm/agent", &body("guest-info", &json!({}))).json();
    vm.send("reboot");
    vm.ready();
    vm.ok("agent on");
    let again = json!({"guest": asked["guest"], "execute": "guest-info"}).to_string();
    assert_eq!(
        home.http("demo", "POST", "/vm/agent", &again).error(410),
        "the guest was restarted in the meantime"
    );
    home.piton("pause demo").ok();
    refused(&home, "guest-info", json!({}), 423, "paused");
    home.piton("resume demo").ok();
    vm.power_off();
}

#[test]
fn agents_that_do_not_do_their_part() {
    let (home, mut vm) = boot("off");
    refused(&home, "guest-info", json!({}), 503, "no guest agent is connected");
    vm.ok("agent forbids");
    refused(&home, "guest-exec", json!({"path": "echo"}), 403, "not allowed");
    assert_eq!(call(&home, "guest-info", json!({}))["version"], "piton");
    for bad in ["floods", "quits"] {
        vm.ok(&format!("agent {bad}"));
        let pid = call(&home, "guest-exec", json!({"path": "echo"}))["pid"].clone();
        let word = if bad == "quits" { "disconnected during guest-exec-status" } else { "is too long" };
        refused(&home, "guest-exec-status", json!({"pid": pid}), 502, word);
    }
    vm.ok("agent on");
    let pid = call(&home, "guest-exec", json!({"path": "echo"}))["pid"].clone();
    ended(&home, &pid);

    // Frozen, and nobody could thaw it.
    vm.ok("agent dies");
    let create = "checkpoint create demo one --type production-only --freeze-timeout 1";
    assert_eq!(home.piton(create).code, Some(1));
    refused(&home, "guest-exec", json!({"path": "echo"}), 423, "frozen");
    vm.ok("agent on");
    vm.line(&["evt thawed"]);
    until("calls to be made again", || {
        (home.http("demo", "POST", "/vm/agent", &body("guest-info", &json!({}))).status == 200).then_some(())
    });
    vm.power_off();
}

/// Callers and production checkpoints share the channel, and neither disturbs the other.
#[test]
fn a_freeze_goes_between_calls() {
    let (home, mut vm) = boot("on");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calling: Vec<_> = (0..3)
            .map(|n| {
                let (home, done) = (&home, &done);
                scope.spawn(move || {
                    let mut count = 0;
                    while !done.load(std::sync::atomic::Ordering::SeqCst) {
                        let path = format!("/f{n}");
                        let handle = call(home, "guest-file-open", json!({"path": path, "mode": "w"}));
                        let data = json!({"handle": handle, "buf-b64": "aGVsbG8K"});
                        assert_eq!(call(home, "guest-file-write", data)["count"], 6);
                        call(home, "guest-file-close", json!({"handle": handle}));
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for n in 0..3 {
            let info =
                home.piton(&format!("checkpoint create demo p{n} --type production-only --json")).json();
            assert_eq!(info["type"], "production");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        for one in calling {
            assert!(one.join().unwrap() > 0, "a caller was never served");
        }
    });
    vm.power_off();
}
