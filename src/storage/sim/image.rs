//! What a file system holds at one moment, cheap to copy: copies share what they have in common.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use super::op::{Ino, Op};

pub const SECTOR: u64 = 512;
const SECTOR_LEN: usize = SECTOR as usize;
pub const ROOT: Ino = 0;

#[derive(Debug)]
struct Sector {
    bytes: [u8; SECTOR_LEN],
    /// Hash of the bytes; 0 of zeros, so that a hole and zeros are the same.
    print: u64,
}

/// The bytes of a file. Sectors that are not here are holes.
#[derive(Clone, Debug, Default)]
pub struct Content {
    sectors: BTreeMap<u64, Arc<Sector>>,
    len: u64,
    /// Of all sectors, whatever their order.
    print: u64,
    /// Ticks of the clock that counts changes.
    modified: u64,
}

#[derive(Clone, Debug)]
enum Node {
    File(Content),
    Dir(BTreeMap<OsString, Ino>),
}

/// A whole file system.
#[derive(Clone, Debug)]
pub struct Image {
    nodes: Vec<Arc<Node>>,
}

/// A good mixer of 64 bits (the finaliser of SplitMix64).
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Sectors are hashed by the million, by code that is built for speed also in tests.
fn hash(bytes: &[u8]) -> u64 {
    let (one, two) = bytes.split_at(bytes.len() / 2);
    mix(u64::from(crc32fast::hash(one)) << 32 | u64::from(crc32fast::hash(two)))
}

impl Content {
    pub fn size(&self) -> u64 {
        self.len
    }

    pub fn modified(&self) -> u64 {
        self.modified
    }

    pub fn allocated(&self) -> u64 {
        self.sectors.len() as u64 * SECTOR
    }

    fn put(&mut self, at: u64, bytes: Option<[u8; SECTOR_LEN]>) {
        let print = |sector: &Sector| if sector.print == 0 { 0 } else { mix(sector.print ^ mix(at + 1)) };
        let old = match bytes {
            None => self.sectors.remove(&at),
            Some(bytes) => {
                let found = if bytes == [0; SECTOR_LEN] { 0 } else { hash(&bytes) | 1 };
                let sector = Arc::new(Sector { bytes, print: found });
                self.print = self.print.wrapping_add(print(&sector));
                self.sectors.insert(at, sector)
            }
        };
        self.print = self.print.wrapping_sub(old.map_or(0, |old| print(&old)));
    }

    /// Writes those sectors that `keep` lets pass; the length is another matter.
    pub fn write(&mut self, offset: u64, data: &[u8], keep: &dyn Fn(u64) -> bool) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let (number, within) = (at / SECTOR, (at % SECTOR) as usize);
            let count = (SECTOR_LEN - within).min((end - at) as usize);
            if keep(number * SECTOR) {
                let mut bytes = self.sectors.get(&number).map_or([0; SECTOR_LEN], |sector| sector.bytes);
                let from = (at - offset) as usize;
                bytes[within..within + count].copy_from_slice(&data[from..from + count]);
                self.put(number, Some(bytes));
            }
            at += count as u64;
        }
    }

    /// Clears those sectors that `keep` lets pass.
    pub fn punch(&mut self, range: Range<u64>, keep: &dyn Fn(u64) -> bool) {
        if range.is_empty() {
            return;
        }
        let touched = range.start / SECTOR..range.end.div_ceil(SECTOR);
        let there: Vec<u64> = self.sectors.range(touched).map(|(at, _)| *at).collect();
        for at in there.into_iter().filter(|at| keep(at * SECTOR)) {
            let sector = at * SECTOR..(at + 1) * SECTOR;
            if range.start <= sector.start && sector.end <= range.end {
                self.put(at, None);
            } else if let Some(old) = self.sectors.get(&at) {
                let mut bytes = old.bytes;
                let from = range.start.max(sector.start) - sector.start;
                let to = range.end.min(sector.end) - sector.start;
                bytes[from as usize..to as usize].fill(0);
                self.put(at, Some(bytes));
            }
        }
    }

    /// What lies past the new end is gone.
    pub fn set_len(&mut self, len: u64) {
        self.punch(len..u64::MAX - SECTOR, &|_| true);
        self.len = len;
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = (buf.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        buf[..count].fill(0);
        let end = offset + count as u64;
        for (number, sector) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = number * SECTOR;
            let part = start.max(offset)..(start + SECTOR).min(end);
            if part.is_empty() {
                continue;
            }
            let bytes = &sector.bytes[(part.start - start) as usize..(part.end - start) as usize];
            buf[(part.start - offset) as usize..(part.end - offset) as usize].copy_from_slice(bytes);
        }
        count
    }

    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let mut sectors = self.sectors.range(offset / SECTOR..).map(|(at, _)| *at);
        let first = sectors.next()?;
        let last =
            sectors.zip(first + 1..first + 64).take_while(|(at, next)| at == next).count() as u64 + first;
        let found = (first * SECTOR).max(offset)..((last + 1) * SECTOR).min(self.len);
        (!found.is_empty()).then_some(found)
    }
}

