//! A VM's console over a WebSocket: what the guest prints comes in binary messages, and what is sent
//! is typed. Each page has a connection of its own to the VM.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::control::client::{ConsoleStream, console};
use crate::folder::VmFolder;

/// Earlier output that a page begins with, in bytes.
const PAST: usize = 16 << 10;
/// Longest message that a page may send.
pub const MESSAGE_MAX: usize = 64 << 10;
/// Codes of RFC 6455: all is well; the other side cannot go on.
const NORMAL: u16 = 1000;
const FAILED: u16 = 1011;
/// Longest reason of a close (RFC 6455, 5.5), in bytes.
const REASON_MAX: usize = 123;
/// How long a page may take for the last message.
const GOODBYE: Duration = Duration::from_secs(2);

/// Until the VM ends, or the page has gone.
pub async fn relay(mut page: WebSocket, folder: VmFolder) {
    let socket = folder.socket();
    let attached = tokio::task::spawn_blocking(move || console(&socket, PAST)).await;
    let stream = match attached {
        Ok(Ok(ConsoleStream { stream, .. })) => {
            stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream))
        }
        Ok(Err(e)) => return close(&mut page, FAILED, &e.to_string()).await,
        Err(e) => return close(&mut page, FAILED, &e.to_string()).await,
    };
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(e) => return close(&mut page, FAILED, &e.to_string()).await,
    };
    let (mut from_vm, mut to_vm) = stream.split();
    let mut buffer = vec![0; 32 << 10];
    loop {
        tokio::select! {
            printed = from_vm.read(&mut buffer) => match printed {
                Ok(count @ 1..) => {
                    let bytes = Bytes::copy_from_slice(&buffer[..count]);
                    if page.send(Message::Binary(bytes)).await.is_err() {
                        return;
                    }
                }
                _ => return close(&mut page, NORMAL, "the VM is stopped").await,
            },
            typed = page.recv() => {
                let typed: Bytes = match typed {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                // A guest that does not read holds up only this page.
                if to_vm.write_all(&typed).await.is_err() {
                    return close(&mut page, NORMAL, "the VM is stopped").await;
                }
            }
        }
    }
}

async fn close(page: &mut WebSocket, code: u16, reason: &str) {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let frame = CloseFrame { code, reason: reason[..end].into() };
    // Who has gone needs no reason.
    let _ = tokio::time::timeout(GOODBYE, page.send(Message::Close(Some(frame)))).await;
}
