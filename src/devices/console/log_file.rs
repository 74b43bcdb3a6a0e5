//! console.log: everything that the guest printed, rotated.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// console.log is renamed to console.log.1 when it has grown to this, in bytes.
const LOG_LIMIT: u64 = 16 << 20;

pub struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    failed: bool,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, failed: false })
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
        if self.len >= LOG_LIMIT {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}
