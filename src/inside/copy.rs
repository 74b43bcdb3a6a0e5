//! Copying files and folders into and out of a guest: by `tar` at its end where there is one, else a
//! single file call by call. What comes out of a guest goes through [`crate::storage::place`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use super::exec::{self, Command, Host, Signal, Stream};
use super::find::{Found, What, find, split};
use super::tar::{self, Entry, Event, Kind, TarError};
use super::{Guest, InsideError, meanwhile};
use crate::progress::Progress;
use crate::storage::place::{Place, parts};

/// What is read of a file at a time, and how many such pieces wait.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;
/// Most bytes of what a guest's tar complains of that are kept.
const COMPLAINT: usize = 4096;
/// Folders whose mode is set at the end.
const FOLDERS_MAX: usize = 1 << 16;
const WHAT: &str = "files were being copied";

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    pub files: u64,
    pub bytes: u64,
    /// Devices and the like, which were left out.
    pub left_out: u64,
}

fn refused<T>(text: impl Into<String>) -> Result<T, InsideError> {
    Err(InsideError::Refused(text.into()))
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> InsideError {
    let what = what.into();
    move |error| InsideError::Host { what, error }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn check_guest_path(path: &str) -> Result<(), InsideError> {
    if !path.starts_with('/') {
        return refused(format!("`{path}` is not absolute: paths in the guest begin with /"));
    }
    if [".", "..", ""].contains(&split(path).1) {
        return refused(format!("`{path}` does not end in a name: give the file or folder itself"));
    }
    Ok(())
}

/// Where something of this name goes on the host: into `to` if that is a folder, else it is `to`.
fn target_on_host(to: &Path, name: &str) -> Result<(PathBuf, Vec<u8>), InsideError> {
    if to.is_dir() {
        return Ok((to.to_owned(), name.as_bytes().to_vec()));
    }
    let is_folder = to.as_os_str().as_bytes().ends_with(b"/");
    let parent =
        to.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    match (parent.filter(|parent| parent.is_dir()), to.file_name()) {
        (Some(parent), Some(name)) if !is_folder => Ok((parent.to_owned(), name.as_bytes().to_vec())),
        (None, _) if !is_folder => {
            refused(format!("there is no folder {}", shown(to.parent().unwrap_or(to))))
        }
        _ => refused(format!("there is no folder {}", shown(to))),
    }
}

/// Copies a file or folder of the guest to the host. A link that `from` itself is is followed, those in a
/// folder are copied as they are.
pub fn from_guest(
    guest: &mut Guest,
    from: &str,
    to: &Path,
    progress: &Progress,
) -> Result<Copied, InsideError> {
    check_guest_path(from)?;
    let (root, name_here) = target_on_host(to, split(from).1)?;
    let found = find(guest, from)?;
    match found.as_ref().map(|found| found.what) {
        Some(What::Nothing | What::NoParent) => return refused(format!("there is no {from} in the guest")),
        Some(What::Broken) => return refused(format!("{from} in the guest is a link that leads nowhere")),
        _ => {}
    }
    let real = match found.as_ref().and_then(|found| found.real.clone()).map(String::from_utf8) {
        Some(Ok(real)) if split(&real).1.is_empty() => {
            return refused(format!("{from} in the guest leads to /: copy the folders in it"));
        }
        Some(Ok(real)) => real,
        Some(Err(_)) => return refused(format!("{from} leads to a name that the guest agent cannot handle")),
        None => from.to_owned(),
    };
    let (folder, name) = split(&real);
    let place = Place::open(&root).map_err(host(shown(&root)))?;
    progress.phase("copy", 0);
    let tar = match found {
        Some(found) if found.has_tar => true,
        Some(Found { what: What::Folder, .. }) => {
            return refused("the guest has no tar, so only single files can be copied");
        }
        _ => false,
    };
    if !tar {
        return file_from_guest(guest, from, &place, &name_here, progress);
    }
    let words = ["tar", "-cf", "-", "-C", folder, "--", name].map(str::to_owned).to_vec();
    let mut unpacking = Unpacking {
        place,
        name: name.as_bytes().to_vec(),
        name_here,
        root: shown(&root),
        reader: tar::Reader::default(),
        open: None,
        folders: Vec::new(),
        copied: Copied::default(),
        failed: None,
        complaint: Vec::new(),
        progress,
        told: false,
    };
    let ended = exec::run(guest, &Command { words, ..Command::default() }, None, &mut unpacking);
    let left = unpacking.leave();
    progress.check().map_err(|_| InsideError::Cancelled)?;
    left?;
    let code = ended.map_err(|e| renamed(e, WHAT))?.code;
    unpacking.end(code)
}

/// For [`exec`] it is a command; for the user it is a copy.
fn renamed(error: InsideError, what: &'static str) -> InsideError {
    match error {
        InsideError::WentBack { text, .. } => InsideError::WentBack { what, text },
        InsideError::Lost { text, .. } => InsideError::Lost { what, text },
        other => other,
    }
}

/// What comes out of the guest's tar, on its way to the host's folder.
struct Unpacking<'a> {
    place: Place,
    /// The first part of every name, in the guest and here.
    name: Vec<u8>,
    name_here: Vec<u8>,
    root: String,
    reader: tar::Reader,
    /// The file that is being written, if any, where, and with what mode.
    open: Option<(Option<File>, Vec<Vec<u8>>, u32)>,
    folders: Vec<(Vec<Vec<u8>>, u32)>,
    copied: Copied,
    failed: Option<InsideError>,
    complaint: Vec<u8>,
    progress: &'a Progress,
    told: bool,
}

impl From<TarError> for InsideError {
    fn from(error: TarError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl Unpacking<'_> {
    /// Where a name of the archive leads here.
    fn here(&self, name: &[u8]) -> Result<Vec<Vec<u8>>, InsideError> {
        let mut all = parts(name).unwrap_or_default();
        match all.first_mut() {
            Some(first) if *first == self.name => first.clone_from(&self.name_here),
            _ => return refused("the guest sent a path outside of the destination: it was not written"),
        }
        Ok(all)
    }

    fn shown(&self, parts: &[Vec<u8>]) -> String {
        let names = parts.iter().map(|part| String::from_utf8_lossy(part));
        names.fold(self.root.clone(), |path, name| format!("{path}/{name}"))
    }

    fn take(&mut self, event: Event<'_>) -> Result<(), InsideError> {
        match event {
            Event::Begin(entry) => self.begin(entry),
            Event::Data(data) => {
                let Some((Some(file), parts, _)) = &mut self.open else { return Ok(()) };
                if let Err(error) = file.write_all(data) {
                    let what = parts.clone();
                    return Err(InsideError::Host { what: self.shown(&what), error });
                }
                self.copied.bytes += data.len() as u64;
                self.progress.add(data.len() as u64);
                Ok(())
            }
            Event::End => {
                let Some((Some(file), parts, mode)) = self.open.take() else { return Ok(()) };
                let set = file.set_permissions(std::fs::Permissions::from_mode(mode));
                set.map_err(host(self.shown(&parts)))?;
                self.copied.files += 1;
                Ok(())
            }
        }
    }

    fn begin(&mut self, entry: &Entry) -> Result<(), InsideError> {
        let parts = self.here(&entry.path)?;
        // A guest's programs do not get their owner's rights here.
        let mode = entry.mode & 0o777;
        let failed = |error| InsideError::Host { what: self.shown(&parts), error };
        match entry.kind {
            Kind::Folder => {
                self.place.folder(&parts).map_err(failed)?;
                if self.folders.len() >= FOLDERS_MAX {
                    return refused("the folder is nested too deeply");
                }
                self.folders.push((parts, mode));
            }
            Kind::File => {
                let file = self.place.file(&parts).map_err(failed)?;
                self.open = Some((Some(file), parts, mode));
            }
            Kind::Symlink => self.place.symlink(&parts, &entry.target).map_err(failed)?,
            Kind::Link => {
                let of = self.here(&entry.target)?;
                self.place.link(&parts, &of).map_err(failed)?;
                self.copied.files += 1;
            }
            Kind::Other => {
                self.copied.left_out += 1;
                self.open = Some((None, parts, mode));
            }
        }
        Ok(())
    }

    /// After the last byte: a file that is not whole goes, and folders get their modes.
    fn leave(&mut self) -> Result<(), InsideError> {
        if let Some((Some(_), parts, _)) = self.open.take() {
            self.place.remove(&parts);
        }
        let mut set = Ok(());
        // Those in others first, which may then not be entered any more.
        for (parts, mode) in std::mem::take(&mut self.folders).into_iter().rev() {
            let done = self.place.set_mode(&parts, mode).map_err(host(self.shown(&parts)));
            set = set.and(done);
        }
        match self.failed.take() {
            Some(e) => Err(e),
            None => set,
        }
    }

    fn end(self, code: u8) -> Result<Copied, InsideError> {
        tar_ended(code, &self.complaint)?;
        if !self.reader.is_whole() {
            return Err(InsideError::Lost { what: WHAT, text: "the guest's tar stopped too early".into() });
        }
        Ok(self.copied)
    }
}

/// Whether a guest's tar did all.
fn tar_ended(code: u8, complaint: &[u8]) -> Result<(), InsideError> {
    if code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(complaint);
    // Its last words tell only that there were others.
    let said = said.lines().next().unwrap_or("it gave no reason").trim().to_owned();
    Err(InsideError::Tar { said, code })
}

impl Host for Unpacking<'_> {
    fn print(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        if stream == Stream::Err {
            let room = COMPLAINT - self.complaint.len();
            self.complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return true;
        }
        if self.failed.is_some() {
            return true;
        }
        let mut reader = std::mem::take(&mut self.reader);
        let taken = reader.push(bytes, &mut |event| self.take(event));
        self.reader = reader;
        self.failed = taken.err();
        // It is told once; the rest that still comes is thrown away.
        self.failed.is_none()
    }

    fn signal(&mut self) -> Option<Signal> {
        (self.progress.is_cancelled() && !std::mem::replace(&mut self.told, true))
            .then_some(Signal::Terminate)
    }
}

fn file_from_guest(
    guest: &mut Guest,
    from: &str,
    place: &Place,
    name: &[u8],
    progress: &Progress,
) -> Result<Copied, InsideError> {
    let Some(handle) = guest.open_if_there(from)? else {
        return refused(format!("there is no {from} in the guest"));
    };
    let parts = [name.to_vec()];
    let failed = || host(String::from_utf8_lossy(name));
    let mut file = place.file(&parts).map_err(failed())?;
    let mut copied = Copied { files: 1, ..Copied::default() };
    let mut copy = || loop {
        progress.check().map_err(|_| InsideError::Cancelled)?;
        let bytes = guest.read(handle).map_err(|e| meanwhile(WHAT, e))?;
        if bytes.is_empty() {
            return Ok(());
        }
        file.write_all(&bytes).map_err(failed())?;
        copied.bytes += bytes.len() as u64;
        progress.add(bytes.len() as u64);
    };
    let done = copy();
    let closed = guest.close(handle);
    if let Err(e) = done.and(closed) {
        place.remove(&parts);
        return Err(e);
    }
    Ok(copied)
}

/// Copies a file or folder of the host into the guest.
pub fn to_guest(
    guest: &mut Guest,
    from: &Path,
    to: &str,
    progress: &Progress,
) -> Result<Copied, InsideError> {
    if !to.starts_with('/') {
        return refused(format!("`{to}` is not absolute: paths in the guest begin with /"));
    }
    let meta = std::fs::metadata(from).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => InsideError::Refused(format!("there is no {}", shown(from))),
        _ => InsideError::Host { what: shown(from), error: e },
    })?;
    if !meta.is_dir() && !meta.is_file() {
        return refused(format!("{} is neither a file nor a folder", shown(from)));
    }
    // Of `.` and the like, too, the name is that of the folder.
    let whole = std::fs::canonicalize(from).map_err(host(shown(from)))?;
    let name = from.file_name().or(whole.file_name()).unwrap_or_default();
    let Some(name) = name.to_str().filter(|name| !name.is_empty()) else {
        return refused(format!("{} has a name that the guest agent cannot handle", shown(from)));
    };
    let found = find(guest, to)?;
    let Some(found) = found else {
        if meta.is_dir() {
            return refused("the guest has no /bin/sh, so only single files can be copied");
        }
        let to = if to.ends_with('/') { format!("{to}{name}") } else { to.to_owned() };
        return file_to_guest(guest, from, &to, progress);
    };
    let (folder, name_there) = match found.what {
        What::Folder => (to, name),
        What::NoParent => return refused(format!("there is no folder {} in the guest", split(to).0)),
        _ if to.ends_with('/') => return refused(format!("there is no folder {to} in the guest")),
        What::Special => return refused(format!("{to} in the guest is neither a file nor a folder")),
        What::File if meta.is_dir() => return refused(format!("{to} in the guest is not a folder")),
        _ => {
            check_guest_path(to)?;
            split(to)
        }
    };
    if !found.has_tar {
        if meta.is_dir() {
            return refused("the guest has no tar, so only single files can be copied");
        }
        let to = format!("{}/{name_there}", folder.trim_end_matches('/'));
        return file_to_guest(guest, from, &to, progress);
    }
    pack_to_guest(guest, from, folder, name_there, progress)
}

