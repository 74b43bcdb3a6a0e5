//! The web manager: who may ask it, what it does, and its pages in a real browser.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod browser;
mod client;
mod contents;
#[path = "../image_common/mod.rs"]
mod image_common;
mod pages;
#[path = "../openapi/schema.rs"]
#[allow(dead_code, reason = "the other test uses the rest")]
mod schema;

use std::io::{Read, Write};
use std::process::Stdio;

use client::{Manager, header};
use common::{Home, http, send_signal};
use serde_json::json;

#[test]
fn only_who_was_let_in_is_answered() {
    let home = Home::new();
    let mut manager = Manager::start(&home);
    let host = manager.host();
    let own = ("Host", host.as_str());
    let paths = ["/", "/assets/app.js", "/api/vms", "/api/events", "/api/actions", "/nothing"];
    for path in paths {
        let response = manager.raw("GET", path, &[own], "");
        assert_eq!(response.status, 401, "{path}: {response:?}");
        assert_eq!(header(&response, "set-cookie"), None);
    }
    for token in ["", "0", &"0".repeat(32)] {
        let response = manager.raw("GET", &format!("/?token={token}"), &[own], "");
        assert_eq!((response.status, header(&response, "set-cookie")), (403, None), "{response:?}");
    }
    let used = manager.token();
    let session = manager.let_in();
    assert_ne!(manager.token(), used, "the next link is another one");
    let again = manager.raw("GET", &format!("/?token={used}"), &[own], "");
    assert_eq!((again.status, header(&again, "set-cookie")), (403, None), "{again:?}");

    let page = session.ask(&manager, "GET", "/", "");
    assert_eq!(page.status, 200);
    let policy = header(&page, "content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(header(&page, name).as_deref(), Some(value));
    }
    assert_eq!(header(&page, "access-control-allow-origin"), None);
    assert!(!page.body.contains("{{"), "{}", page.body);
    let cookie = ("Cookie", session.cookie.as_str());
    let json = ("Content-Type", "application/json");
    let deed = r#"{"do":"run","vm":"evil"}"#;

    // DNS rebinding: the right address under a wrong name.
    for name in ["evil.example", "127.0.0.1.evil.example", ""] {
        let lines = [("Host", name), cookie, json, ("Origin", &format!("http://{name}"))];
        for (method, path, body) in
            [("GET", "/api/vms", ""), ("GET", "/", ""), ("POST", "/api/actions", deed)]
        {
            assert_eq!(manager.raw(method, path, &lines, body).status, 421, "{name} {path}");
        }
    }
    // Another page, also of this host, cannot have anything done, nor read anything.
    let near = format!("http://localhost:{}", manager.port);
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", &near] {
        let lines = [own, cookie, json, ("Origin", origin)];
        manager.raw("POST", "/api/actions", &lines, deed).error(403);
        manager.raw("GET", "/api/vms", &lines, "").error(403);
    }
    manager.raw("POST", "/api/actions", &[own, cookie, json], deed).error(403);
    manager.raw("GET", "/api/vms", &[own, cookie, ("Sec-Fetch-Site", "cross-site")], "").error(403);
    // A form, were it to get so far.
    let origin = format!("http://{host}");
    let origin = ("Origin", origin.as_str());
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"] {
        let lines = [own, cookie, origin, ("Content-Type", kind)];
        manager.raw("POST", "/api/actions", &lines, deed).error(415);
    }
    // WebSockets know no same-origin policy of their own.
    let upgrade = [
        ("Connection", "close, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let path = "/api/vms/evil/console";
    let with = |lines: &[(&'static str, &str)]| {
        let mut request = format!("GET {path} HTTP/1.1\r\n");
        for (name, value) in lines.iter().chain(&upgrade) {
            request += &format!("{name}: {value}\r\n");
        }
        http::converse(manager.connect(), format!("{request}\r\n").as_bytes())
    };
    with(&[own, cookie, ("Origin", "http://evil.example")]).error(403);
    with(&[own, cookie]).error(403);
    with(&[own, origin]).error(401);
    with(&[own, origin, cookie]).error(404);

    let ask = |method: &str, path: &str, body: &str| session.ask(&manager, method, path, body);
    ask("POST", "/api/actions", &format!("{{\"do\":\"{}\"}}", "x".repeat(1 << 17))).error(413);
    for body in ["", "[]", "{}", r#"{"do":"start","vm":"../../x"}"#, r#"{"do":"rm -rf","vm":"demo"}"#] {
        ask("POST", "/api/actions", body).error(400);
    }
    ask("POST", "/api/actions", r#"{"do":"export","vm":"a","dir":"relative"}"#).error(400);
    ask("PUT", "/api/vms", "").error(405);
    for path in
        ["/api/vms/none", "/api/vms/%2e%2e/tree", "/api/actions/0", "/assets/../Cargo.toml", "/assets/"]
    {
        ask("GET", path, "").error(404);
    }
    // A client that says nothing and one that never ends keep nobody out.
    let mut silent = manager.connect();
    silent.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(session.get(&manager, "/api/vms"), json!([]));
    assert_eq!(session.get(&manager, "/api/actions"), json!([]), "none of that began anything");
    home.is_empty();
    assert_eq!(manager.stop(), Some(0));
}

#[test]
fn what_the_commands_do_is_done() {
    let home = Home::new();
    let mut manager = Manager::start(&home);
    let session = manager.let_in();
    let done = |deed: serde_json::Value| session.done(&manager, &deed);
    let mut events = session.events(&manager, "?vm=demo");
    events.find("ready", |_| Some(()));
    let made = done(json!({"do": "run", "vm": "demo", "memory": 32 << 20}));
    assert_eq!(made["state"], "running");
    events.find("vm", |vm| (vm["name"] == "demo" && vm["state"] == "running").then_some(()));
    let script = "<script>alert(1)</script>";
    let made = done(json!({"do": "create", "vm": "demo", "name": script.replace('/', "|"), "note": script}));
    assert_eq!(made["note"], script);
    let id = made["id"].as_str().unwrap().to_owned();
    let tree = events.find("tree", |tree| (tree["now"] == id).then(|| tree.clone()));
    assert_eq!(tree["checkpoints"][0]["id"], id);
    assert_eq!(session.get(&manager, "/api/vms/demo/tree"), tree);
    let details = session.get(&manager, &format!("/api/vms/demo/checkpoints/{id}"));
    assert_eq!((&details["note"], &details["vm"]), (&json!(script), &json!("demo")));

    // Whoever changes something, it is told.
    home.piton("pause demo").ok();
    events.find("vm", |vm| (vm["state"] == "paused").then_some(()));
    home.args(["checkpoint", "rename", &format!("demo@{id}"), "one"]).ok();
    events.find("tree", |tree| (tree["checkpoints"][0]["name"] == "one").then_some(()));

    done(
        json!({"do": "apply", "vm": "demo", "checkpoint": "one", "current": "save", "name": "two", "run": true}),
    );
    let tree = session.get(&manager, "/api/vms/demo/tree");
    assert_eq!((&tree["now"], &tree["checkpoints"][1]["name"]), (&json!(id), &json!("two")));
    let plan =
        done(json!({"do": "delete", "vm": "demo", "checkpoint": "one", "subtree": true, "dry_run": true}));
    assert_eq!((plan["deleted"].as_array().unwrap().len(), &plan["dry_run"]), (2, &json!(true)));
    done(json!({"do": "delete", "vm": "demo", "checkpoint": "two"}));
    done(json!({"do": "verify", "vm": "demo", "checkpoint": "one"}));
    done(json!({"do": "clone", "vm": "demo", "checkpoint": "one", "new": "other"}));
    let dir = home.beside("export");
    done(json!({"do": "export", "vm": "demo", "checkpoint": "one", "dir": dir}));
    assert!(dir.join("export.json").exists());
    done(json!({"do": "set", "vm": "demo", "checkpoint_type": "standard"}));
    let failed = session.act(&manager, &json!({"do": "start", "vm": "demo"}));
    assert_eq!(failed["state"], "failed");
    assert!(failed["error"].as_str().unwrap().contains("already running"), "{failed}");

    done(json!({"do": "pin", "vm": "demo", "checkpoint": "one"}));
    let kept = session.act(&manager, &json!({"do": "delete", "vm": "demo", "checkpoint": "one"}));
    assert!(kept["error"].as_str().unwrap().contains("is pinned"), "{kept}");
    done(json!({"do": "unpin", "vm": "demo", "checkpoint": "one"}));

    // What is deleted comes back.
    done(json!({"do": "set", "vm": "demo", "trash_seconds": 3600}));
    let plan = done(json!({"do": "delete", "vm": "demo", "checkpoint": "one", "dry_run": true}));
    assert!(plan["bytes"].as_u64().unwrap() > 0, "{plan}");
    done(json!({"do": "delete", "vm": "demo", "checkpoint": "one"}));
    let trash = events.find("trash", |trash| (trash["entries"][0]["id"].is_string()).then(|| trash.clone()));
    assert_eq!(session.get(&manager, "/api/vms/demo/trash"), trash);
    events.find("vm", |vm| (vm["name"] == "demo" && vm["checkpoints"] == 0).then_some(()));
    done(json!({"do": "undo", "vm": "demo"}));
    events.find("vm", |vm| (vm["name"] == "demo" && vm["checkpoints"] == 1).then_some(()));
    done(json!({"do": "delete", "vm": "demo", "checkpoint": "one"}));
    let entry = session.get(&manager, "/api/vms/demo/trash")["entries"][0]["id"].clone();
    done(json!({"do": "restore", "vm": "demo", "entry": entry}));
    done(json!({"do": "create", "vm": "demo", "name": "gone"}));
    done(json!({"do": "delete", "vm": "demo", "checkpoint": "gone"}));
    done(json!({"do": "empty", "vm": "demo"}));
    assert_eq!(session.get(&manager, "/api/vms/demo/trash")["entries"], json!([]));

    // Rules and differences.
    let rules = json!({"keep": {"last": 1}, "max_bytes": 1 << 30, "all": true});
    done(json!({"do": "set", "vm": "demo", "retention": rules, "schedule": {"every_seconds": 0}}));
    done(json!({"do": "create", "vm": "demo", "name": "newest"}));
    let plan = done(json!({"do": "prune", "vm": "demo", "dry_run": true}));
    assert_eq!(
        (&plan["checkpoints"][0]["stays"], &plan["checkpoints"][1]["stays"]),
        (&json!(true), &json!(false))
    );
    let found = done(json!({"do": "diff", "vm": "demo", "checkpoint": "one", "with": "newest"}));
    assert_eq!(found["memory"]["size"], 32 << 20, "{found}");
    let many = done(json!({"do": "clone", "vm": "demo", "checkpoint": "newest", "new": "many", "count": 2}));
    assert_eq!(many.as_array().unwrap().len(), 2);
    for name in ["many-1", "many-2"] {
        done(json!({"do": "kill", "vm": name}));
        done(json!({"do": "remove", "vm": name}));
    }
    done(json!({"do": "prune", "vm": "demo"}));
    let tree = session.get(&manager, "/api/vms/demo/tree");
    assert_eq!(
        (tree["checkpoints"].as_array().unwrap().len(), &tree["checkpoints"][0]["name"]),
        (1, &json!("newest"))
    );

    done(json!({"do": "pause", "vm": "demo"}));
    done(json!({"do": "kill", "vm": "demo"}));
    // A clone of a checkpoint with memory stands where that was made.
    done(json!({"do": "kill", "vm": "other"}));
    done(json!({"do": "rename-vm", "vm": "other", "name": "another"}));
    done(json!({"do": "rename-vm", "vm": "another", "name": "other"}));
    done(json!({"do": "remove", "vm": "other"}));
    events.find("gone", |name| (name == "other").then_some(()));
    let all = session.get(&manager, "/api/vms");
    assert_eq!((all.as_array().unwrap().len(), &all[0]["state"]), (1, &json!("stopped")));
    assert!(all[0]["console"].to_string().contains("piton guest"), "{all:#}");
    done(json!({"do": "create", "vm": "demo", "name": "off"}));
    events.find("tree", |tree| (tree["checkpoints"][1]["type"] == "offline").then_some(()));
}

#[test]
fn one_vm_that_is_stuck_holds_up_no_other() {
    let home = Home::new();
    let mut manager = Manager::start(&home);
    let session = manager.let_in();
    for name in ["good", "stuck"] {
        home.piton(&format!("run {name} --memory 32M --detach")).ok();
    }
    let pid = home.piton("show stuck --json").json()["pid"].as_i64().unwrap() as i32;
    let mut events = session.events(&manager, "");
    for name in ["good", "stuck"] {
        events.find("vm", |vm| (vm["name"] == name && vm["state"] == "running").then_some(()));
    }
    send_signal(pid, libc::SIGSTOP);
    home.piton("pause good").ok();
    events.find("vm", |vm| (vm["name"] == "good" && vm["state"] == "paused").then_some(()));
    events.find("vm", |vm| (vm["name"] == "stuck" && vm["state"] == "unresponsive").then_some(()));
    home.piton("resume good").ok();
    events.find("vm", |vm| (vm["name"] == "good" && vm["state"] == "running").then_some(()));
    send_signal(pid, libc::SIGKILL);
    events.find("vm", |vm| (vm["name"] == "stuck" && vm["last_run"]["how"] == "killed").then_some(()));
}

/// Whoever took over what browsers reach could start no program.
#[test]
fn what_browsers_reach_is_confined() {
    let home = Home::new();
    let command = |forbidden: &str, more: &[&str]| {
        let mut command = home.command(["manager", "--no-open", "--listen", "127.0.0.1:0"]);
        command.args(more).env("PITON_TEST_FORBIDDEN_CALL", forbidden);
        command
    };
    let output = command("manager", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(159), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("thread manager made system call 59, which its seccomp filter forbids"), "{told}");
    // The name of another thread, or no filter: it lives.
    for (name, more) in [("vcpu", &[][..]), ("manager", &["--no-seccomp"])] {
        let mut manager = Manager::run(command(name, more));
        let session = manager.let_in();
        assert_eq!(session.get(&manager, "/api/vms"), json!([]));
    }
}

#[test]
fn over_a_unix_socket() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let path = home.beside("manager.sock");
    let address = format!("unix:{}", path.display());
    let words = ["manager", "--no-open", "--listen", &address, "--json"];
    let start = || {
        let mut child = home.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = Vec::new();
        let stdout = child.stdout.as_mut().unwrap();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        (child, line["url"].as_str().unwrap().to_owned())
    };
    let (mut child, link) = start();
    let token = link.strip_prefix("http://localhost:PORT/?token=").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(http::request(&path, "GET", "/", "").status, 401);
    let response = http::request(&path, "GET", &format!("/?token={token}"), "");
    assert!(response.head.contains("HttpOnly"), "{response:?}");
    // Only one at a path, and what is no socket stays.
    home.args(&words[..4]).fails(1, &["listens on"]);
    let file = home.file("file", b"");
    home.args(["manager", "--no-open", "--listen", &format!("unix:{file}")]).fails(1, &["not a socket"]);
    home.args(["manager", "--listen", "0.0.0.0:0"]).fails(2, &["--allowed-host"]);
    // One that was killed leaves a socket that is no hindrance.
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, _) = start();
    send_signal(child.id() as i32, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!path.exists());
}
