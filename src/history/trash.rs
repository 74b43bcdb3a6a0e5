//! The trash of a VM: what was taken away and can be taken back.
//!
//! A checkpoint goes there and comes back by one word in its manifest. Its files stay where they
//! are, so do the parents that manifests name, and layers and images that it needs are not merged;
//! users do not see it ([`crate::checkpoint::shown`]). A current state that something else takes the
//! place of becomes a checkpoint that was in the trash from its first moment. Only what leaves the
//! trash for good is deleted ([`super::delete`]).

use super::create::{Origin, Subject, create};
use super::delete::pinned;
use super::sizes::Sizes;
use super::{Catalog, CheckpointError, Result, delete, disks, effect, removed, reserve};
use crate::checkpoint::tree::{Tree, short};
use crate::checkpoint::{Manifest, Trashed};
use crate::control::trash::{EmptiedInfo, TrashEntry, TrashInfo, TrashKind};
use crate::control::{CheckpointInfo, CreateBody, DeleteBody, DeletedInfo};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::id::Id;
use crate::moment::{Moment, shown};
use crate::progress::Progress;
use crate::sandbox;
use crate::storage::Room;

/// What was taken away in one go.
#[derive(Clone, Debug)]
pub struct Entry {
    pub how: Trashed,
    /// Parents before their children.
    pub checkpoints: Vec<Manifest>,
}

impl Entry {
    pub fn ids(&self) -> Vec<Id> {
        self.checkpoints.iter().map(|manifest| manifest.id).collect()
    }

    /// The current state that it was, if it was one.
    pub fn state(&self) -> Option<&Manifest> {
        self.checkpoints.first().filter(|_| self.how.was_now)
    }
}

/// Whether what is taken away now goes to the trash.
pub fn is_on(definition: &Definition, no_undo: bool) -> bool {
    definition.trash_seconds > 0 && !no_undo
}

/// The last one first. A state that Now descends from is not in the trash any more, or not yet: see
/// [`consume`].
pub fn entries(manifests: &[Manifest], definition: &Definition) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for manifest in manifests.iter().filter(|manifest| Some(manifest.id) != consumed(manifests, definition)) {
        let Some(how) = &manifest.keeping.trash else { continue };
        match entries.iter_mut().find(|entry| entry.how.entry == how.entry) {
            Some(entry) => entry.checkpoints.push(manifest.clone()),
            None => entries.push(Entry { how: how.clone(), checkpoints: vec![manifest.clone()] }),
        }
    }
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.how.number, entry.how.entry)));
    entries
}

/// The state that Now goes on from.
fn consumed(manifests: &[Manifest], definition: &Definition) -> Option<Id> {
    let now = manifests.iter().find(|manifest| Some(manifest.id) == definition.now.parent)?;
    now.keeping.trash.as_ref().filter(|how| how.was_now).map(|_| now.id)
}

/// How the next thing comes into the trash.
pub fn next(catalog: &Catalog, why: String) -> Result<Trashed> {
    let manifests = catalog.manifests()?;
    let last = manifests.iter().filter_map(|manifest| Some(manifest.keeping.trash.as_ref()?.number)).max();
    Ok(Trashed {
        entry: Id::random().map_err(CheckpointError::Random)?,
        number: last.unwrap_or(0) + 1,
        when: Moment::now(),
        was_now: false,
        ran: false,
        by_undo: false,
        why,
    })
}

