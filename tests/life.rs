//! A VM's life through the commands: detached, paused, stopped, killed, removed.

mod common;

use std::time::Duration;

use common::{Home, field, until};

#[test]
fn a_detached_vm_lives_on_and_is_found() {
    let home = Home::new();
    assert!(home.piton("list").ok().contains("piton run"), "what to do first");
    let said = home.piton("run demo --detach --cpus 2 --memory 64M").ok();
    assert!(said.contains("piton console demo"), "{said}");
    let mut console = home.attach("demo");
    assert_eq!(field(&console.ready(), "vcpus"), 2);
    console.journal_goes_on(1);

    let list = home.piton("list").ok();
    assert!(list.contains("demo") && list.contains("running") && list.contains("64 MiB"), "{list}");
    let listed = home.piton("list --json").json();
    let shown = home.piton("show demo --json").json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0], shown);
    assert_eq!((&shown["name"], &shown["state"]), (&"demo".into(), &"running".into()));
    assert_eq!(shown["folder"], home.vm("demo").to_str().unwrap());
    assert_eq!(shown["config"]["memory"], 64 << 20);
    let text = home.piton("show demo").ok();
    for word in ["demo", "running", "64 MiB", "bundled guest", "disks/root.raw"] {
        assert!(text.contains(word), "{word}: {text}");
    }

    home.piton("stop demo").ok();
    assert!(console.end().contains("evt power button"));
    let shown = home.piton("show demo --json").json();
    assert_eq!(shown["state"], "stopped");
    assert!(shown.get("pid").is_none());
    home.piton("rm demo --yes").ok();
    assert!(!home.vm("demo").exists());
    home.is_empty();
}

/// The instrument of scripts/bench: whatever the guest was at when it was stopped, and although the
/// question waits for it when it goes on.
fn its_clock_shows_each_pause(cpus: u32) {
    const PAUSE: Duration = Duration::from_millis(150);
    let home = Home::new();
    let mut vm = home.boot(&format!("run demo --memory 128M --cpus {cpus}"));
    vm.ok("journal off");
    vm.ok("dirty 32 500");
    vm.ok("gaps start");
    for round in 0..10 {
        vm.ok("gaps");
        home.piton("pause demo").ok();
        vm.send("gaps");
        std::thread::sleep(PAUSE);
        home.piton("resume demo").ok();
        let told = vm.line(&["ok gap_us"]);
        // The only vCPU may have been at work.
        let work = if cpus == 1 { field(&told, "busy_us") } else { 0 };
        let seen = field(&told, "gap_us").max(work);
        assert!(u128::from(seen) >= PAUSE.as_micros(), "round {round}: {told}");
    }
    vm.power_off();
}

#[test]
fn the_clock_of_a_guest_shows_each_pause() {
    its_clock_shows_each_pause(1);
}

#[test]
fn the_clock_of_a_guest_with_two_vcpus_shows_each_pause() {
    its_clock_shows_each_pause(2);
}

#[test]
fn pauses_and_resumes() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    vm.journal_goes_on(1);
    assert!(home.piton("pause demo").ok().contains("is paused"));
    assert_eq!(home.piton("show demo --json").json()["state"], "paused");
    vm.send("echo it does");
    let before = home.console_log("demo");
    // Twice is once.
    assert_eq!(home.piton("pause demo --json").json()["state"], "paused");
    assert_eq!(home.console_log("demo"), before, "a paused guest does nothing");
    assert!(home.piton("resume demo").ok().contains("is running"));
    vm.line(&["ok it does"]);
    assert_eq!(home.piton("resume demo --json").json()["state"], "running");
    vm.journal();
    vm.power_off();
}

#[test]
fn the_journal_stays_right_over_many_pauses() {
    let home = Home::new();
    let (a, b) = (home.image("a.raw", 4 << 20), home.image("b.raw", 4 << 20));
    let mut vm = home.boot(&format!("run demo --cpus 2 --disk {a} --disk {b}"));
    vm.ok("journal tick 1");
    vm.ok("dirty 32 100");
    vm.ok("fill 16 9");
    let sum = vm.ok("sum");
    let mut seq = vm.journal();
    for _ in 0..20 {
        assert_eq!(home.http("demo", "POST", "/vm/pause", "").status, 200);
        assert_eq!(home.http("demo", "POST", "/vm/resume", "").status, 200);
        seq = vm.journal_goes_on(seq);
    }
    assert_eq!(vm.ok("sum"), sum);
    vm.ok("dirty check");
    vm.power_off();
}

