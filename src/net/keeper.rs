//! The process that starts passt. A VM's own process may start no program once its guest runs
//! (`seccomp/`), so a small one that does nothing else is started before, and ends with it.
//!
//! They talk over a stream of the one request and its answer, each after its length.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::ports::check_free;
use crate::config::Forward;

/// Longest message.
const MOST: u32 = 64 << 10;
/// How long passt may take to begin, on a host that is very busy, and to end when its socket is closed.
const BEGIN: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(1);
/// Most that is kept of what it says.
const MOST_SAID: usize = 16 << 10;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Start(Start),
    /// Says whether these ports can be had: the VM's own process may not try.
    Check(Vec<Forward>),
}

#[derive(Debug, Serialize, Deserialize)]
struct Start {
    /// Which of the VM's networks it is for. What was started for it before ends first.
    network: usize,
    program: PathBuf,
    /// Without the option for the socket, which is sent along.
    args: Vec<String>,
}

/// Nothing, or what it said before it gave up.
type Reply = std::result::Result<(), String>;

/// A VM's end of the line to its keeper.
pub struct Keeper {
    socket: UnixStream,
}

impl Keeper {
    /// Starts the process; `command` runs [`run`].
    pub fn spawn(mut command: Command) -> Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        // It ends by itself when this end is closed.
        drop(command.spawn()?);
        Ok(Self { socket })
    }

    /// Starts passt with `socket` as its end, in place of what was started for this network before.
    /// The inner error is what it said.
    pub fn start(
        &mut self,
        network: usize,
        program: PathBuf,
        args: Vec<String>,
        socket: &UnixStream,
    ) -> Result<Reply> {
        self.ask(&Request::Start(Start { network, program, args }), Some(socket))
    }

    /// The inner error says which cannot be had.
    pub fn check(&mut self, forwards: &[Forward]) -> Result<Reply> {
        self.ask(&Request::Check(forwards.to_vec()), None)
    }

    fn ask(&mut self, request: &Request, socket: Option<&UnixStream>) -> Result<Reply> {
        send(&mut self.socket, request, socket)?;
        match receive(&mut self.socket)? {
            Some((reply, _)) => Ok(reply),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Ends it, with all that it started, and waits for that.
    pub fn end(mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        let _ = self.socket.set_read_timeout(Some(2 * END));
        let _ = self.socket.read(&mut [0]);
    }
}

fn send(socket: &mut UnixStream, message: &impl Serialize, fd: Option<&UnixStream>) -> Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MOST);
    let length = length.ok_or(ErrorKind::FileTooLarge)?.to_be_bytes();
    match fd {
        None => socket.write_all(&length)?,
        Some(fd) => {
            let sent = socket.send_with_fd(&length[..], fd.as_raw_fd()).map_err(Error::from)?;
            socket.write_all(length.get(sent..).unwrap_or_default())?;
        }
    }
    socket.write_all(&body)
}

/// A message, with the file that was sent along; nothing at the end.
fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<Option<(T, Option<File>)>> {
    let mut length = [0; 4];
    let (count, file) = socket.recv_with_fd(&mut length).map_err(Error::from)?;
    if count == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut length[count..])?;
    let length = u32::from_be_bytes(length);
    if length > MOST {
        return Err(ErrorKind::FileTooLarge.into());
    }
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, file)))
}

/// What the process does: serves requests on its standard input until it ends.
pub fn run() -> Result<()> {
    // A signal to the terminal's processes is not for it: the VM ends in its own time.
    let _ = nix::unistd::setsid();
    // passt goes to the background, and is this process's child then.
    nix::sys::prctl::set_child_subreaper(true)?;
    // SAFETY: standard input is open, and nothing else in this process uses it.
    let stdin = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
    let mut socket = UnixStream::from(stdin.try_clone_to_owned()?);
    let mut started = BTreeMap::new();
    while let Some((request, file)) = receive::<Request>(&mut socket)? {
        let reply = match (request, file) {
            (Request::Check(forwards), _) => check_free(&forwards, Duration::ZERO).map_err(|e| e.to_string()),
            (Request::Start(request), Some(file)) => {
                if let Some(former) = started.remove(&request.network) {
                    end(former);
                }
                start(&request, file, &mut started)
            }
            (Request::Start(_), None) => Err("its socket is missing".into()),
        };
        send(&mut socket, &reply, None)?;
    }
    started.into_values().for_each(end);
    Ok(())
}

fn start(request: &Start, file: File, started: &mut BTreeMap<usize, BTreeSet<i32>>) -> Reply {
    let failed = |e: Error| format!("{}: {e}", request.program.display());
    let before = children();
    // SAFETY: fcntl on an open file touches no memory.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
        return Err(failed(Error::last_os_error()));
    }
    let mut command = Command::new(&request.program);
    command.arg("--fd").arg(file.as_raw_fd().to_string()).args(&request.args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    drop(file);
    let said = wait_for(&mut child).map_err(failed)?;
    let now = children();
    started.insert(request.network, &now - &before);
    said
}

/// Until it has gone to the background, which it does once it is ready, or has given up.
fn wait_for(child: &mut Child) -> Result<Reply> {
    let deadline = Instant::now() + BEGIN;
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(Ok(())),
            Some(_) => break,
            None if Instant::now() >= deadline => {
                child.kill()?;
                child.wait()?;
                return Ok(Err("it did not start in time".into()));
            }
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    let mut said = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        // It has ended, so all that it said is there.
        pipe.take(MOST_SAID as u64).read_to_end(&mut said)?;
    }
    Ok(Err(String::from_utf8_lossy(&said).into_owned()))
}

/// Processes whose parent this one is.
fn children() -> BTreeSet<i32> {
    let pid = std::process::id();
    let listed = std::fs::read_to_string(format!("/proc/self/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Waits for processes that are to end by themselves, and makes those end that do not.
fn end(processes: BTreeSet<i32>) {
    let deadline = Instant::now() + END;
    for pid in processes {
        let mut killed = false;
        // SAFETY: waitpid without a status touches no memory.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
            if !killed && Instant::now() >= deadline {
                // SAFETY: it is a child that was not waited for, so the number is still its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                killed = true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_over_whole_with_their_file() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let args = vec!["-t".into(), "1:2".into()];
        let request = Request::Start(Start { network: 3, program: "/bin/x".into(), args: args.clone() });
        let (sent, _other) = UnixStream::pair().unwrap();
        send(&mut a, &request, Some(&sent)).unwrap();
        let (got, file) = receive::<Request>(&mut b).unwrap().unwrap();
        let Request::Start(got) = got else { panic!("{got:?}") };
        assert_eq!((got.network, got.args), (3, args));
        assert!(file.is_some());
        send(&mut b, &Reply::Err("no".into()), None).unwrap();
        let (reply, file) = receive::<Reply>(&mut a).unwrap().unwrap();
        assert_eq!((reply, file.is_none()), (Err("no".into()), true));
        a.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(receive::<Reply>(&mut b).is_err());
        drop(a);
        assert!(receive::<Reply>(&mut b).unwrap().is_none());
    }

    #[test]
    fn what_a_program_says_before_it_gives_up_is_told() {
        let run = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stderr(Stdio::piped());
            wait_for(&mut command.spawn().unwrap()).unwrap()
        };
        assert_eq!(run("exit 0"), Ok(()));
        assert_eq!(run("echo no luck >&2; exit 1"), Err("no luck\n".into()));
    }
}
