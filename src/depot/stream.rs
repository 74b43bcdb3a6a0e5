//! A stream of a depot to be read as a disk, a file, or memory.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::fetch::{Fetch, Wanted};
use super::keys::is_zero;
use super::manifest::{self, MAP, Stream};
use super::name::Name;
use super::{DepotError, Result};
use crate::capture::image::{ImageInfo, ImageWriter};
use crate::disk::{Backing, DiskError};
use crate::history::whole::arrival::{Contents, Memory};
use crate::history::whole::{self, WholeError};
use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::progress::Progress;
use crate::storage::Storage;

/// Bytes that are fetched together, while those before them are used.
const BATCH: u64 = 16 << 20;

type Found = HashMap<Name, Arc<Vec<u8>>>;

/// Chunks by number, and what they are.
struct Batch {
    chunks: Range<u64>,
    found: Found,
}

#[derive(Default)]
struct Ahead {
    now: Option<Batch>,
    next: Option<(u64, JoinHandle<Result<Batch>>)>,
}

/// Quick to read from front to back.
pub struct Reader {
    fetch: Arc<Fetch>,
    stream: Stream,
    /// Of all chunks.
    names: Arc<Vec<Name>>,
    ahead: Mutex<Ahead>,
}

/// The names of a stream's chunks.
pub fn names(fetch: &Fetch, stream: &Stream) -> Result<Vec<Name>> {
    let parts: Vec<Wanted> =
        stream.map.iter().enumerate().map(|(at, name)| (*name, stream.names_in(at) * Name::LEN)).collect();
    let mut names = Vec::with_capacity(usize::try_from(stream.chunks()).unwrap_or(0).min(MAP * parts.len()));
    for some in parts.chunks(64) {
        let found = fetch.get(some)?;
        for (name, len) in some {
            let part = found.get(name).and_then(|part| part.get(..*len));
            let part = part.ok_or_else(|| DepotError::damaged("the map of a stream", "it is too short"))?;
            names.extend(part.chunks_exact(Name::LEN).map(|bytes| {
                let mut name = Name::ZEROS;
                name.0.copy_from_slice(bytes);
                name
            }));
        }
    }
    Ok(names)
}

impl Reader {
    pub fn open(fetch: &Arc<Fetch>, stream: &Stream) -> Result<Self> {
        let names = Arc::new(names(fetch, stream)?);
        Ok(Self { fetch: fetch.clone(), stream: stream.clone(), names, ahead: Mutex::default() })
    }

    pub fn bytes(&self) -> u64 {
        self.stream.bytes
    }

    pub fn chunk_size(&self) -> u64 {
        self.stream.chunk.into()
    }

    /// The first chunk from `from` on that is not all zeros.
    pub fn next_chunk(&self, from: u64) -> Option<u64> {
        (from..self.names.len() as u64).find(|at| self.names[*at as usize] != Name::ZEROS)
    }

    /// Chunks from `from` on, as many as are fetched together.
    fn batch_at(&self, from: u64) -> Range<u64> {
        let (mut bytes, mut at) = (0, from);
        while at < self.names.len() as u64 && bytes < BATCH {
            if self.names[at as usize] != Name::ZEROS {
                bytes += self.chunk_size();
            }
            at += 1;
        }
        from..at
    }

    fn wanted(&self, chunks: Range<u64>) -> Vec<Wanted> {
        chunks
            .map(|at| (self.names[at as usize], self.stream.len_of(at)))
            .filter(|(name, _)| *name != Name::ZEROS)
            .collect()
    }

    fn start(&self, from: u64) -> Option<(u64, JoinHandle<Result<Batch>>)> {
        let from = self.next_chunk(from)?;
        let (fetch, chunks) = (self.fetch.clone(), self.batch_at(from));
        let wanted = self.wanted(chunks.clone());
        let get = move || Ok(Batch { chunks, found: fetch.get(&wanted)? });
        let thread = std::thread::Builder::new().name("fetch".into()).spawn(get);
        // Without a thread it is fetched when it is needed.
        thread.ok().map(|thread| (from, thread))
    }

