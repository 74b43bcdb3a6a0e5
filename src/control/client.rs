//! The asking side of the control socket.
//!
//! Nothing here waits for a VM's process that gives no sign of life. One that does, but is busy, is
//! waited for: its jobs are told of by another thread than the one that works.

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::jobs::{JobList, JobState};
use super::{CONSOLE_PAST, CONSOLE_PROTOCOL, ErrorBody, RequestError, VmInfo};

/// An answer that takes longer is asked after.
const LOOK: Duration = Duration::from_secs(2);
/// How long a process may take for a sign of life.
const LIFE: Duration = Duration::from_secs(3);
/// Between two tries to connect where too many wait to be accepted.
const RETRY: Duration = Duration::from_millis(20);
/// How many VMs are asked at one time; each takes a file descriptor.
const AT_ONCE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the VM is stopped")]
    NotRunning,
    /// Its process ended between request and answer.
    #[error("the VM stopped before it responded")]
    Ended,
    /// Its process is there and gives no sign of life.
    #[error("the VM `{vm}` is not responding: wait, or cut its power with `piton kill {vm}`")]
    Silent { vm: String },
    /// Its process lives, and did not come to this request in time.
    #[error("the VM `{vm}` is busy with {with} and did not start this within {} s: nothing was changed", within.as_secs())]
    Busy { vm: String, with: String, within: Duration },
    #[error("cannot talk to the VM's process: {0}")]
    Broken(String),
    #[error(transparent)]
    Request(#[from] RequestError),
}

fn broken<E: ToString>(error: E) -> ClientError {
    ClientError::Broken(error.to_string())
}

/// How long to wait for a VM that lives.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wait {
    /// None: for as long as it takes.
    pub within: Option<Duration>,
    /// Who asks says by itself what goes on.
    pub quietly: bool,
}

fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(broken)
}

/// The VM's folder holds its socket and has its name.
pub(super) fn vm_of(socket: &Path) -> String {
    let name = socket.parent().and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

pub(super) async fn connect(socket: &Path) -> Result<tokio::net::UnixStream, ClientError> {
    loop {
        match tokio::net::UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            // Too many wait to be accepted.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(RETRY).await,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(ClientError::NotRunning);
            }
            Err(e) => return Err(broken(e)),
        }
    }
}

/// The same, if its process is alive.
pub(super) async fn connect_in_time(socket: &Path) -> Result<tokio::net::UnixStream, ClientError> {
    let silent = |_| ClientError::Silent { vm: vm_of(socket) };
    tokio::time::timeout(LIFE, connect(socket)).await.map_err(silent)?
}

/// One request and its answer, however long that takes.
async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = connect(socket).await?;
    // What only looks may find that the VM does not run; what changes something may have been begun.
    let looks = method == Method::GET;
    let lost = |e: hyper::Error| match (is_hang_up(&e), looks) {
        (true, true) => ClientError::NotRunning,
        (true, false) => ClientError::Ended,
        (false, _) => broken(e),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(broken)?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    // Both belong to this future: when it is dropped the connection goes, which takes back a request
    // that the VM has not begun.
    let drive = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer.map_err(lost),
        never = drive => never,
    }
}

/// Waits for `answer` as long as the process lives, and no longer than `wait` says.
async fn with_patience<T>(
    socket: &Path,
    wait: Wait,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::pin!(answer);
    let began = Instant::now();
    let mut told = wait.quietly;
    loop {
        let look = async {
            tokio::time::sleep(LOOK).await;
            tokio::time::timeout(LIFE, exchange(socket, Method::GET, "/vm/jobs", Vec::new())).await
        };
        let jobs = tokio::select! {
            answer = &mut answer => return answer,
            jobs = look => jobs,
        };
        let vm = vm_of(socket);
        let Ok(Ok((StatusCode::OK, jobs))) = jobs else { return Err(ClientError::Silent { vm }) };
        let with = busy_with(&jobs);
        if let Some(within) = wait.within.filter(|within| began.elapsed() >= *within) {
            return Err(ClientError::Busy { vm, with, within });
        }
        if !told {
            told = true;
            log::warn!("the VM `{vm}` is busy with {with}: waiting");
        }
    }
}

/// What a VM says that it is at work on.
fn busy_with(jobs: &[u8]) -> String {
    let jobs = serde_json::from_slice(jobs).unwrap_or(JobList { jobs: Vec::new() }).jobs;
    match jobs.into_iter().find(|job| job.state == JobState::Running) {
        Some(job) if job.subject.is_empty() => format!("job `{}`", job.kind),
        Some(job) => format!("job `{} {}`", job.kind, job.subject),
        None => "another request".into(),
    }
}

fn parse<T: DeserializeOwned>((status, bytes): (StatusCode, Bytes)) -> Result<T, ClientError> {
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(broken);
    }
    let text =
        serde_json::from_slice(&bytes).map_or_else(|_| status.to_string(), |body: ErrorBody| body.error);
    Err(ClientError::Request(match status {
        StatusCode::INTERNAL_SERVER_ERROR => RequestError::Failed(text),
        StatusCode::NOT_FOUND => RequestError::Missing(text),
        _ => RequestError::Refused(text),
    }))
}

