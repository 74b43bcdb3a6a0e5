//! A file system in memory that records every change, fails on demand, and can be put into any
//! state that a crash could have left. Machinery of the proof in tests/crash_proof and of unit
//! tests; piton itself never uses it.
//!
//! # The model
//! What is assumed of a file system and of the disk below it:
//! - A change that was not synced may be there after a crash or not, whatever came before or after
//!   it. Writes to one sector are there up to any one of them, or in any choice: a later one may
//!   be there without an earlier one.
//! - A write is torn at multiples of 512 bytes, or of 4096 in the file: each such part is there
//!   or not. A sector of 512 bytes is never torn.
//! - The length of a file and its data are apart: a length may be there without the data (it
//!   reads as zeros, never as what other files held), data without the length is cut off.
//! - fdatasync makes durable what was written to the file before, and its length; not its name.
//!   fsync of a file is taken to do no more than that.
//! - fsync of a folder makes durable the names in it; not what they name, and not its own name.
//! - Names that were not synced (create, link, rename, unlink, mkdir, rmdir) are each there or not,
//!   in any order, also within one folder.
//! - A rename within a folder is atomic: the file has the old name or the new one. A rename from
//!   one folder into another is refused here, because nothing in piton does that.
//! - After an fdatasync that failed, what it was to make durable may be lost even if a later one
//!   succeeds.
//! - What is durable stays as it is: no bit rots here.
//!
//! POSIX and the file systems in use promise at least this much (ext4 and xfs order much more).
//! A kill of the process is a crash that loses nothing, of which a later power cut may still lose
//! what was not synced: [`Sim::resume`].

pub mod crash;
mod image;
mod op;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Access, Backend, BackendFile, FileKind, Links, Lock, Metadata, Storage};

pub use crash::{Point, Rng, points};
pub use image::{Content, Image};
pub use op::{Ino, Logged, Op};

/// What goes wrong, counted in changes (syncs among them) from when it is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Change number `at` fails with this error of the operating system, and with `lasting` all
    /// after it. Of a write that fails, half is there.
    Error { at: u64, errno: i32, lasting: bool },
    /// From change number `at` on nothing happens any more.
    Cut { at: u64 },
}

#[derive(Debug, Default)]
struct World {
    start: Image,
    live: Image,
    log: Vec<Logged>,
    /// By file, the locks of open handles.
    locks: BTreeMap<Ino, BTreeMap<u64, Lock>>,
    handles: u64,
    fault: Option<Fault>,
    /// Changes since the fault was planned.
    changes: u64,
    clock: u64,
    writes: u64,
    syncs: u64,
    /// Reads of layers since the fault was planned, and which one fails.
    reads: u64,
    bad_read: Option<u64>,
    hook: Hook,
}

/// Something that is to happen at a change.
#[derive(Default)]
struct Hook(Option<(u64, Box<dyn FnOnce() + Send>)>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hook").field(&self.0.as_ref().map(|(at, _)| at)).finish()
    }
}

/// The file system; a clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct Sim(Arc<Mutex<World>>);

#[derive(Debug)]
struct Handle {
    sim: Sim,
    ino: Ino,
    number: u64,
    path: PathBuf,
    access: Access,
}

enum Verdict {
    Go,
    /// It fails, and a write is half there.
    Fail(io::Error),
    Off(io::Error),
}

impl World {
    fn verdict(&mut self) -> Verdict {
        let number = self.changes;
        self.changes += 1;
        if let Some((_, act)) = self.hook.0.take_if(|(at, _)| *at == number) {
            act();
        }
        match self.fault {
            Some(Fault::Error { at, errno, lasting }) if number == at || lasting && number > at => {
                Verdict::Fail(io::Error::from_raw_os_error(errno))
            }
            Some(Fault::Cut { at }) if number >= at => Verdict::Off(io::Error::other("the power is off")),
            _ => Verdict::Go,
        }
    }

    fn change(&mut self) -> io::Result<()> {
        match self.verdict() {
            Verdict::Go => Ok(()),
            Verdict::Fail(e) | Verdict::Off(e) => Err(e),
        }
    }

    fn record(&mut self, op: Op, path: &Path) {
        self.clock += 1;
        self.live.apply(&op, self.clock);
        let dropped = if let Op::Reread { ino, .. } = op { Some(ino) } else { None };
        self.log.push(Logged { op, path: path.to_owned() });
        if let Some(ino) = dropped
            && let Some(content) = crash::reread(&self.start, &self.log, ino)
            && let Some(file) = self.live.file_mut(ino)
        {
            *file = content;
        }
    }

