//! `piton exec`: with programs of this host behind the bundled guest's port, and with its own ones.

mod common;

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use common::{Finished, Home, HostAgent, Vm, left_in_tmp, send_signal, until};

fn boot() -> (Home, Vm, HostAgent) {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 64M --vsock");
    let agent = HostAgent::start(&home, &mut vm);
    (home, vm, agent)
}

fn exec(home: &Home, words: &[&str]) -> Finished {
    home.args([&["exec", "demo"], words].concat())
}

/// With its streams on pipes.
fn start(home: &Home, words: &[&str]) -> Child {
    let mut command = home.command([&["exec", "demo"], words].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn ends(child: &mut Child) -> Option<i32> {
    until("the command to end", || child.try_wait().unwrap()).code()
}

fn streams_and_codes(home: &Home) {
    let told = exec(home, &["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((told.code, told.stdout.as_str(), told.stderr.as_str()), (Some(7), "out\n", "err\n"));
    let told = exec(home, &["printf", "%s|", "two words", "a'b\"c", "\u{e4}", "-n", "$HOME"]);
    assert_eq!(told.ok(), "two words|a'b\"c|\u{e4}|-n|$HOME|");
    let told = exec(home, &["surely-not-there"]);
    assert_eq!(told.code, Some(127), "{told}");
    assert!(told.stderr.contains("surely-not-there"), "{told}");
    assert_eq!(exec(home, &["sh", "-c", "kill -9 $$"]).code, Some(137));
    let told = exec(
        home,
        &["--env", "A=b c", "-e", "D=", "--workdir", "/usr", "--", "sh", "-c", "pwd; echo \"$A$D\""],
    );
    assert_eq!(told.ok(), "/usr\nb c\n");
    let told = exec(home, &["--workdir", "/surely/not", "pwd"]);
    assert_eq!(told.code, Some(126), "{told}");
    assert_eq!(exec(home, &["cat"]).ok(), "", "it has nothing to read");
    let told = home.args(["--json", "exec", "demo", "--", "sh", "-c", "echo x; exit 3"]);
    let json: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!((told.code, &json["exit_code"], &json["stdout"]), (Some(3), &3.into(), &"x\n".into()));
}

fn much_goes_through(home: &Home) {
    // More than the files in the guest may hold at a time, both ways.
    let bytes: Vec<u8> = (0..2_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut child = start(home, &["cat"]);
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let sending = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert_eq!(ends(&mut child), Some(0));
    assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());
}

/// Line by line, as somebody types.
fn input_is_answered_as_it_comes(home: &Home) {
    let mut child = start(home, &["sh", "-c", "while read -r line; do echo \"got $line\"; done; echo end"]);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for word in ["one", "two"] {
        stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
        let mut answer = vec![0; format!("got {word}\n").len()];
        stdout.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("got {word}\n"));
    }
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), ends(&mut child)), ("end\n", Some(0)));
}

