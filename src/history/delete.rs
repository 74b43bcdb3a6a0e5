//! Forgetting checkpoints.
//!
//! Memory and state are freed at once. Layers follow: those that nothing needs are removed here,
//! those that nothing needs apart are for [`super::merge`]. Nothing that a surviving checkpoint
//! reads changes, at any moment.

use std::collections::BTreeMap;

use super::catalog::sums_of;
use super::orphans::orphans;
use super::saving::save;
use super::{Catalog, CheckpointError, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::store::StoreError;
use crate::checkpoint::tree::{DeletePlan, Tree};
use crate::control::{CheckpointInfo, DeleteBody, DeletedInfo};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::history::{effect, readers, reserve};
use crate::id::Id;

/// Forgets `id`, or it and all that descends from it. On a full disk, too: room is kept for it.
pub fn run(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    body: DeleteBody,
) -> Result<DeletedInfo> {
    reserve::with_room(folder, &definition.clone(), || delete(folder, lock, definition, id, body))
}

fn delete(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    id: Id,
    body: DeleteBody,
) -> Result<DeletedInfo> {
    let catalog = Catalog::new(folder, definition);
    let manifests = catalog.manifests()?;
    let tree = Tree::of(&manifests, definition.now.parent);
    let damaged = (!manifests.iter().any(|manifest| manifest.id == id)).then_some(id);
    let plan = match damaged {
        Some(id) => plan_damaged(&manifests, definition, id, body)?,
        None => {
            let mut ids = if body.subtree { tree.subtree(id) } else { vec![id] };
            // What descends from it in the trash waits there for its own end.
            ids.retain(|one| *one == id || !manifests.iter().any(|m| m.id == *one && m.is_in_trash()));
            tree.plan_delete(ids)
        }
    };
    pinned(&manifests, &plan.gone)?;
    let named = |id: &Id| manifests.iter().find(|manifest| manifest.id == *id).map(CheckpointInfo::from);
    let effect = body.dry_run.then(|| effect::of_delete(&catalog, definition, &plan.gone));
    let deleted = DeletedInfo {
        deleted: plan.gone.iter().filter_map(named).collect(),
        damaged,
        dry_run: body.dry_run,
        bytes: effect.map(|effect| effect.bytes),
        merges: effect.map(|effect| effect.merges),
        trash: None,
        merge_later: false,
        merge_job: None,
    };
    if body.dry_run {
        return Ok(deleted);
    }
    readers::check(folder, &plan.gone)?;
    // Children and Now get their new parent before the old one goes, so that it is never missing.
    let former: Vec<(Id, Option<Id>)> =
        manifests.iter().map(|manifest| (manifest.id, manifest.parent)).collect();
    let going = manifests.iter().filter(|manifest| plan.gone.contains(&manifest.id));
    let sums: BTreeMap<Id, u32> = sums_of(going).collect();
    let was = definition.now.parent;
    let undo = |definition: &mut Definition| {
        super::memory::take_back(&catalog, &manifests);
        for (id, parent) in former.iter().filter(|(id, _)| plan.reparent.contains_key(id)) {
            if let Err(again) = catalog.store.update(*id, |manifest| manifest.parent = *parent) {
                log::warn!("{again}");
            }
        }
        let mut next = definition.clone();
        next.now.parent = was;
        if next != *definition
            && let Err(again) = save(folder, lock, definition, next)
        {
            log::warn!("{again}");
        }
    };
    if let Err(e) = super::memory::keep(&catalog, &manifests, &plan.gone)
        .and_then(|()| reparent(&catalog, lock, definition, &plan, sums))
    {
        undo(definition);
        return Err(e);
    }
    // Children first, as the plan has them: cut short, none is left without its parent.
    for (gone, id) in plan.gone.iter().enumerate() {
        match catalog.store.remove(*id) {
            Ok(()) => {}
            // It is gone; recovery removes the rest.
            Err(e @ StoreError::LeftOver { .. }) => log::warn!("{e}"),
            Err(e) => {
                if gone == 0 {
                    undo(definition);
                }
                return Err(e.into());
            }
        }
    }
    // Layers of an unfinished merge may look as if nothing needed them.
    if definition.now.merging.is_none() {
        orphans(&catalog, definition, true)?;
    }
    Ok(deleted)
}

/// Refuses to take what is to stay.
pub(super) fn pinned(manifests: &[Manifest], going: &[Id]) -> Result<()> {
    let is_kept = |manifest: &&Manifest| manifest.keeping.pinned && going.contains(&manifest.id);
    match manifests.iter().find(is_kept) {
        None => Ok(()),
        Some(Manifest { name, vm, .. }) => Err(CheckpointError::Refused(format!(
            "checkpoint `{name}` is pinned: unpin it first with `piton checkpoint unpin {vm}@{name}`"
        ))),
    }
}

/// What deleting a checkpoint does whose manifest cannot be read: where it descended from, nobody
/// knows any more.
fn plan_damaged(
    manifests: &[Manifest],
    definition: &Definition,
    id: Id,
    body: DeleteBody,
) -> Result<DeletePlan> {
    if body.subtree {
        return Err(CheckpointError::Refused(format!(
            "checkpoint {id} is damaged: delete it without --subtree, and delete its descendants one by one"
        )));
    }
    let needs =
        |manifest: &&Manifest| manifest.memory.as_ref().is_some_and(|memory| memory.parent == Some(id));
    if let Some(child) = manifests.iter().find(needs) {
        return Err(CheckpointError::Refused(format!(
            "the memory of checkpoint `{}` is stored as changes to that of {id}, which is damaged: delete \
             `{0}` first",
            child.name
        )));
    }
    let children = manifests.iter().filter(|manifest| manifest.parent == Some(id));
    Ok(DeletePlan {
        gone: vec![id],
        reparent: children.map(|child| (child.id, None)).collect(),
        now: (definition.now.parent == Some(id)).then_some(None),
    })
}

/// `sums` are checksums that go with the checkpoints; their layers may stay a while.
fn reparent(
    catalog: &Catalog,
    lock: &VmLock,
    definition: &mut Definition,
    plan: &DeletePlan,
    sums: BTreeMap<Id, u32>,
) -> Result<()> {
    for (child, parent) in &plan.reparent {
        catalog.store.update(*child, |manifest| manifest.parent = *parent)?;
    }
    let mut next = definition.clone();
    for (layer, crc) in sums {
        // After a merge the manifest may be behind.
        next.now.layer_sums.entry(layer).or_insert(crc);
    }
    if let Some(parent) = plan.now {
        next.now.parent = parent;
    }
    save(catalog.folder, lock, definition, next)
}
