//! Deleting the checkpoints that a VM's rules do not keep. They go for good: the rule said so before.

use super::sizes::Sizes;
use super::{Catalog, CheckpointError, Result, delete, readers};
use crate::checkpoint::Manifest;
use crate::checkpoint::retention::{Candidate, judge, time_of};
use crate::control::upkeep::{PruneVerdict, PrunedInfo};
use crate::control::{CheckpointInfo, DeleteBody};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::id::Id;

/// Why a checkpoint stays, whatever the rule says.
fn spared(manifest: &Manifest, now: Option<Id>, all: bool, read: &[Id]) -> Option<&'static str> {
    let is_ours = manifest.keeping.scheduled || manifest.automatic;
    match () {
        () if manifest.keeping.pinned => Some("it is pinned"),
        () if now == Some(manifest.id) => Some("it is the parent of the current state"),
        () if !all && !is_ours => Some("a user created it (rules apply to it only with --keep-all)"),
        () if read.contains(&manifest.id) => Some("it is being read"),
        () => None,
    }
}

/// Deletes what the rules do not keep; with `dry_run` only tells what that would be.
pub fn prune(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    dry_run: bool,
) -> Result<PrunedInfo> {
    let rule = definition.retention;
    if rule.is_none() {
        let name = folder.name();
        return Err(CheckpointError::Refused(format!(
            "the VM `{name}` has no rule for its checkpoints: give it one with `piton set {name} --keep \
             last=5,hourly=24,daily=7`, `--keep-within` or `--max-size`"
        )));
    }
    let info = plan(folder, definition, dry_run)?;
    if !dry_run {
        // The oldest first, so that what is left after a crash is what a rule would leave, too.
        for going in info.checkpoints.iter().rev().filter(|one| !one.stays) {
            let body = DeleteBody { no_undo: true, ..DeleteBody::default() };
            delete::run(folder, lock, definition, going.checkpoint.id, body)?;
        }
    }
    Ok(info)
}

fn plan(folder: &VmFolder, definition: &Definition, dry_run: bool) -> Result<PrunedInfo> {
    let catalog = Catalog::new(folder, definition);
    let (seen, now) = catalog.shown(definition)?;
    let sizes = Sizes::read(&catalog, definition, &catalog.manifests()?)?;
    let read: Vec<Id> = readers::list(folder)?.into_iter().flat_map(|reader| reader.checkpoints).collect();
    let rule = definition.retention;
    let candidates: Vec<Candidate> = seen
        .iter()
        .map(|one| {
            let spared = spared(one, now, rule.all, &read);
            Candidate { id: one.id, time: time_of(one), created: one.created, spared }
        })
        .collect();
    // A rule for those that the VM made itself counts only these.
    let (ours, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|one| {
        rule.all || seen.iter().any(|m| m.id == one.id && (m.keeping.scheduled || m.automatic))
    });
    let spared_bytes: Vec<Id> = others.iter().map(|one| one.id).collect();
    let bytes = |ids: &[Id]| sizes.frees(&[ids, &spared_bytes].concat());
    let mut verdicts = judge(&ours, &rule, bytes);
    verdicts.extend(judge(&others, &Default::default(), |_| 0));
    let told = |manifest: &Manifest| {
        let verdict = verdicts.iter().find(|one| one.id == manifest.id)?;
        let (stays, why) = (verdict.stays, verdict.why.clone());
        Some((
            (time_of(manifest), manifest.created),
            PruneVerdict { checkpoint: CheckpointInfo::from(manifest), stays, why },
        ))
    };
    let mut checkpoints: Vec<_> = seen.iter().filter_map(told).collect();
    checkpoints.sort_by_key(|(time, one)| std::cmp::Reverse((*time, one.checkpoint.id)));
    let checkpoints: Vec<PruneVerdict> = checkpoints.into_iter().map(|(_, one)| one).collect();
    let going: Vec<Id> = checkpoints.iter().filter(|one| !one.stays).map(|one| one.checkpoint.id).collect();
    Ok(PrunedInfo { dry_run, bytes: sizes.frees(&going), checkpoints })
}

/// The last checkpoint that the VM's process made by itself, in the trash or not.
pub fn last_scheduled(manifests: &[Manifest]) -> Option<&Manifest> {
    manifests
        .iter()
        .filter(|manifest| manifest.keeping.scheduled)
        .max_by_key(|manifest| (time_of(manifest), manifest.created))
}