fn pack_to_guest(
    guest: &mut Guest,
    from: &Path,
    folder: &str,
    name: &str,
    progress: &Progress,
) -> Result<Copied, InsideError> {
    progress.phase("copy", 0);
    let words = ["tar", "-xpof", "-", "-C", folder].map(str::to_owned).to_vec();
    let (sender, input) = sync_channel(PIECES);
    let mut sending = Sending { complaint: Vec::new(), progress, told: false };
    let command = Command { words, ..Command::default() };
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut packer = Packer { sender, copied: Copied::default(), progress };
            packer.add(from, name.as_bytes())?;
            packer.send(tar::end())?;
            Ok::<_, InsideError>(packer.copied)
        });
        // Whatever becomes of it, its end of the input is then closed.
        let ended = exec::run(guest, &command, Some(input), &mut sending);
        let packed = packing.join().unwrap_or(Err(InsideError::Cancelled));
        progress.check().map_err(|_| InsideError::Cancelled)?;
        let copied = match packed {
            Err(InsideError::Cancelled) => None,
            packed => Some(packed?),
        };
        tar_ended(ended.map_err(|e| renamed(e, WHAT))?.code, &sending.complaint)?;
        copied.ok_or(InsideError::Lost { what: WHAT, text: "the guest's tar stopped too early".into() })
    })
}

