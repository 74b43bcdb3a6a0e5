//! Raw images: the bytes of a file or block device are the bytes of the disk.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Backing, Disk, DiskError, Result, check_len, check_range, inspect};
use crate::storage::{Access, File, Lock, Storage};

/// For reading, under a shared lock.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    len: u64,
    /// It was written before it was frozen.
    unsynced: AtomicBool,
    /// After a failed fdatasync the kernel forgets what it could not write, so
    /// a later one that succeeds means nothing.
    failed: AtomicBool,
}

/// For writing, under an exclusive lock.
#[derive(Debug)]
pub struct RawDisk(RawImage);

fn open(storage: &Storage, path: &Path, access: Access) -> Result<RawImage> {
    inspect(storage, path)?;
    let file = storage.open_named(path, access).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if access == Access::ReadWrite && storage.open_named(path, Access::ReadOnly).is_ok() =>
        {
            DiskError::ReadOnlyFile(path.to_owned())
        }
        io::ErrorKind::ResourceBusy => DiskError::DeviceBusy(path.to_owned()),
        _ => e.into(),
    })?;
    file.lock(match access {
        Access::ReadOnly => Lock::Shared,
        Access::ReadWrite => Lock::Exclusive,
    })?;
    // Of the open file and under the lock, so that it holds from here on.
    let len = file.len()?;
    check_len(path, len)?;
    Ok(RawImage { file, len, unsynced: AtomicBool::new(false), failed: AtomicBool::new(false) })
}

impl RawImage {
    pub fn open(storage: &Storage, path: &Path) -> Result<Self> {
        open(storage, path, Access::ReadOnly)
    }

    /// Makes durable what was written before [`RawDisk::freeze`].
    pub fn sync(&self) -> Result<()> {
        if self.unsynced.load(Ordering::Acquire) {
            self.sync_all()?;
            self.unsynced.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        self.check_flushed()?;
        Ok(self.file.sync_data().inspect_err(|_| self.failed.store(true, Ordering::Release))?)
    }

    fn check_flushed(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(DiskError::FlushFailed(self.path().to_owned()));
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Makes durable what a killed process wrote to it. A file system that is never written has
    /// nothing to sync, and may say so.
    pub(super) fn sync_former(&self) -> Result<()> {
        match self.file.sync_data() {
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem) => {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Gives up or takes back the shared lock, around another handle's exclusive one.
    pub(super) fn lock(&self, lock: Lock) -> Result<()> {
        Ok(self.file.lock(lock)?)
    }
}

impl RawDisk {
    pub fn open(storage: &Storage, path: &Path) -> Result<Self> {
        open(storage, path, Access::ReadWrite).map(Self)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn lock(&self, lock: Lock) -> Result<()> {
        self.0.lock(lock)
    }

    /// More of it, which is zeros; durable with the next flush.
    pub fn grow(&mut self, len: u64) -> Result<()> {
        if len > self.0.len {
            self.0.file.set_len(len)?;
            self.0.len = len;
        }
        Ok(())
    }

    /// From here on the image is only read, and others may read it too. What was not flushed
    /// still has to be synced.
    pub fn freeze(self) -> Result<RawImage> {
        let Self(image) = self;
        image.check_flushed()?;
        // From exclusive to shared is one step of the kernel's: nobody gets in between.
        image.lock(Lock::Shared)?;
        image.unsynced.store(true, Ordering::Release);
        Ok(image)
    }
}

impl Backing for RawImage {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len)?;
        Ok(self.file.read_at(buf, offset)?)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let found = self.file.next_data(offset)?;
        Ok(found.map(|r| r.start..r.end.min(self.len)).filter(|r| r.start < r.end))
    }
}

impl Backing for RawDisk {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

impl Disk for RawDisk {
    fn is_read_only(&self) -> bool {
        false
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        Ok(self.0.file.write_at(buf, offset)?)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.len())?;
        Ok(self.0.file.punch_hole(offset, len)?)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }
    fn flush(&self) -> Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{ImageFormat, ReadOnly, open_base, probe};
    use super::*;

    fn image(dir: &tempfile::TempDir, name: &str, len: u64) -> std::path::PathBuf {
        let path = dir.path().join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    #[test]
    fn errors_say_what_is_wrong_with_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let text = |path: &Path| {
            let error = RawDisk::open(&storage, path).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            error
        };
        assert!(text(&dir.path().join("none")).contains("does not exist"));
        assert!(text(dir.path()).contains("is a folder"));
        assert!(text(Path::new("/dev/null")).contains("neither a file nor a block device"));
        assert!(text(&image(&dir, "empty", 0)).contains("is empty"));
        assert!(text(&image(&dir, "odd", 1000)).contains("not a multiple of 512"));
        assert!(matches!(probe(&storage, &dir.path().join("none"), true), Err(DiskError::Missing(_))));
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let path = image(&dir, "a", 4096);
        let disk = RawDisk::open(&storage, &path).unwrap();
        let error = RawDisk::open(&storage, &path).unwrap_err().to_string();
        assert!(error.contains("in use by another VM"), "{error}");
        assert!(RawImage::open(&storage, &path).is_err());
        let first = disk.freeze().unwrap();
        let second = open_base(&storage, &path, ImageFormat::Raw).unwrap();
        assert!(RawDisk::open(&storage, &path).is_err());
        drop((first, second));
        RawDisk::open(&storage, &path).unwrap();
    }

    #[test]
    fn reads_writes_and_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let path = image(&dir, "a", 8192 + 512);
        let disk = RawDisk::open(&storage, &path).unwrap();
        disk.write_at(&[5; 1024], 7680).unwrap();
        disk.write_zeroes(7680, 512).unwrap();
        disk.flush().unwrap();
        let mut buf = [1; 1024];
        disk.read_at(&mut buf, 7680).unwrap();
        assert_eq!((buf[511], buf[512]), (0, 5));
        assert!(matches!(disk.write_at(&[0; 1024], 8192), Err(DiskError::OutOfRange { .. })));
        assert!(disk.read_at(&mut buf, u64::MAX - 5).is_err());
        assert!(disk.next_data(8191).unwrap().is_some());
        drop(disk);
        let disk = ReadOnly(open_base(&storage, &path, ImageFormat::Raw).unwrap());
        assert!(disk.is_read_only());
        assert!(matches!(disk.write_at(&[0; 512], 0), Err(DiskError::ReadOnly)));
    }
}
