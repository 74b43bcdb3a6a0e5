//! An S3 server on this host (moto), and a proxy that breaks what goes through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::{Finished, Home};

const PROGRAM: &str = "
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
";

pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// With a bucket `test`. scripts/test installs what it takes and names it.
    pub fn start() -> Self {
        let python = std::env::var("PITON_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut child = Command::new(&python)
            .args(["-c", PROGRAM])
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{python}: {e}"));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| {
            panic!("the S3 server did not start: `{python} -m pip install 'moto[server]'`, or scripts/test")
        });
        let server = Self { child, port };
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(
            stream,
            "PUT /test HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: AWS4-HMAC-SHA256 \
             Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `piton` with the words of `line`, for which the store is at `port`.
pub fn piton(home: &Home, port: u16, line: &str) -> Finished {
    let mut command = home.command(line.split_ascii_whitespace());
    command
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "us-east-1")
        .env("PITON_TEST_STALL_MS", "1500");
    Finished::run(command)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer, and no end.
    Silence,
    /// The connection ends at once.
    Close,
    /// The store did what it was asked, and nobody hears of it.
    Deaf,
    /// 500.
    Error,
    /// 503, as stores ask for patience.
    Slow,
    /// Half of an answer.
    Half,
    /// One bit of an answer's body.
    Flip,
}

/// For each request, by its first line and number, what becomes of it.
type Plan = dyn Fn(&str, u64) -> Option<Fault> + Send + Sync;

pub struct Proxy {
    pub port: u16,
    pub faults: Arc<Mutex<Vec<(Fault, String)>>>,
}

impl Proxy {
    /// It ends with the test's process.
    pub fn start(upstream: u16, plan: impl Fn(&str, u64) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan: Arc<Plan> = Arc::new(plan);
        let (faults, count) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let proxy = Self { port, faults: faults.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (plan, faults, count) = (plan.clone(), faults.clone(), count.clone());
                // A client that went away is no matter.
                std::thread::spawn(move || {
                    let _ = one(client, upstream, &*plan, &faults, &count);
                });
            }
        });
        proxy
    }
}

fn one(
    client: TcpStream,
    upstream: u16,
    plan: &Plan,
    faults: &Mutex<Vec<(Fault, String)>>,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            head.extend_from_slice(b"connection: close\r\n\r\n");
            break;
        }
        head.extend_from_slice(line.as_bytes());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let first = String::from_utf8_lossy(&head).lines().next().unwrap().to_owned();
    let fault = plan(&first, count.fetch_add(1, Ordering::Relaxed));
    if let Some(fault) = fault {
        faults.lock().unwrap().push((fault, first));
    }
    let say = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    match fault {
        Some(Fault::Silence) => {
            // Until the client gives up.
            let _ = reader.read(&mut [0; 1]);
            return Ok(());
        }
        Some(Fault::Close) => return client.shutdown(Shutdown::Both),
        Some(Fault::Error) => return client.write_all(say("500 Internal Server Error").as_bytes()),
        Some(Fault::Slow) => return client.write_all(say("503 Slow Down").as_bytes()),
        _ => {}
    }
    let mut store = TcpStream::connect(("127.0.0.1", upstream))?;
    store.write_all(&head)?;
    store.write_all(&body)?;
    let mut answer = Vec::new();
    store.read_to_end(&mut answer)?;
    let body_at = answer.windows(4).position(|part| part == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Some(Fault::Deaf) => return client.shutdown(Shutdown::Both),
        Some(Fault::Half) => answer.truncate(body_at + (answer.len() - body_at) / 2),
        Some(Fault::Flip) if body_at < answer.len() => {
            let at = body_at + (answer.len() - body_at) * 2 / 3;
            answer[at] ^= 4;
        }
        _ => {}
    }
    client.write_all(&answer)?;
    client.shutdown(Shutdown::Both)
}
