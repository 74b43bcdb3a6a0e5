//! The operating system behind [`Backend`].

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::backend::{Access, Backend, BackendFile, FileKind, Links, Lock, Metadata};
use super::image_lock;

#[derive(Debug)]
pub(super) struct Os;

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    lock: Mutex<Lock>,
}

impl OsFile {
    fn new(file: fs::File) -> Self {
        Self { file, lock: Mutex::new(Lock::None) }
    }
}

impl Backend for Os {
    fn open(&self, path: &Path, access: Access, links: Links) -> io::Result<Box<dyn BackendFile>> {
        // Looked at first: to open a device may be to do something with it.
        let (meta, flags) = match links {
            Links::Follow => (fs::metadata(path)?, 0),
            Links::Refuse => (fs::symlink_metadata(path)?, libc::O_NOFOLLOW),
        };
        usable(&meta, links)?;
        let mut options = fs::OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // Of a device it is a claim: one that is mounted, or part of another, is busy.
        let claim = meta.file_type().is_block_device() && access == Access::ReadWrite;
        let flags = flags | if claim { libc::O_EXCL } else { 0 };
        // What was put there meanwhile is not waited for.
        let file = options.custom_flags(flags | libc::O_NONBLOCK).open(path)?;
        usable(&file.metadata()?, links)?;
        Ok(Box::new(OsFile::new(file)))
    }

    fn open_within(&self, root: &Path, name: &Path) -> io::Result<Box<dyn BackendFile>> {
        let file = open_below(root, name)?;
        usable(&file.metadata()?, Links::Refuse)?;
        Ok(Box::new(OsFile::new(file)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn BackendFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(OsFile::new(file)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())).collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let meta = fs::metadata(path)?;
        if meta.file_type().is_block_device() {
            // Its capacity can only be asked of an open device.
            return convert(&meta, device_len(&fs::File::open(path)?)?);
        }
        let len = meta.len();
        convert(&meta, len)
    }
}

/// Whether this can be read as a file that somebody wrote: what is none may never end, or never begin.
fn usable(meta: &fs::Metadata, links: Links) -> io::Result<()> {
    let kind = meta.file_type();
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match links {
        _ if kind.is_file() => Ok(()),
        Links::Follow if kind.is_block_device() => Ok(()),
        _ if kind.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        _ if kind.is_symlink() => wrong("it is a symbolic link, not a regular file"),
        _ if kind.is_fifo() => wrong("it is a FIFO, not a regular file"),
        _ if kind.is_socket() => wrong("it is a socket, not a regular file"),
        _ => wrong("it is a device, not a regular file"),
    }
}

/// Opens a file to read it, part by part of its name, and follows no symbolic link below `root`.
fn open_below(root: &Path, name: &Path) -> io::Result<fs::File> {
    let (parents, last) = (name.parent().unwrap_or(Path::new("")), name.file_name());
    let last = last.ok_or(io::ErrorKind::InvalidInput)?;
    let mut options = fs::OpenOptions::new();
    let mut folder = options.read(true).custom_flags(libc::O_DIRECTORY).open(root)?;
    for part in parents {
        folder = open_at(&folder, part, libc::O_DIRECTORY)?;
    }
    open_at(&folder, last, libc::O_NONBLOCK)
}

fn open_at(folder: &fs::File, name: &OsStr, flags: libc::c_int) -> io::Result<fs::File> {
    let name = CString::new(name.as_bytes())?;
    let flags = flags | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the folder is open and the name ends with a NUL; both outlive the call.
    let fd = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            // So Linux says it with O_NOFOLLOW, and with O_DIRECTORY beside it.
            Some(libc::ELOOP) => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} in it is a symbolic link, which is not followed"),
            ),
            Some(libc::ENOTDIR) => io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{name:?} in it is not a folder (symbolic links are not followed)"),
            ),
            // A socket, or a FIFO or device that nobody serves.
            Some(libc::ENXIO) => io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"),
            _ => error,
        });
    }
    // SAFETY: it was opened above, and nobody else has it.
    Ok(unsafe { fs::File::from_raw_fd(fd) })
}

