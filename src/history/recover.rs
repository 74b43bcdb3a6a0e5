//! Mending what a crash left. Runs at every start, and as `piton doctor`, which can also only look.

use std::path::PathBuf;

use super::inventory::Inventory;
use super::orphans::orphans_of;
use super::saving::save;
use super::syncing::Syncing;
use super::{Catalog, Finding, Result, bases, merge, readers, relocate, reserve, sealing};
use crate::checkpoint::store::{Listing, Recovery};
use crate::folder::{Definition, VmFolder, VmLock};
use crate::storage::is_temporary;

/// Finds what an interrupted operation left; with `repair` also mends it.
pub fn recover(
    folder: &VmFolder,
    lock: &VmLock,
    definition: &mut Definition,
    repair: bool,
) -> Result<Vec<Finding>> {
    if !repair {
        let catalog = Catalog::new(folder, definition);
        return find(&catalog, &Inventory::read(&catalog)?, lock, &mut definition.clone(), false);
    }
    let begun = begin(folder, lock, definition)?;
    begun.names.wait()?;
    Ok(begun.findings)
}

/// What a recovery came to.
pub struct Begun {
    pub findings: Vec<Finding>,
    pub names: NamesBeingSynced,
    /// What is in the folder, if nothing had to be mended.
    pub inventory: Option<Inventory>,
}

/// Mends what an interrupted operation left. If there is nothing, names may not be durable yet.
pub fn begin(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<Begun> {
    let catalog = Catalog::new(folder, definition);
    let inventory = Inventory::read(&catalog)?;
    let names = NamesBeingSynced::begin(&catalog, &inventory.listing, definition)?;
    let findings = find(&catalog, &inventory, lock, &mut definition.clone(), false)?;
    if findings.is_empty() {
        return Ok(Begun { findings, names, inventory: Some(inventory) });
    }
    names.wait()?;
    // Read again: what could not be read may have been a single error.
    let findings = find(&catalog, &Inventory::read(&catalog)?, lock, definition, true)?;
    Ok(Begun { findings, names: NamesBeingSynced(Vec::new()), inventory: None })
}

/// What a killed process renamed is seen, and may yet be lost in a power cut. Nothing may be built on
/// it before.
#[must_use]
pub struct NamesBeingSynced(Vec<Syncing>);

/// Syncs of so many folders are one after another; several threads' wait for the disk together.
const FOLDERS_A_THREAD: usize = 16;
/// Most threads.
const THREADS: usize = 4;

impl NamesBeingSynced {
    fn begin(catalog: &Catalog, listing: &Listing, definition: &Definition) -> Result<Self> {
        let (folder, store) = (catalog.folder, &catalog.store);
        let storage = folder.storage().clone();
        let mut dirs: Vec<_> = listing.manifests.iter().map(|manifest| store.path(manifest.id)).collect();
        dirs.extend([folder.path().to_owned(), folder.disks(), store.dir().to_owned()]);
        // Restored, cloned or renamed, the VM itself has its name there.
        dirs.extend(folder.path().parent().map(ToOwned::to_owned));
        let threads = dirs.len().div_ceil(FOLDERS_A_THREAD).min(THREADS);
        let syncing = (0..threads).map(|_| Syncing::begin()).collect::<Result<Vec<_>>>()?;
        if let Some(first) = syncing.first().filter(|_| !listing.manifests.is_empty()) {
            // It takes a sync where it is missing, as in each new clone.
            let (folder, definition) = (folder.clone(), definition.clone());
            first.add(move || {
                reserve::keep(&folder, &definition);
                Ok(())
            });
        }
        for (dir, syncing) in dirs.into_iter().zip(syncing.iter().cycle()) {
            let storage = storage.clone();
            syncing.add(move || match storage.sync_dir(&dir) {
                Err(e) if e.is_not_found() => Ok(()),
                other => Ok(other?),
            });
        }
        Ok(Self(syncing))
    }

    pub fn wait(mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Syncing::wait)
    }
}