    fn metadata(&self, ino: Ino) -> Metadata {
        let file = self.live.file(ino);
        Metadata {
            kind: if file.is_some() { FileKind::File } else { FileKind::Dir },
            len: file.map_or(0, Content::size),
            allocated: file.map_or(0, Content::allocated),
            modified: SystemTime::UNIX_EPOCH + Duration::from_nanos(file.map_or(0, Content::modified)),
            dev: 1,
            ino: ino as u64,
            links: self.live.links(ino),
        }
    }

    fn make(&mut self, path: &Path, folder: bool) -> io::Result<Ino> {
        let (dir, name) = self.live.place(path)?;
        if self.live.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change()?;
        let ino = self.live.next_ino();
        self.record(Op::Make { ino, dir, name, folder }, path);
        Ok(ino)
    }
}

impl Sim {
    /// A disk as a crash left it: all that is there is durable.
    pub fn mount(image: Image) -> Self {
        let world = World { start: image.clone(), live: image, clock: 1 << 32, ..World::default() };
        Self(Arc::new(Mutex::new(world)))
    }

    /// What a killed process leaves: all changes of `log` are seen, and those that were not
    /// synced can still be lost.
    pub fn resume(start: Image, log: &[Logged]) -> Self {
        let sim = Self::mount(start);
        for logged in log {
            sim.world().record(logged.op.clone(), &logged.path);
        }
        sim
    }

    pub fn storage(&self) -> Storage {
        Storage::new(Arc::new(self.clone()))
    }

    /// No panic leaves it half changed.
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far is durable, and not recorded any more.
    pub fn settle(&self) {
        let mut world = self.world();
        world.start = world.live.clone();
        world.log.clear();
    }

    /// What recording began with.
    pub fn start(&self) -> Image {
        self.world().start.clone()
    }

    pub fn live(&self) -> Image {
        self.world().live.clone()
    }

    pub fn log(&self) -> Vec<Logged> {
        self.world().log.clone()
    }

    pub fn log_len(&self) -> usize {
        self.world().log.len()
    }

    pub fn mark(&self, epoch: u32) {
        self.world().record(Op::Mark(epoch), Path::new(""));
    }

    /// Plans what goes wrong, or with `None` that nothing does any more.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut world = self.world();
        world.fault = fault;
        world.changes = 0;
        world.reads = 0;
        world.bad_read = None;
        world.hook = Hook::default();
    }

    /// Read number `at` of a layer fails from here on.
    pub fn fail_read(&self, at: u64) {
        self.plan(None);
        self.world().bad_read = Some(at);
    }

    /// Reads of layers since the last [`Sim::plan`].
    pub fn reads(&self) -> u64 {
        self.world().reads
    }

    /// `act` happens in change number `at` from here on; it must not touch this file system.
    pub fn at_change(&self, at: u64, act: impl FnOnce() + Send + 'static) {
        self.plan(None);
        self.world().hook = Hook(Some((at, Box::new(act))));
    }

    /// Changes tried since the last [`Sim::plan`].
    pub fn changes(&self) -> u64 {
        self.world().changes
    }

    /// Writes and syncs so far.
    pub fn counts(&self) -> (u64, u64) {
        let world = self.world();
        (world.writes, world.syncs)
    }

    /// The power goes and comes back. Nobody may have a file open.
    pub fn crash(&self, seed: u64) {
        let (start, log) = (self.start(), self.log());
        let point = crash::end(&start, &log);
        let image = point.state(&point.random_choice(&mut Rng::new(seed)));
        let mut world = self.world();
        (world.start, world.live) = (image.clone(), image);
        world.log.clear();
        world.locks.clear();
        world.fault = None;
    }
}

impl Sim {
    fn handle(&self, world: &mut World, ino: Ino, path: &Path, access: Access) -> Box<dyn BackendFile> {
        world.handles += 1;
        Box::new(Handle { sim: self.clone(), ino, number: world.handles, path: path.to_owned(), access })
    }
}

impl Backend for Sim {
    // There are no symbolic links here.
    fn open_within(&self, root: &Path, name: &Path) -> io::Result<Box<dyn BackendFile>> {
        Backend::open(self, &root.join(name), Access::ReadOnly, Links::Refuse)
    }

