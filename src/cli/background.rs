//! A process in the background that outlives this one, with a VM in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, pipe2};

use super::error::{FAILED, Told, exit_code_of};
use super::out::{self, note};
use super::verdict::tell;
use super::{title, work};
use crate::control::VmInfo;

/// What a background process prints when its VM is there, before what `piton show` tells of it.
pub const READY: &str = "ready";

/// Runs piton in a background process with `args`, and waits until its VM is there or it failed.
pub fn start(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<VmInfo> {
    let program = std::env::current_exe().context("cannot find the piton executable")?;
    let mut command = Command::new(program);
    // In front: the words may end with `--` and a name.
    command.arg("--background").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // It leaves this session by itself: with a closure of ours between, it would have to be forked,
    // and that takes longer than to spawn it.
    let mut child = command.spawn().context("cannot start the background process")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
        return Err(anyhow!("cannot read from the background process"));
    };
    wait_ready(stdout, stderr, || {
        let status = child.wait().context("lost track of the background process")?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()))
    })
}

/// The same with a copy of this process, which knows already what another would have to find out, and
/// need not be started. It looks like `words` to whoever lists processes. None if this process cannot be
/// copied.
pub fn copy(
    words: &[OsString],
    become_vm: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<VmInfo>> {
    if !is_alone() || work::takes_signals() {
        return Ok(None);
    }
    let pipe = || pipe2(OFlag::O_CLOEXEC).context("cannot create a pipe");
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    let (stdout, stderr) = (pipe()?, pipe()?);
    // SAFETY: no other thread is there that could hold a lock, or be half way through a change, at the
    // moment of the copy.
    match unsafe { nix::unistd::fork() }.context("cannot copy this process")? {
        ForkResult::Parent { child } => {
            // What is open for the VM is its own, and its end is the end of what it prints.
            drop((become_vm, stdout.1, stderr.1));
            wait_ready(File::from(stdout.0), File::from(stderr.0), || end_of(child)).map(Some)
        }
        ForkResult::Child => {
            drop((stdout.0, stderr.0));
            let code = match detach(words, null, stdout.1, stderr.1).and_then(|()| become_vm()) {
                Ok(()) => 0,
                Err(error) => {
                    tell(&error, false);
                    exit_code_of(&error)
                }
            };
            std::process::exit(code.into());
        }
    }
}

/// Whether this process has one thread: others would be missing in a copy, with whatever they hold.
fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// What another program would be at its start.
fn detach(words: &[OsString], null: File, stdout: OwnedFd, stderr: OwnedFd) -> anyhow::Result<()> {
    nix::unistd::setsid().context("the background process cannot detach from its terminal")?;
    title::set(words);
    dup2_stdin(null)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .context("cannot redirect the output of the background process")
}

fn end_of(child: Pid) -> anyhow::Result<Option<u8>> {
    match waitpid(child, None).context("lost track of the background process")? {
        WaitStatus::Exited(_, code) => Ok(u8::try_from(code).ok()),
        _ => Ok(None),
    }
}

fn wait_ready(
    stdout: impl Read,
    mut stderr: impl Read,
    end: impl FnOnce() -> anyhow::Result<Option<u8>>,
) -> anyhow::Result<VmInfo> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("cannot read from the background process")?;
    let mut told = String::new();
    // It ends when the process does, or points its output elsewhere because it is ready.
    stderr.read_to_string(&mut told).context("cannot read from the background process")?;
    told.lines().for_each(note);
    if let Some(info) = line.strip_prefix(READY) {
        return serde_json::from_str(info).context("unexpected output from the background process");
    }
    // With --json what went wrong.
    out::to_stdout(&line);
    Err(Told { code: end()?.unwrap_or(FAILED) }.into())
}