#[test]
fn pausing_under_load_loses_no_request() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2 --memory 64M");
    vm.ok("journal off");
    vm.send("blk bench rand-write 0 32M 4096 3000 64 qd=8");
    let mut pauses = 0;
    while !vm.text().contains("p99_us") {
        assert_eq!(home.http("demo", "POST", "/vm/pause", "").status, 200);
        assert_eq!(home.http("demo", "POST", "/vm/resume", "").status, 200);
        pauses += 1;
        assert!(!vm.text().contains("\nerr"), "after {pauses} pauses");
        assert!(pauses < 20_000, "the guest makes no progress");
    }
    assert!(pauses > 0);
    vm.line(&["ok"]);
    vm.ok("blk write 0 8M 3");
    vm.ok("blk verify 0 8M 3");
    vm.power_off();
}

#[test]
fn stop_presses_the_power_button() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let said = home.piton("stop demo").ok();
    assert!(said.contains("is stopped"), "{said}");
    let exit = vm.exits_well();
    assert!(exit.console.contains("evt power button"));
}

/// The guest has its interrupts masked for its first moments, and hears of the button all the same.
#[test]
fn a_button_pressed_before_the_guest_listens_is_heard() {
    let home = Home::new();
    home.piton("run demo --detach --memory 32M").ok();
    home.piton("stop demo").ok();
    for _ in 0..10 {
        let mut starting = home.spawn("start demo --attach");
        until("the VM to be there", || home.socket("demo").exists().then_some(()));
        home.piton("stop demo").ok();
        starting.exits_well();
    }
}

#[test]
fn stop_says_when_the_guest_does_not_heed_it() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.send("hang");
    vm.line(&["evt hang"]);
    home.piton("stop demo --timeout 1").fails(1, &["did not shut down", "piton kill demo"]);
    assert!(vm.is_running());
    home.piton("stop demo --force --timeout 1").ok();
    let exit = vm.exits_well();
    assert!(exit.stderr.contains("piton stop --force"), "{}", exit.stderr);
}

#[test]
fn a_paused_vm_is_not_stopped_without_force() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    home.piton("pause demo").ok();
    home.piton("stop demo").fails(3, &["is paused", "piton resume demo"]);
    assert!(vm.is_running());
    assert_eq!(home.piton("stop demo --force --json").json()["state"], "stopped");
    vm.exits_well();
}

#[test]
fn what_runs_is_not_started_again_or_removed() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    for line in ["start demo", "start demo --attach"] {
        home.piton(line).fails(3, &["`demo` is already running", "piton console demo"]);
    }
    home.piton("doctor demo").fails(3, &["`demo` is running", "piton stop demo"]);
    home.piton("pause demo").ok();
    home.piton("start demo").fails(3, &["`demo` is paused", "piton resume demo"]);
    for line in ["rm demo --yes", "doctor demo"] {
        home.piton(line).fails(3, &["`demo` is paused", "piton kill demo"]);
    }
    home.piton("resume demo").ok();
    home.piton("run demo").fails(3, &["demo"]);
    home.piton("rm demo --yes").fails(3, &["piton stop demo"]);
    vm.journal();
    vm.power_off();
    home.piton("rm demo").fails(3, &["--yes"]);
    assert!(home.vm("demo").join("vm.json").exists());
    assert_eq!(home.piton("rm demo --yes --json").json()["removed"], "demo");
    home.is_empty();
}

#[test]
fn what_does_not_run_is_said() {
    let home = Home::new();
    for command in ["start", "stop", "pause", "resume", "console", "show", "rm --yes"] {
        home.piton(&format!("{command} nobody")).fails(3, &["no VM `nobody`", "piton list"]);
    }
    home.boot("run demo").power_off();
    assert!(home.piton("stop demo").ok().contains("is stopped"), "which is what was asked for");
    for command in ["pause", "resume", "console"] {
        home.piton(&format!("{command} demo")).fails(3, &["the VM `demo` is stopped", "piton start demo"]);
    }
    let said = home.piton("pause demo --json");
    assert_eq!(said.code, Some(3));
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(json["error"].as_str().unwrap().contains("is stopped"), "{said}");
}

