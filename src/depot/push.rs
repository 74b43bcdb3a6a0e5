//! A checkpoint into a depot.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;

use super::chunks::Chunks;
use super::location::Title;
use super::manifest::{DISK_CHUNK, MEMORY_CHUNK, Manifest, Memory};
use super::open::Depot;
use super::send::{Bytes, Sender, Sent, with_sender};
use super::{DepotError, Result};
use crate::capture::chain::MemoryChain;
use crate::checkpoint::manifest::LeftOut;
use crate::checkpoint::stamp::FileStamp;
use crate::disk::Backing;
use crate::disk::frozen::FrozenChain;
use crate::history::whole::WholeError;
use crate::history::whole::arrival::{INITRD, KERNEL};
use crate::history::whole::source::Source;
use crate::moment::Moment;
use crate::progress::Progress;
use crate::storage::{Access, File, Storage};

/// A push whose manifest is not there this long after it looked at the depot looks again. A prune
/// waits four times as long at least before it removes anything (`prune.rs`).
pub const LIMIT: u64 = 6 * 3600;
/// How often it looks.
const TRIES: usize = 5;

#[derive(Debug, serde::Serialize)]
pub struct Pushed {
    pub title: String,
    /// It was there already, and is the same.
    pub already: bool,
    /// Bytes that were read of the checkpoint, zeros among them.
    pub bytes: u64,
    #[serde(flatten)]
    pub sent: Sent,
    /// Disks that are not in the depot.
    pub left_out: Vec<LeftOut>,
    pub warnings: Vec<String>,
}

/// `alone`: see `send.rs`.
pub fn push(
    depot: &Depot,
    storage: &Storage,
    source: &Source,
    title: &Title,
    alone: bool,
    progress: &Progress,
) -> Result<Pushed> {
    if let Some(there) = depot.read_manifest(&depot.keys.object(&title.to_string()))? {
        return already(depot, source, title, &there);
    }
    for _ in 0..TRIES {
        let began = Moment::now();
        let chunks = Arc::new(Chunks::load(depot, progress)?);
        let (manifest, sent) = with_sender(depot, &chunks, alone, progress, |sender| {
            Pusher { depot, storage, source, sender, progress }.manifest(title)
        })?;
        let bytes = manifest.streams().iter().map(|(_, stream)| stream.bytes).sum();
        if Moment::now().since(&began) > LIMIT {
            // What it counted on may be gone; what it sent is found again.
            continue;
        }
        progress.check()?;
        let (warnings, mut left_out) = (manifest.warnings.clone(), manifest.left_out.clone());
        left_out.retain(|left| !manifest.own.contains_key(&left.disk));
        if !depot.publish(&manifest)? {
            let there = depot.read_manifest(&depot.keys.object(&title.to_string()))?;
            return match there {
                Some(there) => already(depot, source, title, &there),
                None => Err(taken(depot, title)),
            };
        }
        if Moment::now().since(&began) > 2 * LIMIT {
            // The host slept in between, perhaps.
            return Err(DepotError::Refused(format!(
                "`{title}` was written, but so late that a prune may have removed what it needs: check it \
                 with `piton depot verify {}`",
                depot.at()
            )));
        }
        return Ok(Pushed { title: title.to_string(), already: false, bytes, sent, left_out, warnings });
    }
    Err(DepotError::Refused(format!(
        "the push takes more than {} hours each time: push over a faster line",
        LIMIT / 3600
    )))
}

fn taken(depot: &Depot, title: &Title) -> DepotError {
    DepotError::Refused(format!(
        "the depot at {} has another checkpoint named `{title}`: push this one under another name, as \
         {0}/VM@NAME",
        depot.at()
    ))
}

fn already(depot: &Depot, source: &Source, title: &Title, there: &Manifest) -> Result<Pushed> {
    if there.id != source.manifest.id || there.created != source.manifest.created {
        return Err(taken(depot, title));
    }
    Ok(Pushed {
        title: title.to_string(),
        already: true,
        bytes: 0,
        sent: Sent::default(),
        left_out: Vec::new(),
        warnings: Vec::new(),
    })
}

struct Pusher<'a, 'b> {
    depot: &'a Depot,
    storage: &'a Storage,
    source: &'a Source,
    sender: &'a mut Sender<'b>,
    progress: &'a Progress,
}

