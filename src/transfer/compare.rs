//! What differs between two checkpoints, and what the second has there.
//!
//! A range is of whole blocks (disks) or pages (memory) of 4 KiB, each of which differs in at least
//! one byte. Which blocks can differ is taken from layers and images; they are then compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::format::damaged;
use super::{Result, TransferError};
use crate::disk::{Backing, flat, suspects};
use crate::history::whole::memory;
use crate::history::whole::source::Source;
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::{File, Storage};

/// Bytes from which on data lie in the file; the header is before them.
const DATA: u64 = 4096;
const MAGIC: [u8; 8] = *b"PITONdif";
const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Comparison {
    pub a: Id,
    pub b: Id,
    /// By the disk's id.
    pub disks: BTreeMap<String, Changes>,
    /// None: not both have memory of the same size.
    pub memory: Option<Changes>,
    /// Disks that not both have in the same size.
    pub incomparable: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Changes {
    /// Of the disk, or of all of memory; what its addresses go up to is more.
    pub size: u64,
    /// Sum of all lengths.
    pub bytes: u64,
    /// In order, none touching another.
    pub ranges: Vec<Changed>,
}

#[derive(Debug, Serialize)]
pub struct Changed {
    /// Of the disk, or guest-physical.
    pub offset: u64,
    pub length: u64,
    /// Where the data are in the file that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<u64>,
}

impl Changes {
    fn add(&mut self, offset: u64, length: u64, data: Option<u64>) {
        self.bytes += length;
        match self.ranges.last_mut() {
            // What follows on in one follows on in the other.
            Some(last) if last.offset + last.length == offset => last.length += length,
            _ => self.ranges.push(Changed { offset, length, data }),
        }
    }
}

/// Where the changed data go.
struct Sink {
    file: Option<File>,
    at: u64,
}

impl Sink {
    fn put(&mut self, bytes: &[u8]) -> std::result::Result<Option<u64>, crate::storage::StorageError> {
        let Some(file) = &self.file else { return Ok(None) };
        let at = self.at;
        file.write_at(bytes, at)?;
        self.at += bytes.len() as u64;
        Ok(Some(at))
    }
}

/// Compares; the data of `b` go to a new file `data`, which is removed after an error.
pub fn run(
    storage: &Storage,
    a: &Source,
    b: &Source,
    data: Option<&Path>,
    progress: &Progress,
) -> Result<Comparison> {
    let Some(path) = data else { return compare(a, b, &mut Sink { file: None, at: 0 }, progress) };
    let file = storage.create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => TransferError::Refused(format!(
            "{} already exists: choose another file for the data",
            path.display()
        )),
        _ => e.into(),
    })?;
    let mut sink = Sink { file: Some(file), at: DATA };
    let written = compare(a, b, &mut sink, progress).and_then(|found| {
        let index = serde_json::to_vec(&found).map_err(|e| damaged(path, e.to_string()))?;
        if let Some(file) = &sink.file {
            file.write_at(&index, sink.at)?;
            let mut header = [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat();
            header.extend(crc32fast::hash(&index).to_le_bytes());
            header.extend(sink.at.to_le_bytes());
            header.extend((index.len() as u64).to_le_bytes());
            file.write_at(&header, 0)?;
            file.sync_data()?;
        }
        Ok(found)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = storage.remove_file(path);
    }
    written
}

fn compare(a: &Source, b: &Source, sink: &mut Sink, progress: &Progress) -> Result<Comparison> {
    let mut found = Comparison {
        a: a.manifest.id,
        b: b.manifest.id,
        disks: BTreeMap::new(),
        memory: None,
        incomparable: Vec::new(),
    };
    for (id, now) in &b.disks {
        let failed = TransferError::disk(id);
        let Some(then) = a.disks.get(id) else {
            found.incomparable.push(id.clone());
            continue;
        };
        let suspects = suspects::suspects(then, now).map_err(&failed)?;
        progress.phase("disks", suspects.iter().map(|range| range.end - range.start).sum());
        let mut changes = Changes { size: now.len(), ..Changes::default() };
        let tell = |at: u64, bytes: &[u8]| {
            let data = sink.put(bytes)?;
            changes.add(at, bytes.len() as u64, data);
            Ok(())
        };
        // Of one that has grown since the rest was zeros.
        let then = flat::Sized { disk: then, len: now.len() };
        flat::differences(&then, now, &suspects, progress, tell).map_err(&failed)?;
        found.disks.insert(id.clone(), changes);
    }
    found.incomparable.extend(a.disks.keys().filter(|id| !b.disks.contains_key(*id)).cloned());
    if let (Some(then), Some(now)) = (&a.memory, &b.memory)
        && then.ranges() == now.ranges()
    {
        let size = now.ranges().iter().map(|(_, len)| len).sum();
        progress.phase("memory", size);
        let mut changes = Changes { size, ..Changes::default() };
        memory::differences(then, now, progress, |gpa, bytes| {
            let data = sink.put(bytes)?;
            changes.add(gpa, bytes.len() as u64, data);
            Ok(())
        })?;
        found.memory = Some(changes);
    }
    Ok(found)
}
