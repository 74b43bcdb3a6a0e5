//! What a VM tells those who watch it: metrics, events, its log, and its service manager.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};

use common::{Home, http, send_signal, until};
use serde_json::Value;

/// Samples by all that stands before the value. Asserts what the exposition format asks for.
#[track_caller]
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut families, mut typed) = (BTreeMap::new(), BTreeSet::new(), String::new());
    assert!(page.ends_with('\n'), "{page}");
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "{name} comes twice\n{page}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (head, value) = line.rsplit_once(' ').unwrap();
            let name = head.split('{').next().unwrap();
            let part = name.strip_prefix(&typed).unwrap_or_else(|| panic!("{line} is not of {typed}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&part), "{line}");
            assert!(samples.insert(head.to_owned(), value.parse().unwrap()).is_none(), "{head} comes twice");
        }
    }
    samples
}

fn of(vm: &str, name: &str, labels: &str) -> String {
    format!("{name}{{vm=\"{vm}\"{labels}}}")
}

#[test]
fn the_metrics_of_a_vm_count_what_it_does() {
    let home = Home::new();
    let image = home.image("data.raw", 8 << 20);
    let mut vm = home.boot(&format!("run demo --memory 64M --cpus 1 --disk {image},id=data"));
    let look = || {
        let answer = home.http("demo", "GET", "/metrics", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        let head = answer.head.to_ascii_lowercase();
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        samples(&answer.body)
    };
    let get = |name: &str, labels: &str| look()[&of("demo", name, labels)];
    assert_eq!(get("piton_state", ",state=\"running\""), 1.0);
    assert_eq!(get("piton_memory_bytes", ""), (64u64 << 20) as f64);
    assert!(get("piton_cpu_seconds_total", "") > 0.0);
    // It reads and writes when it likes.
    vm.ok("journal off");
    let before = look();
    vm.ok("blk 0 write 0 256K 1");
    vm.ok("blk 0 read 0 64K");
    vm.ok("blk 0 flush");
    let after = look();
    let grown = |name: &str| {
        let name = of("demo", name, ",disk=\"data\"");
        after[&name] - before[&name]
    };
    assert_eq!(grown("piton_disk_written_bytes_total"), f64::from(256 << 10));
    assert_eq!(grown("piton_disk_read_bytes_total"), f64::from(64 << 10));
    assert!(grown("piton_disk_writes_total") >= 1.0 && grown("piton_disk_flushes_total") >= 1.0);
    assert_eq!(grown("piton_disk_errors_total"), 0.0);

    home.piton("checkpoint create demo one").ok();
    home.piton("checkpoint create demo two --compress").ok();
    let after = look();
    let now = |name: &str, labels: &str| after[&of("demo", name, labels)];
    assert_eq!(now("piton_checkpoints", ",type=\"standard\""), 2.0);
    assert_eq!(now("piton_captures_total", ""), 2.0);
    assert_eq!(now("piton_pause_seconds_count", ""), 2.0);
    assert_eq!(now("piton_pause_seconds_bucket", ",le=\"+Inf\""), 2.0);
    assert!(now("piton_pause_seconds_sum", "") >= now("piton_last_pause_seconds", ""));
    assert!(now("piton_capture_bytes_total", ",part=\"memory\"") > 0.0);
    assert_eq!(now("piton_disk_layers", ",disk=\"data\""), 2.0);
    assert_eq!(now("piton_jobs_finished_total", ",kind=\"create\",result=\"done\""), 2.0);
    assert_eq!(now("piton_events_total", ",event=\"checkpoint-created\""), 2.0);
    home.piton("pause demo").ok();
    assert_eq!(get("piton_state", ",state=\"paused\""), 1.0);
    assert_eq!(get("piton_state", ",state=\"running\""), 0.0);
    // What was counted outlasts the machine that it was counted of.
    let written = get("piton_disk_written_bytes_total", ",disk=\"data\"");
    home.piton("checkpoint apply demo@one --discard-current").ok();
    home.piton("checkpoint delete demo@two --yes").ok();
    assert_eq!(get("piton_disk_written_bytes_total", ",disk=\"data\""), written);
    assert_eq!(get("piton_checkpoints", ",type=\"standard\""), 1.0);
    home.piton("kill demo").ok();
    vm.exit();
}

/// Lines of a process that goes on.
struct Lines {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Lines {
    fn of(mut command: std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().expect("it goes on").unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_metrics_of_all_vms_wait_for_none() {
    let home = Home::new();
    for name in ["one", "two", "off"] {
        home.piton(&format!("run {name} --memory 32M --detach")).ok();
    }
    home.piton("kill off").ok();
    let state = |page: &str, vm: &str| {
        let samples = samples(page);
        let states = ["running", "paused", "stopped", "unresponsive"];
        let is = |state: &&&str| samples[&of(vm, "piton_state", &format!(",state=\"{state}\""))] == 1.0;
        let found: Vec<&&str> = states.iter().filter(is).collect();
        assert_eq!(found.len(), 1, "{page}");
        found[0].to_string()
    };
    let page = home.piton("metrics").ok();
    for (vm, wanted) in [("one", "running"), ("two", "running"), ("off", "stopped")] {
        assert_eq!(state(&page, vm), wanted, "{page}");
    }
    let alone = home.piton("metrics two").ok();
    assert!(!alone.contains("vm=\"one\"") && state(&alone, "two") == "running", "{alone}");
    home.piton("metrics three").fails(3, &["there is no VM `three`"]);
    assert_eq!(home.piton("metrics --json").code, Some(2));
    home.piton("metrics one --listen 0").fails(2, &["cannot be used with"]);
    home.piton("metrics --listen localhost").fails(2, &["is not an address"]);

    let mut server = Lines::of(home.command(["metrics", "--listen", "127.0.0.1:0"]));
    let url = server.next();
    let at = url.strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics")).unwrap().to_owned();
    let fetch = |path: &str| {
        let stream = std::net::TcpStream::connect(&at).unwrap();
        http::converse(
            stream,
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    };
    assert_eq!(fetch("/").status, 404);
    // Neither clients that say nothing nor a VM that is stuck are waited for.
    let _silent: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(&at).unwrap()).collect();
    let pid = home.piton("show one --json").json()["pid"].as_i64().unwrap() as i32;
    send_signal(pid, libc::SIGSTOP);
    let answer = fetch("/metrics");
    send_signal(pid, libc::SIGCONT);
    assert_eq!(answer.status, 200, "{answer:?}");
    for (vm, wanted) in [("one", "unresponsive"), ("two", "running"), ("off", "stopped")] {
        assert_eq!(state(&answer.body, vm), wanted, "{}", answer.body);
    }
    send_signal(server.child.id() as i32, libc::SIGTERM);
    assert!(server.child.wait().unwrap().success());
}

fn events(home: &Home, words: &str) -> Vec<Value> {
    let text = home.piton(&format!("events {words} --json")).ok();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn events_tell_what_happened_whoever_did_it() {
    let home = Home::with_trash();
    home.piton("run demo --memory 32M --detach").ok();
    let mut follower = Lines::of(home.command(["events", "--follow", "--json"]));
    let mut next = || serde_json::from_str::<Value>(&follower.next()).unwrap();
    let started = next();
    assert_eq!((&started["event"], &started["vm"]), (&"started".into(), &"demo".into()));
    home.piton("checkpoint create demo one").ok();
    let created = next();
    assert_eq!(created["event"], "checkpoint-created");
    assert_eq!(created["checkpoint"], home.piton("checkpoint show demo@one --json").json()["id"]);
    home.piton("pause demo").ok();
    home.piton("pause demo").ok();
    home.piton("resume demo").ok();
    home.piton("checkpoint note demo@one x").ok();
    home.piton("checkpoint apply demo@one --discard-current --run").ok();
    home.piton("set demo --every 0").ok();
    // What is refused has not happened.
    home.piton("checkpoint create demo one").fails(3, &["exists"]);
    home.piton("checkpoint delete demo@one --yes").ok();
    home.piton("undo demo").ok();
    home.piton("clone demo@one new").ok();
    home.piton("trash empty demo --yes").ok();
    home.piton("kill demo").ok();
    home.ended("demo");
    let while_it_ran = [
        "started",
        "checkpoint-created",
        "paused",
        "resumed",
        "checkpoint-changed",
        "checkpoint-applied",
        "settings-changed",
        "checkpoint-deleted",
        "undone",
        "cloned",
        "trash-emptied",
        "stopped",
    ];
    let told = events(&home, "demo");
    assert_eq!(names(&told), while_it_ran, "{told:#?}");
    // The same of one that is off.
    home.piton("checkpoint create demo off").ok();
    home.piton("checkpoint note demo@off x").ok();
    home.piton("set demo --every 0").ok();
    home.piton("checkpoint apply demo@off --discard-current").ok();
    home.piton("checkpoint delete demo@off --yes").ok();
    home.piton("undo demo").ok();
    home.piton("disk resize demo root 80M").ok();
    home.piton("rename demo other").ok();
    home.piton("rename other demo").ok();
    let told = events(&home, "demo");
    let while_off = [
        "checkpoint-created",
        "checkpoint-changed",
        "settings-changed",
        "checkpoint-applied",
        "checkpoint-deleted",
        "undone",
        "disks-changed",
        "renamed",
        "renamed",
    ];
    assert_eq!(names(&told[while_it_ran.len()..]), while_off, "{told:#?}");
    // A process that was killed could say nothing.
    home.piton("start demo").ok();
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap() as i32;
    send_signal(pid, libc::SIGKILL);
    home.ended("demo");
    home.piton("start demo").ok();
    let told = events(&home, "demo --tail 3");
    assert_eq!(names(&told), ["started", "interrupted", "started"], "{told:#?}");
    // All of it came to who followed, also from the VM that came to be meanwhile.
    let live: Vec<Value> = std::iter::repeat_with(next).take(while_it_ran.len() + while_off.len()).collect();
    assert!(names(&live).contains(&"trash-emptied") && names(&live).contains(&"renamed"), "{live:#?}");
    let text = home.piton("events demo -n 1").ok();
    assert!(text.contains("  demo  started") && text.lines().count() == 1, "{text}");
    home.piton("events nobody").fails(3, &["there is no VM"]);
}

#[test]
fn the_log_can_be_json() {
    let home = Home::new();
    let mut command = home.command(["run", "demo", "--memory", "32M", "--detach"]);
    command.env("PITON_LOG", "debug").env("PITON_LOG_FORMAT", "json");
    common::Finished::run(command).ok();
    home.piton("kill demo").ok();
    home.ended("demo");
    let log = std::fs::read_to_string(home.vm("demo").join("piton.log")).unwrap();
    assert!(!log.is_empty());
    for line in log.lines() {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(json["vm"], "demo", "{line}");
        assert!(json["time"].is_string() && json["level"].is_string() && json["message"].is_string());
    }
    let mut command = home.command(["list"]);
    command.env("PITON_LOG_FORMAT", "xml");
    common::Finished::run(command).fails(2, &["PITON_LOG_FORMAT", "plain or json"]);
    // journald is told how grave it is only where standard error leads there.
    let mut command = home.command(["show", "demo@"]);
    command.env("JOURNAL_STREAM", "1:2");
    assert!(!common::Finished::run(command).stderr.contains("<3>"));
}

#[test]
fn a_service_manager_is_told_when_a_vm_is_ready() {
    let home = Home::new();
    let path = home.beside("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(common::patience())).unwrap();
    let told = || {
        let mut text = [0; 200];
        let length = socket.recv(&mut text).expect("it is told in time");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let mut command = home.command(["run", "demo", "--memory", "32M"]);
    command.env("NOTIFY_SOCKET", &path);
    let mut vm = common::Vm::spawn(command);
    assert_eq!(told(), "READY=1");
    // It answers from then on.
    assert_eq!(home.http("demo", "GET", "/vm", "").json()["state"], "running");
    vm.signal(libc::SIGTERM);
    assert!(told().starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC="));
    vm.exit();
    // One that is not there is no reason not to run.
    drop(socket);
    std::fs::remove_file(&path).unwrap();
    let mut command = home.command(["start", "demo", "--attach"]);
    command.env("NOTIFY_SOCKET", &path);
    let mut vm = common::Vm::spawn(command);
    vm.ready();
    home.piton("kill demo").ok();
    vm.exit();
    until("all to end", || home.processes().is_empty().then_some(()));
}

#[test]
fn a_network_that_fails_is_an_event() {
    let home = Home::new();
    if std::process::Command::new("passt").arg("--version").output().is_err() {
        return common::skip("passt is not installed");
    }
    let mut vm = home.boot("run demo --memory 32M --net user");
    let passt = || {
        let is_passt = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.contains("passt"))
        };
        home.processes().into_iter().find(is_passt)
    };
    let pid = until("passt", passt);
    send_signal(pid, libc::SIGKILL);
    until("the network to be back", || {
        let told = events(&home, "demo");
        names(&told).ends_with(&["network-down", "network-up"]).then_some(())
    });
    let up = of("demo", "piton_net_up", ",net=\"0\"");
    until("the link to be up", || (samples(&home.piton("metrics demo").ok())[&up] == 1.0).then_some(()));
    vm.power_off();
}

#[test]
fn names_are_completed_in_the_shell() {
    let home = Home::new();
    home.piton("run demo --memory 32M --detach").ok();
    home.piton("checkpoint create demo before-upgrade").ok();
    home.piton("kill demo").ok();
    let complete = |words: &[&str]| {
        let mut command = home.command([["--", "piton"].as_slice(), words].concat());
        command.env("COMPLETE", "fish");
        let text = common::Finished::run(command).ok();
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(complete(&["sta"]).contains(&"start".to_owned()));
    assert_eq!(complete(&["start", "d"]), ["demo"]);
    assert_eq!(complete(&["checkpoint", "apply", "de"]), ["demo@"]);
    assert_eq!(complete(&["checkpoint", "apply", "demo@b"]), ["demo@before-upgrade"]);
    assert_eq!(complete(&["run", "d"]), Vec::<String>::new());
    for shell in ["bash", "zsh", "fish"] {
        let script = home.piton(&format!("completions {shell}")).ok();
        assert!(script.contains("COMPLETE") && script.contains("piton"), "{script}");
    }
    home.piton("completions csh").fails(2, &["csh"]);
}