/// Deletes `id`, or it and all that descends from it: into the trash, if there is one for it.
pub fn delete(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    body: DeleteBody,
) -> Result<DeletedInfo> {
    let catalog = Catalog::new(folder, definition);
    let (seen, now) = catalog.shown(definition)?;
    let is_seen = seen.iter().any(|manifest| manifest.id == id);
    if !is_on(definition, body.no_undo) || !is_seen {
        // Into one that cannot be read nothing can be written.
        return delete::run(folder, lock, definition, id, body);
    }
    let tree = Tree::of(&seen, now);
    let gone = if body.subtree { tree.subtree(id) } else { vec![id] };
    pinned(&seen, &gone)?;
    let named = |id: &Id| seen.iter().find(|manifest| manifest.id == *id).map(CheckpointInfo::from);
    let mut how = next(&catalog, if body.subtree { "delete --subtree" } else { "delete" }.into())?;
    how.entry = id;
    let effect = body.dry_run.then(|| effect::of_delete(&catalog, definition, &gone));
    let deleted = DeletedInfo {
        deleted: gone.iter().rev().filter_map(named).collect(),
        damaged: None,
        dry_run: body.dry_run,
        bytes: effect.map(|effect| effect.bytes),
        merges: effect.map(|effect| effect.merges),
        trash: Some(how.entry).filter(|_| !body.dry_run),
        merge_later: false,
        merge_job: None,
    };
    if !body.dry_run {
        reserve::with_room(folder, &definition.clone(), || {
            mark(&catalog, &gone, Some(&how)).inspect_err(|_| drop(mark(&catalog, &gone, None)))
        })?;
    }
    Ok(deleted)
}

fn mark(catalog: &Catalog, ids: &[Id], how: Option<&Trashed>) -> Result<()> {
    // Children first: cut short, what is there has its parent.
    let order: Vec<Id> = match how {
        Some(_) => ids.iter().rev().copied().collect(),
        None => ids.to_vec(),
    };
    for id in order {
        catalog.store.update(id, |manifest| manifest.keeping.trash = how.cloned())?;
    }
    Ok(())
}

/// The entry that is meant: by its id or the start of it, or by the name of what is in it.
pub fn find(catalog: &Catalog, definition: &Definition, reference: &str) -> Result<Entry> {
    let entries = entries(&catalog.manifests()?, definition);
    let by_id = |entry: &&Entry| entry.how.entry.begins_with(reference);
    let by_name = |entry: &&Entry| {
        !entry.how.was_now && entry.checkpoints.iter().any(|manifest| manifest.name.as_str() == reference)
    };
    let mut found = entries.iter().filter(by_id);
    match (found.next(), found.next()) {
        (Some(entry), None) => return Ok(entry.clone()),
        (Some(_), Some(_)) => {
            return Err(CheckpointError::Refused(format!(
                "`{reference}` matches several entries of the trash: give more digits of the id"
            )));
        }
        (None, _) => {}
    }
    // Of several the last.
    entries.iter().find(by_name).cloned().ok_or_else(|| {
        let vm = catalog.folder.name();
        CheckpointError::Missing(format!(
            "there is no `{reference}` in the trash of the VM `{vm}`: `piton trash list {vm}` shows all entries"
        ))
    })
}

/// What an undo takes back.
pub fn last(catalog: &Catalog, definition: &Definition) -> Result<Entry> {
    let entries = entries(&catalog.manifests()?, definition);
    let redo = entries.first().filter(|entry| entry.how.by_undo).map(|entry| entry.how.entry);
    entries.into_iter().find(|entry| !entry.how.by_undo).ok_or_else(|| {
        let vm = catalog.folder.name();
        CheckpointError::Missing(match (redo, definition.trash_seconds) {
            (Some(id), _) => format!(
                "there is nothing more to undo; `piton trash restore {vm} {}` reverses the last undo",
                short(id)
            ),
            (None, 0) => {
                format!(
                    "there is nothing to undo: the trash of the VM `{vm}` is off (`piton set {vm} \
                 --trash 24h` turns it on)"
                )
            }
            (None, _) => format!("there is nothing to undo: the trash of the VM `{vm}` is empty"),
        })
    })
}

