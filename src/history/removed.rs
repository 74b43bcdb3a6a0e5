//! Removing VMs so that they can come back: the trash of a home. How long they stay is their own
//! setting; every command that makes, lists or removes VMs deletes what has had its time.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{CheckpointError, Result, files};
use crate::folder::{Definition, FolderError, Home, Removed, VmFolder, VmLock, VmName, default_trash};
use crate::id::Id;
use crate::moment::Moment;
use crate::storage::Room;

/// A removed VM as it is told to users.
#[derive(Debug, Clone, Serialize)]
pub struct RemovedVm {
    pub id: Id,
    pub name: VmName,
    pub when: DateTime<Utc>,
    /// When it goes for good, if the host's clock is not set meanwhile.
    pub until: DateTime<Utc>,
    /// Bytes that are free once it has gone, at least.
    pub bytes: u64,
}

/// Removed VMs as users are told of them.
#[derive(Debug, Serialize)]
pub struct RemovedVms {
    /// Bytes that are free once all have gone for good, at least.
    pub bytes: u64,
    /// The last one first.
    pub removed: Vec<RemovedVm>,
}

/// How long a VM stays once it is removed; 0: it is gone at once.
pub fn seconds(folder: &VmFolder) -> u64 {
    let own = folder.load().map(|definition: Definition| definition.trash_seconds);
    own.or_else(|_| default_trash()).unwrap_or_default()
}

/// The last one first; those that are on their way out are not among them.
pub fn list(home: &Home) -> Result<Vec<Removed>> {
    let mut all = home.removed()?;
    all.retain(|removed| !removed.is_going);
    all.sort_by_key(|removed| std::cmp::Reverse((number(removed), removed.id)));
    Ok(all)
}

fn number(removed: &Removed) -> u64 {
    removed.removal.as_ref().map_or(0, |removal| removal.number)
}

/// Removes a VM: into the trash, unless it is not to stay there.
pub fn remove(folder: &VmFolder, lock: &VmLock, no_undo: bool) -> Result<Option<Removed>> {
    folder.is_free_to_go()?;
    if no_undo || seconds(folder) == 0 {
        folder.remove(lock)?;
        return Ok(None);
    }
    let last = folder.home().removed()?.iter().map(number).max().unwrap_or(0);
    let id = Id::random().map_err(CheckpointError::Random)?;
    let removed = folder.put_away(lock, id, last + 1, Moment::now())?;
    if let Err(e) = bound(&folder.home()) {
        log::warn!("cannot limit the size of the trash: {e}");
    }
    Ok(Some(removed))
}

/// The last removed VM of this name, or the one whose id begins so.
pub fn find(home: &Home, reference: &str) -> Result<Option<Removed>> {
    let all = list(home)?;
    let mut found = all.iter().filter(|removed| removed.id.begins_with(reference));
    match (found.next(), found.next()) {
        (Some(removed), None) => Ok(Some(removed.clone())),
        (Some(_), Some(_)) => Err(CheckpointError::Refused(format!(
            "`{reference}` matches several removed VMs: give more digits of the id"
        ))),
        (None, _) => Ok(all.into_iter().find(|removed| removed.name().as_str() == reference)),
    }
}

/// Brings one back as `name`.
pub fn restore(removed: &Removed, name: &VmName) -> Result<VmFolder> {
    let lock = removed.lock()?;
    Ok(removed.restore(&lock, name)?)
}

/// Deletes one for good; false: somebody else is at it.
pub fn purge(removed: &mut Removed) -> Result<bool> {
    match removed.lock() {
        Ok(lock) => removed.purge(&lock).map(|()| true).map_err(Into::into),
        Err(FolderError::Busy(_)) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn age(removed: &Removed, now: &Moment) -> u64 {
    removed.removal.as_ref().map_or(0, |removal| now.since(&removal.when))
}

/// Brings order into the trash: what has had its time goes, and what a crash left is brought to its
/// end. One that cannot be dealt with is left to the next time.
pub fn tidy(home: &Home) {
    // A home that cannot be looked through is told of by what wants something of it.
    let all = home.removed().unwrap_or_default();
    let now = Moment::now();
    for mut removed in all {
        let tidied = if removed.is_going || is_over(&removed, &now) {
            purge(&mut removed).map(drop)
        } else {
            put_right(&mut removed, &now)
        };
        if let Err(e) = tidied {
            log::warn!("{e}");
        }
    }
}

fn is_over(removed: &Removed, now: &Moment) -> bool {
    removed.removal.is_some() && age(removed, now) >= seconds(&removed.folder)
}

fn put_right(removed: &mut Removed, now: &Moment) -> Result<()> {
    match removed.lock() {
        Ok(lock) => {
            removed.date(&lock, now.clone())?;
            Ok(removed.settle(&lock)?)
        }
        Err(FolderError::Busy(_)) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Beyond the last one that was removed, the trash takes no more than its share of the file system.
fn bound(home: &Home) -> Result<()> {
    loop {
        let all = list(home)?;
        let older = all.get(1..).unwrap_or_default();
        let Some(room) = all.first().and_then(|removed| Room::of(removed.folder.path())) else {
            return Ok(());
        };
        if older.is_empty() || frees(older) <= room.share() || !drop_oldest(home)? {
            return Ok(());
        }
    }
}

/// How long ago the VM was removed that was removed first.
pub fn oldest(home: &Home, now: &Moment) -> Result<Option<u64>> {
    Ok(list(home)?.last().map(|removed| age(removed, now)))
}

/// Gives up the one that was removed first, for room that is needed; false: there is none.
pub fn drop_oldest(home: &Home) -> Result<bool> {
    let Some(mut oldest) = list(home)?.pop() else { return Ok(false) };
    let gone = purge(&mut oldest)?;
    if gone {
        log::warn!("disk space is low: permanently deleted the removed VM `{}`", oldest.name());
    }
    Ok(gone)
}

/// Bytes that are free once all of these have gone: what is in files that nobody else has a name for.
pub fn frees(removed: &[Removed]) -> u64 {
    let mut found = files::Files::new();
    for one in removed {
        let places = [Some(one.folder.path().to_owned()), one.checkpoints_elsewhere()];
        places.iter().flatten().for_each(|place| files::walk(one.folder.storage(), place, &mut found));
    }
    found.values().filter(|file| file.found >= file.names).map(|file| file.bytes).sum()
}

pub fn describe_all(removed: &[Removed]) -> RemovedVms {
    RemovedVms { bytes: frees(removed), removed: removed.iter().map(describe).collect() }
}

pub fn describe(removed: &Removed) -> RemovedVm {
    let when = removed.removal.as_ref().map_or_else(Utc::now, |removal| removal.when.at);
    let stays = i64::try_from(seconds(&removed.folder)).unwrap_or(0);
    RemovedVm {
        id: removed.id,
        name: removed.name().clone(),
        when,
        until: when + chrono::Duration::seconds(stays),
        bytes: frees(std::slice::from_ref(removed)),
    }
}
