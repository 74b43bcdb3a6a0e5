//! The control socket as any HTTP client sees it.

mod common;

use common::Home;

#[test]
fn every_request_is_answered() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    let shown = home.http("demo", "GET", "/vm", "");
    assert_eq!(shown.status, 200, "{shown:?}");
    assert!(shown.head.to_ascii_lowercase().contains("content-type: application/json"), "{}", shown.head);
    let json = shown.json();
    assert_eq!((&json["name"], &json["state"]), (&"demo".into(), &"running".into()));
    assert_eq!((&json["pid"], &json["config"]["cpus"]), (&vm.pid().into(), &2.into()));

    for (path, state) in
        [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")]
    {
        let answer = home.http("demo", "POST", &format!("/vm/{path}"), "");
        assert_eq!((answer.status, &answer.json()["state"]), (200, &state.into()), "{answer:?}");
    }
    vm.journal();
    assert_eq!(home.http("demo", "POST", "/vm/stop", r#"{"force": false}"#).status, 200);
    let exit = vm.exits_well();
    assert!(exit.console.contains("evt power button"));
}

#[test]
fn stop_takes_no_body_too() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    assert_eq!(home.http("demo", "POST", "/vm/stop", "").status, 200);
    vm.exits_well();
}

#[test]
fn force_ends_at_once() {
    let home = Home::new();
    // More than once: the answer must not be lost in the end of the process that gives it.
    for round in 0..3 {
        let mut vm = home.boot(&format!("run vm{round}"));
        let answer = home.http(&format!("vm{round}"), "POST", "/vm/kill", "");
        assert_eq!((answer.status, &answer.json()["state"]), (200, &"stopped".into()), "{answer:?}");
        assert!(!vm.exits_well().console.contains("evt power button"));
    }
}

#[test]
fn errors_are_told() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    for body in ["{", r#"{"force": 1}"#, r#"{"other": true}"#, "\u{0}", &"x".repeat(10_000)] {
        home.http("demo", "POST", "/vm/stop", body).error(400);
    }
    home.http("demo", "GET", "/", "").error(404);
    home.http("demo", "GET", "/vm/nothing", "").error(404);
    home.http("demo", "POST", "/vm/../vm/pause", "").error(404);
    home.http("demo", "DELETE", "/vm", "").error(405);
    home.http("demo", "GET", "/vm/pause", "").error(405);
    home.http("demo", "POST", "/vm/console", "").error(405);
    let sentence = home.http("demo", "GET", "/vm/console", "").error(426);
    assert!(sentence.contains("piton-console"), "{sentence}");
    home.http("demo", "POST", "/vm/pause", "");
    let sentence = home.http("demo", "POST", "/vm/stop", "").error(409);
    assert!(sentence.contains("paused"), "{sentence}");
    home.http("demo", "POST", "/vm/resume", "");
    vm.journal();
    vm.power_off();
}

#[test]
fn what_is_no_http_does_no_harm() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    assert_eq!(home.http_raw("demo", b"\x00\xff\r\n\r\n").status, 400);
    assert_eq!(home.http_raw("demo", b"GET /vm HTTP/9.9\r\n\r\n").status, 400);
    // One who connects and says nothing, and one who leaves in the middle.
    let silent = std::os::unix::net::UnixStream::connect(home.socket("demo")).unwrap();
    let mut leaving = std::os::unix::net::UnixStream::connect(home.socket("demo")).unwrap();
    std::io::Write::write_all(&mut leaving, b"POST /vm/stop HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
        .unwrap();
    drop(leaving);
    assert_eq!(home.http("demo", "GET", "/vm", "").status, 200);
    drop(silent);
    vm.journal();
    vm.power_off();
}

#[test]
fn many_clients_at_once() {
    let home = Home::new();
    let mut vm = home.boot("run demo --cpus 2");
    std::thread::scope(|scope| {
        for client in 0..8 {
            let home = &home;
            scope.spawn(move || {
                for _ in 0..10 {
                    let (method, path) = match client % 3 {
                        0 => ("GET", "/vm"),
                        1 => ("POST", "/vm/pause"),
                        _ => ("POST", "/vm/resume"),
                    };
                    assert_eq!(home.http("demo", method, path, "").status, 200);
                }
            });
        }
    });
    home.http("demo", "POST", "/vm/resume", "");
    vm.journal();
    vm.power_off();
}

#[test]
fn a_console_that_does_not_read_holds_nobody_up() {
    use std::io::Write;
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let mut deaf = std::os::unix::net::UnixStream::connect(home.socket("demo")).unwrap();
    deaf.write_all(
        b"GET /vm/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: piton-console\r\n\r\n",
    )
    .unwrap();
    for _ in 0..if common::is_emulated() { 8 } else { 40 } {
        vm.ok("help");
    }
    assert_eq!(home.http("demo", "GET", "/vm", "").status, 200);
    vm.power_off();
}

