//! The thread that takes checksums of a base image.

use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use super::message::Message;
use crate::control::jobs::Job;
use crate::history::CheckpointError;

/// A thread at work on one base.
pub(super) struct Sealing {
    pub job: Job,
    pub disk: String,
    pub thread: JoinHandle<Result<(), CheckpointError>>,
}

/// Tells the owner that the thread is at its end, however it got there.
pub(super) struct Tell(pub Sender<Message>);

impl Drop for Tell {
    fn drop(&mut self) {
        // At the VM's end nobody waits for it any more.
        let _ = self.0.send(Message::Sealed);
    }
}

pub(super) fn joined(thread: JoinHandle<Result<(), CheckpointError>>) -> Result<(), CheckpointError> {
    let failed = |_| CheckpointError::Thread(std::io::Error::other("its thread exited unexpectedly"));
    thread.join().map_err(failed)?
}