fn find(
    catalog: &Catalog,
    inventory: &Inventory,
    lock: &VmLock,
    definition: &mut Definition,
    repair: bool,
) -> Result<Vec<Finding>> {
    let (folder, listing) = (catalog.folder, &inventory.listing);
    let mut findings = Vec::new();
    if let Some(relocating) = &definition.now.relocating {
        findings.push(Finding::mended(format!(
            "relocating the base image of disk `{}` to {} was interrupted",
            relocating.disk,
            relocating.to.display()
        )));
        if repair {
            relocate::finish(folder, lock, definition)?;
        }
    }
    if let Some(id) = definition.now.creating {
        let published = listing.manifests.iter().any(|manifest| manifest.id == id);
        findings.push(Finding::mended(if published {
            format!("checkpoint {id} was complete but not recorded; it becomes the parent of Now")
        } else {
            format!("creating checkpoint {id} was interrupted; it is discarded")
        }));
        if repair {
            let mut next = definition.clone();
            next.now.creating = None;
            if published {
                next.now.parent = Some(id);
            }
            save(folder, lock, definition, next)?;
        }
    }
    let how = if repair { Recovery::Mend } else { Recovery::Look };
    let being_read = || -> Result<_> {
        Ok(readers::list(folder)?.into_iter().flat_map(|reader| reader.checkpoints).collect())
    };
    findings.extend(
        catalog.store.recover(how, being_read)?.into_iter().map(|found| Finding::mended(found.to_string())),
    );
    findings.extend(listing.damaged.iter().map(|damaged| Finding::damage(damaged.error.to_string())));
    if let Some(merging) = &definition.now.merging {
        findings.push(Finding::mended(format!("a layer merge of disk `{}` was interrupted", merging.disk)));
        if repair {
            // A merge that cannot go on now, for want of space perhaps, must not keep the VM from
            // starting. Wherever it stopped, everything reads the same; it is planned anew later.
            if let Err(e) = merge::finish_merge(folder, lock, definition) {
                log::warn!("the layer merge is postponed: {e}");
                if !is_base_gone(folder, definition) {
                    merge::give_up(folder, lock, definition)?;
                }
            }
        }
    }
    // Layers of an unfinished merge may look as if nothing needed them.
    if definition.now.merging.is_none() {
        // A merge that was brought to its end changed what manifests say.
        let changed = (!findings.is_empty()).then(|| Inventory::read(catalog)).transpose()?;
        findings.extend(orphans_of(catalog, definition, changed.as_ref().unwrap_or(inventory), repair)?);
    }
    // What is missing may come back, and then its checksums are needed.
    if findings.iter().all(|finding| finding.mended) {
        let changed = (repair && !findings.is_empty()).then(|| Inventory::read(catalog)).transpose()?;
        findings.extend(strays(folder, definition, changed.as_ref().unwrap_or(inventory), repair)?);
    }
    Ok(findings)
}

/// Whether a merge was begun into a base that is not there: that has to be told before all else.
fn is_base_gone(folder: &VmFolder, definition: &Definition) -> bool {
    let merging = definition.now.merging.as_ref().filter(|merging| merging.lower.is_none());
    let mut disks = definition.config.disks.iter();
    let disk = merging.and_then(|merging| disks.find(|disk| disk.id == merging.disk));
    disk.is_some_and(|disk| bases::look(folder, disk, None).is_err())
}

/// Files that belong to nothing: replacements that were not put in place, and checksums that nobody
/// vouches for.
fn strays(
    folder: &VmFolder,
    definition: &Definition,
    inventory: &Inventory,
    repair: bool,
) -> Result<Vec<Finding>> {
    let storage = folder.storage();
    let mut found = sealing::strays(folder, definition, inventory)?;
    for dir in [folder.path().to_owned(), folder.disks()] {
        let names = match storage.list_dir(&dir) {
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        let names = names.into_iter().filter(|name| is_temporary(name));
        found.extend(names.map(|name| dir.join(name)));
    }
    if repair {
        for path in &found {
            storage.remove_file_if_exists(path)?;
        }
    }
    let what = |path: &PathBuf| Finding::mended(format!("{} was left behind by a crash", path.display()));
    Ok(found.iter().map(what).collect())
}