/// The guest may be gone before it is forced to; and what is shown as stopped can be used at once.
#[test]
fn forced_at_once_it_ends_whoever_is_first() {
    let home = Home::new();
    home.boot("run demo").power_off();
    for _ in 0..5 {
        home.piton("start demo").ok();
        home.piton("stop demo --force --timeout 0").ok();
        assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
    }
    for _ in 0..5 {
        let mut vm = home.boot("start demo --attach");
        vm.send("poweroff");
        until("the VM to be shown as stopped", || {
            (home.piton("show demo --json").json()["state"] == "stopped").then_some(())
        });
        home.piton("start demo").ok();
        home.piton("stop demo --force").ok();
        vm.exits_well();
    }
}

#[test]
fn starts_again_after_a_kill() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    vm.ok("blk write 0 4M 77");
    vm.ok("blk flush");
    let seq = vm.journal_goes_on(5);
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.exit().signal, Some(libc::SIGKILL));
    assert!(home.socket("demo").exists(), "a socket that nobody listens on");
    assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
    home.piton("pause demo").fails(3, &["is stopped"]);

    assert_eq!(home.piton("start demo --json").json()["state"], "running");
    let mut console = home.attach("demo");
    console.ready();
    console.ok("blk verify 0 4M 77");
    assert!(console.journal() >= seq, "what was flushed is there");
    home.piton("stop demo").ok();
}

#[test]
fn a_signal_lets_the_guest_shut_down() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let home = Home::new();
        let mut vm = home.boot("run demo");
        vm.journal_goes_on(1);
        vm.signal(signal);
        let exit = vm.exits_well();
        assert!(exit.console.contains("evt power button"), "signal {signal}: {}", exit.console);
        assert!(exit.stderr.contains("has shut down"), "signal {signal}: {}", exit.stderr);
        assert!(!home.socket("demo").exists());
        let mut vm = home.boot("start demo --attach");
        vm.journal();
        vm.power_off();
    }
    // One in the background, as `systemctl stop` or the end of the host find it.
    let home = Home::new();
    home.piton("run demo --detach").ok();
    home.attach("demo").ready();
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap();
    common::send_signal(pid as i32, libc::SIGTERM);
    home.ended("demo");
    assert!(home.console_log("demo").contains("evt power button"));
}

#[test]
fn a_guest_that_does_not_heed_a_signal_is_cut_off() {
    let home = Home::new();
    let mut vm = home.boot("run demo --stop-timeout 1");
    vm.send("hang");
    vm.line(&["evt hang"]);
    vm.signal(libc::SIGTERM);
    let exit = vm.exits_well();
    assert!(exit.stderr.contains("did not shut down in time"), "{}", exit.stderr);
    assert!(exit.stderr.contains("was stopped by SIGTERM"), "{}", exit.stderr);

    // A second signal waits for nothing.
    let mut vm = home.boot("start demo --attach --stop-timeout 3600");
    vm.send("hang");
    vm.line(&["evt hang"]);
    vm.signal(libc::SIGTERM);
    until("the first signal to be told", || vm.stderr().contains("another signal").then_some(()));
    assert!(vm.is_running());
    vm.signal(libc::SIGINT);
    assert!(vm.exits_well().stderr.contains("was stopped by SIGINT"));
}