struct Sending<'a> {
    complaint: Vec<u8>,
    progress: &'a Progress,
    told: bool,
}

impl Host for Sending<'_> {
    fn print(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        if stream == Stream::Err {
            let room = COMPLAINT - self.complaint.len();
            self.complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        true
    }

    fn signal(&mut self) -> Option<Signal> {
        (self.progress.is_cancelled() && !std::mem::replace(&mut self.told, true))
            .then_some(Signal::Terminate)
    }
}

/// Makes an archive of what is on the host.
struct Packer<'a> {
    sender: SyncSender<Vec<u8>>,
    copied: Copied,
    progress: &'a Progress,
}

impl Packer<'_> {
    /// An error means that nobody takes it any more.
    fn send(&self, bytes: Vec<u8>) -> Result<(), InsideError> {
        self.progress.check().map_err(|_| InsideError::Cancelled)?;
        self.sender.send(bytes).map_err(|_| InsideError::Cancelled)
    }

    /// What the user named may be a link; in a folder, links are copied as such.
    fn add(&mut self, path: &Path, name: &[u8]) -> Result<(), InsideError> {
        let meta = std::fs::metadata(path).map_err(host(shown(path)))?;
        if meta.is_dir() { self.add_folder(path, name, &meta) } else { self.add_file(path, name) }
    }

    fn add_folder(&mut self, path: &Path, name: &[u8], meta: &std::fs::Metadata) -> Result<(), InsideError> {
        let entry = Entry {
            path: [name, b"/"].concat(),
            kind: Kind::Folder,
            mode: meta.mode(),
            size: 0,
            target: Vec::new(),
        };
        self.send(tar::header(&entry, meta.mtime().unsigned_abs()))?;
        let entries = std::fs::read_dir(path).map_err(host(shown(path)))?;
        let mut all = entries.collect::<io::Result<Vec<_>>>().map_err(host(shown(path)))?;
        all.sort_by_key(std::fs::DirEntry::file_name);
        for one in all {
            let path = one.path();
            let name = [name, b"/", one.file_name().as_bytes()].concat();
            let meta = one.metadata().map_err(host(shown(&path)))?;
            if meta.is_dir() {
                self.add_folder(&path, &name, &meta)?;
            } else if meta.is_file() {
                self.add_file(&path, &name)?;
            } else if meta.is_symlink() {
                let target = std::fs::read_link(&path).map_err(host(shown(&path)))?;
                let target = target.as_os_str().as_bytes().to_vec();
                let entry = Entry { path: name, kind: Kind::Symlink, mode: 0o777, size: 0, target };
                self.send(tar::header(&entry, meta.mtime().unsigned_abs()))?;
            } else {
                self.copied.left_out += 1;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &[u8]) -> Result<(), InsideError> {
        let mut file = File::open(path).map_err(host(shown(path)))?;
        let meta = file.metadata().map_err(host(shown(path)))?;
        let size = meta.len();
        let entry =
            Entry { path: name.to_vec(), kind: Kind::File, mode: meta.mode(), size, target: Vec::new() };
        self.send(tar::header(&entry, meta.mtime().unsigned_abs()))?;
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let mut piece = vec![0; most];
            let count = file.read(&mut piece).map_err(host(shown(path)))?;
            if count == 0 {
                let error = io::Error::other("it was truncated while it was copied");
                return Err(InsideError::Host { what: shown(path), error });
            }
            piece.truncate(count);
            left -= count as u64;
            self.send(piece)?;
            self.progress.add(count as u64);
        }
        self.send(vec![0; tar::padding(size) as usize])?;
        self.copied.files += 1;
        self.copied.bytes += size;
        Ok(())
    }
}

fn file_to_guest(
    guest: &mut Guest,
    from: &Path,
    to: &str,
    progress: &Progress,
) -> Result<Copied, InsideError> {
    let mut file = File::open(from).map_err(host(shown(from)))?;
    progress.phase("copy", file.metadata().map_or(0, |meta| meta.len()));
    let handle = guest.open(to, "w")?;
    let mut copied = Copied { files: 1, ..Copied::default() };
    let mut piece = vec![0; PIECE];
    let mut copy = || loop {
        progress.check().map_err(|_| InsideError::Cancelled)?;
        let count = file.read(&mut piece).map_err(host(shown(from)))?;
        if count == 0 {
            return Ok(());
        }
        guest.write(handle, &piece[..count]).map_err(|e| meanwhile(WHAT, e))?;
        copied.bytes += count as u64;
        progress.add(count as u64);
    };
    let done = copy();
    // What was buffered is written here, or fails here.
    let closed = guest.close(handle).map_err(|e| meanwhile(WHAT, e));
    done.and(closed).map(|()| copied)
}
