//! Looking for a path on one disk. What an answer was read from is remembered: where another
//! checkpoint's disk has the same layers there, its answer is the same, and nothing is read.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::error::{Result, SearchError};
use crate::disk::Backing;
use crate::disk::delta_format::{BLOCK, LayerId};
use crate::disk::frozen::FrozenChain;
use crate::disk::suspects::union;
use crate::image::{ImageError, Node, NodeKind, ReadAt, Survey};
use crate::progress::{Cancelled, Progress};

/// Answers that are remembered of a disk: a file in a long history has few versions at a time.
const REMEMBERED: usize = 16;

type Sha256Sum = [u8; 32];
type Ranges = Vec<Range<u64>>;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Absolute, in its file system.
    pub path: String,
    /// None: the first disk that has it.
    pub disk: Option<String>,
    /// None: the first partition that has it.
    pub partition: Option<u32>,
}

/// Where it was found, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub disk: String,
    /// None: the disk has no partitions.
    pub partition: Option<u32>,
    pub node: Node,
}

pub enum Located {
    /// And on which of the volumes.
    Found(usize, Hit),
    /// Why it may be there all the same.
    Missing(Vec<String>),
}

/// Reads of a disk, written down.
struct Recorded {
    disk: Arc<FrozenChain>,
    reads: Mutex<Vec<Range<u64>>>,
    /// More of a read than this is not wanted yet, and only came with it.
    most: AtomicU64,
}

impl Recorded {
    fn new(disk: Arc<FrozenChain>) -> Arc<Self> {
        Arc::new(Self { disk, reads: Mutex::default(), most: AtomicU64::new(u64::MAX) })
    }

    /// What was read since the last call.
    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ReadAt for Recorded {
    fn len(&self) -> u64 {
        Backing::len(&*self.disk)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), String> {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (buf.len() as u64).min(self.most.load(Ordering::Relaxed));
        let end = offset.saturating_add(wanted);
        match reads.last_mut() {
            Some(last) if last.end == offset => last.end = end,
            _ => reads.push(offset..end),
        }
        drop(reads);
        self.disk.read_at(buf, offset).map_err(|e| e.to_string())
    }
}

/// As it is, with no reads written down: there may be very many.
struct Plain(Arc<FrozenChain>);

impl ReadAt for Plain {
    fn len(&self) -> u64 {
        Backing::len(&*self.0)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), String> {
        self.0.read_at(buf, offset).map_err(|e| e.to_string())
    }
}

pub fn plain(disk: Arc<FrozenChain>) -> std::result::Result<Survey, String> {
    Survey::of(Arc::new(Plain(disk))).map_err(|e| e.to_string())
}

/// The first partition with the path. A file system that cannot be read is only an error if no
/// other has it.
pub fn locate(disk: &str, survey: &Survey, wanted: &Wanted) -> std::result::Result<Located, String> {
    let (mut hidden, mut broken) = (Vec::new(), None);
    let mut partitions = Vec::new();
    for (number, volume) in survey.volumes.iter().enumerate() {
        let partition = volume.partition.as_ref().map(|one| one.number);
        partitions.extend(partition);
        if wanted.partition.is_some_and(|wanted| partition != Some(wanted)) {
            continue;
        }
        match volume.node(&wanted.path) {
            Ok(Some(node)) => {
                return Ok(Located::Found(number, Hit { disk: disk.to_owned(), partition, node }));
            }
            Ok(None) if volume.found.kind.hides_files() => {
                let (name, kind) = (volume.name(), volume.found.kind.as_str());
                let name = if partition.is_some() {
                    format!("{name} of disk `{disk}`")
                } else {
                    format!("disk `{disk}`")
                };
                hidden.push(format!("{name} is {kind}, which piton cannot read"));
            }
            Ok(None) => {}
            Err(e @ ImageError::FileSystem { .. } | e @ ImageError::File { .. }) => {
                broken.get_or_insert(e.to_string());
            }
            Err(e) => return Err(e.to_string()),
        }
    }
    if let Some(wanted) = wanted.partition.filter(|wanted| !partitions.contains(wanted)) {
        hidden.push(format!("disk `{disk}` has no partition {wanted}"));
    }
    match broken {
        Some(error) => Err(error),
        None => Ok(Located::Missing(hidden)),
    }
}

/// What a disk says.
#[derive(Debug, Clone)]
pub enum Answer {
    Found { hit: Hit, sha256: Option<Sha256Sum> },
    Missing(Vec<String>),
}

/// Something that was read, and where from.
struct Read {
    disk: String,
    base: PathBuf,
    ranges: Vec<Range<u64>>,
    sources: Vec<(Option<LayerId>, u64)>,
}

impl Read {
    fn new(disk: &str, chain: &FrozenChain, ranges: Vec<Range<u64>>) -> Self {
        let ranges = union(ranges);
        let (base, sources) = (chain.base().path().to_owned(), chain.sources(&ranges));
        Self { disk: disk.to_owned(), base, ranges, sources }
    }

