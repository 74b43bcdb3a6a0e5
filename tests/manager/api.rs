//! docs/manager-api.json against a manager: every path and every answer that is documented, what the
//! pages ask for, and that each deed is one.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Manager, Session};
use crate::common::{Home, Response, http, until};
use crate::schema::Document;

/// The document, with what it refers to in that of the control socket.
fn document() -> Document {
    let own = include_str!("../../docs/manager-api.json").replace("openapi.json#/", "#/");
    let mut own: Value = serde_json::from_str(&own).unwrap();
    let mut control: Value =
        serde_json::from_str(include_str!("../../docs/openapi.json")).expect("a document");
    let control = control["components"]["schemas"].as_object_mut().unwrap();
    let schemas = own["components"]["schemas"].as_object_mut().unwrap();
    for (name, schema) in std::mem::take(control) {
        assert!(schemas.insert(name.clone(), schema).is_none(), "`{name}` is in both documents");
    }
    own.into()
}

/// Answers that need a host that fails, a VM that is stuck, or a client that takes 10 s.
fn is_out_of_reach(status: &str) -> bool {
    ["500", "504", "408"].contains(&status)
}

struct Walk {
    manager: Manager,
    session: Session,
    document: Document,
    seen: BTreeSet<(String, String, String)>,
}

impl Walk {
    /// `path` is as documented, with `parameters` in place of what stands in braces.
    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, parameters: &[&str], body: &Value, status: u16) -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        if let Some(schema) =
            self.operation(path, method).pointer("/requestBody/content/application~1json/schema")
        {
            let fits = self.document.check(schema, body);
            assert_eq!(fits.is_err(), status == 400, "{body}: {fits:?}");
        }
        let answer = self.session.ask(&self.manager, method, &filled(path, parameters), &text);
        assert_eq!(answer.status, status, "{method} {path} {parameters:?} {body}: {answer:?}");
        self.told(path, method, &answer)
    }

    fn operation(&self, path: &str, method: &str) -> Value {
        self.document.root()["paths"][path][method.to_lowercase()].clone()
    }

    #[track_caller]
    fn told(&mut self, path: &str, method: &str, answer: &Response) -> Value {
        let status = answer.status.to_string();
        let documented = self.operation(path, method)["responses"][&status].clone();
        assert!(!documented.is_null(), "{method} {path}: {status} is not documented: {answer:?}");
        self.seen.insert((path.to_owned(), method.to_lowercase(), status));
        let documented = self.document.resolve(&documented).clone();
        let schema = &documented["content"]["application/json"]["schema"];
        if schema.is_null() {
            return Value::Null;
        }
        let json = answer.json();
        if let Err(e) = self.document.check(schema, &json) {
            panic!("{method} {path}: {e}\n{json:#}");
        }
        json
    }
}

