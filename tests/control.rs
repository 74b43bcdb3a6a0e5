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
        let answer = home.http(&format!("vm{round}"), "POST", "/vm/stop", r#"{"force": true}"#);
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