#[test]
fn who_was_started_to_outlive_its_terminal_does() {
    use std::os::unix::process::CommandExt;
    let home = Home::new();
    let mut command = home.command(["run", "demo"]);
    // SAFETY: signal is async-signal-safe and the closure touches nothing else.
    unsafe {
        command.pre_exec(|| {
            // As nohup does.
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut vm = common::Vm::spawn(command);
    vm.ready();
    vm.signal(libc::SIGHUP);
    vm.ok("echo still here");
    vm.journal();
    vm.power_off();
}

#[test]
fn a_signal_ends_a_paused_vm_too() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    home.piton("pause demo").ok();
    vm.signal(libc::SIGTERM);
    vm.exits_well();
}

#[test]
fn console_attaches_and_ends_with_the_vm() {
    let home = Home::new();
    home.piton("run demo --detach").ok();
    let mut console = home.spawn("console demo --tail 100");
    console.ready();
    console.ok("echo typed by piton console");
    console.send("poweroff");
    let exit = console.exits_well();
    assert!(exit.stderr.contains("has shut down"), "{}", exit.stderr);
    home.ended("demo");
    assert!(home.console_log("demo").contains("ok typed by piton console"));
}

#[test]
fn two_consoles_at_once() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let mut first = home.attach("demo");
    let mut second = home.attach("demo");
    first.ok("echo from the first");
    second.line(&["ok from the first"]);
    second.ok("echo from the second");
    first.line(&["ok from the second"]);
    vm.line(&["ok from the first"]);
    vm.line(&["ok from the second"]);
    drop(first);
    second.ok("echo alone");
    vm.power_off();
    assert!(second.end().contains("evt poweroff"));
}

#[test]
fn many_vms_at_once() {
    let home = Home::new();
    let mut vms: Vec<_> = (0..4).map(|n| home.spawn(&format!("run vm{n} --memory 32M"))).collect();
    for vm in &mut vms {
        vm.ready();
        vm.journal_goes_on(1);
    }
    assert_eq!(home.piton("list --json").json().as_array().unwrap().len(), 4);
    for mut vm in vms {
        vm.power_off();
    }
}

#[test]
fn a_detached_vm_that_cannot_boot_is_told_at_once() {
    let home = Home::new();
    let kernel = home.file("kernel", b"no kernel");
    home.piton(&format!("run demo --detach --kernel {kernel}")).fails(3, &["kernel", "not a kernel"]);
    home.is_empty();
}

#[test]
fn the_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let mut vm = home.boot("run demo");
    for (path, mode) in [
        (home.vm("demo"), 0o700),
        (home.socket("demo"), 0o600),
        (home.vm("demo").join("vm.json"), 0o600),
        (home.vm("demo").join("console.log"), 0o600),
    ] {
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}: {found:o}", path.display());
    }
    vm.power_off();
}

/// How the last run ended, as `show --json` has it.
fn last_run(home: &Home) -> serde_json::Value {
    home.ended("demo");
    home.piton("show demo --json").json()["last_run"].clone()
}

#[test]
fn how_the_last_run_ended_is_kept_and_shown() {
    let home = Home::new();
    home.boot("run demo").power_off();
    let last = last_run(&home);
    assert_eq!(last["how"], "off", "{last}");
    let ended = chrono::DateTime::parse_from_rfc3339(last["ended"].as_str().unwrap()).unwrap();
    assert!(ended.to_utc() <= chrono::Utc::now());
    assert!(home.piton("show demo").ok().contains("shut down at 20"));

    // A VM that nobody looks at crashes.
    home.piton("start demo").ok();
    assert!(home.piton("show demo --json").json().get("last_run").is_none());
    let mut console = home.attach("demo");
    console.ready();
    console.send("crash");
    console.end();
    let last = last_run(&home);
    assert_eq!(last["how"], "crashed", "{last}");
    assert!(last["why"].as_str().unwrap().contains("triple fault"), "{last}");
    for line in ["show demo", "list"] {
        let said = home.piton(line).ok();
        assert!(said.contains("crashed at 20") && said.contains("triple fault"), "{said}");
    }
    assert_eq!(home.piton("list --json").json()[0]["last_run"], last);

    home.piton("start demo").ok();
    // Its guest cannot shut down by itself.
    home.piton("pause demo").ok();
    home.piton("stop demo --force").ok();
    let last = last_run(&home);
    assert_eq!((&last["how"], &last["by"]), (&"ended".into(), &"piton stop --force".into()), "{last}");

    // Its process is killed and says nothing any more.
    home.piton("start demo").ok();
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap();
    common::send_signal(pid as i32, libc::SIGKILL);
    assert_eq!(last_run(&home)["how"], "killed");
    assert!(home.piton("list").ok().contains("was killed"));
    home.piton("start demo").ok();
    home.piton("pause demo").ok();
    home.piton("stop demo --force").ok();
    assert_eq!(last_run(&home)["how"], "ended");
}

#[test]
fn a_console_tells_how_the_run_ended() {
    let home = Home::new();
    for (command, code, says) in [("poweroff", 0, "has shut down"), ("crash", 1, "triple fault")] {
        home.piton("run demo --detach").ok();
        common::until("the guest", || home.console_log("demo").contains("evt journal").then_some(()));
        let mut console = home.spawn("console demo");
        console.send(command);
        let exit = console.exit();
        assert_eq!(exit.code, Some(code), "{}", exit.stderr);
        assert!(exit.stderr.contains(says), "{}", exit.stderr);
        home.ended("demo");
        home.piton("rm demo --yes").ok();
    }
}

