//! The console's bytes, both ways. No thread waits for anything here: a client that reads nothing
//! or that the guest does not listen to costs a task and a bounded buffer, and one that has left is
//! noticed though nothing moves.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::devices::console::{Console, Reader};

/// How often a connection on which nothing moves is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Until the console is closed or its user has left.
pub async fn relay(upgraded: Upgraded, reader: Reader, console: Arc<Console>) {
    let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else {
        log::error!("the console's connection does not belong to the control socket");
        return;
    };
    let mut stream = parts.io.into_inner();
    let (mut from_user, mut to_user) = stream.split();
    let print = async {
        while let Some(chunk) = poll_fn(|context| reader.poll_next(context)).await {
            if to_user.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The user sees the end when the stream is dropped.
    };
    let type_in = async {
        // What came in one piece with the request.
        let mut typed = parts.read_buf.to_vec();
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                () = poll_fn(|context| console.poll_input(context, &typed)) => {}
                () = gone(from_user.as_ref()) => return,
            }
            match from_user.read(&mut buffer).await {
                Ok(count @ 1..) => typed = buffer[..count].to_vec(),
                // A user who only closed the sending side goes on reading.
                _ => return gone(from_user.as_ref()).await,
            }
        }
    };
    tokio::select! {
        () = print => {}
        () = type_in => {}
    }
}

/// Waits until the other side has closed its end for both directions.
async fn gone(stream: &UnixStream) {
    // Of a socket that can be written to, readiness says nothing new when the other side goes: it
    // has to be looked at.
    loop {
        match stream.ready(tokio::io::Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => tokio::time::sleep(LOOK).await,
            _ => return,
        }
    }
}
