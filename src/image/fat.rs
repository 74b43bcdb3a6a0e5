//! Files on FAT, as EFI system partitions have it, read by the `fatfs` crate.
//!
//! The crate follows chains of clusters wherever they lead, in circles, too: what one question may read is
//! bounded by [`Reader::left`]. Clusters that there are not lead it beyond the end, which [`Part`] refuses;
//! its arithmetic wraps there in every build (`Cargo.toml`).

use std::cell::Cell;
use std::io::{self, Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use fatfs::{Dir, DirEntry, FileSystem, FsOptions};

use super::node::Node;
use super::source::Part;

const MAX_NAMES: usize = 4096;
/// Parts of a path.
const DEPTH_MAX: usize = 64;
/// Reads for one question, beside those of a file's data: some for each entry of large folders.
const READS: u64 = 1 << 20;
/// Bytes of the smallest cluster: of each, some reads.
const CLUSTER_MIN: u64 = 512;
const READS_EACH: u64 = 8;
/// What is read at one time, and how many such pieces are kept.
const PIECE: u64 = 32 << 10;
const PIECES: usize = 4;

/// The crate reads some bytes at a time, here and there.
struct Reader {
    part: Part,
    at: u64,
    left: Rc<Cell<u64>>,
    /// Where they begin; the one used last is last.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Reader {
    fn piece(&mut self, begin: u64) -> io::Result<&[u8]> {
        let known = self.pieces.iter().position(|(at, _)| *at == begin);
        let piece = match known {
            Some(index) => self.pieces.remove(index),
            None => {
                let len = PIECE.min(self.part.len.saturating_sub(begin));
                let mut bytes = vec![0; usize::try_from(len).map_err(Error::other)?];
                self.part.read(&mut bytes, begin).map_err(|e| Error::other(e.to_string()))?;
                if self.pieces.len() >= PIECES {
                    self.pieces.remove(0);
                }
                (begin, bytes)
            }
        };
        self.pieces.push(piece);
        Ok(self.pieces.last().map_or(&[], |(_, bytes)| bytes))
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self
            .left
            .get()
            .checked_sub(1)
            .ok_or_else(|| Error::other("its folders or files lead in circles"))?;
        self.left.set(left);
        if self.at >= self.part.len {
            return Err(Error::other("a cluster is beyond its end"));
        }
        let (at, begin) = (self.at, self.at - self.at % PIECE);
        let piece = self.piece(begin)?;
        let rest = usize::try_from(at - begin).ok().and_then(|skip| piece.get(skip..)).unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.part.len.checked_add_signed(by),
        };
        self.at = to.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The crate asks for it. Nothing is ever written.
impl Write for Reader {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct Fat {
    files: FileSystem<Reader>,
    left: Rc<Cell<u64>>,
}

fn node_of(entry: &DirEntry<'_, Reader>) -> Node {
    let modified = entry.modified();
    let date = chrono::NaiveDate::from_ymd_opt(
        modified.date.year.into(),
        modified.date.month.into(),
        modified.date.day.into(),
    );
    let time = date.and_then(|date| {
        date.and_hms_opt(modified.time.hour.into(), modified.time.min.into(), modified.time.sec.into())
    });
    // Which zone it is in is nowhere said.
    Node::of_fat(entry.is_dir(), entry.len(), time.map_or(0, |time| time.and_utc().timestamp()))
}

fn text(e: Error) -> String {
    e.to_string()
}

impl Fat {
    /// What is wrong with it is a sentence's end.
    pub fn open(part: &Part) -> Result<Self, String> {
        let left = Rc::new(Cell::new(READS));
        let reader = Reader { part: part.clone(), at: 0, left: left.clone(), pieces: Vec::new() };
        let files = FileSystem::new(reader, FsOptions::new()).map_err(text)?;
        Ok(Self { files, left })
    }

    /// What a path leads to, whatever the case of its letters; none: nowhere, or to the root.
    fn find(&self, path: &str) -> Result<Option<DirEntry<'_, Reader>>, String> {
        self.left.set(READS);
        let mut folder = self.files.root_dir();
        let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty()).take(DEPTH_MAX).peekable();
        while let Some(part) = parts.next() {
            let part = part.to_lowercase();
            let mut found = None;
            for entry in folder.iter() {
                let entry = entry.map_err(text)?;
                let is_it = |name: String| name.to_lowercase() == part;
                if !matches!(part.as_str(), "." | "..")
                    && (is_it(entry.file_name()) || is_it(entry.short_file_name()))
                {
                    found = Some(entry);
                    break;
                }
            }
            match found {
                Some(entry) if parts.peek().is_none() => return Ok(Some(entry)),
                Some(entry) if entry.is_dir() => folder = entry.to_dir(),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    pub fn len(&self, path: &str) -> Result<Option<u64>, String> {
        Ok(self.find(path)?.filter(DirEntry::is_file).map(|entry| entry.len()))
    }

    /// `len` bytes of a file from `offset` on.
    pub fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        self.stream(path, offset, len as u64, &mut |piece| {
            if let Some(room) = bytes.get_mut(got..got + piece.len()) {
                room.copy_from_slice(piece);
            }
            got += piece.len();
            true
        })?;
        Ok(bytes)
    }

    pub fn node(&self, path: &str) -> Result<Option<Node>, String> {
        Ok(self.find(path)?.as_ref().map(node_of))
    }

    /// As [`super::ext::Ext::entries`].
    pub fn entries(&self, path: &str, each: &mut dyn FnMut(&[u8], Node) -> bool) -> Result<(), String> {
        let folder = self.folder(path)?.ok_or("it is no folder")?;
        for entry in folder.iter() {
            let entry = entry.map_err(text)?;
            let name = entry.file_name();
            if !matches!(name.as_str(), "." | "..") && !each(name.as_bytes(), node_of(&entry)) {
                break;
            }
        }
        Ok(())
    }

    fn folder(&self, path: &str) -> Result<Option<Dir<'_, Reader>>, String> {
        let is_root = path.split('/').all(str::is_empty);
        Ok(match self.find(path)? {
            Some(entry) if entry.is_dir() => Some(entry.to_dir()),
            None if is_root => Some(self.files.root_dir()),
            _ => None,
        })
    }

    /// As [`super::ext::Ext::stream`], from `offset` on.
    pub fn stream(
        &self,
        path: &str,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), String> {
        let entry = self.find(path)?.filter(DirEntry::is_file).ok_or("it is no file")?;
        self.left.set(READS.saturating_add((offset + len) / CLUSTER_MIN * READS_EACH));
        let mut file = entry.to_file();
        file.seek(SeekFrom::Start(offset)).map_err(text)?;
        let mut block = vec![0; usize::try_from(PIECE).unwrap_or(usize::MAX)];
        let (mut got, mut more) = (0, each(&[]));
        while more && got < len {
            let room = block.len().min(usize::try_from(len - got).unwrap_or(usize::MAX));
            let count = file.read(&mut block[..room]).map_err(text)?;
            if count == 0 {
                return Err(format!("it ends after {got} of {len} bytes"));
            }
            got += count as u64;
            more = each(&block[..count]);
        }
        Ok(())
    }

    /// Names in a folder, sorted; none: there is no such folder.
    pub fn names(&self, path: &str) -> Result<Option<Vec<String>>, String> {
        let Some(folder) = self.folder(path)? else { return Ok(None) };
        let mut names = Vec::new();
        for entry in folder.iter().take(MAX_NAMES) {
            names.push(entry.map_err(text)?.file_name());
        }
        names.retain(|name| !matches!(name.as_str(), "." | ".."));
        names.sort_unstable();
        Ok(Some(names))
    }
}
