//! The asking side of the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CONSOLE_PROTOCOL, ErrorBody, RequestError, VmInfo};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the VM is stopped")]
    NotRunning,
    /// Its process ended between request and answer.
    #[error("the VM ended before it answered")]
    Ended,
    #[error("the VM's process could not be asked: {0}")]
    Broken(String),
    #[error(transparent)]
    Request(#[from] RequestError),
}

fn broken<E: ToString>(error: E) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
        _ => broken(e),
    })
}

/// Sends one request and waits for its answer.
pub fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<T, ClientError> {
    let stream = connect(socket)?;
    // What only looks may find that the VM does not run; what changes something may have been begun.
    let ended = if method == Method::GET { ClientError::NotRunning } else { ClientError::Ended };
    let lost = |e: hyper::Error| if is_hang_up(&e) { ended } else { broken(e) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(broken)?;
    let (status, bytes) = runtime.block_on(async {
        stream.set_nonblocking(true).map_err(broken)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(broken)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body.unwrap_or_default()))
            .map_err(broken)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        answer.await.map_err(lost)
    })?;
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(broken);
    }
    let text =
        serde_json::from_slice(&bytes).map_or_else(|_| status.to_string(), |body: ErrorBody| body.error);
    Err(ClientError::Request(match status {
        StatusCode::INTERNAL_SERVER_ERROR => RequestError::Failed(text),
        _ => RequestError::Refused(text),
    }))
}

/// The other side went away in the middle.
fn is_hang_up(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || io.is_some_and(|e| matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
}

pub fn get(socket: &Path) -> Result<VmInfo, ClientError> {
    ask(socket, Method::GET, "/vm", None)
}

pub fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
    ask(socket, Method::POST, path, Some(serde_json::to_vec(body).map_err(broken)?))
}

pub fn patch<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    ask(socket, Method::PATCH, path, Some(serde_json::to_vec(body).map_err(broken)?))
}

pub fn delete<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    ask(socket, Method::DELETE, path, Some(serde_json::to_vec(body).map_err(broken)?))
}

/// Attaches to the console: what is read is its output, what is written is typed into it.
pub fn console(socket: &Path) -> Result<UnixStream, ClientError> {
    let mut stream = connect(socket)?;
    // An upgrade is plain text both ways, so a byte stream does; a runtime would only be in the
    // way of what comes after.
    let request = format!(
        "GET /vm/console HTTP/1.1\r\n{HOST}: localhost\r\n{CONNECTION}: upgrade\r\n{UPGRADE}: {CONSOLE_PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(broken)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(stream);
    }
    Err(broken(String::from_utf8_lossy(&head).lines().next().unwrap_or_default()))
}
