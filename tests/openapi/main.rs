//! docs/openapi.json against a VM: every path, every method, every answer that is documented, and
//! the same shapes in what the commands print.

#[path = "../common/mod.rs"]
mod common;
mod schema;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use common::{Home, Response};
use schema::Document;
use serde_json::{Value, json};

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// Answers that need a host that fails, or a VM that ends in just that moment.
fn is_out_of_reach(path: &str, method: &str, status: &str) -> bool {
    let reads = method == "get" && !path.starts_with("/vm/jobs");
    // An agent that is silent for 30 s.
    status == "504"
        || status == "500"
        || path == "/vm/agent" && status == "409"
        || status == "409" && (reads || ["/vm/pause", "/vm/resume"].contains(&path))
}

/// A VM, the document, and which answers of it have been seen.
struct Walk {
    home: Home,
    document: Document,
    seen: BTreeSet<(String, String, String)>,
}

impl Walk {
    fn operation(&self, path: &str, method: &str) -> Value {
        self.document.root()["paths"][path][method.to_lowercase()].clone()
    }

    /// Asks, and holds request and answer against the document. `path` is as documented, with
    /// `parameter` in place of what stands in braces.
    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, parameter: &str, body: &Value, status: u16) -> Value {
        let real = match path.split_once('{') {
            Some((before, after)) => format!("{before}{parameter}{}", after.split_once('}').unwrap().1),
            None => path.to_owned(),
        };
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.home.http("demo", method, &real, &text);
        assert_eq!(answer.status, status, "{method} {real} {body}: {answer:?}");
        let operation = self.operation(path, method);
        if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema")
            && !body.is_null()
        {
            let fits = self.document.check(schema, body);
            assert_eq!(fits.is_err(), status == 400, "{method} {real} {body}: {fits:?}");
        }
        self.told(&operation, path, method, answer)
    }

    /// An answer that has to be one of those documented.
    #[track_caller]
    fn told(&mut self, operation: &Value, path: &str, method: &str, answer: Response) -> Value {
        let status = answer.status.to_string();
        let documented = &operation["responses"][&status];
        assert!(!documented.is_null(), "{method} {path}: {status} is not documented: {answer:?}");
        let documented = self.document.resolve(documented);
        let schema = &documented["content"]["application/json"]["schema"];
        let json = answer.json();
        assert!(
            answer.head.to_ascii_lowercase().contains("content-type: application/json"),
            "{}",
            answer.head
        );
        if let Err(e) = self.document.check(schema, &json) {
            panic!("{method} {path}: {e}\n{json:#}");
        }
        self.seen.insert((path.to_owned(), method.to_lowercase(), status));
        json
    }

    /// Every documented answer but those out of reach was seen.
    #[track_caller]
    fn is_complete(&self) {
        let mut missing = Vec::new();
        for (path, item) in self.document.root()["paths"].as_object().unwrap() {
            for (method, operation) in
                item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
            {
                for status in operation["responses"].as_object().unwrap().keys() {
                    let answer = (path.clone(), method.clone(), status.clone());
                    if !self.seen.contains(&answer) && !is_out_of_reach(path, method, status) {
                        missing.push(answer);
                    }
                }
            }
        }
        assert!(missing.is_empty(), "documented and never seen: {missing:#?}");
    }
}