/// Puts the current state of a VM that is off into the trash.
pub fn keep_now(folder: &VmFolder, lock: &VmLock, definition: &mut Definition, how: &Trashed) -> Result<()> {
    loop {
        let sums = Catalog::new(folder, definition).layer_sums(definition)?;
        let Definition { config, now, .. } = &*definition;
        let disks = disks::open(folder, config, &now.tops, &sums, &Default::default())?;
        let subject = Subject {
            folder,
            lock,
            definition,
            disks: &disks.live,
            machine: None,
            pending: None,
            origin: Origin { trash: Some(how.clone()), ..Origin::default() },
        };
        match create(subject, &CreateBody::default(), &Progress::default()) {
            Ok(_) => return Ok(()),
            Err(e) if e.is_full() && drop_oldest(folder, lock, definition)? => {}
            Err(e) => return Err(CheckpointError::NotKept(Box::new(e))),
        }
    }
}

/// Takes checkpoints out of the trash: they are where they were.
pub fn restore(folder: &VmFolder, definition: &Definition, entry: &Entry) -> Result<()> {
    let catalog = Catalog::new(folder, definition);
    let (seen, _) = catalog.shown(definition)?;
    let taken = |back: &&Manifest| seen.iter().any(|manifest| manifest.name == back.name);
    if let Some(back) = entry.checkpoints.iter().find(taken) {
        let (name, vm) = (&back.name, folder.name());
        return Err(CheckpointError::Refused(format!(
            "a checkpoint named `{name}` already exists: rename it with `piton checkpoint rename \
             {vm}@{name} NEW`, and try again"
        )));
    }
    reserve::with_room(folder, definition, || {
        mark(&catalog, &entry.ids(), None)
            .inspect_err(|_| drop(mark(&catalog, &entry.ids(), Some(&entry.how))))
    })
}

/// Deletes an entry for good.
pub fn purge(folder: &VmFolder, lock: &VmLock, definition: &mut Definition, entry: &Entry) -> Result<()> {
    // Children first.
    for id in entry.ids().into_iter().rev() {
        delete::run(folder, lock, definition, id, DeleteBody { no_undo: true, ..DeleteBody::default() })?;
    }
    Ok(())
}

