//! The asking side of `POST /vm/agent`: many short calls over one connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;

use super::agent::{AgentBody, AgentReply, why};
use super::client::{ClientError, vm_of};
use super::{ErrorBody, RequestError};
use crate::id::Id;
use crate::qga::{Call, CallError};

/// The VM's process answers every call in less: of those before it in the queue each has its bound.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// A line to the agent of one guest: once it has answered, no other guest is taken for it.
pub struct AgentLine {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
    sender: Option<SendRequest<Full<Bytes>>>,
    guest: Option<Id>,
}

fn broken<E: ToString>(error: E) -> LineError {
    ClientError::Broken(error.to_string()).into()
}

impl AgentLine {
    pub fn new(socket: &Path) -> Result<Self, LineError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(broken)?;
        Ok(Self { socket: socket.to_owned(), runtime, sender: None, guest: None })
    }

    /// The same guest over a connection of its own.
    pub fn another(&self) -> Result<Self, LineError> {
        Ok(Self { guest: self.guest, ..Self::new(&self.socket)? })
    }

    /// Makes one call; the answer has the shape that the call's documentation tells.
    pub fn call<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, LineError> {
        let Self { socket, runtime, sender, guest } = self;
        let arguments = match call.arguments() {
            Some(serde_json::Value::Object(fields)) => Some(fields),
            _ => None,
        };
        let body = AgentBody { guest: *guest, execute: call.name().into(), arguments };
        let body = Bytes::from(serde_json::to_vec(&body).map_err(broken)?);
        let (status, bytes) = runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, exchange(socket, sender, body)).await {
                Ok(answer) => answer,
                Err(_) => Err(ClientError::Silent { vm: vm_of(socket) }),
            }
        })?;
        if status.is_success() {
            let reply: AgentReply = serde_json::from_slice(&bytes).map_err(broken)?;
            *guest = Some(reply.guest);
            return serde_json::from_value(reply.value).map_err(broken);
        }
        let text =
            serde_json::from_slice(&bytes).map_or_else(|_| status.to_string(), |body: ErrorBody| body.error);
        Err(match why(status) {
            Some(why) => CallError { why, text }.into(),
            // The only thing that is refused here is who comes when the VM stops.
            None if status == StatusCode::CONFLICT => ClientError::Ended.into(),
            None => ClientError::Request(RequestError::Refused(text)).into(),
        })
    }
}

async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let stream = super::client::connect(socket).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| ClientError::Broken(e.to_string()))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request and its answer. The connection is made anew if the other side has closed it, which it
/// does to one that is silent.
async fn exchange(
    socket: &Path,
    kept: &mut Option<SendRequest<Full<Bytes>>>,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |e: hyper::Error| ClientError::Broken(e.to_string());
    let mut tries = 2;
    loop {
        tries -= 1;
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => connect(socket).await?,
        };
        if sender.ready().await.is_err() {
            sender = connect(socket).await?;
        }
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri("/vm/agent")
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body.clone()))
            .map_err(|e| ClientError::Broken(e.to_string()))?;
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            // It was never sent: the other side had closed meanwhile.
            Err(e) if e.is_canceled() && tries > 0 => continue,
            Err(e) if super::client::is_hang_up(&e) => return Err(ClientError::Ended),
            Err(e) => return Err(broken(e)),
        };
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|_| ClientError::Ended)?.to_bytes();
        *kept = Some(sender);
        return Ok((status, bytes));
    }
}
