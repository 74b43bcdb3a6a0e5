//! Locks on open files that QEMU's understand (its `block/file-posix.c`).
//!
//! QEMU has no one lock on an image: whoever uses it in some way holds a shared lock on one byte
//! for that way, and on another byte for each way in which he lets nobody else use it. He then
//! looks whether anybody's bytes are against his. We hold the same bytes, and before them a lock
//! on bytes that QEMU has no use for, by which we exclude each other in one step.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::backend::Lock;

/// First byte and number of bytes of the lock among ourselves.
const OURS: (i64, i64) = (0, 64);
/// Where QEMU's bytes begin: ways of use, and ways that are not shared.
const USES: i64 = 100;
const UNSHARED: i64 = 200;
/// What is read stands still; it is written; it changes its length.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The bytes that are held with a lock.
fn held(lock: Lock) -> &'static [i64] {
    match lock {
        Lock::None => &[],
        Lock::Shared => &[USES + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
        Lock::Exclusive => {
            &[USES + CONSISTENT_READ, USES + WRITE, USES + RESIZE, UNSHARED + WRITE, UNSHARED + RESIZE]
        }
    }
}

/// The bytes that nobody else may hold.
fn against(lock: Lock) -> &'static [i64] {
    match lock {
        Lock::None => &[],
        Lock::Shared => &[UNSHARED + CONSISTENT_READ, USES + WRITE, USES + RESIZE],
        Lock::Exclusive => {
            &[UNSHARED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE, USES + WRITE, USES + RESIZE]
        }
    }
}

/// Never waits. `false`: others hold locks against it, and `former` is held as before.
pub(super) fn change(file: BorrowedFd, former: Lock, lock: Lock) -> io::Result<bool> {
    let kind = match lock {
        Lock::None => libc::F_UNLCK,
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    };
    if !set(file, OURS, kind)? {
        return Ok(false);
    }
    let shut = change_bytes(file, lock);
    // From exclusive to shared there is nothing that was not held before.
    let free = || match (former, lock) {
        (Lock::Exclusive, Lock::Shared) => Ok(true),
        _ => is_free(file, lock),
    };
    match shut.and_then(|()| free()) {
        Ok(true) => Ok(true),
        failed => {
            // The former lock was had once, and what was added to it goes.
            change_bytes(file, former)?;
            let kind = match former {
                Lock::None => libc::F_UNLCK,
                Lock::Shared => libc::F_RDLCK,
                Lock::Exclusive => libc::F_WRLCK,
            };
            set(file, OURS, kind)?;
            failed
        }
    }
}

