//! qcow2 images, read only, by way of imago.
//!
//! imago gets its bytes from [`crate::storage`] and opens nothing by itself: the
//! files that an image refers to are resolved here.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::drivers::CommonStorageHelper;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::{Backing, DiskError, ImageFormat, Result, check_len, check_range, inspect};
use super::{foreign, qcow2_header};
use crate::storage::{Access, File, Lock, Storage};

/// Deeper than anybody builds them; ends a chain that leads into itself.
const MAX_DEPTH: usize = 64;

pub struct Qcow2Image {
    access: FormatAccess<Source>,
    path: PathBuf,
    len: u64,
}

impl Qcow2Image {
    pub fn open(storage: &Storage, path: &Path) -> Result<Self> {
        let access = open_layer(storage, path, 0)?;
        let len = access.size();
        check_len(path, len)?;
        Ok(Self { access, path: path.to_owned(), len })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_layer(storage: &Storage, path: &Path, depth: usize) -> Result<FormatAccess<Source>> {
    let source = Source::open(storage, path)?;
    check_header(&source.file)?;
    let mut image = Qcow2::<Source>::open_image(source, false).map_err(|e| error(path, e))?;
    if image.requires_external_data_file() {
        return Err(error(path, "an external data file is not supported"));
    }
    image.set_data_file(None);
    let below = backing_of(storage, path, &image).map_err(|e| match e {
        missing @ DiskError::Missing(_) => of(path)(missing),
        e => e,
    })?;
    let backing = match below {
        None => None,
        Some(_) if depth + 1 >= MAX_DEPTH => return Err(too_deep(path)),
        Some((below, ImageFormat::Qcow2)) => Some(open_layer(storage, &below, depth + 1).map_err(of(path))?),
        Some((below, ImageFormat::Raw)) => Some(open_raw(storage, &below).map_err(of(path))?),
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

/// The files that an image is read through, from the one below it down. Takes no locks.
pub fn files_below(storage: &Storage, path: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut next = Some((path.to_owned(), ImageFormat::Qcow2));
    while let Some((image, format)) = next.take() {
        if format == ImageFormat::Qcow2 {
            let source = Source::open_unlocked(storage, &image)?;
            check_header(&source.file)?;
            let opened = Qcow2::<Source>::open_image(source, false).map_err(|e| error(&image, e))?;
            next = backing_of(storage, &image, &opened)?;
        }
        if files.len() >= MAX_DEPTH {
            return Err(too_deep(path));
        }
        files.extend(next.iter().map(|(below, _)| below.clone()));
    }
    Ok(files)
}

fn too_deep(path: &Path) -> DiskError {
    error(path, format!("more than {MAX_DEPTH} backing files"))
}

/// Of a backing file: names the image that it is below.
fn of(image: &Path) -> impl Fn(DiskError) -> DiskError {
    move |e| error(image, format!("its backing file: {e}"))
}

/// The file below an image, and what it is.
fn backing_of(
    storage: &Storage,
    image: &Path,
    opened: &Qcow2<Source>,
) -> Result<Option<(PathBuf, ImageFormat)>> {
    let Some(name) = opened.implicit_backing_file() else { return Ok(None) };
    if name.contains("://") || name.starts_with("json:") {
        return Err(error(image, format!("backing file {name:?} is not a path")));
    }
    let name = name.strip_prefix("file:").unwrap_or(name);
    // A relative name is relative to the image; join keeps an absolute one.
    let path = image.parent().unwrap_or(Path::new("")).join(name);
    let format = match opened.implicit_backing_format().map(String::as_str) {
        Some("qcow2") => ImageFormat::Qcow2,
        Some("raw" | "file") => ImageFormat::Raw,
        Some(other) => {
            let unread = match foreign::of_driver(other) {
                Some(what) => DiskError::Foreign { path, what },
                None => error(&path, format!("its format {other:?} is not supported")),
            };
            return Err(of(image)(unread));
        }
        // Nothing recorded which it is; a chain that the user brought is not
        // written by a guest while it is a backing file.
        None => super::probe(storage, &path, false).map_err(|e| match e {
            missing @ DiskError::Missing(_) => missing,
            e => of(image)(e),
        })?,
    };
    Ok(Some((path, format)))
}

fn open_raw(storage: &Storage, path: &Path) -> Result<FormatAccess<Source>> {
    let source = Source::open(storage, path)?;
    let raw = Raw::builder(source).open(DenyImplicitOpenGate::default()).map_err(|e| error(path, e))?;
    Ok(FormatAccess::new(raw))
}

/// What imago does not look at, or has no words for.
fn check_header(file: &File) -> Result<()> {
    let mut header = [0; qcow2_header::LEN];
    let got = file.read_up_to(&mut header, 0)?;
    let path = file.path();
    qcow2_header::check(&header[..got]).map_err(|unfit| error(path, unfit.text(path)))
}

fn error(path: &Path, reason: impl fmt::Display) -> DiskError {
    DiskError::Qcow2 { path: path.to_owned(), reason: reason.to_string() }
}

impl Backing for Qcow2Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len)?;
        let len = buf.len();
        self.access
            .read(buf, offset)
            .map_err(|e| error(&self.path, format!("{len} bytes at offset {offset}: {e}")))
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut at = offset;
        while at < self.len {
            let (mapping, len) = self
                .access
                .get_mapping(at, self.len - at)
                .map_err(|e| error(&self.path, format!("mapping at offset {at}: {e}")))?;
            match mapping {
                Mapping::Zero { .. } if len > 0 => at += len,
                Mapping::Eof { .. } => return Ok(None),
                _ => return Ok(Some(at..at + len.max(1).min(self.len - at))),
            }
        }
        Ok(None)
    }
}

/// One of our files as imago wants it. It cannot be written.
struct Source {
    file: File,
    len: u64,
    helper: CommonStorageHelper,
}

impl Source {
    fn open(storage: &Storage, path: &Path) -> Result<Self> {
        let source = Self::open_unlocked(storage, path)?;
        source.file.lock(Lock::Shared)?;
        Ok(Self { len: source.file.len()?, ..source })
    }