impl BackendFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        let meta = self.file.metadata()?;
        let len = if meta.file_type().is_block_device() { device_len(&self.file)? } else { meta.len() };
        convert(&meta, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (start, count) = (off_t(offset)?, off_t(len)?);
        // SAFETY: the descriptor is open for as long as `self.file` lives; no memory is passed.
        let rc = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, start, count) };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => self.write_zeros(offset, len),
            Some(libc::EINTR) => self.punch_hole(offset, len),
            _ => Err(error),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = BackendFile::metadata(self)?.len;
        if offset >= len {
            return Ok(None);
        }
        let start = match self.seek(offset, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
            // No support for holes: all of it is data.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(offset..len)),
            Err(e) => return Err(e),
        };
        let end = match self.seek(start, libc::SEEK_HOLE) {
            Ok(end) => end.min(len),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => len,
            Err(e) => return Err(e),
        };
        Ok((start < end).then_some(start..end))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn start_writing(&self, range: Range<u64>) -> io::Result<()> {
        self.sync_range(&range, libc::SYNC_FILE_RANGE_WRITE)
    }

    fn let_go(&self, range: Range<u64>) -> io::Result<()> {
        let and_wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        self.sync_range(&range, and_wait)?;
        let (start, count) = (off_t(range.start)?, off_t(range.end - range.start)?);
        // SAFETY: the descriptor is open for as long as `self.file` lives; no memory is passed.
        // It is advice: pages that stay do no harm.
        unsafe { libc::posix_fadvise(self.file.as_raw_fd(), start, count, libc::POSIX_FADV_DONTNEED) };
        Ok(())
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = image_lock::change(self.file.as_fd(), *held, lock)?;
        if taken {
            *held = lock;
        }
        Ok(taken)
    }

    fn lock_holder(&self) -> Option<String> {
        let meta = self.file.metadata().ok()?;
        image_lock::holder(meta.dev(), meta.ino())
    }

    fn note(&self) -> io::Result<Option<Vec<u8>>> {
        let mut text = vec![0; NOTE_MAX];
        // SAFETY: the descriptor is open, the name ends with a NUL, and `text` is valid for writes of
        // its length.
        let got = unsafe {
            libc::fgetxattr(self.file.as_raw_fd(), NOTE.as_ptr(), text.as_mut_ptr().cast(), text.len())
        };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // None, no place for any, or none of ours.
                Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS | libc::ERANGE) => Ok(None),
                _ => Err(error),
            };
        };
        text.truncate(got);
        Ok(Some(text))
    }

    fn set_note(&self, text: &[u8]) -> io::Result<()> {
        // SAFETY: the descriptor is open, the name ends with a NUL, and `text` is valid for reads of
        // its length.
        let rc = unsafe {
            libc::fsetxattr(self.file.as_raw_fd(), NOTE.as_ptr(), text.as_ptr().cast(), text.len(), 0)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// An extended attribute (xattr(7)): it belongs to the inode.
const NOTE: &CStr = c"user.piton.checked";
const NOTE_MAX: usize = 256;

impl OsFile {
    /// Moves the file position, which nothing else uses.
    fn seek(&self, offset: u64, whence: libc::c_int) -> io::Result<u64> {
        // SAFETY: the descriptor is open for as long as `self.file` lives; no memory is passed.
        let rc = unsafe { libc::lseek(self.file.as_raw_fd(), off_t(offset)?, whence) };
        u64::try_from(rc).map_err(|_| io::Error::last_os_error())
    }

    fn sync_range(&self, range: &Range<u64>, flags: libc::c_uint) -> io::Result<()> {
        let (start, count) = (off_t(range.start)?, off_t(range.end - range.start)?);
        // SAFETY: the descriptor is open for as long as `self.file` lives; no memory is passed.
        let rc = unsafe { libc::sync_file_range(self.file.as_raw_fd(), start, count, flags) };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Where it cannot be asked for, a sync does all of it.
            Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP) => Ok(()),
            Some(libc::EINTR) => self.sync_range(range, flags),
            _ => Err(error),
        }
    }

    /// Within the file only: a hole past its end must not make it longer.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const STEP: usize = 64 * 1024;
        let zeros = [0u8; STEP];
        let end = offset.saturating_add(len).min(BackendFile::metadata(self)?.len);
        let mut at = offset;
        while at < end {
            let count = (end - at).min(STEP as u64);
            self.write_at(&zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

/// Copies within the kernel; returns how much, less than `len` where that cannot be done.
pub(super) fn copy_range(from: BorrowedFd, to: BorrowedFd, offset: u64, len: u64) -> io::Result<u64> {
    let mut done = 0;
    while done < len {
        let (mut source, mut target) = (off_t(offset + done)?, off_t(offset + done)?);
        let count = usize::try_from(len - done).unwrap_or(usize::MAX);
        // SAFETY: both descriptors are open while they are borrowed, and the offsets outlive the
        // call; no other memory is passed.
        let copied = unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut source, to.as_raw_fd(), &mut target, count, 0)
        };
        if let Ok(copied @ 1..) = u64::try_from(copied) {
            done += copied;
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if copied == 0 => break,
            Some(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => break,
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
    Ok(done)
}

fn off_t(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "offset out of range"))
}

/// `BLKGETSIZE64`: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

fn device_len(file: &fs::File) -> io::Result<u64> {
    let mut len = 0u64;
    // SAFETY: the request writes one u64, for which `len` is valid and outlives the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut len) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(len)
}

fn convert(meta: &fs::Metadata, len: u64) -> io::Result<Metadata> {
    let kind = meta.file_type();
    Ok(Metadata {
        kind: if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Dir
        } else if kind.is_block_device() {
            FileKind::BlockDevice
        } else {
            FileKind::Other
        },
        len,
        allocated: meta.blocks().saturating_mul(512),
        modified: meta.modified()?,
        dev: meta.dev(),
        ino: meta.ino(),
        links: meta.nlink(),
    })
}