impl Pusher<'_, '_> {
    fn manifest(&mut self, title: &Title) -> Result<Manifest> {
        let source = self.source;
        let of = &source.manifest;
        let mut warnings = of.warnings.clone();
        let mut disks = BTreeMap::new();
        for disk in &of.config.disks {
            let Some(chain) = source.disks.get(&disk.id) else { continue };
            self.progress.phase("disks", chain.len());
            disks.insert(disk.id.clone(), self.sender.stream(&OfDisk { id: &disk.id, chain }, DISK_CHUNK)?);
        }
        let memory = match &source.memory {
            None => None,
            Some(chain) => {
                let ram = OfMemory::new(chain);
                self.progress.phase("memory", ram.len());
                Some(Memory {
                    ranges: chain.ranges().to_vec(),
                    compressed: chain.images().first().is_some_and(|image| image.is_compressed()),
                    stream: self.sender.stream(&ram, MEMORY_CHUNK)?,
                })
            }
        };
        let state = source.state.as_ref().map(|state| self.sender.stream(&state.as_slice(), DISK_CHUNK));
        let mut own = BTreeMap::new();
        for disk in of.config.disks.iter().filter(|disk| disk.readonly && disk.path.is_relative()) {
            let path = source.folder.join(&disk.path);
            let file = self.storage.open(&path, Access::ReadOnly)?;
            own.insert(disk.id.clone(), self.file(file)?);
        }
        let kernel = self.boot_file(KERNEL, &of.config.kernel, of.kernel.as_ref(), &mut warnings)?;
        let initrd = self.boot_file(INITRD, &of.config.initrd, of.initrd.as_ref(), &mut warnings)?;
        Ok(Manifest {
            depot: self.depot.header.id,
            title_vm: title.vm.clone(),
            title: title.checkpoint.clone(),
            pushed: Utc::now(),
            id: of.id,
            name: of.name.clone(),
            note: of.note.clone(),
            kind: of.kind,
            created: of.created,
            vm: of.vm.clone(),
            config: of.config.clone(),
            checkpoint_type: source.checkpoint_type,
            auto_checkpoint: source.auto_checkpoint,
            left_out: of.left_out.clone(),
            pause_us: of.pause_us,
            capture: of.capture,
            warnings,
            piton: env!("CARGO_PKG_VERSION").into(),
            disks,
            own,
            memory,
            state: state.transpose()?,
            kernel,
            initrd,
        })
    }

    fn file(&mut self, file: File) -> Result<super::manifest::Stream> {
        let file = OfFile { len: file.len()?, file };
        self.progress.phase("files", file.len);
        self.sender.stream(&file, DISK_CHUNK)
    }

    /// What the VM boots from, if it still is what it was.
    fn boot_file(
        &mut self,
        name: &str,
        path: &Option<PathBuf>,
        stamp: Option<&FileStamp>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<super::manifest::Stream>> {
        let Some(path) = path else { return Ok(None) };
        match stamp {
            Some(stamp) if stamp.is_current(self.storage).unwrap_or(false) => {
                let file = self.storage.open_named(&stamp.path, Access::ReadOnly)?;
                Ok(Some(self.file(file)?))
            }
            _ => {
                warnings.push(format!(
                    "the {name} {} has changed since the checkpoint or is missing, so it is not in the depot",
                    path.display()
                ));
                Ok(None)
            }
        }
    }
}

struct OfDisk<'a> {
    id: &'a str,
    chain: &'a FrozenChain,
}

impl Bytes for OfDisk<'_> {
    fn len(&self) -> u64 {
        self.chain.len()
    }
    fn next_data(&self, at: u64) -> Result<Option<u64>> {
        let data = self.chain.next_data(at).map_err(WholeError::disk(self.id))?;
        Ok(data.map(|data| data.start.max(at)))
    }
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        Ok(self.chain.read_at(buf, at).map_err(WholeError::disk(self.id))?)
    }
}

/// The ranges one after another.
struct OfMemory<'a> {
    chain: &'a MemoryChain,
    len: u64,
}

impl<'a> OfMemory<'a> {
    fn new(chain: &'a MemoryChain) -> Self {
        Self { chain, len: chain.ranges().iter().map(|(_, len)| len).sum() }
    }
}

impl Bytes for OfMemory<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn next_data(&self, at: u64) -> Result<Option<u64>> {
        Ok((at < self.len).then_some(at))
    }
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let (mut rest, mut at, mut before) = (buf, at, 0);
        for &(start, len) in self.chain.ranges() {
            if !rest.is_empty() && at < before + len {
                let here = (before + len - at).min(rest.len() as u64) as usize;
                let (part, after) = rest.split_at_mut(here);
                self.chain.read(start + at - before, part).map_err(WholeError::from)?;
                (rest, at) = (after, at + here as u64);
            }
            before += len;
        }
        Ok(())
    }
}

impl Bytes for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
    fn next_data(&self, at: u64) -> Result<Option<u64>> {
        Ok((at < Bytes::len(self)).then_some(at))
    }
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        buf.copy_from_slice(&self[at as usize..at as usize + buf.len()]);
        Ok(())
    }
}

struct OfFile {
    file: File,
    len: u64,
}

impl Bytes for OfFile {
    fn len(&self) -> u64 {
        self.len
    }
    fn next_data(&self, at: u64) -> Result<Option<u64>> {
        Ok(self.file.next_data(at)?.map(|data| data.start.max(at)))
    }
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        Ok(self.file.read_at(buf, at)?)
    }
}