fn wait_for_line(child: &mut Child, line: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(line.as_bytes()) {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

fn signals_reach_the_command(home: &Home) {
    let caught = "trap 'echo caught; exit 42' INT TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = start(home, &["sh", "-c", caught]);
    wait_for_line(&mut child, "ready\n");
    send_signal(child.id() as i32, libc::SIGINT);
    wait_for_line(&mut child, "caught\n");
    assert_eq!(ends(&mut child), Some(42));
    let mut child = start(home, &["sh", "-c", "echo ready; sleep 1000"]);
    wait_for_line(&mut child, "ready\n");
    send_signal(child.id() as i32, libc::SIGTERM);
    assert_eq!(ends(&mut child), Some(143));
}

fn who_is_deaf_is_killed(home: &Home) {
    // Who is deaf to the first is killed by the second.
    let mut child = start(home, &["sh", "-c", "trap '' INT; echo ready; while :; do sleep 0.05; done"]);
    wait_for_line(&mut child, "ready\n");
    send_signal(child.id() as i32, libc::SIGINT);
    std::thread::sleep(std::time::Duration::from_millis(300));
    send_signal(child.id() as i32, libc::SIGINT);
    assert_eq!(ends(&mut child), Some(137));
    let told = exec(home, &["--timeout", "0.3", "sleep", "1000"]);
    assert_eq!(told.code, Some(124), "{told}");
    assert!(told.stderr.contains("did not finish within 0.3 s"), "{told}");
    // Nobody reads on.
    let mut child = start(home, &["yes"]);
    wait_for_line(&mut child, "y\n");
    drop(child.stdout.take());
    assert_eq!(ends(&mut child), Some(141));
}

fn who_stays_behind_is_not_waited_for(home: &Home) {
    let told = exec(home, &["sh", "-c", "sleep 4 & echo done"]);
    assert_eq!(told.ok(), "done\n");
}

#[test]
fn commands_run_as_if_they_were_here() {
    let (home, mut vm, _agent) = boot();
    streams_and_codes(&home);
    input_is_answered_as_it_comes(&home);
    who_stays_behind_is_not_waited_for(&home);
    until("nothing to be left of the commands", || left_in_tmp(&home).is_empty().then_some(()));
    vm.power_off();
}

#[test]
fn commands_can_be_ended() {
    let (home, mut vm, _agent) = boot();
    signals_reach_the_command(&home);
    who_is_deaf_is_killed(&home);
    vm.power_off();
}

/// A guest that is busy: what the user does comes before the command has a place there.
#[test]
fn input_and_signals_wait_for_a_slow_guest() {
    let (home, mut vm, mut agent) = boot();
    let bin = home.beside("bin");
    std::fs::create_dir(&bin).unwrap();
    let (slow, begin) = (bin.join("mkdir"), home.beside("begin"));
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\n: >'{0}.seen'\nuntil [ -e '{0}' ]; do sleep 0.05; done\nPATH='{path}' exec mkdir \"$@\"\n",
        begin.display()
    );
    std::fs::write(&slow, script).unwrap();
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    agent.die();
    vm.ok("agent off");
    let agent = HostAgent::start_with_path(&home, &mut vm, &bin);
    let seen = begin.with_extension("seen");
    // What was tried so often has had its chance to be tried too early.
    let tried = || agent.asked("guest-file-open");
    let held = |child: &mut Child| {
        until("the shell in the guest", || seen.exists().then_some(()));
        let before = tried();
        until("some looks at the command", || (tried() > before + 6).then_some(()));
        assert_eq!(child.try_wait().unwrap(), None);
    };

    let mut child = start(&home, &["sh", "-c", "cat; echo end"]);
    child.stdin.take().unwrap().write_all(b"early\n").unwrap();
    held(&mut child);
    std::fs::write(&begin, "").unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((out.as_str(), ends(&mut child)), ("early\nend\n", Some(0)));

    std::fs::remove_file(&begin).unwrap();
    std::fs::remove_file(&seen).unwrap();
    let mut child = start(&home, &["sleep", "1000"]);
    until("the shell in the guest", || seen.exists().then_some(()));
    send_signal(child.id() as i32, libc::SIGTERM);
    held(&mut child);
    std::fs::write(&begin, "").unwrap();
    assert_eq!(ends(&mut child), Some(143));
    vm.power_off();
}

#[test]
fn much_goes_both_ways() {
    let (home, mut vm, _agent) = boot();
    much_goes_through(&home);
    vm.power_off();
}

/// The heart of it with a stock qemu-ga, where there is one.
#[test]
fn a_stock_agent_does_the_same() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 64M --vsock");
    let Some(_agent) = HostAgent::start_stock(&home, &mut vm) else {
        return common::skip("there is no qemu-ga here");
    };
    let told = exec(&home, &["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((told.code, told.stdout.as_str(), told.stderr.as_str()), (Some(7), "out\n", "err\n"));
    much_goes_through(&home);
    signals_reach_the_command(&home);
    vm.power_off();
}

#[test]
fn several_run_at_once_over_a_checkpoint_and_going_back() {
    let (home, mut vm, mut agent) = boot();
    let script = "for n in 1 2 3 4 5 6 7 8 9 10; do echo $n; sleep 0.05; done";
    let mut children: Vec<Child> = (0..4).map(|_| start(&home, &["sh", "-c", script])).collect();
    wait_for_line(&mut children[0], "2\n");
    home.piton("checkpoint create demo one --type standard").ok();
    for child in &mut children {
        assert_eq!(ends(child), Some(0));
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert!(out.ends_with("8\n9\n10\n"), "{out}");
    }
    // What a guest that goes back would forget, this host ends with the test.
    let place = home.beside("");
    let lasts = format!("echo ready; while [ -d '{}' ]; do sleep 0.1; done", place.display());
    // Its guest goes back while it runs.
    let mut child = start(&home, &["sh", "-c", &lasts]);
    wait_for_line(&mut child, "ready\n");
    home.piton("checkpoint apply demo@one --discard-current --run").ok();
    assert_eq!(ends(&mut child), Some(125));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the guest went back to a checkpoint while the command was running"), "{said}");

    // Its agent dies while it runs.
    agent.die();
    vm.ok("agent off");
    let mut agent = HostAgent::start(&home, &mut vm);
    let mut child = start(&home, &["sh", "-c", &lasts]);
    wait_for_line(&mut child, "ready\n");
    agent.die();
    assert_eq!(ends(&mut child), Some(125));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("agent"), "{said}");
    vm.power_off();
}

#[test]
fn the_bundled_guests_own_programs() {
    let home = Home::new();
    home.piton("exec demo -- echo x").fails(125, &["demo"]);
    let mut vm = home.boot("run demo --memory 64M");
    home.piton("exec demo -- echo x").fails(125, &["no guest agent is connected"]);
    vm.ok("agent on");
    assert_eq!(home.piton("exec demo -- echo one two").ok(), "ok one two\n");
    assert_eq!(home.piton("exec demo -- blk 9 id").code, Some(1));
    assert_eq!(home.piton("exec demo -- sh -c x").code, Some(127));
    home.piton("exec demo --user joe -- echo x").fails(125, &["--user needs a shell"]);
    let mut child = start(&home, &["cat"]);
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((out.as_str(), ends(&mut child)), ("hello\n", Some(0)));
    home.piton("wait demo --for agent --timeout 30").ok();
    home.piton("wait demo --for paused --timeout 0.1").fails(1, &["is running", "in time"]);
    home.piton("wait demo --for surely").fails(2, &["surely"]);
    home.piton("ssh demo").fails(3, &["no port of this host leads to port 22", "piton exec demo"]);
    let log = home.piton("logs demo").ok();
    assert!(log.contains("piton guest") && log.contains("ok agent on"), "{log}");
    assert_eq!(home.piton("logs demo --tail 1").ok().trim_end(), "ok agent on");
    home.piton("exec demo").fails(2, &["required arguments"]);
    home.piton("exec demo --env x -- echo").fails(2, &["NAME=VALUE"]);

    vm.ok("agent forbids");
    home.piton("exec demo -- echo x")
        .fails(125, &["the guest does not allow running commands from the host", "guest-exec"]);
    vm.ok("agent quits");
    home.piton("exec demo -- echo x").fails(125, &["disconnected", "while the command was running"]);
    vm.ok("agent floods");
    home.piton("exec demo -- echo x").fails(125, &["is too long"]);
    vm.ok("agent on");
    home.piton("pause demo").ok();
    home.piton("exec demo -- echo x").fails(125, &["paused", "piton resume demo"]);
    home.piton("resume demo").ok();
    // A restart in the middle.
    let told = home.piton("exec demo -- reboot");
    assert_eq!(told.code, Some(125), "{told}");
    assert!(told.stderr.contains("was restarted") || told.stderr.contains("disconnected"), "{told}");
    vm.ready();
    vm.power_off();
}

/// The times of lines, as `piton logs --json` has them.
fn lines_of(home: &Home, more: &[&str]) -> Vec<(Option<String>, String)> {
    let words = [&["logs", "demo", "--json"], more].concat();
    let read = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["time"].as_str().map(str::to_owned), line["line"].as_str().unwrap().to_owned())
    };
    home.args(&words).ok().lines().map(read).collect()
}

