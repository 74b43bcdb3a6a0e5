//! Which process works on a VM, and ending it: for when it does not answer.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that holds a VM's lock. It is held on to, so that it is this one that is ended and no
/// other to which its number went meanwhile.
pub struct Holder {
    pid: u32,
    process: OwnedFd,
    words: Vec<String>,
}

impl Holder {
    /// None: nobody holds the lock, or a process that cannot be looked into.
    pub fn of(lock: &Path) -> io::Result<Option<Self>> {
        let file = match std::fs::metadata(lock) {
            Ok(file) => (file.dev(), file.ino()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if !holds(&entry.path(), lock, file) {
                continue;
            }
            let Some(number) = Pid::from_raw(pid) else { continue };
            let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { continue };
            // Looked at again: now it is known that this is the process that was opened.
            if holds(&entry.path(), lock, file) {
                let words = words_of(&entry.path());
                return Ok(Some(Self { pid: pid.unsigned_abs(), process, words }));
            }
        }
        Ok(None)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What was typed to start it.
    pub fn command(&self) -> String {
        self.words.join(" ")
    }

    /// Whether it runs the VM; a command that works on one that is off holds the lock, too.
    pub fn runs_a_vm(&self) -> bool {
        let mut words = self.words.iter().skip(1).map(String::as_str);
        matches!(words.find(|word| !word.starts_with('-')), Some("run" | "start"))
    }

    /// Whether it is held up by its caller or a debugger, and not by its work.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().next());
        matches!(state, Some("T" | "t"))
    }

    /// Ends it, whatever it is at.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            // It is gone, which is what was asked for.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for its end; false if it does not come in time.
    pub fn has_ended(&self, patience: Duration) -> io::Result<bool> {
        let patience =
            Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        Ok(poll(&mut ended, Some(&patience))? > 0)
    }
}

/// Whether a process has `lock` open and a lock on it, as the kernel tells it.
fn holds(process: &Path, lock: &Path, file: (u64, u64)) -> bool {
    // Of others' processes nothing can be read.
    let Ok(files) = std::fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|open| {
        let is_it = std::fs::read_link(open.path()).is_ok_and(|path| path.file_name() == lock.file_name())
            && std::fs::metadata(open.path()).is_ok_and(|found| (found.dev(), found.ino()) == file);
        let about: PathBuf = process.join("fdinfo").join(open.file_name());
        is_it
            && std::fs::read_to_string(about).is_ok_and(|about| {
                about.lines().any(|line| line.starts_with("lock:") && line.contains(" WRITE "))
            })
    })
}

fn words_of(process: &Path) -> Vec<String> {
    let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| std::ffi::OsStr::from_bytes(word).to_string_lossy().into_owned()).collect()
}
