//! What a guest's agent, or one who plays an agent, answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use piton::agent::{Agent, Channel, Outcome};
use piton::devices::virtio::console_port::Received;
use piton::progress::Progress;
use piton::qga::{self, Call};
use serde_json::Value;

use crate::{Shape, Target};

/// Each request is answered by the next part of the input; a `$` in it is the request's number.
/// Behind the last one the port is closed, so that nothing is waited for.
struct Script {
    parts: RefCell<VecDeque<Vec<u8>>>,
    ready: RefCell<VecDeque<Vec<u8>>>,
    froze: Cell<bool>,
}

impl Script {
    fn of(bytes: &[u8]) -> Self {
        let parts = bytes.split(|byte| *byte == SEPARATOR).map(<[u8]>::to_vec).collect();
        Self { parts: RefCell::new(parts), ready: RefCell::default(), froze: Cell::new(false) }
    }
}

impl Channel for Script {
    fn claim(&self, _: bool, _: Duration) -> bool {
        true
    }
    fn release(&self) {}
    fn is_still(&self) -> bool {
        false
    }
    fn is_open(&self) -> bool {
        true
    }
    fn listen(&self) {}
    fn hang_up(&self) {}
    fn send(&self, bytes: &[u8]) {
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0xff).collect();
        let value: Value = serde_json::from_slice(&text).expect("a request is JSON");
        let id = value["id"].as_u64().expect("a request has a number").to_string();
        let Some(part) = self.parts.borrow_mut().pop_front() else { return };
        if value["execute"] == "guest-fsfreeze-freeze" {
            self.froze.set(part.windows(8).any(|word| word == b"\"return\""));
        }
        let mut answer = Vec::new();
        for byte in part {
            match byte {
                b'$' => answer.extend_from_slice(id.as_bytes()),
                byte => answer.push(byte),
            }
        }
        self.ready.borrow_mut().extend(answer.chunks(7).map(<[u8]>::to_vec));
    }
    fn receive(&self, _: Duration) -> Received {
        self.ready.borrow_mut().pop_front().map_or(Received::Closed, Received::Bytes)
    }
    fn set_thaw_due(&self, _: bool) {}
}

const SEPARATOR: u8 = 1;

fn seed(sync: &str, freeze: &str) -> Vec<u8> {
    let info = r#"{"return": {"version": "7.2", "supported_commands": [
        {"name": "guest-fsfreeze-freeze", "enabled": true}, {"name": "guest-fsfreeze-status", "enabled": true},
        {"name": "guest-fsfreeze-thaw", "enabled": true}]}, "id": $}"#
        .replace('\n', " ");
    let rest = [r#"{"return": "frozen", "id": $}"#, r#"{"return": 1, "id": $}"#];
    let parts = [sync, &info, freeze, rest[0], rest[1]].map(|part| format!("{part}\n").into_bytes());
    let mut bytes = parts.join(&SEPARATOR);
    // The reset before the answer to the sync.
    bytes.insert(0, 0xff);
    bytes
}

/// Calls beside freezing, each answered by the next part.
fn calls() -> [Call; 6] {
    [
        Call::Info,
        Call::Exec(qga::Exec { path: "/bin/ls".into(), ..qga::Exec::default() }),
        Call::ExecStatus(qga::Pid { pid: 1 }),
        Call::Open(qga::Open { path: "/x".into(), mode: "r".into() }),
        Call::Read(qga::Read { handle: 1, count: 8 }),
        Call::Write(qga::Write { handle: 1, data: "YWJj".into() }),
    ]
}

