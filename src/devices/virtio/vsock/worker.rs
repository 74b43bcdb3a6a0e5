//! The socket device's thread: it waits for the guest's doorbell and for the host's sockets.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::Vsock;
use super::sockets::DOORBELL;
use crate::devices::virtio::{Backend, Worker};
use crate::seccomp;

/// Events that are taken at once.
const EVENTS: usize = 64;

/// `epoll` is the one that the device was made with.
pub fn spawn(backend: Arc<Backend<Vsock>>, epoll: Arc<Epoll>) -> std::io::Result<Worker> {
    let doorbell = EpollEvent::new(EventSet::IN, DOORBELL);
    epoll.ctl(ControlOperation::Add, backend.doorbell.as_raw_fd(), doorbell)?;
    let served = backend.clone();
    Worker::running("vsock".into(), backend, move || {
        seccomp::confine(seccomp::Thread::Vsock);
        let mut events = [EpollEvent::default(); EVENTS];
        while let Some(count) = wait(&served, &epoll, &mut events) {
            // Emptied before serving, so that a ring during it is not lost.
            let _ = served.doorbell.read();
            served.lock().device.note_all(&events[..count]);
            if !served.serve() {
                return;
            }
        }
    })
}

/// Until there is something to do: how much. None: the thread cannot go on.
fn wait(served: &Backend<Vsock>, epoll: &Epoll, events: &mut [EpollEvent]) -> Option<usize> {
    let patience = {
        let active = served.lock();
        let waits = served.running() && !active.is_paused();
        waits.then(|| active.device.patience(Instant::now())).flatten()
    };
    // Rounded up, so that it is over then.
    let timeout = patience.map_or(-1, |time| i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX));
    loop {
        match epoll.wait(timeout, events) {
            Ok(count) => return Some(count),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => {
                log::error!("waiting for sockets: {e}");
                return None;
            }
        }
    }
}
