//! Writing that does not pile up in the page cache.
//!
//! A long file that is only written fills the cache with pages that nobody reads soon, at the
//! expense of those that somebody does, and leaves all the work to the sync at its end. So the
//! disk is made to begin with each window as soon as it is full, and when the next one is, the
//! window has reached the disk and its pages are given back
//! (sync_file_range(2), posix_fadvise(2)).

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::BackendFile;

/// Bytes written before the disk is made to begin with them.
const WINDOW: u64 = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Behind(Mutex<Windows>);

#[derive(Debug, Default)]
struct Windows {
    /// Around all that was written since the disk was made to begin last.
    open: Option<Range<u64>>,
    /// Bytes in it.
    bytes: u64,
    /// What the disk is at.
    on_its_way: Option<Range<u64>>,
}

impl Behind {
    /// `range` was written.
    pub fn note(&self, file: &dyn BackendFile, range: Range<u64>) -> io::Result<()> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.bytes += range.end - range.start;
        let open = windows
            .open
            .take()
            .map_or(range.clone(), |open| open.start.min(range.start)..open.end.max(range.end));
        if windows.bytes < WINDOW {
            windows.open = Some(open);
            return Ok(());
        }
        windows.bytes = 0;
        file.start_writing(open.clone())?;
        match windows.on_its_way.replace(open) {
            Some(before) => file.let_go(before),
            None => Ok(()),
        }
    }
}