#[test]
fn every_path_and_every_answer_is_as_documented() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 256M");
    let mut walk = Walk { home, document: Document::read(), seen: BTreeSet::new() };
    let none = &Value::Null;
    let wrong = &json!({"surely": "not"});
    let (cp, apply, clone) = (
        "/vm/checkpoints/{checkpoint}",
        "/vm/checkpoints/{checkpoint}/apply",
        "/vm/checkpoints/{checkpoint}/clone",
    );
    let discard = &json!({"discard_current": true, "run": true, "clock": "saved", "share": true});

    // What is not done for the words alone, by every path that takes some.
    let document = Document::read();
    for (path, item) in document.root()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation.get("requestBody").is_some() {
                let method = method.to_uppercase();
                walk.ask(&method, path, "one", wrong, 400);
                let large = walk.home.http(
                    "demo",
                    &method,
                    &path.replace("{checkpoint}", "one").replace("{entry}", "one"),
                    &"x".repeat((1 << 20) + 1),
                );
                walk.told(operation, path, &method.to_lowercase(), large);
                for garbage in ["{", "[]", "1", "\u{0}"] {
                    walk.home
                        .http(
                            "demo",
                            &method,
                            &path.replace("{checkpoint}", "one").replace("{entry}", "one"),
                            garbage,
                        )
                        .error(400);
                }
            }
        }
    }
    walk.home.http("demo", "GET", "/vm/checkpoints/%ff", "").error(400);
    let answer = walk.home.http("demo", "GET", "/vm/checkpoints/%ff", "");
    walk.told(&walk.operation(cp, "GET"), cp, "GET", answer);

    // The VM.
    walk.ask("GET", "/vm", "", none, 200);
    walk.ask("PATCH", "/vm", "", &json!({"checkpoint_type": "standard", "auto_checkpoint": false}), 200);
    walk.ask("PATCH", "/vm", "", &json!({"checkpoint_dir": "/nowhere"}), 409);
    assert_eq!(walk.ask("POST", "/vm/pause", "", none, 200)["state"], "paused");
    walk.ask("POST", "/vm/stop", "", &json!({"force": false}), 409);
    assert_eq!(walk.ask("POST", "/vm/resume", "", &json!({}), 200)["state"], "running");

    // Checkpoints.
    walk.ask("POST", "/vm/revert", "", none, 409);
    walk.ask("GET", "/vm/checkpoints", "", none, 200);
    let one =
        walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "one", "note": "n", "mode": "stop"}), 200);
    assert_eq!((&one["name"], &one["type"]), (&json!("one"), &json!("standard")));
    walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "one"}), 409);
    walk.ask("POST", "/vm/checkpoints", "", &json!({"name": ""}), 400);
    let job = walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "two", "no_wait": true}), 202);
    let details = walk.ask("GET", cp, "one", none, 200);
    assert_eq!((&details["id"], &details["vm"]), (&one["id"], &json!("demo")));
    walk.ask("PATCH", cp, "one", &json!({"note": "x"}), 200);
    common::until("the second checkpoint", || {
        let tree = walk.ask("GET", "/vm/checkpoints", "", none, 200);
        (tree["checkpoints"].as_array().unwrap().len() == 2).then_some(())
    });
    walk.ask("PATCH", cp, "one", &json!({"name": "two"}), 409);
    for (method, path, body) in [
        ("GET", cp, none),
        ("PATCH", cp, &json!({"note": "x"})),
        ("DELETE", cp, none),
        ("POST", apply, discard),
        ("POST", clone, &json!({"names": ["new"]})),
    ] {
        walk.ask(method, path, "nothing", body, 404);
    }
    assert_eq!(walk.ask("POST", apply, "one", discard, 200)["state"], "running");
    walk.ask("POST", apply, "one", &json!({"save_current": true, "discard_current": true}), 409);
    walk.ask("POST", apply, "one", &json!({"discard_current": true, "run": true, "no_wait": true}), 202);
    walk.ask("POST", "/vm/revert", "", &json!({"run": true, "force": false}), 200);
    walk.ask("POST", "/vm/revert", "", &json!({"run": true, "no_wait": true}), 202);
    walk.ask("POST", clone, "one", &json!({"names": ["new"]}), 200);
    walk.ask("POST", clone, "one", &json!({"names": ["new"]}), 409);
    walk.ask("POST", clone, "one", &json!({"names": ["other"], "own_memory": true, "no_wait": true}), 202);
    walk.ask("POST", clone, "one", &json!({"names": []}), 400);

    // Rules.
    walk.ask("POST", "/vm/prune", "", none, 409);
    let keep = json!({"keep": {"last": 1}, "max_bytes": null, "all": false});
    let schedule = json!({"every_seconds": 0, "type": "standard", "only_if_changed": true});
    walk.ask("PATCH", "/vm", "", &json!({"retention": keep, "schedule": schedule}), 200);
    walk.ask("POST", "/vm/prune", "", &json!({"dry_run": true}), 200);
    walk.ask("POST", "/vm/prune", "", &json!({"no_wait": true}), 202);
    walk.ask("POST", "/vm/prune", "", none, 200);

    // The trash.
    let (entry, restore) = ("/vm/trash/{entry}", "/vm/trash/{entry}/restore");
    walk.ask("PATCH", "/vm", "", &json!({"trash_seconds": 3600}), 200);
    walk.ask("POST", "/vm/undo", "", none, 404);
    walk.ask("PATCH", cp, "two", &json!({"pinned": true}), 200);
    walk.ask("DELETE", cp, "two", none, 409);
    walk.ask("PATCH", cp, "two", &json!({"pinned": false}), 200);
    let deleted = walk.ask("DELETE", cp, "two", none, 200);
    let id = deleted["trash"].as_str().unwrap().to_owned();
    walk.ask("PATCH", cp, "one", &json!({"name": "two"}), 200);
    walk.ask("POST", "/vm/undo", "", none, 409);
    walk.ask("POST", restore, &id, none, 409);
    walk.ask("PATCH", cp, "two", &json!({"name": "one"}), 200);
    assert_eq!(walk.ask("GET", "/vm/trash", "", none, 200)["entries"][0]["id"], json!(id));
    for (method, path) in [("POST", restore), ("DELETE", entry)] {
        walk.ask(method, path, "nothing", none, 404);
    }
    walk.ask("POST", restore, &id, &json!({"no_undo": true}), 200);
    walk.ask("POST", "/vm/revert", "", &json!({"run": true}), 200);
    assert_eq!(walk.ask("POST", "/vm/undo", "", none, 200)["vm"]["state"], "running");
    let trash = walk.ask("GET", "/vm/trash", "", none, 200);
    let id = trash["entries"][0]["id"].as_str().unwrap().to_owned();
    walk.ask("POST", restore, &id, &json!({"no_wait": true, "no_undo": true}), 202);
    walk.ask("POST", "/vm/revert", "", &json!({"run": true}), 200);
    walk.ask("POST", "/vm/undo", "", &json!({"no_wait": true}), 202);
    walk.ask("DELETE", cp, "two", none, 200);
    walk.ask("DELETE", entry, "two", &json!({}), 200);
    walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "two"}), 200);
    walk.ask("DELETE", cp, "two", none, 200);
    walk.ask("DELETE", entry, "two", &json!({"no_wait": true}), 202);
    walk.ask("DELETE", "/vm/trash", "", none, 200);
    walk.ask("DELETE", "/vm/trash", "", &json!({"no_wait": true}), 202);
    walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "two"}), 200);
    walk.ask("PATCH", "/vm", "", &json!({"trash_seconds": 0}), 200);

    // Jobs.
    walk.ask("GET", "/vm/jobs/{job}", job["id"].as_str().unwrap(), none, 200);
    walk.ask("GET", "/vm/jobs/{job}", "ffff", none, 404);
    walk.ask("DELETE", "/vm/jobs/{job}", "ffff", none, 404);
    walk.ask("DELETE", "/vm/jobs/{job}", job["id"].as_str().unwrap(), none, 409);
    // Of two that wait, one is cancelled; their ids could be taken for each other.
    vm.ok("fill 200");
    let [first, second] = ["abcd000000000000000000000000000f", "abcd000000000000000000000000000e"];
    for (job, name) in [(first, "long"), (second, "never")] {
        let body = json!({"name": name, "no_wait": true, "job": job, "full": true});
        walk.ask("POST", "/vm/checkpoints", "", &body, 202);
    }
    assert_eq!(walk.ask("DELETE", "/vm/jobs/{job}", second, none, 202)["cancelling"], true);
    walk.ask("GET", "/vm/jobs/{job}", "abcd", none, 409);
    common::until("both jobs to be over", || {
        let state = |walk: &mut Walk, job| walk.ask("GET", "/vm/jobs/{job}", job, none, 200)["state"].clone();
        (state(&mut walk, first) == "done" && state(&mut walk, second) == "cancelled").then_some(())
    });
    let jobs = walk.ask("GET", "/vm/jobs", "", none, 200);
    // What is refused is no work, nor is what only tells.
    walk.ask("DELETE", cp, "one", &json!({"dry_run": true, "subtree": true}), 200);
    walk.ask("POST", "/vm/checkpoints", "", &json!({"name": "one"}), 409);
    assert_eq!(walk.ask("GET", "/vm/jobs", "", none, 200)["jobs"], jobs["jobs"]);
    for job in jobs["jobs"].as_array().unwrap() {
        assert_ne!(job["state"], "failed", "{jobs:#}");
    }

    // The agent in the guest.
    let agent = "/vm/agent";
    let info = &json!({"execute": "guest-info"});
    walk.ask("POST", agent, "", info, 503);
    vm.ok("agent on");
    let guest = walk.ask("POST", agent, "", info, 200)["guest"].clone();
    let exec = &json!({"guest": guest, "execute": "guest-exec", "arguments": {"path": "echo"}});
    walk.ask("POST", agent, "", exec, 200);
    let open = json!({"execute": "guest-file-open", "arguments": {"path": "/nothing", "mode": "r"}});
    walk.ask("POST", agent, "", &open, 422);
    walk.ask("POST", agent, "", &json!({"execute": "guest-shutdown"}), 400);
    walk.ask("POST", agent, "", &json!({"guest": one["id"], "execute": "guest-info"}), 410);
    walk.ask("POST", "/vm/pause", "", none, 200);
    walk.ask("POST", agent, "", info, 423);
    walk.ask("POST", "/vm/resume", "", none, 200);
    vm.ok("agent forbids");
    walk.ask("POST", agent, "", exec, 403);
    vm.ok("agent quits");
    let status = json!({"execute": "guest-exec-status", "arguments": {"pid": 1}});
    walk.ask("POST", agent, "", &status, 502);

    // Metrics are text.
    let metrics = walk.home.http("demo", "GET", "/metrics", "");
    assert!(metrics.status == 200 && metrics.body.starts_with("# HELP "), "{metrics:?}");
    walk.seen.insert(("/metrics".into(), "get".into(), "200".into()));

    // The console, whose other answer is a stream.
    for query in ["", "?past=x", "?surely=not"] {
        let attach = walk.home.http("demo", "GET", &format!("/vm/console{query}"), "");
        assert_eq!(attach.status, if query.is_empty() { 426 } else { 400 }, "{attach:?}");
        walk.told(&walk.operation("/vm/console", "GET"), "/vm/console", "GET", attach);
    }
    walk.home.attach("demo");
    walk.seen.insert(("/vm/console".into(), "get".into(), "101".into()));

    // What the document does not have is not there.
    for (path, item) in document.root()["paths"].as_object().unwrap() {
        for method in METHODS.iter().filter(|method| item.get(method.to_lowercase()).is_none()) {
            walk.home.http("demo", method, &path.replace(['{', '}'], ""), "").error(405);
        }
    }
    // What is being read is not deleted.
    let socket = walk.home.beside("nbd");
    let words = ["checkpoint", "serve", "demo@one", "--socket", socket.to_str().unwrap()];
    let mut server = walk.home.command(words).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // What it prints comes when it has what it reads.
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    assert!(url.starts_with("nbd+unix:"), "{url}");
    walk.ask("DELETE", cp, "one", none, 409);
    walk.ask("PATCH", "/vm", "", &json!({"trash_seconds": 3600}), 200);
    walk.ask("DELETE", cp, "one", none, 200);
    walk.ask("DELETE", entry, "one", none, 409);
    walk.ask("DELETE", "/vm/trash", "", none, 409);
    walk.ask("POST", "/vm/undo", "", none, 200);
    walk.ask("PATCH", "/vm", "", &json!({"trash_seconds": 0}), 200);
    common::send_signal(server.id() as i32, libc::SIGTERM);
    assert!(server.wait().unwrap().success());
    walk.ask("DELETE", cp, "two", &json!({"no_wait": true}), 202);
    walk.ask("DELETE", cp, "one", none, 200);
    assert_eq!(walk.ask("POST", "/vm/stop", "", &json!({"force": false}), 200)["state"], "running");
    vm.exits_well();
    walk.home.piton("start demo").ok();
    assert_eq!(walk.ask("POST", "/vm/kill", "", none, 200)["state"], "stopped");
    walk.is_complete();
}

