//! `piton api`: one socket for all VMs of a user.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use common::{Home, Response, http, patience, send_signal, until};
use serde_json::{Value, json};

struct Api {
    child: Child,
    socket: PathBuf,
}

impl Api {
    fn start(home: &Home) -> Self {
        let mut child = home.command(["api"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let socket = PathBuf::from(line.trim());
        assert_eq!(socket, home.root().join(".api.sock"));
        Self { child, socket }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Response {
        http::request(&self.socket, method, path, body)
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// Begins an action and waits for its end.
    #[track_caller]
    fn done(&self, deed: Value) -> Value {
        let begun = self.ask("POST", "/api/actions", &deed.to_string());
        assert_eq!(begun.status, 202, "{begun:?}");
        let path = format!("/api/actions/{}", begun.json()["id"].as_str().unwrap());
        let action = until("the action to end", || {
            let action = self.get(&path);
            (action["state"] != "running").then_some(action)
        });
        assert_eq!(action["state"], "done", "{action:#}");
        action["result"].clone()
    }

    fn stop(mut self) {
        send_signal(self.child.id() as i32, libc::SIGTERM);
        let status = until("the API to end", || self.child.try_wait().unwrap());
        assert!(status.success() && !self.socket.exists(), "{status}");
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn all_vms_over_one_socket() {
    let home = Home::new();
    let api = Api::start(&home);
    assert_eq!(api.get("/vms"), json!([]));
    home.piton("api").fails(1, &["another program, listens on"]);
    let mut events = UnixStream::connect(&api.socket).unwrap();
    events.set_read_timeout(Some(patience())).unwrap();
    events.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();

    let made = api.done(json!({"do": "run", "vm": "demo", "memory": 64 << 20}));
    assert_eq!(made["state"], "running");
    let mut line = String::new();
    let mut events = BufReader::new(events);
    while !line.starts_with("data: ") || !line.contains("\"name\":\"demo\"") {
        line.clear();
        assert_ne!(events.read_line(&mut line).unwrap(), 0, "the events ended");
    }
    drop(events);

    // What its own socket answers, to the letter.
    for path in ["/checkpoints", "/jobs", "/trash"] {
        let own = home.http("demo", "GET", &format!("/vm{path}"), "").json();
        assert_eq!(api.get(&format!("/vms/demo{path}")), own, "{path}");
    }
    assert_eq!(api.get("/vms/demo")["pid"], made["pid"]);
    assert_eq!(api.ask("POST", "/vms/demo/pause", "").json()["state"], "paused");
    assert_eq!(api.get("/vms")[0]["state"], "paused");
    let created = api.ask("POST", "/vms/demo/checkpoints", r#"{"name":"a b"}"#);
    assert_eq!(created.status, 200, "{created:?}");
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(api.get("/vms/demo/checkpoints/a%20b")["id"], id.as_str());
    assert_eq!(api.ask("POST", "/vms/demo/resume", "").json()["state"], "running");
    let metrics = api.ask("GET", "/vms/demo/metrics", "");
    assert!(metrics.body.contains("piton_info{vm=\"demo\""), "{metrics:?}");
    // The console, both ways.
    let mut console = UnixStream::connect(&api.socket).unwrap();
    console.set_read_timeout(Some(patience())).unwrap();
    let head = b"GET /vms/demo/console?past=0 HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: piton-console\r\n\r\n";
    console.write_all(head).unwrap();
    let (status, head) = http::read_head(&mut console);
    assert_eq!(status, 101, "{head}");
    console.write_all(b"echo over the api\n").unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("ok over the api") {
        let mut piece = [0; 256];
        let count = console.read(&mut piece).unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..count]);
    }

    // Mistakes.
    for path in [
        "/vms/none",
        "/vms/none/checkpoints",
        "/vms/demo/checkpoints/none",
        "/vms/demo/nothing",
        "/nothing",
        "/vms/%2e%2e",
        "/api/vms/none",
    ] {
        api.ask("GET", path, "").error(404);
    }
    api.ask("POST", "/vms/none/pause", "").error(404);
    api.ask("DELETE", "/vms", "").error(405);
    api.ask("DELETE", "/vms/demo/pause", "").error(405);
    api.ask("POST", "/vms/demo/checkpoints", "{\"surely\":1}").error(400);
    let page =
        b"GET /vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: http://evil.example\r\n\r\n";
    http::exchange(&api.socket, page).error(403);

    // Of one that is off, its folder answers.
    api.done(json!({"do": "kill", "vm": "demo"}));
    let read =
        until("it to be off", || Some(console.read(&mut [0; 256]).unwrap()).filter(|count| *count == 0));
    assert_eq!(read, 0);
    home.ended("demo");
    assert_eq!(api.get("/vms/demo")["state"], "stopped");
    assert_eq!(api.get("/vms/demo/checkpoints")["checkpoints"][0]["id"], id.as_str());
    assert_eq!(api.get("/vms/demo/checkpoints/a%20b")["id"], id.as_str());
    assert_eq!(api.get("/vms/demo/trash"), home.piton("trash list demo --json").json());
    api.ask("GET", "/vms/demo/checkpoints/none", "").error(404);
    let told = api.ask("POST", "/vms/demo/pause", "").error(409);
    assert!(told.contains("`demo` is stopped"), "{told}");
    api.ask("GET", "/vms/demo/jobs", "").error(409);
    assert_eq!(api.done(json!({"do": "start", "vm": "demo"}))["state"], "running");
    api.done(json!({"do": "kill", "vm": "demo"}));
    home.ended("demo");
    api.done(json!({"do": "remove", "vm": "demo"}));
    assert_eq!(api.get("/vms"), json!([]));
    api.stop();
}

#[test]
fn its_description_leaves_nothing_out() {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let own = read(include_str!("../docs/home-api.json"));
    let documents = [
        ("openapi.json", read(include_str!("../docs/openapi.json"))),
        ("manager-api.json", read(include_str!("../docs/manager-api.json"))),
    ];
    let own = own["paths"].as_object().unwrap();
    for (path, item) in own {
        let (file, pointer) = item["$ref"].as_str().unwrap().split_once('#').unwrap();
        let (_, document) = documents.iter().find(|(name, _)| *name == file).unwrap();
        assert!(document.pointer(pointer).is_some(), "{path}");
    }
    for path in documents[0].1["paths"].as_object().unwrap().keys() {
        let here = format!("/vms/{{vm}}{}", path.strip_prefix("/vm").unwrap_or(path));
        assert!(own.contains_key(&here), "{here}");
    }
    for path in documents[1].1["paths"].as_object().unwrap().keys() {
        assert!(own.contains_key(path), "{path}");
    }
}