fn filled(path: &str, parameters: &[&str]) -> String {
    let mut parameters = parameters.iter();
    let parts = path.split('/').map(|part| match part.starts_with('{') {
        true => parameters.next().expect("a parameter").replace(' ', "%20"),
        false => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn the_api_is_as_documented() {
    let home = Home::with_trash();
    let mut manager = Manager::start(&home);
    let session = manager.let_in();
    let mut walk = Walk { manager, session, document: document(), seen: BTreeSet::new() };
    let none = &Value::Null;
    let (vm, tree, trash) = ("/api/vms/{vm}", "/api/vms/{vm}/tree", "/api/vms/{vm}/trash");
    let (point, job) = ("/api/vms/{vm}/checkpoints/{checkpoint}", "/api/vms/{vm}/jobs/{job}");
    let (console, events) = ("/api/vms/{vm}/console", "/api/events");
    let (actions, action) = ("/api/actions", "/api/actions/{action}");

    // Who may not ask is told so by every path.
    let root = walk.document.root()["paths"].clone();
    let host = walk.session.host.clone();
    let cookie = walk.session.cookie.clone();
    for (path, item) in root.as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let at = filled(path, &["demo", "one"]);
            let own = format!("http://{host}");
            for (status, lines) in [
                (401, [("Host", host.as_str()), ("Origin", &own), ("Cookie", "")]),
                (403, [("Host", host.as_str()), ("Origin", "http://evil.example"), ("Cookie", &cookie)]),
                (421, [("Host", "evil.example"), ("Origin", &own), ("Cookie", &cookie)]),
            ] {
                let answer = walk.manager.raw(&method, &at, &lines, "");
                assert_eq!(answer.status, status, "{method} {at}");
                walk.told(path, &method, &answer);
            }
        }
    }

    // A VM with something of everything.
    let deed = |walk: &mut Walk, body: Value| {
        let begun = walk.ask("POST", actions, &[], &body, 202);
        let id = begun["id"].as_str().unwrap().to_owned();
        until("the action to end", || {
            let now = walk.ask("GET", action, &[&id], none, 200);
            (now["state"] != "running").then_some(now)
        })
    };
    for body in [
        json!({"do": "run", "vm": "demo", "memory": 32 << 20, "network": false, "disks": []}),
        json!({"do": "create", "vm": "demo", "name": "one", "note": "", "type": "standard", "mode": "live"}),
        json!({"do": "create", "vm": "demo", "name": "two"}),
        json!({"do": "delete", "vm": "demo", "checkpoint": "one", "dry_run": true}),
        json!({"do": "delete", "vm": "demo", "checkpoint": "one"}),
        json!({"do": "diff", "vm": "demo", "checkpoint": "two", "live": true}),
    ] {
        let done = deed(&mut walk, body);
        assert_eq!(done["state"], "done", "{done:#}");
    }
    assert_eq!(walk.ask("GET", vm, &["demo"], none, 200)["state"], "running");
    assert_eq!(walk.ask("GET", "/api/vms", &[], none, 200).as_array().unwrap().len(), 1);
    assert_eq!(walk.ask("GET", tree, &["demo"], none, 200)["checkpoints"][0]["name"], "two");
    assert_eq!(walk.ask("GET", trash, &["demo"], none, 200)["entries"][0]["kind"], "checkpoints");
    walk.ask("GET", point, &["demo", "two"], none, 200);
    walk.ask("GET", point, &["demo", "three"], none, 404);
    for path in [vm, tree, trash] {
        walk.ask("GET", path, &["none"], none, 404);
    }
    walk.ask("GET", console, &["none"], none, 404);
    walk.ask("GET", console, &["demo"], none, 400);
    let own = format!("http://{host}");
    let upgrade = format!(
        "GET /api/vms/demo/console HTTP/1.1\r\nHost: {host}\r\nOrigin: {own}\r\nCookie: {cookie}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    let mut stream = walk.manager.connect();
    stream.write_all(upgrade.as_bytes()).unwrap();
    let (status, head) = http::read_head(&mut stream);
    walk.told(console, "GET", &Response { status, head, body: String::new() });
    drop(stream);
    walk.ask("GET", action, &["none"], none, 404);
    walk.ask("DELETE", action, &["none"], none, 404);
    assert_eq!(walk.ask("GET", actions, &[], none, 200).as_array().unwrap().len(), 6);
    let answer = walk.session.ask(&walk.manager, "GET", "/api/events?vm=..", "");
    assert_eq!(answer.status, 400);
    walk.told(events, "GET", &answer);
    for (name, schema) in [("vm", "ManagedVm"), ("tree", "Tree"), ("trash", "Trash")] {
        let told = walk.session.events(&walk.manager, "?vm=demo").find(name, |told| Some(told.clone()));
        walk.document.holds(schema, &told);
    }
    walk.seen.insert((events.into(), "get".into(), "200".into()));

    // What is not done for the words alone.
    for body in [json!({}), json!({"do": "start"}), json!({"do": "apply", "vm": "demo", "checkpoint": "two"})]
    {
        walk.ask("POST", actions, &[], &body, 400);
    }
    let answer = walk.session.ask(&walk.manager, "POST", actions, &"x".repeat(1 << 17));
    assert_eq!(answer.status, 413);
    walk.told(actions, "POST", &answer);
    let own = format!("http://{host}");
    let lines =
        [("Host", host.as_str()), ("Origin", &own), ("Cookie", &cookie), ("Content-Type", "text/plain")];
    let answer = walk.manager.raw("POST", actions, &lines, "{}");
    assert_eq!(answer.status, 415);
    walk.told(actions, "POST", &answer);

    // Long work: an agent that never answers. The job is the VM's, the action the manager's.
    let mut typed = home.attach("demo");
    typed.ok("agent silent");
    let create = json!({"do": "create", "vm": "demo", "type": "production-only"});
    let running = |walk: &mut Walk| {
        until("the job", || {
            let vm = walk.ask("GET", vm, &["demo"], none, 200);
            let found = vm["jobs"].as_array()?.iter().find(|job| job["phase"] == "agent")?;
            Some(found["id"].as_str()?.to_owned())
        })
    };
    for by_job in [true, false] {
        let begun = walk.ask("POST", actions, &[], &create, 202)["id"].as_str().unwrap().to_owned();
        let id = running(&mut walk);
        if by_job {
            walk.ask("DELETE", job, &["demo", &id], none, 202);
        } else {
            assert_eq!(walk.ask("DELETE", action, &[&begun], none, 202)["cancelling"], true);
        }
        let ended = until("the action to end", || {
            let now = walk.ask("GET", action, &[&begun], none, 200);
            (now["state"] != "running").then_some(now)
        });
        assert_eq!(ended["state"], if by_job { "failed" } else { "cancelled" }, "{ended:#}");
        walk.ask("DELETE", action, &[&begun], none, 409);
        until("the job to end", || {
            let vm = walk.ask("GET", vm, &["demo"], none, 200);
            let jobs = vm["jobs"].as_array()?;
            jobs.iter().all(|job| job["state"] == "cancelled").then_some(())
        });
        walk.ask("DELETE", job, &["demo", &id], none, 409);
    }
    walk.ask("DELETE", job, &["demo", "ffffffff"], none, 404);
    walk.ask("DELETE", job, &["none", "ffffffff"], none, 404);
    drop(typed);

    // A VM that is removed, and comes back under another name.
    for body in [
        json!({"do": "run", "vm": "brief", "memory": 32 << 20}),
        json!({"do": "kill", "vm": "brief"}),
        json!({"do": "remove", "vm": "brief"}),
    ] {
        assert_eq!(deed(&mut walk, body)["state"], "done");
    }
    let removed = walk.ask("GET", "/api/removed", &[], none, 200);
    assert_eq!(removed["removed"][0]["name"], "brief");
    let told = walk.session.events(&walk.manager, "").find("removed", |told| Some(told.clone()));
    walk.document.holds("Removed", &told);
    let back = json!({"do": "restore", "vm": removed["removed"][0]["id"], "name": "again"});
    assert_eq!(deed(&mut walk, back)["state"], "done");
    assert_eq!(walk.ask("GET", "/api/removed", &[], none, 200)["removed"], json!([]));

    // A folder that cannot be read.
    assert_eq!(deed(&mut walk, json!({"do": "kill", "vm": "demo"}))["state"], "done");
    std::fs::write(home.vm("demo").join("vm.json"), "{").unwrap();
    assert_eq!(walk.ask("GET", vm, &["demo"], none, 200)["state"], "broken");
    walk.ask("GET", tree, &["demo"], none, 500);
    walk.ask("GET", trash, &["demo"], none, 500);
    walk.ask("GET", point, &["demo", "two"], none, 500);

    let mut missing = Vec::new();
    for (path, item) in root.as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                let answer = (path.clone(), method.clone(), status.clone());
                // 32 commands that run, which a test of the module has; two ids with one beginning.
                let many = [actions, point].contains(&path.as_str()) && status == "409";
                if !walk.seen.contains(&answer) && !is_out_of_reach(status) && !many {
                    missing.push(answer);
                }
            }
        }
    }
    assert!(missing.is_empty(), "documented and never seen: {missing:#?}");
}

