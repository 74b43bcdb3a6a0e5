//! Which files differ between two states of a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::{Result, SearchError};
use super::look::plain;
use crate::disk::Backing;
use crate::disk::frozen::FrozenChain;
use crate::image::{At, ImageError, Kind, Node, NodeKind, Survey, Volume, Walk};
use crate::progress::Progress;

/// Most that are listed.
const LISTED_MAX: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedFile {
    pub disk: String,
    /// None: the disk has no partitions.
    pub partition: Option<u32>,
    pub path: String,
    pub change: Change,
    #[serde(rename = "type")]
    pub kind: NodeKind,
    /// Of a file: bytes before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChangedFiles {
    /// By disk, partition and path.
    pub changes: Vec<ChangedFile>,
    /// There are more.
    pub truncated: bool,
    /// What was not compared, and why.
    pub notes: Vec<String>,
}

/// A disk in two states.
pub struct Pair {
    pub disk: String,
    pub before: FrozenChain,
    pub after: FrozenChain,
    /// Where they differ.
    pub ranges: Vec<Range<u64>>,
}

/// Compares the file systems of disks that differ, as far as they can be read.
pub fn changed_files(pairs: Vec<Pair>, progress: &Progress) -> Result<ChangedFiles> {
    progress.phase("files", 0);
    let mut found = ChangedFiles::default();
    for Pair { disk, before, after, ranges } in pairs.into_iter().filter(|pair| !pair.ranges.is_empty()) {
        let surveys = survey(before).and_then(|before| Ok((before, survey(after)?)));
        let (before, after) = match surveys {
            Ok(surveys) => surveys,
            Err(error) => {
                found.notes.push(format!("disk `{disk}`: its files were not compared: {error}"));
                continue;
            }
        };
        let number = |volume: &Volume| volume.partition.as_ref().map(|one| one.number);
        for now in &after.volumes {
            let (start, end) = (now.part.start, now.part.start.saturating_add(now.part.len));
            if !ranges.iter().any(|range| range.start < end && range.end > start) {
                continue;
            }
            let place = match number(now) {
                Some(_) => format!("{} of disk `{disk}`", now.name()),
                None => format!("disk `{disk}`"),
            };
            let Some(then) = before.volumes.iter().find(|then| number(then) == number(now)) else {
                found.notes.push(format!("{place} is new: its files were not listed"));
                continue;
            };
            if let Some(other) = [then, now].into_iter().find(|one| one.found.kind != Kind::Ext) {
                if other.found.kind.hides_files() {
                    let kind = other.found.kind.as_str();
                    found.notes.push(format!("{place} is {kind}, whose files piton cannot read"));
                }
                continue;
            }
            let mut comparing =
                Comparing { disk: &disk, then, now, walks: Default::default(), found: &mut found, progress };
            match comparing.folders(&At::default(), true, true) {
                Err(SearchError::Cancelled(e)) => return Err(e.into()),
                Err(e) => found.notes.push(format!("{place}: not all files were compared: {e}")),
                Ok(()) => {}
            }
        }
        for gone in
            before.volumes.iter().filter(|then| !after.volumes.iter().any(|n| number(n) == number(then)))
        {
            found.notes.push(format!("{} of disk `{disk}` is gone: its files were not listed", gone.name()));
        }
    }
    Ok(found)
}

fn survey(disk: FrozenChain) -> std::result::Result<Survey, String> {
    // A disk without any bytes has nothing to be read.
    if Backing::len(&disk) == 0 {
        return Err("it is empty".into());
    }
    plain(Arc::new(disk))
}

struct Comparing<'a> {
    disk: &'a str,
    then: &'a Volume,
    now: &'a Volume,
    /// Of either.
    walks: (Walk, Walk),
    found: &'a mut ChangedFiles,
    progress: &'a Progress,
}

impl Comparing<'_> {
    fn failed(&self, error: ImageError) -> SearchError {
        SearchError::Image(error)
    }

    /// A folder that is there before, after, or both.
    fn folders(&mut self, at: &At, before: bool, after: bool) -> Result<()> {
        self.progress.check()?;
        let read = |there: bool, volume: &Volume, walk: &mut Walk| match there {
            true => volume.folder(walk, at),
            false => Ok(BTreeMap::new()),
        };
        let then = read(before, self.then, &mut self.walks.0).map_err(|e| self.failed(e))?;
        let now = read(after, self.now, &mut self.walks.1).map_err(|e| self.failed(e))?;
        let names: BTreeSet<&Vec<u8>> = then.keys().chain(now.keys()).collect();
        for name in names {
            let (at, then, now) = (at.below(name), then.get(name), now.get(name));
            let is_folder = |node: Option<&Node>| node.is_some_and(|node| node.kind() == NodeKind::Folder);
            if let Some(change) = self.compare(&at, then, now)? {
                self.add(&at, change, then, now);
            }
            if is_folder(then) || is_folder(now) {
                self.folders(&at, is_folder(then), is_folder(now))?;
            }
            if self.found.truncated {
                break;
            }
        }
        Ok(())
    }

    fn compare(&self, at: &At, then: Option<&Node>, now: Option<&Node>) -> Result<Option<Change>> {
        let (then, now) = match (then, now) {
            (Some(then), Some(now)) => (then, now),
            (None, _) => return Ok(Some(Change::Added)),
            (_, None) => return Ok(Some(Change::Removed)),
        };
        let same = match (then.kind(), now.kind()) {
            _ if then == now => true,
            // What is in them is looked at, and their times tell no more.
            (NodeKind::Folder, NodeKind::Folder) => (then.mode(), then.owner()) == (now.mode(), now.owner()),
            (NodeKind::Link, NodeKind::Link) => {
                let target = |volume: &Volume| volume.target(at).map_err(|e| self.failed(e));
                then.owner() == now.owner() && target(self.then)? == target(self.now)?
            }
            // One that only was read meanwhile, or whose time was set back.
            (NodeKind::File, NodeKind::File) => {
                then.looks_like(now) && self.hash(self.then, at, then)? == self.hash(self.now, at, now)?
            }
            _ => then.looks_like(now),
        };
        Ok((!same).then_some(Change::Changed))
    }

    fn hash(&self, volume: &Volume, at: &At, node: &Node) -> Result<[u8; 32]> {
        let mut sha256 = Sha256::new();
        let mut each = |bytes: &[u8]| {
            sha256.update(bytes);
            self.progress.add(bytes.len() as u64);
            !self.progress.is_cancelled()
        };
        volume.stream_at(at, node, &mut each).map_err(|e| self.failed(e))?;
        self.progress.check()?;
        Ok(sha256.finalize().into())
    }

    fn add(&mut self, at: &At, change: Change, then: Option<&Node>, now: Option<&Node>) {
        if self.found.changes.len() >= LISTED_MAX {
            self.found.truncated = true;
            return;
        }
        let bytes = |node: Option<&Node>| node.filter(|node| node.kind() == NodeKind::File).map(Node::len);
        self.found.changes.push(ChangedFile {
            disk: self.disk.to_owned(),
            partition: self.now.partition.as_ref().map(|one| one.number),
            path: at.text(),
            change,
            kind: now.or(then).map_or(NodeKind::Special, Node::kind),
            before: bytes(then),
            after: bytes(now),
        });
    }
}
