//! The process that starts piton for the manager. The manager's own process, which anybody may talk to
//! who reaches its port, starts no program (`seccomp/`): it asks this one, which was started before
//! and takes nothing but deeds.
//!
//! Requests go over one socket. Each brings the ends of two pipes for what the command prints, and a
//! socket on which this end tells how the command does, and the other calls it off.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, PipeReader, Read, Result, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::deed::Deed;

/// Longest request.
const MOST: u32 = 128 << 10;
/// Asks a command to say how far it is, a line of JSON on standard error each time.
const PROGRESS: &str = "PITON_PROGRESS";
/// What is sent to call a command off.
const CANCEL: u8 = b'x';

/// A line of the socket of a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Told {
    Started,
    /// It could not be.
    Failed(String),
    /// With its exit code; none: a signal ended it.
    Ended(Option<i32>),
}

/// The manager's end.
pub struct Starter {
    socket: Mutex<UnixStream>,
}

/// A command that runs.
pub struct Started {
    pub stdout: PipeReader,
    pub stderr: PipeReader,
    line: BufReader<UnixStream>,
}

/// Calls a command off.
pub struct Off(UnixStream);

impl Off {
    pub fn call(&mut self) -> Result<()> {
        self.0.write_all(&[CANCEL])
    }
}

impl Starter {
    /// Starts the process; `command` runs [`run`].
    pub fn spawn(mut command: Command) -> Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // It ends by itself when this end is closed.
        drop(command.spawn()?);
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// The same in a thread, for tests.
    #[cfg(test)]
    pub fn thread(program: std::path::PathBuf) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve(theirs, &program));
        Self { socket: Mutex::new(socket) }
    }

    /// Returns once it runs.
    pub fn start(&self, deed: &Deed) -> Result<Started> {
        let (stdout, their_stdout) = std::io::pipe()?;
        let (stderr, their_stderr) = std::io::pipe()?;
        let (line, their_line) = UnixStream::pair()?;
        let body = serde_json::to_vec(deed)?;
        let length = u32::try_from(body.len()).ok().filter(|length| *length <= MOST);
        let length = length.ok_or(ErrorKind::FileTooLarge)?.to_be_bytes();
        {
            let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = [their_stdout.as_raw_fd(), their_stderr.as_raw_fd(), their_line.as_raw_fd()];
            let sent = socket.send_with_fds(&[&length[..]], &ends).map_err(Error::from)?;
            socket.write_all(length.get(sent..).unwrap_or_default())?;
            socket.write_all(&body)?;
        }
        drop((their_stdout, their_stderr, their_line));
        let mut started = Started { stdout, stderr, line: BufReader::new(line) };
        match started.told()? {
            Told::Started => Ok(started),
            Told::Failed(why) => Err(Error::other(why)),
            Told::Ended(_) => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl Started {
    pub fn off(&self) -> Result<Off> {
        self.line.get_ref().try_clone().map(Off)
    }

    /// Waits for its end: its exit code, if that is known.
    pub fn code(mut self) -> Option<i32> {
        match self.told() {
            Ok(Told::Ended(code)) => code,
            _ => None,
        }
    }

    fn told(&mut self) -> Result<Told> {
        let mut line = Vec::new();
        (&mut self.line).take(MOST.into()).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the process that starts commands has ended"));
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// What the process does: serves requests on its standard input until it ends. Commands go on.
pub fn run() -> Result<()> {
    // Ctrl-C at the manager's terminal is not for it, nor for what it starts.
    let _ = nix::unistd::setsid();
    // SAFETY: standard input is open, and nothing else in this process uses it.
    let stdin = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
    let socket = UnixStream::from(stdin.try_clone_to_owned()?);
    serve(socket, &std::env::current_exe()?)
}

fn serve(mut socket: UnixStream, program: &Path) -> Result<()> {
    // Only this thread starts programs: none may come between the arrival of a file and the mark on it
    // that keeps it from them.
    while let Some((body, [stdout, stderr, line])) = receive(&mut socket)? {
        let mut line = UnixStream::from(OwnedFd::from(line));
        match begin(program, &body, stdout, stderr) {
            Err(e) => tell(&mut line, &Told::Failed(e.to_string())),
            Ok((child, process)) => {
                let watcher = std::thread::Builder::new().name("action".into());
                watcher.spawn(move || watch(&mut line, child, &process))?;
            }
        }
    }
    Ok(())
}

/// A request, with the ends of the pipes and of the line; nothing at the end.
fn receive(socket: &mut UnixStream) -> Result<Option<(Vec<u8>, [File; 3])>> {
    let mut length = [0u8; 4];
    let mut fds = [0; 3];
    let mut bytes = [libc::iovec { iov_base: length.as_mut_ptr().cast(), iov_len: length.len() }];
    // SAFETY: the one buffer is `length`, which lives across the call.
    let (count, fds_count) = unsafe { socket.recv_with_fds(&mut bytes, &mut fds) }.map_err(Error::from)?;
    // SAFETY: these were made for this process by the call, and nobody else knows of them.
    let files: Vec<File> =
        fds[..fds_count].iter().map(|fd| unsafe { std::os::fd::FromRawFd::from_raw_fd(*fd) }).collect();
    if count == 0 {
        return Ok(None);
    }
    for file in &files {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
    }
    socket.read_exact(length.get_mut(count..).unwrap_or_default())?;
    let length = u32::from_be_bytes(length);
    let ends: [File; 3] = files.try_into().map_err(|_| ErrorKind::InvalidData)?;
    if length > MOST {
        return Err(ErrorKind::FileTooLarge.into());
    }
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body)?;
    Ok(Some((body, ends)))
}

fn tell(line: &mut UnixStream, told: &Told) {
    // If nobody listens any more, it is done all the same.
    let text = serde_json::to_string(told).unwrap_or_default();
    let _ = line.write_all(format!("{text}\n").as_bytes());
}

fn begin(program: &Path, body: &[u8], stdout: File, stderr: File) -> Result<(Child, OwnedFd)> {
    let deed: Deed = serde_json::from_slice(body)?;
    let words = deed.words().map_err(Error::other)?;
    let mut command = Command::new(program);
    command.args(words).env(PROGRESS, "json").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.process_group(0);
    let mut child = command.spawn()?;
    match open(&child) {
        Ok(process) => Ok((child, process)),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e)
        }
    }
}

/// It was not waited for yet, so its number is its own.
fn open(child: &Child) -> Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::other("its process has an impossible number"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Until it has ended; meanwhile it may be called off, once: a second signal would end it as it is.
fn watch(line: &mut UnixStream, mut child: Child, process: &OwnedFd) {
    tell(line, &Told::Started);
    let mut listening = true;
    loop {
        let mut fds = vec![PollFd::new(process, PollFlags::IN)];
        if listening {
            fds.push(PollFd::from_borrowed_fd(line.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        }
        let [ended, asked] = [0, 1].map(|at| fds.get(at).is_some_and(|fd| !fd.revents().is_empty()));
        if ended {
            break;
        }
        if asked {
            let mut byte = [0];
            if matches!(line.read(&mut byte), Ok(1)) && byte[0] == CANCEL {
                // It may have just ended.
                let _ = pidfd_send_signal(process, Signal::TERM);
            }
            listening = false;
        }
    }
    let code = child.wait().ok().and_then(|status| status.code());
    tell(line, &Told::Ended(code));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_deeds_is_done() {
        let dir = tempfile::tempdir().unwrap();
        for body in [&b"{}"[..], b"", br#"{"do":"export","vm":"d","dir":"x"}"#, br#"["sh","-c","touch x"]"#] {
            let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            assert!(begin(Path::new("/bin/true"), body, out, err).is_err(), "{body:?}");
        }
        let starter = Starter::thread(dir.path().join("none"));
        let deed: Deed = serde_json::from_str(r#"{"do":"start","vm":"demo"}"#).unwrap();
        assert_eq!(starter.start(&deed).err().map(|e| e.kind()), Some(ErrorKind::Other));
    }
}
