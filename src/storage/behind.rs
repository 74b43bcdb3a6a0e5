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

use super::backend::BackendFile;

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

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use super::super::{Lock, Metadata, Storage};
    use super::*;

    /// Notes what it is asked to do.
    #[derive(Debug, Default)]
    struct Asked {
        calls: Mutex<Vec<(&'static str, Range<u64>)>>,
        broken: bool,
    }

    #[rustfmt::skip]
    impl BackendFile for Asked {
        fn start_writing(&self, range: Range<u64>) -> io::Result<()> {
            self.calls.lock().unwrap().push(("start", range));
            Ok(())
        }
        fn let_go(&self, range: Range<u64>) -> io::Result<()> {
            self.calls.lock().unwrap().push(("let go", range));
            if self.broken { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> { unreachable!() }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> { unreachable!() }
        fn metadata(&self) -> io::Result<Metadata> { unreachable!() }
        fn set_len(&self, _: u64) -> io::Result<()> { unreachable!() }
        fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> { unreachable!() }
        fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> { unreachable!() }
        fn sync_data(&self) -> io::Result<()> { unreachable!() }
        fn sync_all(&self) -> io::Result<()> { unreachable!() }
        fn try_lock(&self, _: Lock) -> io::Result<bool> { unreachable!() }
        fn as_fd(&self) -> Option<BorrowedFd<'_>> { unreachable!() }
    }

    #[test]
    fn a_window_goes_when_the_next_is_full() {
        let (behind, file) = (Behind::default(), Asked::default());
        let half = WINDOW / 2;
        // In any order, and far from each other.
        for start in [half, 0, 9 * half, 3 * half, 4 * half] {
            behind.note(&file, start..start + half).unwrap();
        }
        let first = 0..WINDOW;
        let second = 3 * half..10 * half;
        let expected = [("start", first.clone()), ("start", second), ("let go", first)];
        assert_eq!(*file.calls.lock().unwrap(), expected);
    }

    #[test]
    fn what_the_disk_did_not_take_is_said() {
        let (behind, file) = (Behind::default(), Asked { broken: true, ..Asked::default() });
        behind.note(&file, 0..WINDOW).unwrap();
        assert!(behind.note(&file, WINDOW..2 * WINDOW).is_err());
    }

    #[test]
    fn what_was_streamed_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, path) = (Storage::os(), dir.path().join("long"));
        let step = WINDOW / 3;
        let bytes = |n: u64| vec![n as u8 + 1; step as usize];
        let file = storage.create_new(&path).unwrap().streamed();
        let copy = storage.create_new(&dir.path().join("copy")).unwrap().streamed();
        (0..12).rev().for_each(|n| file.write_at(&bytes(n), n * step).unwrap());
        copy.copy_from(&file, step, 11 * step).unwrap();
        file.write_at(&bytes(40), 5 * step).unwrap();
        for n in 0..12 {
            let mut found = bytes(99);
            file.read_at(&mut found, n * step).unwrap();
            assert!(found == bytes(if n == 5 { 40 } else { n }), "{n}");
            copy.read_at(&mut found, n * step).unwrap();
            assert!(found == if n == 0 { vec![0; step as usize] } else { bytes(n) }, "copy: {n}");
        }
        file.sync_data().unwrap();
    }
}