fn error(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

impl Default for Image {
    fn default() -> Self {
        Self { nodes: vec![Arc::new(Node::Dir(BTreeMap::new()))] }
    }
}

impl Image {
    pub fn next_ino(&self) -> Ino {
        self.nodes.len()
    }

    pub fn is_dir(&self, ino: Ino) -> bool {
        self.dir(ino).is_some()
    }

    pub fn file(&self, ino: Ino) -> Option<&Content> {
        match &**self.nodes.get(ino)? {
            Node::File(content) => Some(content),
            Node::Dir(_) => None,
        }
    }

    pub fn file_mut(&mut self, ino: Ino) -> Option<&mut Content> {
        match Arc::make_mut(self.nodes.get_mut(ino)?) {
            Node::File(content) => Some(content),
            Node::Dir(_) => None,
        }
    }

    pub fn dir(&self, ino: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        match &**self.nodes.get(ino)? {
            Node::File(_) => None,
            Node::Dir(names) => Some(names),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> Option<&mut BTreeMap<OsString, Ino>> {
        match Arc::make_mut(self.nodes.get_mut(ino)?) {
            Node::File(_) => None,
            Node::Dir(names) => Some(names),
        }
    }

    /// How many names it has.
    pub fn links(&self, ino: Ino) -> u64 {
        let dirs = (0..self.nodes.len()).filter_map(|dir| self.dir(dir));
        dirs.flat_map(BTreeMap::values).filter(|named| **named == ino).count() as u64
    }

    pub fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let names = self.dir(at).ok_or_else(|| error(io::ErrorKind::NotADirectory))?;
                    at = *names.get(name).ok_or_else(|| error(io::ErrorKind::NotFound))?;
                }
                _ => return Err(error(io::ErrorKind::InvalidInput)),
            }
        }
        Ok(at)
    }

    /// The folder that a path names something in, and that name.
    pub fn place(&self, path: &Path) -> io::Result<(Ino, OsString)> {
        let name = path.file_name().ok_or_else(|| error(io::ErrorKind::InvalidInput))?;
        let dir = self.find(path.parent().unwrap_or(Path::new("/")))?;
        if !self.is_dir(dir) {
            return Err(error(io::ErrorKind::NotADirectory));
        }
        Ok((dir, name.to_owned()))
    }

    /// A file or folder that has no name yet.
    pub fn allocate(&mut self, ino: Ino, folder: bool) {
        while self.nodes.len() <= ino {
            self.nodes.push(Arc::new(Node::File(Content::default())));
        }
        if folder {
            self.nodes[ino] = Arc::new(Node::Dir(BTreeMap::new()));
        }
    }

    /// Changes names as `op` says; nothing for any other.
    pub fn apply_names(&mut self, op: &Op) {
        match op {
            Op::Make { ino, dir, name, .. } | Op::Link { ino, dir, name } => {
                if let Some(names) = self.dir_mut(*dir) {
                    names.insert(name.clone(), *ino);
                }
            }
            Op::Remove { dir, name } => {
                if let Some(names) = self.dir_mut(*dir) {
                    names.remove(name);
                }
            }
            Op::Rename { ino, dir, from, to } => {
                if let Some(names) = self.dir_mut(*dir) {
                    names.remove(from);
                    names.insert(to.clone(), *ino);
                }
            }
            _ => {}
        }
    }

    /// All of `op`, as whoever goes on without a crash sees it.
    pub fn apply(&mut self, op: &Op, clock: u64) {
        match op {
            Op::Make { ino, folder, .. } => {
                self.allocate(*ino, *folder);
                self.apply_names(op);
            }
            Op::Link { .. } | Op::Remove { .. } | Op::Rename { .. } => self.apply_names(op),
            Op::Write { ino, offset, data } => {
                if let Some(file) = self.file_mut(*ino) {
                    file.write(*offset, data, &|_| true);
                    file.len = file.len.max(offset + data.len() as u64);
                    file.modified = clock;
                }
            }
            Op::SetLen { ino, len } => {
                if let Some(file) = self.file_mut(*ino) {
                    file.set_len(*len);
                    file.modified = clock;
                }
            }
            Op::Punch { ino, offset, len } => {
                if let Some(file) = self.file_mut(*ino) {
                    file.punch(*offset..offset + len, &|_| true);
                    file.modified = clock;
                }
            }
            Op::SyncFile { .. }
            | Op::SyncDir { .. }
            | Op::SyncFailed { .. }
            | Op::Reread { .. }
            | Op::Mark(_) => {}
        }
    }

    /// The same for two file systems that read the same; names that lead nowhere do not count.
    pub fn print(&self) -> u64 {
        self.print_of(ROOT)
    }

    fn print_of(&self, ino: Ino) -> u64 {
        match &**match self.nodes.get(ino) {
            Some(node) => node,
            None => return 0,
        } {
            Node::File(content) => mix(content.print ^ mix(content.len)),
            Node::Dir(names) => names.iter().fold(1, |sum: u64, (name, ino)| {
                sum.wrapping_add(mix(hash(name.as_encoded_bytes()) ^ self.print_of(*ino).rotate_left(17)))
            }),
        }
    }

    /// Every file below a folder, by path, sorted; folders end in `/`.
    pub fn tree(&self, path: &Path) -> io::Result<Vec<(std::path::PathBuf, Ino)>> {
        let mut found = Vec::new();
        let mut open = vec![(path.to_owned(), self.find(path)?)];
        while let Some((path, ino)) = open.pop() {
            match self.dir(ino) {
                Some(names) => {
                    open.extend(names.iter().map(|(name, ino)| (path.join(name), *ino)));
                    found.push((path.join(""), ino));
                }
                None => found.push((path, ino)),
            }
        }
        found.sort();
        Ok(found)
    }
}