/// Something that a schema allows, with only what it requires.
fn example(document: &Document, schema: &Value) -> Value {
    let schema = document.resolve(schema);
    if let Some(value) = schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
        return value.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required
                .map(|field| (field.to_owned(), example(document, &schema["properties"][field])))
                .collect()
        }
        Some("string") => "none".into(),
        Some("integer") => 1.into(),
        Some("boolean") => true.into(),
        other => panic!("no example of {other:?}"),
    }
}

/// Each documented deed is one, and each field of it is understood; it fails for want of a VM.
#[test]
fn every_documented_deed_is_one() {
    let home = Home::new();
    let mut manager = Manager::start(&home);
    let session = manager.let_in();
    let document = document();
    let deeds = document.schema("Deed")["oneOf"].as_array().unwrap().clone();
    let kinds = document.schema("Action")["properties"]["do"]["enum"].as_array().unwrap().clone();
    let mut seen = Vec::new();
    for schema in &deeds {
        let mut body = example(&document, schema);
        let fields = schema["properties"].as_object().unwrap();
        for (field, inner) in fields {
            // With a path that is none it is refused before anything is begun.
            body[field] = match (field.as_str(), inner["type"].as_str()) {
                ("do", _) => inner["const"].clone(),
                ("dir", _) => "relative".into(),
                ("image" | "kernel" | "initrd" | "checkpoint_dir", _) => "relative".into(),
                (_, Some("array")) => json!([]),
                (_, Some("object")) => json!({}),
                _ if field == "forward" => json!([]),
                _ => example(&document, inner),
            };
        }
        if body["do"] == "restore" {
            // Only of a VM, which has no entry.
            body["entry"] = Value::Null;
        }
        if body["do"] == "verify-boot" {
            // One of the three.
            body["wait_for"] = Value::Null;
            body["exec"] = Value::Null;
        }
        let answer = session.ask(&manager, "POST", "/api/actions", &body.to_string());
        let relative =
            ["dir", "image", "kernel", "checkpoint_dir"].iter().any(|one| fields.contains_key(*one));
        assert_eq!(answer.status, if relative { 400 } else { 202 }, "{body}: {answer:?}");
        if relative {
            assert!(answer.body.contains("absolute path"), "{body}: {answer:?}");
        } else {
            let id = answer.json()["id"].as_str().unwrap().to_owned();
            let ended = until("the action to end", || {
                let now = session.get(&manager, &format!("/api/actions/{id}"));
                (now["state"] != "running").then_some(now)
            });
            assert_eq!(ended["state"], "failed", "{ended:#}");
            let why = ended["error"].as_str().unwrap();
            assert!(why.contains("there is no VM") || why.contains("there is no removed VM"), "{ended:#}");
            document.holds("Action", &ended);
        }
        seen.push(fields["do"]["const"].clone());
    }
    assert_eq!(seen, kinds);
    home.is_empty();
}