    fn is_same(&self, disk: &str, chain: &FrozenChain) -> bool {
        self.disk == disk && self.base == chain.base().path() && self.sources == chain.sources(&self.ranges)
    }
}

/// Looks for one path in one disk after the other.
pub struct Looker<'a> {
    wanted: &'a Wanted,
    progress: &'a Progress,
    answers: Vec<(Read, Answer)>,
    /// Of contents: for one that is the same to its last time, in the same blocks, they are not
    /// read again although the file system was written meanwhile.
    contents: Vec<(Read, Hit, Sha256Sum)>,
}

impl<'a> Looker<'a> {
    pub fn new(wanted: &'a Wanted, progress: &'a Progress) -> Self {
        progress.phase("files", 0);
        Self { wanted, progress, answers: Vec::new(), contents: Vec::new() }
    }

    pub fn look(&mut self, disk: &str, chain: &Arc<FrozenChain>) -> Result<Answer> {
        self.progress.check()?;
        if let Some((_, answer)) = self.answers.iter().rev().find(|(read, _)| read.is_same(disk, chain)) {
            return Ok(answer.clone());
        }
        let failed = |error: String| SearchError::Disk { disk: disk.to_owned(), error };
        let recorded = Recorded::new(chain.clone());
        let survey = Survey::of(recorded.clone()).map_err(|e| failed(e.to_string()))?;
        let located = locate(disk, &survey, self.wanted).map_err(failed)?;
        let mut reads = recorded.take();
        let answer = match located {
            Located::Missing(hidden) => Answer::Missing(hidden),
            Located::Found(_, hit) if hit.node.kind() != NodeKind::File => {
                Answer::Found { hit, sha256: None }
            }
            Located::Found(volume, hit) => {
                let known = self
                    .contents
                    .iter()
                    .rev()
                    .find(|(read, then, _)| *then == hit && read.is_same(disk, chain));
                let sha256 = match known {
                    Some((read, _, sha256)) => {
                        reads.extend(read.ranges.iter().cloned());
                        *sha256
                    }
                    None => {
                        let (sha256, found, data) = self
                            .hash(&recorded, &survey, volume, &hit)
                            .map_err(|e| e.map_or_else(SearchError::from, failed))?;
                        reads.extend(found.into_iter().chain(data.iter().cloned()));
                        let data = whole(data, &reads, hit.node.len());
                        reads.extend(data.iter().flatten().cloned());
                        if let Some(data) = data {
                            remember(&mut self.contents, (Read::new(disk, chain, data), hit.clone(), sha256));
                        }
                        sha256
                    }
                };
                Answer::Found { hit, sha256: Some(sha256) }
            }
        };
        remember(&mut self.answers, (Read::new(disk, chain, reads), answer.clone()));
        Ok(answer)
    }

    /// Also what was read to find it, and its data.
    fn hash(
        &self,
        recorded: &Recorded,
        survey: &Survey,
        volume: usize,
        hit: &Hit,
    ) -> std::result::Result<(Sha256Sum, Ranges, Ranges), std::result::Result<String, Cancelled>> {
        let (mut sha256, mut left, mut finding) = (Sha256::new(), hit.node.len(), Vec::new());
        let mut each = |bytes: &[u8]| {
            if bytes.is_empty() {
                finding = recorded.take();
            }
            sha256.update(bytes);
            self.progress.add(bytes.len() as u64);
            left = left.saturating_sub(bytes.len() as u64);
            recorded.most.store(left.next_multiple_of(BLOCK), Ordering::Relaxed);
            !self.progress.is_cancelled()
        };
        if let Some(volume) = survey.volumes.get(volume) {
            volume.stream(&self.wanted.path, &hit.node, &mut each).map_err(|e| Ok(e.to_string()))?;
        }
        self.progress.check().map_err(Err)?;
        Ok((sha256.finalize().into(), finding, recorded.take()))
    }
}

/// All blocks of a file, if they are known. The first may have come with what was read before, the
/// folder that it is in for one; where anything else is missing, as of a file with holes, they are not.
fn whole(mut data: Ranges, before: &[Range<u64>], len: u64) -> Option<Ranges> {
    let missing =
        len.next_multiple_of(BLOCK).saturating_sub(data.iter().map(|range| range.end - range.start).sum());
    if missing > 0 {
        let end = data.first()?.start;
        let start = end.checked_sub(missing)?;
        before.iter().find(|range| range.end == end && range.start <= start)?;
        data.push(start..end);
    }
    Some(data)
}

fn remember<T>(list: &mut Vec<T>, one: T) {
    if list.len() >= REMEMBERED {
        list.remove(0);
    }
    list.push(one);
}
