//! What the VMs of a home take on disk: by VM, by what it is for, and in all, with files that several
//! have counted once. A file is known by its number, whatever names it has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{Files, Inode, walk};
use super::{Catalog, Result, removed, trash};
use crate::checkpoint::store::FLAT;
use crate::folder::{Definition, Home, VmFolder, VmName};
use crate::id::Id;
use crate::storage::FileKind;

/// What a VM takes. `bytes` is the sum of the five after it.
#[derive(Debug, Clone, Serialize)]
pub struct VmUsage {
    pub name: VmName,
    /// Of a removed VM: its id in the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<Id>,
    pub bytes: u64,
    /// Disk images in its own folder.
    pub images: u64,
    /// What was written on top of images.
    pub layers: u64,
    /// Memory and states of checkpoints.
    pub checkpoints: u64,
    /// Copies of memory for clones to share.
    pub flat: u64,
    /// Logs, the definition.
    pub other: u64,
    /// Bytes of these that other VMs have as well, and who they are.
    pub shared: u64,
    pub shared_with: Vec<VmName>,
    /// Bytes of these that emptying its trash would free, at least.
    pub trash: u64,
}

/// An image that lies elsewhere.
#[derive(Debug, Clone, Serialize)]
pub struct ImageUsage {
    pub path: PathBuf,
    pub bytes: u64,
    pub used_by: Vec<VmName>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// All that the VMs take, what they share counted once.
    pub bytes: u64,
    /// Bytes of these that are free once all trashes are empty, at least.
    pub trash: u64,
    /// All that the images take that lie elsewhere.
    pub image_bytes: u64,
    pub vms: Vec<VmUsage>,
    pub images: Vec<ImageUsage>,
}

struct Seen {
    folder: VmFolder,
    removed: Option<Id>,
    definition: Option<Definition>,
    files: Files,
}

pub fn of(home: &Home) -> Result<Usage> {
    let gone = removed::list(home)?;
    let removed_bytes = removed::frees(&gone);
    let mut all: Vec<Seen> = Vec::new();
    for folder in home.all()? {
        // One that others could have written is not read.
        let definition = folder.load().ok();
        let elsewhere = definition.as_ref().map(|definition| folder.checkpoints(definition));
        all.push(seen(folder, None, definition, elsewhere));
    }
    for one in gone {
        let (elsewhere, definition) = (one.checkpoints_elsewhere(), one.folder.load().ok());
        all.push(seen(one.folder, Some(one.id), definition, elsewhere));
    }
    let mut owners: BTreeMap<Inode, (u64, BTreeSet<usize>)> = BTreeMap::new();
    for (index, one) in all.iter().enumerate() {
        for (inode, file) in &one.files {
            owners.entry(*inode).or_insert((file.bytes, BTreeSet::new())).1.insert(index);
        }
    }
    let vms: Vec<VmUsage> =
        all.iter().enumerate().map(|(index, one)| usage(index, one, &all, &owners)).collect();
    let images = images(&all, &owners);
    let own_trash: u64 = vms.iter().filter(|vm| vm.removed.is_none()).map(|vm| vm.trash).sum();
    Ok(Usage {
        bytes: owners.values().map(|(bytes, _)| bytes).sum(),
        trash: removed_bytes + own_trash,
        image_bytes: images.iter().map(|image| image.bytes).sum(),
        vms,
        images,
    })
}

fn seen(
    folder: VmFolder,
    removed: Option<Id>,
    definition: Option<Definition>,
    elsewhere: Option<PathBuf>,
) -> Seen {
    let mut files = Files::new();
    walk(folder.storage(), folder.path(), &mut files);
    if let Some(dir) = elsewhere.filter(|dir| !dir.starts_with(folder.path())) {
        walk(folder.storage(), &dir, &mut files);
    }
    Seen { folder, removed, definition, files }
}

fn usage(
    index: usize,
    one: &Seen,
    all: &[Seen],
    owners: &BTreeMap<Inode, (u64, BTreeSet<usize>)>,
) -> VmUsage {
    let mut usage = VmUsage {
        name: one.folder.name().clone(),
        removed: one.removed,
        bytes: 0,
        images: 0,
        layers: 0,
        checkpoints: 0,
        flat: 0,
        other: 0,
        shared: 0,
        shared_with: Vec::new(),
        trash: trash_of(one),
    };
    let mut sharers = BTreeSet::new();
    for (inode, file) in &one.files {
        usage.bytes += file.bytes;
        *kind(&one.folder, &file.path, &mut usage) += file.bytes;
        let others = owners.get(inode).map(|(_, who)| who.iter().filter(|who| **who != index));
        let others: Vec<usize> = others.into_iter().flatten().copied().collect();
        if !others.is_empty() {
            usage.shared += file.bytes;
            sharers.extend(others.into_iter().map(|who| all[who].folder.name().clone()));
        }
    }
    usage.shared_with = sharers.into_iter().collect();
    usage
}

fn kind<'a>(folder: &VmFolder, path: &Path, usage: &'a mut VmUsage) -> &'a mut u64 {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let inside = path.strip_prefix(folder.path()).ok();
    match inside.map(|inside| inside.iter().next().map(|first| first.to_os_string())) {
        _ if name.starts_with(FLAT) => &mut usage.flat,
        Some(Some(first)) if first == "disks" && name.contains(".delta") => &mut usage.layers,
        Some(Some(first)) if first == "disks" => &mut usage.images,
        Some(Some(first)) if first != "checkpoints" => &mut usage.other,
        _ => &mut usage.checkpoints,
    }
}

fn trash_of(one: &Seen) -> u64 {
    let Some(definition) = &one.definition else { return 0 };
    if one.removed.is_some() {
        return 0;
    }
    trash::info(&Catalog::new(&one.folder, definition), definition).map_or(0, |info| info.bytes)
}

/// Images that lie in no VM's folder. What they in turn rest on is not followed.
fn images(all: &[Seen], owners: &BTreeMap<Inode, (u64, BTreeSet<usize>)>) -> Vec<ImageUsage> {
    let mut images: BTreeMap<Inode, ImageUsage> = BTreeMap::new();
    for one in all {
        let disks = one.definition.iter().flat_map(|definition| &definition.config.disks);
        for path in disks.map(|disk| &disk.path).filter(|path| path.is_absolute()) {
            let Ok(meta) = one.folder.storage().metadata(path) else { continue };
            let inode = (meta.dev, meta.ino);
            if meta.kind != FileKind::File || owners.contains_key(&inode) {
                continue;
            }
            let new = ImageUsage { path: path.clone(), bytes: meta.allocated, used_by: Vec::new() };
            let image = images.entry(inode).or_insert(new);
            if !image.used_by.contains(one.folder.name()) {
                image.used_by.push(one.folder.name().clone());
            }
        }
    }
    let mut images: Vec<ImageUsage> = images.into_values().collect();
    images.sort_by(|a, b| a.path.cmp(&b.path));
    images
}
