//! As much of an HTTP client as the control socket's tests need, apart from piton's own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Terminal, patience};

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// Asserts an error that is told as documented; returns the sentence.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        let sentence = json["error"].as_str().unwrap_or_default().to_owned();
        assert!(!sentence.is_empty(), "{self:?}");
        sentence
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
    stream.set_read_timeout(Some(patience())).unwrap();
    stream
}

/// Reads up to the empty line behind the headers; returns the status and the head.
pub fn read_head(stream: &mut impl Read) -> (u16, String) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => head.push(byte[0]),
            // Comes without any signal, too, when the whole machine was frozen for a while.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => panic!("no answer in time: {e}"),
        }
    }
    let head = String::from_utf8(head).expect("HTTP headers are text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no HTTP answer: {head:?}")), head)
}

/// Sends bytes as they are, and reads the answer to its end.
pub fn exchange(socket: &Path, request: &[u8]) -> Response {
    converse(connect(socket), request)
}

/// The same over any connection.
pub fn converse(mut stream: impl Read + Write, request: &[u8]) -> Response {
    match stream.write_all(request) {
        // It may answer, and close, before it has read all of a request that it does not want.
        Err(e)
            if matches!(e.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset) => {}
        written => written.unwrap(),
    }
    let (status, head) = read_head(&mut stream);
    let mut body = Vec::new();
    match stream.read_to_end(&mut body) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => drop(read.expect("the body ends")),
    }
    Response { status, head, body: String::from_utf8(body).expect("the body is text") }
}

pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> Response {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(socket, request.as_bytes())
}

pub fn attach(socket: &Path) -> Terminal {
    let mut stream = connect(socket);
    stream
        .write_all(
            b"GET /vm/console HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n\
              Upgrade: piton-console\r\n\r\n",
        )
        .unwrap();
    let (status, head) = read_head(&mut stream);
    assert_eq!(status, 101, "{head}");
    stream.set_read_timeout(None).unwrap();
    let input = stream.try_clone().unwrap();
    Terminal::new(&format!("{} (attached)", socket.display()), stream, Some(Box::new(input)))
}