    fn open(&self, path: &Path, access: Access, _: Links) -> io::Result<Box<dyn BackendFile>> {
        let mut world = self.world();
        let ino = world.live.find(path)?;
        if world.live.is_dir(ino) && access == Access::ReadWrite {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(self.handle(&mut world, ino, path, access))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn BackendFile>> {
        let mut world = self.world();
        let ino = world.make(path, false)?;
        Ok(self.handle(&mut world, ino, path, Access::ReadWrite))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.world().make(path, true).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let ((dir, old), (to_dir, new)) = (world.live.place(from)?, world.live.place(to)?);
        if dir != to_dir {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let ino = world.live.find(from)?;
        if let Ok(replaced) = world.live.find(to) {
            match (world.live.is_dir(ino), world.live.dir(replaced)) {
                (true, None) => return Err(io::ErrorKind::NotADirectory.into()),
                (false, Some(_)) => return Err(io::ErrorKind::IsADirectory.into()),
                (true, Some(names)) if !names.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                _ => {}
            }
        }
        world.change()?;
        world.record(Op::Rename { ino, dir, from: old, to: new }, from);
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.live.find(from)?;
        let (dir, name) = world.live.place(to)?;
        if world.live.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.change()?;
        world.record(Op::Link { ino, dir, name }, to);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.live.find(path)?;
        if world.live.is_dir(ino) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (dir, name) = world.live.place(path)?;
        world.change()?;
        world.record(Op::Remove { dir, name }, path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.live.find(path)?;
        let names = world.live.dir(ino).ok_or(io::ErrorKind::NotADirectory)?;
        if !names.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = world.live.place(path)?;
        world.change()?;
        world.record(Op::Remove { dir, name }, path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.live.find(path)?;
        world.change()?;
        world.record(Op::SyncDir { ino }, path);
        Ok(())
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let world = self.world();
        let ino = world.live.find(path)?;
        let names = world.live.dir(ino).ok_or(io::ErrorKind::NotADirectory)?;
        Ok(names.keys().cloned().collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let world = self.world();
        Ok(world.metadata(world.live.find(path)?))
    }
}

impl Handle {
    /// A change of this file.
    fn change(&self, op: Op) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut world = self.sim.world();
        world.change()?;
        world.record(op, &self.path);
        Ok(())
    }
}

impl BackendFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut world = self.sim.world();
        if self.path.extension().is_some_and(|extension| extension == "delta") {
            world.reads += 1;
            if world.bad_read.is_some_and(|at| at + 1 == world.reads) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        let file = world.live.file(self.ino).ok_or(io::ErrorKind::IsADirectory)?;
        Ok(file.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut world = self.sim.world();
        world.writes += 1;
        let (data, result) = match world.verdict() {
            Verdict::Go => (buf, Ok(())),
            Verdict::Fail(e) => (&buf[..buf.len() / 2], Err(e)),
            Verdict::Off(e) => return Err(e),
        };
        world.record(Op::Write { ino: self.ino, offset, data: data.into() }, &self.path);
        result
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Ok(self.sim.world().metadata(self.ino))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen { ino: self.ino, len })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Punch { ino: self.ino, offset, len })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.sim.world().live.file(self.ino).and_then(|file| file.next_data(offset)))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.sim.world();
        world.syncs += 1;
        let (op, result) = match world.verdict() {
            Verdict::Go => (Op::SyncFile { ino: self.ino }, Ok(())),
            Verdict::Fail(e) => (Op::SyncFailed { ino: self.ino }, Err(e)),
            Verdict::Off(e) => return Err(e),
        };
        world.record(op, &self.path);
        result
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn let_go(&self, _: Range<u64>) -> io::Result<()> {
        let mut world = self.sim.world();
        let failed = |logged: &Logged| matches!(logged.op, Op::SyncFailed { ino } if ino == self.ino);
        if world.log.iter().any(failed) {
            let seed = world.clock;
            world.record(Op::Reread { ino: self.ino, seed }, &self.path);
        }
        Ok(())
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        if lock == Lock::Exclusive && self.access == Access::ReadOnly {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut world = self.sim.world();
        let locks = world.locks.entry(self.ino).or_default();
        let against = |other: &Lock| match lock {
            Lock::None => false,
            Lock::Shared => *other == Lock::Exclusive,
            Lock::Exclusive => *other != Lock::None,
        };
        if locks.iter().any(|(number, other)| *number != self.number && against(other)) {
            return Ok(false);
        }
        locks.insert(self.number, lock);
        Ok(true)
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(locks) = self.sim.world().locks.get_mut(&self.ino) {
            locks.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests;
