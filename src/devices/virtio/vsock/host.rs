//! The host's sockets in the file system: the one that programs connect to, and beside it those
//! that programs listen on for the guest (`PATH_PORT`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::seccomp;

/// What follows a socket's path at most: `_` and a port.
const LONGEST_SUFFIX: usize = "_4294967295".len();
/// Longest path of a socket (`sun_path` of unix(7)), without its final NUL.
const PATH_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "{} is too long for a socket's path ({} bytes with a port number, at most {PATH_MAX}): set \
         PITON_HOME to a shorter path",
        .0.display(),
        .0.as_os_str().len() + LONGEST_SUFFIX
    )]
    TooLong(PathBuf),
    #[error("cannot set up the socket {}: {}", .0.display(), .1)]
    Listen(PathBuf, io::Error),
    #[error("the checkpoint has a vsock device, but this VM was started without one: stop the VM first")]
    TooLate,
}

/// Refuses a path that is too long.
pub fn check_path(path: &Path) -> Result<(), HostError> {
    match path.as_os_str().len() + LONGEST_SUFFIX > PATH_MAX {
        true => Err(HostError::TooLong(path.to_owned())),
        false => Ok(()),
    }
}

/// A call of the guest, and where its stream goes.
struct Call {
    port: u32,
    reply: Sender<io::Result<UnixStream>>,
}

/// Dropping it closes the socket and removes its file.
pub struct Host {
    path: PathBuf,
    listener: UnixListener,
    /// To the only thread that may connect to anything.
    calls: Option<Sender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Listens on `path`, in place of what a killed process may have left there. The caller holds
    /// the VM's lock, so that process is gone; and it is not confined yet.
    pub fn listen(path: &Path) -> Result<Self, HostError> {
        check_path(path)?;
        let failed = |e| HostError::Listen(path.to_owned(), e);
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (calls, queue) = channel();
        let base = path.to_owned();
        let thread = std::thread::Builder::new().name("vsock-calls".into());
        let thread = thread.spawn(move || place_calls(&base, &queue)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener, calls: Some(calls), thread: Some(thread) })
    }

    pub fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Whoever has connected, if anybody has.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the program that listens for calls of the guest to `port`. One that is too busy
    /// to accept is not waited for.
    pub fn call(&self, port: u32) -> io::Result<UnixStream> {
        let (reply, answer) = channel();
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.calls.as_ref().ok_or_else(gone)?.send(Call { port, reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // One that is gone already was somebody else's wish.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// In a thread of its own, so that nothing else of the process needs to be able to connect.
fn place_calls(base: &Path, queue: &Receiver<Call>) {
    seccomp::confine(seccomp::Thread::VsockCalls);
    for Call { port, reply } in queue {
        // Who asked waits for it.
        let _ = reply.send(place(base, port));
    }
}

fn place(base: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
    Ok(socket.into())
}