/// What the calls are answered with may lie, but not about how much there is.
pub fn calls_target() -> Target {
    let answers = [
        r#"{"return": $, "id": $}"#,
        r#"{"return": {"version": "7.2", "supported_commands": [{"name": "guest-exec", "enabled": true}]}, "id": $}"#,
        r#"{"return": {"pid": 17}, "id": $}"#,
        r#"{"return": {"exited": true, "exitcode": 1, "out-data": "YWJj", "out-truncated": true}, "id": $}"#,
        r#"{"return": 1000, "id": $}"#,
        r#"{"return": {"count": 3, "buf-b64": "YWJj", "eof": true}, "id": $}"#,
        r#"{"return": {"count": 3, "eof": false}, "id": $}"#,
    ];
    let mut seed = answers.map(|part| format!("{part}\n").into_bytes()).join(&SEPARATOR);
    seed.insert(0, 0xff);
    Target {
        name: "agent-calls",
        shape: Shape::Bytes,
        seeds: vec![seed],
        mend: Box::new(|_| {}),
        run: Box::new(|bytes| {
            let script = Script::of(bytes);
            let progress = Progress::default();
            let Ok(mut agent) = Agent::for_calls(&script, &progress) else { return false };
            let mut answered = false;
            for call in calls() {
                let Ok(answer) = agent.do_call(&call) else { continue };
                answered = true;
                if let Call::Read(read) = call {
                    let bytes: qga::Bytes = serde_json::from_value(answer).expect("it was checked");
                    let data = qga::decode(&bytes.data).expect("it was checked");
                    assert!(data.len() == bytes.count && bytes.count <= read.count);
                }
            }
            answered
        }),
    }
}

/// What a guest's tar sends: no more data than was announced, and no name without bounds.
pub fn tar_target() -> Target {
    use piton::inside::tar::{self, Entry, Event, Kind, TarError};
    let entry = |path: &[u8], kind, size, target: &[u8]| {
        tar::header(&Entry { path: path.into(), kind, mode: 0o644, size, target: target.into() }, 0)
    };
    let long = [b'n'; 150];
    let mut seed = entry(b"d", Kind::Folder, 0, b"");
    seed.extend(entry(b"d/f", Kind::File, 5, b""));
    seed.extend([b"hello".to_vec(), vec![0; 507]].concat());
    seed.extend(entry(&long, Kind::Symlink, 0, &long));
    seed.extend(tar::end());
    Target {
        name: "guest-tar",
        shape: Shape::Bytes,
        seeds: vec![seed],
        mend: Box::new(|_| {}),
        run: Box::new(|bytes| {
            let mut reader = tar::Reader::default();
            let (mut left, mut files) = (0, 0);
            for part in bytes.chunks(700) {
                let pushed = reader.push(part, &mut |event| {
                    match event {
                        Event::Begin(entry) => {
                            assert!(entry.path.len() <= 64 << 10 && entry.target.len() <= 64 << 10);
                            (left, files) = (entry.size, files + 1);
                        }
                        Event::Data(data) => left -= data.len() as u64,
                        Event::End => assert_eq!(left, 0),
                    }
                    Ok::<(), TarError>(())
                });
                if pushed.is_err() {
                    return false;
                }
            }
            files > 0
        }),
    }
}

pub fn target() -> Target {
    let sync = r#"{"return": $, "id": $}"#;
    Target {
        name: "agent",
        shape: Shape::Bytes,
        seeds: vec![
            seed(sync, r#"{"return": 3, "id": $}"#),
            seed(sync, r#"{"error": {"class": "GenericError", "desc": "no"}, "id": $}"#),
            seed(r#"{"return": $}"#, r#"{"return": 0, "id": $}"#),
        ],
        mend: Box::new(|_| {}),
        run: Box::new(|bytes| {
            let script = Script::of(bytes);
            let progress = Progress::default();
            let Ok(mut agent) = Agent::connect(&script, &progress) else { return false };
            let switched = Cell::new(false);
            let frozen = agent.while_frozen(Duration::from_secs(3600), || {
                switched.set(true);
                Ok::<_, ()>(())
            });
            assert_eq!(matches!(frozen.outcome, Outcome::Switched(_)), switched.get());
            assert!(!switched.get() || script.froze.get(), "switched although nothing answered the freeze");
            true
        }),
    }
}
