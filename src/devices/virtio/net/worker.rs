//! A network device's thread: it waits for the guest's doorbell, for the back-end and for changes
//! of the cable.

use std::io::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::card::Net;
use super::jam::LOOK;
use crate::devices::virtio::{Backend, Worker};
use crate::net::Link;
use crate::seccomp;

/// How often it is looked whether the driver has seen that the link is down.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub fn spawn(name: String, backend: Arc<Backend<Net>>, link: Arc<Link>) -> std::io::Result<Worker> {
    let served = backend.clone();
    Worker::running(name, backend, move || {
        seccomp::confine(seccomp::Thread::Net);
        while let Some(woken) = wait(&served, &link) {
            // Emptied before serving, so that a ring during it is not lost.
            if woken.rung {
                let _ = served.doorbell.read();
            }
            if woken.changed {
                let _ = link.wake.read();
            }
            follow_link(&served, &woken);
            if !served.serve() {
                return;
            }
            // The back-end may have failed, or the driver have said that it has announced itself.
            served.publish_config(&served.lock().device);
        }
    })
}

/// What there is to do.
struct Woken {
    rung: bool,
    changed: bool,
    /// The back-end that was waited for.
    readable: bool,
    writable: bool,
}

/// While the machine stands still nothing changes: its state may be read.
fn follow_link(served: &Backend<Net>, woken: &Woken) {
    let mut active = served.lock();
    if !active.is_paused() {
        if woken.readable {
            active.device.note_readable();
        }
        let seen = !served.running() || served.is_config_seen();
        let now = Instant::now();
        active.device.follow_link(seen, now);
        if served.running() {
            active.device.watch_jam(woken.writable, now);
        }
        served.publish_config(&active.device);
    }
}

/// Until there is something to do. None: the thread cannot go on.
fn wait(served: &Backend<Net>, link: &Link) -> Option<Woken> {
    let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut polled = [
        poll(served.doorbell.as_raw_fd(), libc::POLLIN),
        poll(link.wake.as_raw_fd(), libc::POLLIN),
        poll(-1, 0),
    ];
    let mut timeout = None;
    {
        let active = served.lock();
        if !active.is_paused() {
            timeout = active.device.next.is_some().then_some(LOOK_AGAIN);
            if served.running()
                && let Some((fd, read, write)) = active.device.waits_for()
            {
                if write {
                    timeout = timeout.or(Some(LOOK));
                }
                let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
                if events != 0 {
                    // One whose other end is closed is told of even if nothing is waited for.
                    polled[2] = poll(fd, events);
                }
            }
        }
    }
    let timeout = timeout.map_or(-1, |time| time.as_millis() as libc::c_int);
    loop {
        // SAFETY: `polled` is an array of valid pollfds that lives across the call.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
        if ready >= 0 {
            let [rung, changed, readable] = polled.map(|polled| polled.revents & !libc::POLLOUT != 0);
            let writable = polled[2].revents & libc::POLLOUT != 0;
            return Some(Woken { rung, changed, readable, writable });
        }
        let error = Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            log::error!("waiting for frames: {error}");
            return None;
        }
    }
}
