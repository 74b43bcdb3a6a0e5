//! Chunks into a depot: those that it has not are packed, and the packs sent while more is read.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use super::chunks::{Chunks, index_key, pack_key};
use super::keys::is_zero;
use super::manifest::{MAP, Stream};
use super::name::Name;
use super::open::Depot;
use super::pack::{Builder, Pack};
use super::store::Put;
use super::{DepotError, Result};
use crate::progress::Progress;

/// Packs that are sent at once. With those, the one in the making and one that waits, no more
/// than that many packs are in memory.
const AT_ONCE: usize = 3;

/// What was sent, and what did not have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sent {
    /// Chunks that are not all zeros.
    pub chunks: u64,
    pub new_chunks: u64,
    /// Bytes of the new chunks, and what they take in the depot.
    pub new_bytes: u64,
    pub sent_bytes: u64,
    pub packs: u64,
}

/// Bytes that become a stream.
pub trait Bytes {
    fn len(&self) -> u64;
    /// Where the next byte may be that is not zero, at or after `at`.
    fn next_data(&self, at: u64) -> Result<Option<u64>>;
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()>;
}

pub struct Sender<'a> {
    depot: &'a Depot,
    chunks: Arc<Chunks>,
    fresh: HashSet<Name>,
    builder: Option<Builder>,
    line: Option<SyncSender<Pack>>,
    failed: Arc<Mutex<Option<DepotError>>>,
    progress: &'a Progress,
    pub sent: Sent,
}

/// Runs `work` with a sender, and waits until all of it is sent. `alone`: nothing at the same time,
/// so that a simulation runs the same way each time.
pub fn with_sender<T>(
    depot: &Depot,
    chunks: &Arc<Chunks>,
    alone: bool,
    progress: &Progress,
    work: impl FnOnce(&mut Sender) -> Result<T>,
) -> Result<(T, Sent)> {
    let failed = Arc::new(Mutex::new(None));
    std::thread::scope(|scope| {
        let (line, packs) = sync_channel(1);
        let packs = Arc::new(Mutex::new(packs));
        let threads: Vec<_> = if alone {
            Vec::new()
        } else {
            (0..AT_ONCE).map(|_| start(scope, depot, &packs, &failed)).collect::<Result<_>>()?
        };
        // The threads have it; without them nobody has.
        drop(packs);
        let mut sender = Sender {
            depot,
            chunks: chunks.clone(),
            fresh: HashSet::new(),
            builder: None,
            line: (!alone).then_some(line),
            failed: failed.clone(),
            progress,
            sent: Sent::default(),
        };
        let done = work(&mut sender).and_then(|done| {
            sender.end_pack()?;
            Ok(done)
        });
        let sent = sender.sent;
        // The threads end when there is no more to come.
        drop(sender);
        threads.into_iter().for_each(|thread| drop(thread.join()));
        // What stopped the sending is why the work could not go on.
        match failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok((done?, sent)),
        }
    })
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    depot: &'scope Depot,
    packs: &Arc<Mutex<Receiver<Pack>>>,
    failed: &Arc<Mutex<Option<DepotError>>>,
) -> Result<ScopedJoinHandle<'scope, ()>> {
    let (packs, failed) = (packs.clone(), failed.clone());
    let work = move || {
        loop {
            let next = packs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(pack) = next else { return };
            if let Err(e) = send(depot, pack) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                return;
            }
        }
    };
    std::thread::Builder::new().name("send".into()).spawn_scoped(scope, work).map_err(|e| DepotError::Store {
        doing: "send to",
        object: depot.at(),
        why: format!("no thread could be started: {e}"),
    })
}

/// The index after the pack: what has an index is there.
fn send(depot: &Depot, pack: Pack) -> Result<()> {
    depot.store.put(&pack_key(pack.id), pack.bytes, Put::Over)?;
    depot.store.put(&index_key(pack.id), pack.index, Put::Over)?;
    Ok(())
}

impl Sender<'_> {
    /// Whether a checkpoint that is being made may count on this chunk.
    pub fn has(&self, name: &Name) -> bool {
        *name == Name::ZEROS || self.chunks.is_safe(name) || self.fresh.contains(name)
    }

    /// Sends a chunk, if it is not there; its name.
    pub fn chunk(&mut self, bytes: &[u8]) -> Result<Name> {
        let name = self.depot.keys.name(bytes);
        if name == Name::ZEROS {
            return Ok(name);
        }
        self.sent.chunks += 1;
        if self.has(&name) {
            return Ok(name);
        }
        let stored = self.depot.keys.pack(&name, bytes)?;
        let mut builder = match self.builder.take() {
            Some(builder) => builder,
            None => Builder::new().map_err(DepotError::Random)?,
        };
        builder.add(name, bytes.len(), &stored);
        self.fresh.insert(name);
        self.sent.new_chunks += 1;
        self.sent.new_bytes += bytes.len() as u64;
        self.builder = Some(builder);
        if self.builder.as_ref().is_some_and(Builder::is_full) {
            self.end_pack()?;
        }
        Ok(name)
    }

    /// The chunk was there already and is counted.
    pub fn kept(&mut self) {
        self.sent.chunks += 1;
    }

    fn end_pack(&mut self) -> Result<()> {
        let Some(builder) = self.builder.take().filter(|builder| !builder.is_empty()) else { return Ok(()) };
        let pack = builder.finish();
        self.sent.packs += 1;
        self.sent.sent_bytes += (pack.bytes.len() + pack.index.len()) as u64;
        match &self.line {
            None => send(self.depot, pack),
            Some(line) => {
                // Whoever took it before may have given up; why is known there.
                let mut pack = pack;
                loop {
                    self.progress.check()?;
                    if self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                        return Err(gave_up(self.depot));
                    }
                    match line.try_send(pack) {
                        Ok(()) => return Ok(()),
                        Err(std::sync::mpsc::TrySendError::Full(back)) => pack = back,
                        Err(std::sync::mpsc::TrySendError::Disconnected(_)) => {
                            return Err(gave_up(self.depot));
                        }
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        }
    }

    /// The names of a stream's chunks as its map.
    pub fn map(&mut self, names: &[Name]) -> Result<Vec<Name>> {
        names
            .chunks(MAP)
            .map(|part| self.chunk(&part.iter().flat_map(|name| name.0).collect::<Vec<_>>()))
            .collect()
    }

    pub fn stream(&mut self, bytes: &dyn Bytes, chunk: u32) -> Result<Stream> {
        let (len, size) = (bytes.len(), u64::from(chunk));
        let mut buf = vec![0; chunk as usize];
        let mut names = Vec::new();
        let mut at = 0;
        while at < len {
            self.progress.check()?;
            let data = bytes.next_data(at)?.unwrap_or(len).min(len);
            if data >= at + size || data >= len {
                let skipped = (data.max(at) - at) / size;
                let skipped = if data >= len { (len - at).div_ceil(size) } else { skipped };
                names.resize(names.len() + skipped as usize, Name::ZEROS);
                self.progress.add((skipped * size).min(len - at));
                at += skipped * size;
                continue;
            }
            let part = &mut buf[..(len - at).min(size) as usize];
            bytes.read(part, at)?;
            names.push(if is_zero(part) { Name::ZEROS } else { self.chunk(part)? });
            self.progress.add(part.len() as u64);
            at += size;
        }
        Ok(Stream { bytes: len, chunk, map: self.map(&names)? })
    }
}

/// Another error says why.
fn gave_up(depot: &Depot) -> DepotError {
    DepotError::Store { doing: "send to", object: depot.at(), why: "it stopped".into() }
}