    fn open_unlocked(storage: &Storage, path: &Path) -> Result<Self> {
        inspect(storage, path)?;
        let file = storage.open_named(path, Access::ReadOnly)?;
        let len = file.len()?;
        Ok(Self { file, len, helper: CommonStorageHelper::default() })
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "qcow2 images are read-only"))
}

impl imago::Storage for Source {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    // SAFETY: the contract is on alignment, and ours is 1.
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut part in bufv.into_inner() {
            let got = self.file.read_up_to(&mut part, at).map_err(io::Error::other)?;
            part[got..].fill(0);
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    // SAFETY: nothing is written.
    unsafe fn pure_writev(&self, _: IoVector<'_>, _: u64) -> io::Result<()> {
        read_only()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    // SAFETY: nothing is cached here.
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.path().display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use imago::{FormatCreateBuilder, StorageCreateOptions, StorageOpenOptions};

    use super::super::{open_base, probe};
    use super::*;

    type Written = FormatAccess<imago::file::File>;

    /// An image of 1 MiB with `fill` in its second 64 KiB.
    fn create(path: &Path, fill: u8, backing: Option<(&str, &str)>) {
        let open = StorageOpenOptions::new().filename(path).write(true);
        let options = StorageCreateOptions::new().filename(path);
        <imago::file::File as imago::Storage>::create(options).unwrap();
        let file = <imago::file::File as imago::Storage>::open(open).unwrap();
        let mut builder = Qcow2::<imago::file::File>::create_builder(file).size(1 << 20);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.to_owned(), format.to_owned());
        }
        builder.create().unwrap();
        let mut image = Qcow2::<imago::file::File>::open_path(path, true).unwrap();
        image.set_backing(None);
        let image: Written = FormatAccess::new(image);
        image.write(&vec![fill; 65536], 65536).unwrap();
        image.flush().unwrap();
    }

    fn byte(image: &dyn Backing, offset: u64) -> u8 {
        let mut buf = [0; 512];
        image.read_at(&mut buf, offset).unwrap();
        buf[0]
    }

    #[test]
    fn a_chain_of_backing_files_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        fs::write(dir.path().join("raw"), vec![3; 1 << 20]).unwrap();
        create(&dir.path().join("low"), 4, Some(("raw", "raw")));
        let top = dir.path().join("top.img");
        create(&top, 5, Some(("low", "qcow2")));
        assert_eq!(probe(&storage, &top, true).unwrap(), ImageFormat::Qcow2);
        let image = open_base(&storage, &top, ImageFormat::Qcow2).unwrap();
        assert_eq!((byte(&image, 0), byte(&image, 65536)), (3, 5));
        assert_eq!(image.next_data(0).unwrap().unwrap().start, 0);
        assert!(image.read_at(&mut [0; 1024], (1 << 20) - 512).is_err());
        // What was recorded as raw stays raw, whatever its first bytes are.
        let raw = open_base(&storage, &top, ImageFormat::Raw).unwrap();
        assert_eq!(byte(&raw, 0), b'Q');

        let below: Vec<PathBuf> = ["low", "raw"].iter().map(|name| dir.path().join(name)).collect();
        assert_eq!(files_below(&storage, &top).unwrap(), below);
        fs::remove_file(dir.path().join("raw")).unwrap();
        let error = Qcow2Image::open(&storage, &top).err().unwrap().to_string();
        assert!(error.contains("top.img") && error.contains("/raw does not exist"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let path = dir.path().join("image");
        let refused = |at: u64, bytes: &[u8], why: &str| {
            let _ = fs::remove_file(&path);
            create(&path, 1, None);
            Qcow2Image::open(&storage, &path).unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(bytes, at).unwrap();
            let error = Qcow2Image::open(&storage, &path).err().unwrap().to_string();
            assert!(error.contains(why) && error.contains("image"), "{error}");
        };
        refused(32, &[0, 0, 0, 2], "encrypted");
        refused(79, &[2], "corrupt");
        refused(79, &[4], "external data file");
        refused(0, b"PFI", "not a qcow2 image");
        fs::write(&path, b"QFI\xfb").unwrap();
        assert!(Qcow2Image::open(&storage, &path).is_err());
        // An image that is its own backing file.
        fs::remove_file(&path).unwrap();
        create(&path, 1, Some(("image", "qcow2")));
        let error = Qcow2Image::open(&storage, &path).err().unwrap().to_string();
        assert!(error.contains("backing files"));
        assert!(files_below(&storage, &path).unwrap_err().to_string().contains("backing files"));
    }
}