/// The other side went away in the middle.
pub(super) fn is_hang_up(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || io.is_some_and(|e| matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
}

/// Sends one request and waits for its answer.
pub fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    wait: Wait,
) -> Result<T, ClientError> {
    let answer = exchange(socket, method, path, body.unwrap_or_default());
    parse(runtime()?.block_on(with_patience(socket, wait, answer))?)
}

pub fn get(socket: &Path) -> Result<VmInfo, ClientError> {
    ask(socket, Method::GET, "/vm", None, Wait::default())
}

/// One request without a body, for who has a runtime. What is not answered in this time is silent,
/// whatever it is busy with.
pub async fn ask_once<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    within: Duration,
) -> Result<T, ClientError> {
    match tokio::time::timeout(within, exchange(socket, method, path, Vec::new())).await {
        Ok(answer) => parse(answer?),
        Err(_) => Err(ClientError::Silent { vm: vm_of(socket) }),
    }
}

/// The same of what is answered with text.
pub async fn text(socket: &Path, path: &str, within: Duration) -> Result<String, ClientError> {
    match tokio::time::timeout(within, exchange(socket, Method::GET, path, Vec::new())).await {
        Ok(answer) => {
            let (status, bytes) = answer?;
            match status.is_success() {
                true => String::from_utf8(bytes.into()).map_err(broken),
                false => Err(broken(status)),
            }
        }
        Err(_) => Err(ClientError::Silent { vm: vm_of(socket) }),
    }
}

/// Asks all VMs at once. One that does not answer in this time is silent, whatever it is busy with.
pub fn get_all(
    sockets: &[PathBuf],
    within: Duration,
) -> Result<Vec<Result<VmInfo, ClientError>>, ClientError> {
    let runtime = runtime()?;
    let mut answers = Vec::with_capacity(sockets.len());
    for some in sockets.chunks(AT_ONCE) {
        let asked: Vec<_> = some
            .iter()
            .cloned()
            .map(|socket| runtime.spawn(async move { ask_once(&socket, Method::GET, "/vm", within).await }))
            .collect();
        for answer in asked {
            answers.push(runtime.block_on(answer).map_err(broken)?);
        }
    }
    Ok(answers)
}

fn encode(body: &impl Serialize) -> Result<Option<Vec<u8>>, ClientError> {
    serde_json::to_vec(body).map(Some).map_err(broken)
}

pub fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
    ask(socket, Method::POST, path, encode(body)?, Wait::default())
}

/// The same for what a VM does at once, if it is not busy with something else.
pub fn post_within<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
    within: Duration,
) -> Result<T, ClientError> {
    ask(socket, Method::POST, path, encode(body)?, Wait { within: Some(within), quietly: false })
}

pub fn patch<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    ask(socket, Method::PATCH, path, encode(body)?, Wait::default())
}

pub fn delete<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    ask(socket, Method::DELETE, path, encode(body)?, Wait::default())
}

/// An attached console.
pub struct ConsoleStream {
    /// What is read is the console's output, what is written is typed into it.
    pub stream: UnixStream,
    /// How many of the first bytes were printed before.
    pub past: usize,
}

/// Attaches to the console, with up to `past` bytes of what was printed before.
pub fn console(socket: &Path, past: usize) -> Result<ConsoleStream, ClientError> {
    let silent = || ClientError::Silent { vm: vm_of(socket) };
    let mut stream = runtime()?.block_on(async {
        let stream = connect_in_time(socket).await?;
        stream.into_std().map_err(broken)
    })?;
    stream.set_nonblocking(false).map_err(broken)?;
    stream.set_read_timeout(Some(LIFE)).map_err(broken)?;
    // An upgrade is plain text both ways, so a byte stream does; a runtime would only be in the
    // way of what comes after.
    let request = format!(
        "GET /vm/console?past={past} HTTP/1.1\r\n{HOST}: localhost\r\n{CONNECTION}: upgrade\r\n\
         {UPGRADE}: {CONSOLE_PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let lost = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ClientError::NotRunning,
        _ => broken(e),
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(lost)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let header = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_owned())
    };
    if head.starts_with("HTTP/1.1 101 ") {
        let past = header(CONSOLE_PAST).and_then(|count| count.parse().ok()).unwrap_or(0);
        stream.set_read_timeout(None).map_err(broken)?;
        return Ok(ConsoleStream { stream, past });
    }
    let mut body = vec![0; header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0).min(4096)];
    stream.read_exact(&mut body).map_err(lost)?;
    match serde_json::from_slice(&body) {
        Ok(ErrorBody { error }) => Err(RequestError::Refused(error).into()),
        Err(_) => Err(broken(head.lines().next().unwrap_or_default())),
    }
}
