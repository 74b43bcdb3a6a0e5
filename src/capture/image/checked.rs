//! That all of an image was checked since the host booted, remembered at the file itself.
//!
//! Whoever maps a file reads it without a look at checksums, so it is checked before, as a whole.
//! The note says of which boot of the host, and of which file as it was then: it counts for no
//! other boot, no copy, and no file that was written to since. What the disk hands out later,
//! when the page cache has dropped a page and reads it again, is not covered.

use std::fs;
use std::ops::ControlFlow;
use std::time::UNIX_EPOCH;

use super::{Image, Result};
use crate::progress::Progress;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Image {
    /// Checks all of it, unless that was done since the host booted and it is as it was then.
    /// Whether it had to be read.
    pub fn check_once(&self, progress: &Progress) -> Result<bool> {
        // Before it is read: what comes after that must not be vouched for.
        let identity = self.identity()?;
        if let Some(identity) = &identity
            && self.file().note()?.as_deref() == Some(identity.as_bytes())
        {
            return Ok(false);
        }
        progress.phase("checking memory", self.present_bytes());
        let mut before = 0;
        self.verify(|done, _| {
            progress.add(done - std::mem::replace(&mut before, done));
            if progress.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(identity) = identity
            && self.identity()?.as_ref() == Some(&identity)
            && let Err(e) = self.file().set_note(identity.as_bytes())
        {
            log::debug!("{e}: it will be checked again");
        }
        Ok(true)
    }

    /// None where the host does not tell its boots apart.
    fn identity(&self) -> Result<Option<String>> {
        let meta = self.file().metadata()?;
        let Ok(boot) = fs::read_to_string(BOOT_ID) else { return Ok(None) };
        let Ok(modified) = meta.modified.duration_since(UNIX_EPOCH) else { return Ok(None) };
        Ok(Some(format!(
            "1 boot {} file {}:{} of {} bytes at {}.{:09} index {:08x}",
            boot.trim(),
            meta.dev,
            meta.ino,
            meta.len,
            modified.as_secs(),
            modified.subsec_nanos(),
            self.crc()
        )))
    }
}
