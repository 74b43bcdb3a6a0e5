//! Passes a request on to a VM's control socket as it is, and the answer back, for who serves many VMs.

use std::path::Path;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, HOST, UPGRADE};
use axum::http::{HeaderValue, StatusCode, Uri, Version};
use axum::response::Response;
use hyper_util::rt::TokioIo;

use super::client::{ClientError, connect_in_time, is_hang_up};

/// `target` is the path at the VM, with what follows it. If the answer is an upgrade, bytes go both ways until
/// one side ends. When this future is dropped, the VM drops the request if it was not begun.
pub async fn forward(socket: &Path, target: Uri, mut request: Request) -> Result<Response, ClientError> {
    let broken = |e: &dyn std::error::Error| ClientError::Broken(e.to_string());
    let stream = connect_in_time(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    tokio::spawn(connection.with_upgrades());
    let client = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    head.uri = target;
    head.version = Version::HTTP_11;
    head.headers.insert(HOST, HeaderValue::from_static("localhost"));
    if !head.headers.contains_key(UPGRADE) {
        // It is about the client's own connection.
        head.headers.remove(CONNECTION);
    }
    let asked = sender.send_request(Request::from_parts(head, body)).await;
    let mut response = asked.map_err(|e| match is_hang_up(&e) {
        true => ClientError::Ended,
        false => broken(&e),
    })?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().remove(CONNECTION);
        return Ok(response.map(Body::new));
    }
    let vm = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        if let (Ok(client), Ok(vm)) = (client.await, vm.await) {
            let (mut client, mut vm) = (TokioIo::new(client), TokioIo::new(vm));
            // Whoever ends it, it is over.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut vm).await;
        }
    });
    Ok(response.map(|_| Body::empty()))
}