#[test]
fn commands_print_what_the_socket_answers() {
    let home = Home::new();
    let document = Document::read();
    let json = |line: &str| home.piton(&format!("{line} --json")).json();
    let vm = |line: &str| document.holds("Vm", &json(line));
    vm("run demo --memory 32M --detach");
    for line in ["show demo", "pause demo", "resume demo"] {
        vm(line);
    }
    let checkpoint = |line: &str| {
        let told = json(line);
        document.holds("Checkpoint", &told);
        told
    };
    let created = checkpoint("checkpoint create demo one --note x");
    document.holds("Job", &json("checkpoint create demo two --no-wait"));
    let tree = common::until("the second checkpoint", || {
        let tree = json("checkpoint list demo");
        (tree["checkpoints"].as_array().unwrap().len() == 2).then_some(tree)
    });
    document.holds("Tree", &tree);
    let shown = json("checkpoint show demo@one");
    document.holds("CheckpointDetails", &shown);
    assert_eq!(shown, home.http("demo", "GET", "/vm/checkpoints/one", "").json());
    // One thing looks alike wherever it is shown.
    for (field, value) in created.as_object().unwrap() {
        assert_eq!((&tree["checkpoints"][0][field], &shown[field]), (value, value), "{field}");
    }
    checkpoint("checkpoint rename demo@one uno");
    checkpoint("checkpoint note demo@uno y");
    document.holds("Jobs", &json("checkpoint jobs demo"));
    vm("checkpoint apply demo@uno --discard-current");
    vm("checkpoint revert demo --yes --run");
    document.holds("Deleted", &json("checkpoint delete demo@two --dry-run"));
    json("set demo --trash 1h --keep last=3 --keep-within 1h --every 0");
    document.holds("Pruned", &json("checkpoint prune demo --dry-run"));
    vm("show demo");
    document.holds("Deleted", &json("checkpoint delete demo@two --yes"));
    document.holds("Trash", &json("trash list demo"));
    document.holds("Undone", &json("undo demo"));
    checkpoint("checkpoint pin demo@two");
    checkpoint("checkpoint unpin demo@two");
    vm("checkpoint revert demo --yes --run");
    document.holds("Emptied", &json("trash empty demo --yes"));
    json("set demo --trash 0");
    for clone in json("clone demo@uno new --count 2").as_array().unwrap() {
        document.holds("Vm", clone);
    }
    for one in json("set demo --checkpoint-type standard").as_array().unwrap() {
        document.holds("Vm", one);
    }
    vm("stop demo --force");
    // And of a VM that is off.
    vm("show demo");
    let stopped = json("show demo");
    document.holds("LastRun", &stopped["last_run"]);
    checkpoint("checkpoint create demo off");
    document.holds("CheckpointDetails", &json("checkpoint show demo@off"));
    vm("checkpoint apply demo@off --discard-current");
    document.holds("Deleted", &json("checkpoint delete demo@off --yes"));
    document.holds("Jobs", &json("checkpoint jobs demo"));
    for one in json("list").as_array().unwrap() {
        document.holds("Vm", one);
    }
    let refused = home.piton("resume demo --json");
    assert_eq!(refused.code, Some(3), "{refused}");
    document.holds("Error", &serde_json::from_str(&refused.stdout).unwrap());
}
