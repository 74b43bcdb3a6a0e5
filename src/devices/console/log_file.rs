//! console.log: everything that the guest printed, rotated.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::Utc;

use super::times::{self, Writer};

/// console.log is renamed to console.log.1 when it has grown to this, in bytes.
const LOG_LIMIT: u64 = 16 << 20;

pub struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    /// None: they cannot be written.
    times: Option<Writer>,
    failed: bool,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        let mut log = Self { path: path.to_owned(), file, len, times: None, failed: false };
        match Writer::open(path) {
            Ok(times) => log.times = Some(times),
            Err(e) => log.without_times(&e),
        }
        Ok(log)
    }

    /// The guest goes on without a log rather than stop for a full disk.
    pub fn append(&mut self, bytes: &[u8]) {
        match self.try_append(bytes) {
            Ok(()) => self.failed = false,
            Err(e) if !self.failed => {
                self.failed = true;
                log::warn!("cannot write {}: {e}", self.path.display());
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= LOG_LIMIT || self.times.as_ref().is_some_and(Writer::is_full) {
            self.rotate()?;
        }
        if let Some(writer) = &mut self.times
            && let Err(e) = writer.tell(bytes, self.len, Utc::now())
        {
            self.without_times(&e);
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // The times first: if it ends in between, the next rotation takes up here, and what is there are the
        // right ones again.
        match std::fs::rename(times::path_of(&self.path), times::former_path_of(&self.path)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }

    fn without_times(&mut self, error: &io::Error) {
        log::warn!(
            "the console's log goes on without times: {}: {error}",
            times::path_of(&self.path).display()
        );
        self.times = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use times::{TIMES_LIMIT, Times};

    #[test]
    fn times_go_where_their_log_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log::open(&path).unwrap();
        log.append(b"former\n");
        log.len = LOG_LIMIT;
        log.append(b"now\n");
        let read = |path: PathBuf| {
            let mut times = Times::new(path);
            times.refresh().unwrap();
            times.at(0).is_some()
        };
        assert!(read(times::path_of(&path)) && read(times::former_path_of(&path)));
        assert_eq!(std::fs::read(path.with_extension("log.1")).unwrap(), b"former\n");
        // Nor does it last for ever because little is printed.
        let times = File::options().write(true).open(times::path_of(&path)).unwrap();
        times.set_len(TIMES_LIMIT).unwrap();
        let mut log = Log::open(&path).unwrap();
        log.append(b"next\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert_eq!(std::fs::read(path.with_extension("log.1")).unwrap(), b"now\n");
    }

    #[test]
    fn a_log_goes_on_without_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::os::unix::fs::symlink("/nowhere", times::path_of(&path)).unwrap();
        let mut log = Log::open(&path).unwrap();
        log.append(b"all\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"all\n");
    }
}