#[test]
fn the_log_knows_when_lines_came() {
    let home = Home::new();
    let began = chrono::Utc::now();
    let mut vm = home.boot("run demo --memory 64M");
    vm.ok("echo one");
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    // What comes within 10 ms of something has its time.
    std::thread::sleep(std::time::Duration::from_millis(30));
    vm.ok("echo two");
    let all = lines_of(&home, &[]);
    let at = |text: &str| all.iter().position(|(_, line)| line.contains(text)).unwrap();
    let times: Vec<_> = all.iter().map(|(time, _)| time.clone().unwrap()).collect();
    assert!(times.is_sorted(), "{all:?}");
    assert!(
        chrono::DateTime::parse_from_rfc3339(&times[0]).unwrap()
            >= began - chrono::TimeDelta::milliseconds(1)
    );
    let later = lines_of(&home, &["--since", &now]);
    assert_eq!(later, all[at("echo two")..], "{all:?}");
    assert_eq!(lines_of(&home, &["--since", "1h"]), all);
    assert_eq!(lines_of(&home, &["--since", &now, "--tail", "1"]), all[all.len() - 1..]);
    assert!(lines_of(&home, &["--since", "2999-01-01"]).is_empty());
    let stamped = home.piton("logs demo -t --tail 1").ok();
    let (time, line) = stamped.split_once(' ').unwrap();
    assert!(line.starts_with("ok two"), "{stamped}");
    let time = chrono::DateTime::parse_from_rfc3339(time).unwrap().to_utc();
    assert_eq!(times.last(), Some(&time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)));
    home.piton("logs demo --since soon").fails(2, &["`soon` is not a time", "10m"]);

    // Whoever follows gets times, too, and the end.
    let mut follows = home.command(vec!["logs", "demo", "-f", "--json", "--since", "1d"]);
    let child = follows.stdout(Stdio::piped()).spawn().unwrap();
    vm.power_off();
    let told = child.wait_with_output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("power") && told.lines().all(|line| line.contains("\"time\":\"20")), "{told}");

    // A log of which nothing is known.
    std::fs::remove_file(home.vm("demo").join("console.times")).unwrap();
    let told = home.piton("logs demo --since 1h");
    assert!(told.stdout.is_empty() && told.stderr.contains("has no times"), "{told}");
    assert!(lines_of(&home, &[]).iter().all(|(time, _)| time.is_none()));
    assert!(home.piton("logs demo -t --tail 1").ok().starts_with("- "));
}
