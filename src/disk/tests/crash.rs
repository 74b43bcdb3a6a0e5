//! A file system in memory that loses power: of what was not synced, any
//! sectors may be there afterwards and any may not.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::storage::{Access, Backend, BackendFile, FileKind, Lock, Metadata};

const SECTOR: u64 = 512;
type Sectors = BTreeMap<u64, [u8; 512]>;

#[derive(Clone, Debug, Default)]
struct Node {
    live: Sectors,
    live_len: u64,
    durable: Sectors,
    durable_len: u64,
    /// Sectors as they were written, in order.
    pending: Vec<(u64, [u8; 512])>,
}

#[derive(Debug, Default)]
struct World {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes left until the power goes.
    fuse: Option<u64>,
    /// Writes and syncs so far.
    counts: (u64, u64),
}

#[derive(Clone, Debug, Default)]
pub struct CrashDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct Handle(CrashDisk, usize);

impl World {
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl CrashDisk {
    pub fn counts(&self) -> (u64, u64) {
        self.0.lock().unwrap().counts
    }

    pub fn set_fuse(&self, changes: u64) {
        self.0.lock().unwrap().fuse = Some(changes);
    }

    pub fn crash(&self, seed: u64) {
        let mut random = seed | 1;
        let mut coin = move |chance: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % 8 < chance
        };
        let mut world = self.0.lock().unwrap();
        world.fuse = None;
        // How much gets lost differs from crash to crash.
        let chance = seed >> 8 & 7;
        for node in &mut world.nodes {
            for (at, bytes) in std::mem::take(&mut node.pending) {
                if coin(chance) {
                    node.durable.insert(at, bytes);
                }
            }
            node.live = node.durable.clone();
            node.live_len = node.durable_len;
        }
        if coin(4) {
            world.durable_names = world.names.clone();
        }
        world.names = world.durable_names.clone();
    }
}

impl Backend for CrashDisk {
    fn open(&self, path: &Path, _: Access) -> io::Result<Box<dyn BackendFile>> {
        let node = self.0.lock().unwrap().find(path)?;
        Ok(Box::new(Handle(self.clone(), node)))
    }
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn BackendFile>> {
        let mut world = self.0.lock().unwrap();
        world.burn()?;
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.nodes.push(Node::default());
        let node = world.nodes.len() - 1;
        world.names.insert(path.to_owned(), node);
        Ok(Box::new(Handle(self.clone(), node)))
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.burn()?;
        world.find(path)?;
        world.names.remove(path);
        Ok(())
    }
    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.burn()?;
        world.durable_names = world.names.clone();
        Ok(())
    }
    fn list_dir(&self, _: &Path) -> io::Result<Vec<OsString>> {
        let world = self.0.lock().unwrap();
        Ok(world.names.keys().map(|p| p.clone().into()).collect())
    }
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let node = self.0.lock().unwrap().find(path)?;
        Handle(self.clone(), node).metadata()
    }
}

impl Handle {
    fn change(&self, write: impl FnOnce(&mut Node)) -> io::Result<()> {
        let mut world = self.0.0.lock().unwrap();
        world.burn()?;
        write(&mut world.nodes[self.1]);
        Ok(())
    }
}

impl Node {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(SECTOR) && (bytes.len() as u64).is_multiple_of(SECTOR));
        for (at, sector) in (offset / SECTOR..).zip(bytes.chunks_exact(512)) {
            let sector: [u8; 512] = sector.try_into().unwrap();
            self.live.insert(at, sector);
            self.pending.push((at, sector));
        }
    }
}

impl BackendFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        assert!(offset.is_multiple_of(SECTOR));
        let world = self.0.0.lock().unwrap();
        let node = &world.nodes[self.1];
        let len = (buf.len() as u64).min(node.live_len.saturating_sub(offset)) as usize;
        for (at, part) in (offset / SECTOR..).zip(buf[..len].chunks_mut(512)) {
            match node.live.get(&at) {
                Some(sector) => part.copy_from_slice(&sector[..part.len()]),
                None => part.fill(0),
            }
        }
        Ok(len)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.0.lock().unwrap().counts.0 += 1;
        self.change(|node| {
            node.put(offset, buf);
            node.live_len = node.live_len.max(offset + buf.len() as u64);
        })
    }
    fn metadata(&self) -> io::Result<Metadata> {
        Ok(Metadata {
            kind: FileKind::File,
            len: self.0.0.lock().unwrap().nodes[self.1].live_len,
            allocated: 0,
            modified: SystemTime::UNIX_EPOCH,
            dev: 0,
            ino: self.1 as u64,
            links: 1,
        })
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|node| node.live_len = len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|node| {
            let range = offset / SECTOR..(offset + len) / SECTOR;
            let written: Vec<u64> = node.live.range(range).map(|(at, _)| *at).collect();
            written.into_iter().for_each(|at| node.put(at * SECTOR, &[0; 512]));
        })
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let world = self.0.0.lock().unwrap();
        let mut data = world.nodes[self.1].live.range(offset / SECTOR..);
        let Some((first, _)) = data.next() else {
            return Ok(None);
        };
        Ok(Some((first * SECTOR).max(offset)..(first + 1) * SECTOR))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.0.lock().unwrap().counts.1 += 1;
        self.change(|node| {
            node.durable.extend(node.pending.drain(..));
            node.durable_len = node.live_len;
        })
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn try_lock(&self, _: Lock) -> io::Result<bool> {
        Ok(true)
    }
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
