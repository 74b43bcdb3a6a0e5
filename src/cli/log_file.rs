//! piton.log, where a VM in the background says what it has to say: rotated as console.log is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::seccomp;

/// piton.log is renamed to piton.log.1 when it has grown to this, in bytes.
const LIMIT: u64 = 16 << 20;

/// What was written to it, and who rotates it: threads that may open no file have something to say,
/// too.
static LEN: AtomicU64 = AtomicU64::new(0);
static FULL: OnceLock<SyncSender<()>> = OnceLock::new();

/// Points standard error to the log at `path`, which is given back for what else is to go there.
pub fn begin(path: PathBuf) -> io::Result<File> {
    let log = open(&path)?;
    nix::unistd::dup2_stderr(&log)?;
    let (full, told) = sync_channel(1);
    std::thread::Builder::new().name("log".into()).spawn(move || {
        seccomp::confine(seccomp::Thread::Log);
        for () in told {
            if let Err(e) = open(&path).and_then(|log| redirect(&log)) {
                // Tried again when as much was written once more.
                LEN.store(0, Ordering::Relaxed);
                log::warn!("cannot rotate {}: {e}", path.display());
            }
        }
    })?;
    // Nobody else begins one.
    let _ = FULL.set(full);
    Ok(log)
}

/// To be told of each line on standard error.
pub fn written(bytes: usize) {
    if LEN.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64 >= LIMIT
        && let Some(full) = FULL.get()
    {
        // It is told already.
        let _ = full.try_send(());
    }
}

/// The log to write to now.
fn open(path: &Path) -> io::Result<File> {
    let log = || {
        let mut options = OpenOptions::new();
        // What is no file would be waited for, or be another.
        options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        options.open(path)
    };
    let mut file = log()?;
    if file.metadata()?.len() >= LIMIT {
        std::fs::rename(path, path.with_extension("log.1"))?;
        file = log()?;
    }
    LEN.store(file.metadata()?.len(), Ordering::Relaxed);
    Ok(file)
}

fn redirect(log: &File) -> io::Result<()> {
    nix::unistd::dup2_stderr(log)?;
    Ok(nix::unistd::dup2_stdout(log)?)
}
