//! A manager under the test's hands, and an HTTP client that says what it is told to say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::common::{self, Home, Response, http, patience};

pub struct Manager {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The link that was printed last.
    pub link: String,
    pub port: u16,
}

impl Manager {
    /// On a free port.
    pub fn start(home: &Home) -> Self {
        Self::run(home.command(["manager", "--no-open", "--listen", "127.0.0.1:0"]))
    }

    pub fn run(mut command: std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut manager = Self { child, stdout, link: String::new(), port: 0 };
        manager.next_link();
        let port = manager.link.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split_once('/'));
        manager.port = port.unwrap().0.parse().unwrap();
        manager
    }

    /// Waits for the link that follows one that was used.
    pub fn next_link(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let at = line.find("http://").unwrap_or_else(|| panic!("no link: {line:?}"));
        self.link = line[at..].trim().to_owned();
        self.link.clone()
    }

    pub fn token(&self) -> String {
        self.link.split_once("token=").unwrap().1.to_owned()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream
    }

    /// A request with just these headers, but for the length of the body.
    pub fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        http::converse(self.connect(), request.as_bytes())
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Uses the link; the cookie for it.
    pub fn let_in(&mut self) -> Session {
        let token = self.token();
        let response = self.raw("GET", &format!("/?token={token}"), &[("Host", &self.host())], "");
        assert_eq!(response.status, 200, "{response:?}");
        let cookie = header(&response, "set-cookie").expect("a cookie");
        for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(cookie.split("; ").any(|part| part == attribute), "{cookie}");
        }
        self.next_link();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Session { host: self.host(), cookie }
    }

    pub fn stop(&mut self) -> Option<i32> {
        common::send_signal(self.child.id() as i32, libc::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn header(response: &Response, wanted: &str) -> Option<String> {
    let mut fields = response.head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_owned())
}

/// A browser that was let in.
pub struct Session {
    pub host: String,
    pub cookie: String,
}

impl Session {
    pub fn ask(&self, manager: &Manager, method: &str, path: &str, body: &str) -> Response {
        let origin = format!("http://{}", self.host);
        let headers = [
            ("Host", self.host.as_str()),
            ("Cookie", &self.cookie),
            ("Origin", &origin),
            ("Content-Type", "application/json"),
        ];
        manager.raw(method, path, &headers, body)
    }

    #[track_caller]
    pub fn get(&self, manager: &Manager, path: &str) -> Value {
        let response = self.ask(manager, "GET", path, "");
        assert_eq!(response.status, 200, "{path}: {response:?}");
        response.json()
    }

    /// Does a deed, and waits for its end.
    #[track_caller]
    pub fn act(&self, manager: &Manager, deed: &Value) -> Value {
        let response = self.ask(manager, "POST", "/api/actions", &deed.to_string());
        assert_eq!(response.status, 202, "{deed}: {response:?}");
        let path = format!("/api/actions/{}", response.json()["id"].as_str().unwrap());
        common::until("the action to end", || {
            let action = self.get(manager, &path);
            (action["state"] != json!("running")).then_some(action)
        })
    }

    /// As `act`, of one that succeeds: its result.
    #[track_caller]
    pub fn done(&self, manager: &Manager, deed: &Value) -> Value {
        let action = self.act(manager, deed);
        assert_eq!(action["state"], "done", "{action:#}");
        action["result"].clone()
    }

    /// Server-sent events from now on.
    pub fn events(&self, manager: &Manager, query: &str) -> Events {
        let mut stream = manager.connect();
        let request = format!(
            "GET /api/events{query} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\n\r\n",
            self.host, self.cookie
        );
        stream.write_all(request.as_bytes()).unwrap();
        let (status, head) = http::read_head(&mut stream);
        assert_eq!(status, 200, "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        Events { stream: BufReader::new(stream) }
    }
}

pub struct Events {
    stream: BufReader<TcpStream>,
}

impl Events {
    /// The next event of this name whose data `wanted` finds something in.
    pub fn find<T>(&mut self, name: &str, mut wanted: impl FnMut(&Value) -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + patience();
        let mut data = Vec::new();
        loop {
            assert!(std::time::Instant::now() < deadline, "no `{name}` as it was wanted");
            // A chunk: its length in a line, and then so many bytes.
            let mut length = String::new();
            self.stream.read_line(&mut length).unwrap();
            let length = usize::from_str_radix(length.trim(), 16).expect("a chunk");
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            data.extend_from_slice(&chunk[..length]);
            while let Some(end) = data.windows(2).position(|two| two == b"\n\n") {
                let event = String::from_utf8(data.drain(..end + 2).collect()).unwrap();
                let Some((first, rest)) = event.split_once('\n') else { continue };
                if first != format!("event: {name}") {
                    continue;
                }
                let value = serde_json::from_str(rest.trim().strip_prefix("data: ").unwrap()).unwrap();
                if let Some(found) = wanted(&value) {
                    return found;
                }
            }
        }
    }
}