/// A connection that has asked for the console, past the answer's head.
fn attached(home: &Home, name: &str) -> std::os::unix::net::UnixStream {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(home.socket(name)).unwrap();
    stream
        .write_all(
            b"GET /vm/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: piton-console\r\n\r\n",
        )
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    stream
}

fn threads_and_files(pid: u32) -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn consoles_that_left_are_forgotten_though_the_guest_is_quiet() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.ok("journal off");
    let before = threads_and_files(vm.pid());
    for _ in 0..10 {
        let consoles: Vec<_> = (0..30).map(|_| attached(&home, "demo")).collect();
        assert_eq!(threads_and_files(vm.pid()).0, before.0, "an attached console takes no thread");
        // In every way that one can leave.
        for (index, stream) in consoles.iter().enumerate() {
            if index % 2 == 0 {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
        }
        drop(consoles);
        common::until("the consoles to be forgotten", || {
            (threads_and_files(vm.pid()).1 <= before.1).then_some(())
        });
    }
    vm.power_off();
}

#[test]
fn who_only_closed_the_sending_side_goes_on_reading() {
    use std::io::Read;
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let mut console = attached(&home, "demo");
    console.shutdown(std::net::Shutdown::Write).unwrap();
    vm.ok("echo still here");
    vm.power_off();
    let mut seen = String::new();
    console.read_to_string(&mut seen).unwrap();
    assert!(seen.contains("ok still here") && seen.contains("evt poweroff"), "{seen}");
}

#[test]
fn too_many_consoles_are_refused_and_cost_the_others_nothing() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let mut consoles: Vec<_> = (0..64).map(|_| attached(&home, "demo")).collect();
    let upgrade = b"GET /vm/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: piton-console\r\n\r\n";
    let sentence = home.http_raw("demo", upgrade).error(409);
    assert!(sentence.contains("64 consoles"), "{sentence}");
    assert_eq!(home.http("demo", "GET", "/vm", "").status, 200);
    consoles.pop();
    common::until("a place to be free", || {
        let stream = std::panic::catch_unwind(|| attached(&home, "demo"));
        stream.ok()
    });
    drop(consoles);
    vm.power_off();
}

#[test]
fn what_is_typed_for_a_guest_that_does_not_listen_holds_nobody_up() {
    use std::io::Write;
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let before = threads_and_files(vm.pid());
    home.piton("pause demo").ok();
    // More than is kept for the guest, and more than the socket takes.
    let typists: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = attached(&home, "demo");
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[b'#'; 4096]).is_ok() {}
            stream
        })
        .collect();
    assert_eq!(threads_and_files(vm.pid()).0, before.0);
    assert_eq!(home.http("demo", "GET", "/vm", "").json()["state"], "paused");
    drop(typists);
    common::until("they are forgotten", || (threads_and_files(vm.pid()).1 <= before.1).then_some(()));
    home.piton("stop demo --force").ok();
    vm.exits_well();
}

/// More than there are places for: silent from the start, in the middle of a head, in the middle of
/// a body, and after an answer.
#[test]
fn silent_clients_lock_nobody_out() {
    use std::io::{Read, Write};
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let kinds: [&[u8]; 4] = [
        b"",
        b"POST /vm/stop HT",
        b"POST /vm/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
        b"GET /vm HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let silent: Vec<_> = (0..400)
        .map(|index| {
            let mut stream = std::os::unix::net::UnixStream::connect(home.socket("demo")).unwrap();
            // It may have been shown out already.
            let _ = stream.write_all(kinds[index % kinds.len()]);
            stream
        })
        .collect();
    for command in ["show demo", "pause demo", "resume demo"] {
        home.piton(command).ok();
    }
    let (_, files) = threads_and_files(vm.pid());
    assert!(files < 350, "{files} files are open");
    // Half a request is not waited for without end, and is told so.
    let mut half = std::os::unix::net::UnixStream::connect(home.socket("demo")).unwrap();
    half.write_all(kinds[2]).unwrap();
    half.set_read_timeout(Some(common::patience())).unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("error"), "{answer}");
    drop(silent);
    vm.journal();
    vm.power_off();
}

#[test]
fn a_body_that_is_too_long_is_refused_as_everything_is() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    let head = b"POST /vm/stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9999999\r\n\r\n";
    let sentence = home.http_raw("demo", head).error(413);
    assert!(sentence.contains("body"), "{sentence}");
    let upgrade =
        b"GET /vm/console?past=x HTTP/1.1\r\nConnection: upgrade, close\r\nUpgrade: piton-console\r\n\r\n";
    home.http_raw("demo", upgrade).error(400);
    vm.journal();
    vm.power_off();
}