/// A state that Now goes on from is of no further use: it has come back, or what was to take its
/// place never did.
pub fn consume(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<bool> {
    let manifests = Catalog::new(folder, definition).manifests()?;
    let Some(id) = consumed(&manifests, definition) else { return Ok(false) };
    delete::run(folder, lock, definition, id, DeleteBody { no_undo: true, ..DeleteBody::default() })?;
    Ok(true)
}

/// Entries whose time is over, the oldest first.
pub fn expired(manifests: &[Manifest], definition: &Definition, now: &Moment) -> Vec<Entry> {
    let mut old = entries(manifests, definition);
    old.retain(|entry| now.since(&entry.how.when) >= definition.trash_seconds);
    old.reverse();
    old
}

/// Deletes for good whose time is over; false: some of it is there still. One that is read just now, or
/// cannot be deleted, keeps none of the others.
pub fn expire(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<bool> {
    let mut failed = consume(folder, lock, definition).err();
    let manifests = Catalog::new(folder, definition).manifests()?;
    let mut all = true;
    for entry in expired(&manifests, definition, &Moment::now()) {
        match purge(folder, lock, definition, &entry) {
            Ok(()) => continue,
            Err(e) if e.is_refusal() => log::debug!("{e}"),
            Err(e) => failed = failed.or(Some(e)),
        }
        all = false;
    }
    failed.map_or(Ok(all), Err)
}

/// Seconds until the next entry's time is over.
pub fn next_end(manifests: &[Manifest], definition: &Definition, now: &Moment) -> Option<u64> {
    let left = |entry: &Entry| definition.trash_seconds.saturating_sub(now.since(&entry.how.when));
    entries(manifests, definition).iter().map(left).min()
}

pub fn info(catalog: &Catalog, definition: &Definition) -> Result<TrashInfo> {
    let manifests = catalog.manifests()?;
    let entries = entries(&manifests, definition);
    let sizes = Sizes::read(catalog, definition, &manifests)?;
    let all: Vec<Id> = entries.iter().flat_map(Entry::ids).collect();
    Ok(TrashInfo {
        trash_seconds: definition.trash_seconds,
        bytes: sizes.frees(&all),
        entries: entries.iter().map(|entry| describe(entry, definition, &sizes)).collect(),
    })
}

/// One entry as users see it.
pub fn entry_info(catalog: &Catalog, definition: &Definition, entry: &Entry) -> Result<TrashEntry> {
    let manifests = catalog.manifests()?;
    Ok(describe(entry, definition, &Sizes::read(catalog, definition, &manifests)?))
}

fn describe(entry: &Entry, definition: &Definition, sizes: &Sizes) -> TrashEntry {
    let Trashed { entry: id, when, was_now, ran, by_undo, why, .. } = entry.how.clone();
    let stays = i64::try_from(definition.trash_seconds).unwrap_or(0);
    TrashEntry {
        id,
        when: when.at,
        until: when.at + chrono::Duration::seconds(stays),
        why,
        kind: if was_now { TrashKind::CurrentState } else { TrashKind::Checkpoints },
        ran,
        by_undo,
        bytes: sizes.frees(&entry.ids()),
        checkpoints: entry.checkpoints.iter().map(CheckpointInfo::from).collect(),
    }
}

/// The state that a delete, an undo or an apply is about, for a job to name.
pub fn subject(entry: &Entry) -> String {
    entry.checkpoints.first().map_or_else(String::new, |manifest| manifest.name.to_string())
}

/// Deletes all of the trash for good, or one entry of it.
pub fn empty(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    reference: Option<&str>,
) -> Result<EmptiedInfo> {
    let catalog = Catalog::new(folder, definition);
    let manifests = catalog.manifests()?;
    let going = match reference {
        Some(reference) => vec![find(&catalog, definition, reference)?],
        None => entries(&manifests, definition),
    };
    let sizes = Sizes::read(&catalog, definition, &manifests)?;
    let ids: Vec<Id> = going.iter().flat_map(Entry::ids).collect();
    let told = EmptiedInfo {
        entries: going.iter().map(|entry| describe(entry, definition, &sizes)).collect(),
        bytes: sizes.frees(&ids),
    };
    for entry in &going {
        purge(folder, lock, definition, entry)?;
    }
    Ok(told)
}

/// Beyond its latest entry, the trash takes no more than its share of the file system.
pub fn bound(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    loop {
        let catalog = Catalog::new(folder, definition);
        let manifests = catalog.manifests()?;
        let ids: Vec<Id> = entries(&manifests, definition).iter().skip(1).flat_map(Entry::ids).collect();
        let Some(room) = Room::of(catalog.store.dir()).filter(|_| !ids.is_empty()) else { return Ok(()) };
        if Sizes::read(&catalog, definition, &manifests)?.frees(&ids) <= room.share() {
            return Ok(());
        }
        drop_own(folder, lock, definition)?;
    }
}

/// Gives up what is oldest in the trash of the VM or of its home, for room that is needed now; false if
/// there is nothing.
pub fn drop_oldest(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<bool> {
    let (home, now) = (folder.home(), Moment::now());
    let manifests = Catalog::new(folder, definition).manifests()?;
    let own = entries(&manifests, definition).pop().map(|oldest| now.since(&oldest.how.when));
    // The process of a VM that runs can remove nothing but its own.
    let vm = match sandbox::in_force() {
        Some(_) => None,
        None => removed::oldest(&home, &now).unwrap_or_default(),
    };
    if vm.is_some_and(|age| own.is_none_or(|own| age >= own)) && removed::drop_oldest(&home)? {
        return Ok(true);
    }
    drop_own(folder, lock, definition)
}

fn drop_own(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<bool> {
    let manifests = Catalog::new(folder, definition).manifests()?;
    let Some(oldest) = entries(&manifests, definition).pop() else { return Ok(false) };
    purge(folder, lock, definition, &oldest)?;
    log::warn!(
        "disk space is low: permanently deleted what was moved to the trash at {} ({})",
        shown(&oldest.how.when.at),
        oldest.how.why
    );
    Ok(true)
}