fn change_bytes(file: BorrowedFd, lock: Lock) -> io::Result<()> {
    let held = held(lock);
    for base in [USES, UNSHARED] {
        for byte in [CONSISTENT_READ, WRITE, RESIZE].map(|use_| base + use_) {
            let kind = if held.contains(&byte) { libc::F_RDLCK } else { libc::F_UNLCK };
            // Only an exclusive lock could be against these, and nobody takes one of a single byte.
            if !set(file, (byte, 1), kind)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
    Ok(())
}

fn is_free(file: BorrowedFd, lock: Lock) -> io::Result<bool> {
    for byte in against(lock) {
        let mut request = request((*byte, 1), libc::F_WRLCK);
        // SAFETY: the descriptor is open while it is borrowed; `request` outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::c_int::from(request.l_type) != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

fn request((start, len): (i64, i64), kind: libc::c_int) -> libc::flock {
    // SAFETY: flock is plain integers, for which zero is a valid value; F_OFD_* demands l_pid = 0.
    let mut request: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    (request.l_start, request.l_len) = (start, len);
    request
}

fn set(file: BorrowedFd, range: (i64, i64), kind: libc::c_int) -> io::Result<bool> {
    let request = request(range, kind);
    // SAFETY: the descriptor is open while it is borrowed; the kernel only reads `request`, which
    // outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) };
    if rc == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Who holds a file that was found locked, as far as the kernel tells: by what processes say of
/// their open files. Of those that only read nothing is said.
pub(super) fn holder(dev: u64, ino: u64) -> Option<String> {
    let device = format!("{:02x}:{:02x}:{ino}", libc::major(dev), libc::minor(dev));
    let entries = std::fs::read_dir("/proc").ok()?;
    let own = std::process::id();
    let mut found = None;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(entry.path().join("fdinfo")) else { continue };
        for file in files.flatten() {
            let Ok(text) = std::fs::read_to_string(file.path()) else { continue };
            let locks = text.lines().filter(|line| line.starts_with("lock:") && line.contains(&device));
            for line in locks {
                let writes = writes(line);
                if pid == own || (!writes && found.is_some()) {
                    continue;
                }
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                let how = if writes { "for writing" } else { "for reading" };
                found = Some(format!("process {pid} ({}) has it open {how}", name.trim_end().escape_debug()));
                if writes {
                    return found;
                }
            }
        }
    }
    found
}

/// Whether a lock, as fdinfo shows it, is that of a writer: an exclusive one, or QEMU's byte for it,
/// which the kernel shows as one lock with its neighbours.
fn writes(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().rev().map(|word| word.parse().ok());
    let (end, start): (Option<i64>, Option<i64>) = (words.next().flatten(), words.next().flatten());
    let byte = USES + WRITE;
    line.contains(" WRITE ")
        || start.zip(end).is_some_and(|(start, end)| start >= USES && (start..=end).contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// What QEMU holds and looks at: ways of use, ways that are not shared.
    fn qemu(file: &File, uses: &[i64], unshared: &[i64]) -> bool {
        for byte in uses.iter().map(|n| USES + n).chain(unshared.iter().map(|n| UNSHARED + n)) {
            assert!(set(file.as_fd(), (byte, 1), libc::F_RDLCK).unwrap());
        }
        let against = uses.iter().map(|n| UNSHARED + n).chain(unshared.iter().map(|n| USES + n));
        against.into_iter().all(|byte| {
            let mut asked = request((byte, 1), libc::F_WRLCK);
            // SAFETY: the file is open; `asked` outlives the call.
            assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut asked) }, 0);
            libc::c_int::from(asked.l_type) == libc::F_UNLCK
        })
    }

    #[test]
    fn qemu_and_we_respect_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let take = |file: &File, lock| change(file.as_fd(), Lock::None, lock).unwrap();
        for (uses, unshared, shared, exclusive) in [
            // A writer, a reader that wants it to stand still, one that shares everything.
            (&[0, 1, 3][..], &[1, 3][..], false, false),
            (&[0], &[1, 3], true, false),
            (&[0], &[], true, true),
        ] {
            let other = open();
            assert!(qemu(&other, uses, unshared));
            for (lock, right) in [(Lock::Shared, shared), (Lock::Exclusive, exclusive)] {
                let ours = open();
                assert_eq!(take(&ours, lock), right, "{lock:?} beside {uses:?} {unshared:?}");
                // What was refused leaves nothing behind.
                drop(ours);
            }
            drop(other);
            for (lock, right) in [(Lock::Shared, shared), (Lock::Exclusive, exclusive)] {
                let ours = open();
                assert!(take(&ours, lock));
                assert_eq!(qemu(&open(), uses, unshared), right, "{uses:?} {unshared:?} beside {lock:?}");
            }
        }
    }

    #[test]
    fn a_lock_that_is_refused_leaves_the_former_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (a, b, c) = (open(), open(), open());
        assert!(change(a.as_fd(), Lock::None, Lock::Shared).unwrap());
        assert!(change(b.as_fd(), Lock::None, Lock::Shared).unwrap());
        assert!(!change(a.as_fd(), Lock::Shared, Lock::Exclusive).unwrap());
        assert!(!change(c.as_fd(), Lock::None, Lock::Exclusive).unwrap());
        drop(b);
        assert!(!change(c.as_fd(), Lock::None, Lock::Exclusive).unwrap(), "the first is still shared");
        assert!(change(a.as_fd(), Lock::Shared, Lock::Exclusive).unwrap());
        assert!(!change(c.as_fd(), Lock::None, Lock::Shared).unwrap());
        assert!(change(a.as_fd(), Lock::Exclusive, Lock::Shared).unwrap());
        assert!(change(c.as_fd(), Lock::None, Lock::Shared).unwrap());
        assert!(change(a.as_fd(), Lock::Shared, Lock::None).unwrap());
        assert!(change(c.as_fd(), Lock::Shared, Lock::Exclusive).unwrap());
    }

    #[test]
    fn a_writer_is_told_by_its_lock() {
        let line = |kind: &str, range: &str| format!("lock:\t1: OFDLCK ADVISORY  {kind} -1 fd:01:77 {range}");
        assert!(writes(&line("WRITE", "0 63")));
        assert!(writes(&line("READ ", "101 101")));
        assert!(writes(&line("READ ", "100 101")));
        assert!(!writes(&line("READ ", "100 100")));
        assert!(!writes(&line("READ ", "0 63")));
    }
}