    /// None: zeros.
    pub fn chunk(&self, at: u64) -> Result<Option<Arc<Vec<u8>>>> {
        let name = self.names[at as usize];
        if name == Name::ZEROS {
            return Ok(None);
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.now.as_ref().is_none_or(|batch| !batch.chunks.contains(&at)) {
            let batch = match ahead.next.take() {
                Some((from, thread)) if from == at => match thread.join() {
                    Ok(batch) => batch?,
                    Err(_) => return Err(DepotError::damaged("a chunk", "it could not be fetched")),
                },
                _ => {
                    let chunks = self.batch_at(at);
                    let found = self.fetch.get(&self.wanted(chunks.clone()))?;
                    Batch { chunks, found }
                }
            };
            ahead.next = self.start(batch.chunks.end);
            ahead.now = Some(batch);
        }
        let found = ahead.now.as_ref().and_then(|batch| batch.found.get(&name));
        found.cloned().map(Some).ok_or_else(|| DepotError::damaged("a chunk", "it was not fetched"))
    }

    /// All of it; for streams whose length was bounded before.
    pub fn read_all(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for at in 0..self.names.len() as u64 {
            match self.chunk(at)? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => bytes.resize(bytes.len() + self.stream.len_of(at), 0),
            }
        }
        Ok(bytes)
    }
}

fn of_disk(error: DepotError) -> DiskError {
    match error {
        DepotError::Cancelled(cancelled) => cancelled.into(),
        error => DiskError::Elsewhere(error.to_string()),
    }
}

fn of_whole(error: DepotError) -> WholeError {
    match error {
        DepotError::Cancelled(cancelled) => cancelled.into(),
        error => WholeError::Elsewhere(error.to_string()),
    }
}

impl Backing for Reader {
    fn len(&self) -> u64 {
        self.stream.bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), DiskError> {
        let (size, len) = (self.stream.bytes, buf.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(DiskError::OutOfRange { offset, len, size });
        }
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let (number, within) = (at / self.chunk_size(), (at % self.chunk_size()) as usize);
            let here = (self.stream.len_of(number) - within).min(rest.len());
            let (part, after) = rest.split_at_mut(here);
            match self.chunk(number).map_err(of_disk)? {
                Some(chunk) => part.copy_from_slice(&chunk[within..within + here]),
                None => part.fill(0),
            }
            (rest, at) = (after, at + here as u64);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> std::result::Result<Option<Range<u64>>, DiskError> {
        let Some(first) = self.next_chunk(offset / self.chunk_size()) else { return Ok(None) };
        let zero = |at: &u64| self.names[*at as usize] == Name::ZEROS;
        let end = (first..self.names.len() as u64).find(zero).unwrap_or(self.names.len() as u64);
        let start = (first * self.chunk_size()).max(offset);
        Ok(Some(start..(end * self.chunk_size()).min(self.stream.bytes)))
    }
}

impl Contents for Reader {
    fn write(&self, storage: &Storage, to: &Path, progress: &Progress) -> whole::Result<()> {
        let file = storage.create_new(to)?;
        file.set_len(self.stream.bytes)?;
        for at in 0..self.names.len() as u64 {
            progress.check()?;
            if let Some(chunk) = self.chunk(at).map_err(of_whole)? {
                file.write_at(&chunk, at * self.chunk_size())?;
            }
        }
        Ok(file.sync_data()?)
    }
}

/// Memory of a checkpoint in a depot.
pub struct Ram {
    pub reader: Reader,
    pub about: manifest::Memory,
}

impl Memory for Ram {
    fn write(&self, storage: &Storage, path: &Path, id: Id, progress: &Progress) -> whole::Result<ImageInfo> {
        progress.phase("memory", self.reader.bytes());
        let mut writer = ImageWriter::create(storage, path, id, &self.about.ranges)?;
        let mut before = 0;
        for &(start, len) in &self.about.ranges {
            // Where the range is in the stream.
            let range = before..before + len;
            let mut at = range.start;
            while at < range.end {
                progress.check()?;
                let number = at / self.reader.chunk_size();
                let end = ((number + 1) * self.reader.chunk_size()).min(range.end);
                if let Some(chunk) = self.reader.chunk(number).map_err(of_whole)? {
                    let within = (at - number * self.reader.chunk_size()) as usize;
                    let part = &chunk[within..within + (end - at) as usize];
                    write_pages(&mut writer, start + at - range.start, part)?;
                }
                progress.add(end - at);
                at = end;
            }
            before = range.end;
        }
        if self.about.compressed {
            writer.compress_all(progress)?;
        }
        Ok(writer.finish()?)
    }
}

/// What is zeros is not written: a full image has it without that.
fn write_pages(writer: &mut ImageWriter, gpa: u64, bytes: &[u8]) -> whole::Result<()> {
    let page = PAGE_SIZE as usize;
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        while at < bytes.len() && !is_zero(&bytes[at..at + page]) {
            at += page;
        }
        if start < at {
            writer.write(gpa + start as u64, &bytes[start..at])?;
        }
        at += page;
    }
    Ok(())
}
