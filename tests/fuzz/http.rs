//! Bytes on the control socket, sent to the real server. Its owner refuses every request.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use piton::control::RequestError;
use piton::control::jobs::Jobs;
use piton::control::metrics::Metrics;
use piton::control::server::Server;
use piton::devices::console::Console;
use piton::qga::{CallError, Why};

use crate::files::folder;
use crate::{Shape, Target};

/// `whole`: the bytes are a request that ends the connection. Else an end is put behind them, so that
/// the server waits for no more; it may then drop an answer that it has not yet sent.
fn send(path: &Path, bytes: &[u8], whole: bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The server may have answered and closed before all was sent.
    let _ = stream.write_all(bytes);
    if !whole {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the server neither answers nor closes")
        }
        _ => answer,
    }
}

fn request(line: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nhost: piton\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

pub fn target() -> Target {
    let dir = folder();
    let path = dir.path().join("control.sock");
    let console = Console::start(&dir.path().join("console.log")).unwrap();
    let dispatch = Arc::new(|asked: piton::control::server::Asked| {
        let answer = Err(RequestError::Refused("no".into()));
        if let Some(job) = asked.job {
            job.begin();
            job.finish(&answer);
        }
        if let Some(reply) = asked.reply {
            let _ = reply.send(answer);
        }
    });
    let agent = Arc::new(|asked: piton::control::agent::AgentAsked| {
        let _ = asked.reply.send(Err(CallError::new(Why::Refused, "no")));
    });
    let server =
        Server::start(&path, dispatch, agent, Jobs::default(), Metrics::new("demo"), console).unwrap();
    let one = "01010101010101010101010101010101";
    let seeds = vec![
        request("GET /vm", ""),
        request(
            "POST /vm/agent",
            r#"{"execute": "guest-exec", "arguments": {"path": "/bin/ls", "arg": ["-l"], "input-data": "YWJj"}}"#,
        ),
        request(
            "POST /vm/agent",
            r#"{"execute": "guest-file-read", "arguments": {"handle": 1, "count": 131072}}"#,
        ),
        request("PATCH /vm", r#"{"checkpoint_type": "standard", "auto_checkpoint": true}"#),
        request("POST /vm/stop", r#"{"force": true, "timeout": 9}"#),
        request("POST /vm/checkpoints", r#"{"name": "one", "note": "x", "type": "standard", "no_wait": true}"#),
        request("PATCH /vm/checkpoints/one", r#"{"name": "two", "note": ""}"#),
        request("POST /vm/checkpoints/one/apply", r#"{"no_wait": false}"#),
        request("DELETE /vm/checkpoints/one", r#"{"subtree": true}"#),
        request(&format!("GET /vm/jobs/{one}"), ""),
        request("GET /vm/jobs", ""),
        [request("POST /vm/pause", ""), request("POST /vm/resume", "")].concat(),
        b"POST /vm/revert HTTP/1.1\r\nhost: piton\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n".to_vec(),
    ];
    Target {
        name: "control",
        shape: Shape::Bytes,
        seeds,
        // The length of the body as it is now, where there is one body.
        mend: Box::new(|bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let (Some((head, body)), 1) = (text.split_once("\r\n\r\n"), text.matches("\r\n\r\n").count())
            else {
                return;
            };
            let Some((before, rest)) = head.split_once("content-length: ") else { return };
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            *bytes = format!("{before}content-length: {}{after}\r\n\r\n{body}", body.len()).into_bytes();
        }),
        run: Box::new(move |bytes| {
            let _keep = (&server, &dir);
            let answer = send(&path, bytes, false);
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "no HTTP answer");
            let after =
                send(&path, b"GET /vm/jobs HTTP/1.1\r\nhost: piton\r\nconnection: close\r\n\r\n", true);
            assert!(after.starts_with(b"HTTP/1.1 200"), "the server is no more");
            // It got as far as the owner of the machine, or a job.
            answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.1 409")
        }),
    }
}