#[test]
fn a_name_after_two_dashes() {
    let home = Home::new();
    home.piton("run --detach -- demo").ok();
    home.piton("stop --force -- demo").ok();
    home.piton("start -- demo").ok();
    home.piton("stop --force -- demo").ok();
}

#[test]
fn a_level_of_the_log_that_is_none_is_refused() {
    let home = Home::new();
    for (level, code) in [("bogus", 2), ("warn,debug", 2), ("debug", 0), ("off", 0), ("", 0)] {
        let mut command = home.command(["list"]);
        let finished = common::Finished::run({
            command.env("PITON_LOG", level);
            command
        });
        assert_eq!(finished.code, Some(code), "{finished}");
        assert_eq!(code == 2, finished.stderr.contains("off, error, warn, info or debug"), "{finished}");
    }
}

/// A VM whose process does not answer costs others nothing, is named, and can be ended.
#[test]
fn a_vm_that_does_not_answer_hangs_nobody() {
    let home = Home::new();
    home.piton("run dead --detach --memory 32M").ok();
    let mut vm = home.boot("run live --memory 32M");
    let dead = home.piton("show dead --json").json()["pid"].as_i64().unwrap() as i32;
    common::send_signal(dead, libc::SIGSTOP);

    let listed = home.piton("list --json").json();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["state"]),
        (&"dead".into(), &"unresponsive".into()),
        "{listed}"
    );
    assert_eq!((&listed[0]["pid"], &listed[1]["state"]), (&dead.into(), &"running".into()), "{listed}");
    let text = home.piton("list").ok();
    assert!(text.contains("piton kill dead") && text.contains("SIGSTOP"), "{text}");
    let shown = home.piton("show dead --json").json();
    assert_eq!(shown, listed[0]);
    for command in [
        "pause dead",
        "stop dead",
        "console dead",
        "checkpoint create dead x",
        "set dead --auto-checkpoint on",
    ] {
        home.piton(command).fails(1, &["`dead`", "is not responding", "piton kill dead"]);
    }
    home.piton("pause live").ok();
    home.piton("resume live").ok();

    let said = home.piton("stop dead --force");
    assert_eq!(said.code, Some(0), "{said}");
    assert!(
        said.stdout.contains("is stopped") && said.stderr.contains(&format!("process {dead} was killed")),
        "{said}"
    );
    assert_eq!(home.piton("show dead --json").json()["state"], "stopped");
    assert_eq!(home.piton("start dead --json").json()["state"], "running");
    home.piton("stop dead").ok();
    vm.journal();
    vm.power_off();
}