/// Strings of the pages that begin with the path of the API, with `{}` for what is put in.
fn asked_for() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manager/web");
    for file in std::fs::read_dir(web).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "js") {
            continue;
        }
        let text = std::fs::read_to_string(file).unwrap();
        for (at, _) in text.match_indices("/api/") {
            let rest = &text[at..];
            let mut path = String::new();
            let mut depth = 0;
            for c in rest.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => {
                        depth -= 1;
                        path.push_str("{}");
                    }
                    '$' => {}
                    '`' | '"' | '?' if depth == 0 => break,
                    _ if depth == 0 => path.push(c),
                    _ => {}
                }
            }
            found.insert(path);
        }
    }
    found
}

#[test]
fn the_pages_use_nothing_else() {
    let document = document();
    let paths = document.root()["paths"].as_object().unwrap();
    let plain = |path: &String| {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let documented: BTreeSet<String> = paths.keys().map(plain).collect();
    let asked = asked_for();
    assert!(asked.len() >= 5, "{asked:?}");
    assert_eq!(asked.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new());
    // Nor deeds.
    let kinds = document.schema("Action")["properties"]["do"]["enum"].as_array().unwrap().clone();
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manager/web");
    let mut deeds = 0;
    for file in
        std::fs::read_dir(web).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let text = std::fs::read_to_string(&file).unwrap();
        for part in text.split(" do: \"").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(kinds.contains(&name.into()), "{}: {name}", file.display());
            deeds += 1;
        }
    }
    assert!(deeds > 15, "{deeds}");
}