/// So many wait to be accepted that connecting alone would hang.
#[test]
fn a_full_queue_before_a_vm_that_does_not_answer_hangs_nobody() {
    // This test is the crowd, each of which takes a descriptor: at most net.core.somaxconn of them.
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let wanted = most.trim().parse::<u64>().unwrap() + 1024;
    if setrlimit(Resource::RLIMIT_NOFILE, wanted.max(hard), wanted.max(hard)).is_err() {
        return common::skip("too few files may be open here to fill the queue of a socket");
    }
    let home = Home::new();
    home.piton("run demo --detach --memory 32M").ok();
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap() as i32;
    common::send_signal(pid, libc::SIGSTOP);
    let path = home.socket("demo");
    let (sender, connected) = std::sync::mpsc::channel();
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let (path, sender) = (path.clone(), sender.clone());
            std::thread::spawn(move || {
                // The last ones block until the VM is gone.
                while let Ok(stream) = std::os::unix::net::UnixStream::connect(&path) {
                    if sender.send(stream).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let mut held = Vec::new();
    // Full once nobody gets in any more.
    while let Ok(stream) = connected.recv_timeout(std::time::Duration::from_secs(1)) {
        held.push(stream);
    }
    assert_eq!(home.piton("list --json").json()[0]["state"], "unresponsive");
    home.piton("pause demo").fails(1, &["is not responding"]);
    home.piton("stop demo --force").ok();
    drop((connected, held));
    crowd.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
}

#[test]
fn only_a_vm_is_killed_by_a_forced_stop() {
    let home = Home::new();
    home.boot("run demo").power_off();
    // This process works on the VM, as a command does.
    let vms = piton::folder::Home::at(home.root(), piton::storage::Storage::os());
    let lock = vms.folder(&"demo".parse().unwrap()).lock().unwrap();
    let me = format!("process {}", std::process::id());
    home.piton("stop demo --force").fails(3, &["another command is working on the VM `demo`", &me]);
    home.piton("doctor demo").fails(3, &["another command is working on the VM `demo`", &me]);
    drop(lock);
    home.piton("stop demo --force").ok();
    let mut vm = home.boot("start demo --attach");
    home.piton("doctor demo").fails(3, &["`demo` is running", "piton stop demo"]);
    vm.power_off();
}

#[test]
fn a_low_soft_limit_of_open_files_is_raised() {
    let home = Home::new();
    let mut command = std::process::Command::new("sh");
    home.equip(&mut command);
    command.args([
        "-c",
        "ulimit -S -n 16; exec \"$0\" run demo --detach --json",
        env!("CARGO_BIN_EXE_piton"),
    ]);
    let info = common::Finished::run(command).json();
    home.attach("demo").ready();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", info["pid"])).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = files.split_ascii_whitespace().collect();
    assert_eq!(words[3], words[4], "{files}");
    home.piton("stop demo").ok();
}

/// piton.log is rotated as console.log is: at a start, and by a VM that runs.
#[test]
fn the_log_of_a_vm_does_not_grow_without_end() {
    let home = Home::new();
    let boot = |command: &str| {
        let mut command = home.command(command.split_ascii_whitespace());
        common::Finished::run({
            command.env("PITON_LOG", "info");
            command
        })
        .ok();
        let mut console = home.attach("demo");
        console.ready();
        console
    };
    boot("run demo --detach");
    home.piton("stop demo").ok();
    let log = home.vm("demo").join("piton.log");
    let former = home.vm("demo").join("piton.log.1");
    let grown = |len: u64| std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(len).unwrap();
    let len = |path: &std::path::Path| std::fs::metadata(path).unwrap().len();
    let limit = 16 << 20;

    grown(limit);
    boot("start demo");
    assert_eq!(len(&former), limit);
    assert!(len(&log) < 4096);
    home.piton("stop demo").ok();

    grown(limit - 1);
    std::fs::remove_file(&former).unwrap();
    let mut console = boot("start demo");
    assert!(!former.exists());
    console.send("reboot");
    console.ready();
    until("the log to be rotated", || former.exists().then_some(()));
    until("the fresh log to be there", || log.exists().then_some(()));
    console.send("reboot");
    console.ready();
    let text = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    until("a line in the fresh log", || text().contains("asked for a reset").then_some(()));
    assert!(len(&log) < 4096);
    home.piton("stop demo").ok();
}

#[test]
fn a_pipe_talks_with_the_guest_and_comes_to_its_end() {
    use std::io::Write;
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.ok("journal off");
    let piped = |args: &str, input: &str| {
        let mut command = home.command(args.split_ascii_whitespace());
        let (from, mut to) = std::io::pipe().unwrap();
        command.stdin(from);
        to.write_all(input.as_bytes()).unwrap();
        drop(to);
        common::Finished::run(command)
    };
    let said = piped("console demo", "echo over a pipe\n");
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said}");
    assert!(said.stdout.contains("ok over a pipe"), "{said}");
    assert!(!said.stdout.contains("type help"), "the past is not the answer: {said}");
    vm.line(&["ok over a pipe"]);
    // The past, with a mark where it ends.
    let said = piped("console demo --tail 2 --linger 0.2", "");
    let past: Vec<&str> = said.stdout.lines().collect();
    assert_eq!((past.len(), past[1]), (2, "ok over a pipe"), "{said}");
    assert!(said.stderr.contains("end of earlier output"), "{said}");
    let said = piped("console demo --no-log --linger 0.2", "");
    assert_eq!((said.stdout.as_str(), said.code), ("", Some(0)), "{said}");
    vm.power_off();
}

#[test]
fn a_console_whose_output_nobody_reads_says_nothing_wrong() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let mut command = home.command(["console", "demo", "--tail", "5"]);
    let (from, to) = std::io::pipe().unwrap();
    command.stdout(to).stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut console = command.spawn().unwrap();
    drop(command);
    drop(from);
    vm.ok("echo something to print");
    let stderr = std::io::read_to_string(console.stderr.take().unwrap()).unwrap();
    assert_eq!(console.wait().unwrap().code(), Some(0), "{stderr}");
    assert!(!stderr.contains("ended"), "{stderr}");
    vm.power_off();
}
