//! What is to be imported, opened and checked: everything that is in the way is found before
//! anything is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{Export, FileFormat, FileSum, INDEX, INITRD, KERNEL, damaged, own_disk};
use super::{Result, TransferError, sum};
use crate::capture::chain::{ImageSpec, MemoryChain};
use crate::checkpoint::state::{StateInfo, read_state};
use crate::config::{DiskFormat, VmConfig};
use crate::disk::delta::FrozenDelta;
use crate::disk::flat::{Patched, Zeros};
use crate::disk::layer::LayerSpec;
use crate::disk::{Backing, open_base};
use crate::history::networks;
use crate::history::whole::fit::{self, Problem, Problems, Remap};
use crate::progress::{Cancelled, Progress};
use crate::storage::{Access, DOCUMENT_MAX, File, Storage};

/// Exports that belong together, opened.
pub struct Plan {
    /// The last one, whose checkpoint is imported.
    pub export: Export,
    /// Of the VM to come, without the paths of what has to be copied.
    pub config: VmConfig,
    /// Contents of the disks that are in the exports.
    pub disks: BTreeMap<String, Arc<dyn Backing>>,
    pub memory: Option<MemoryChain>,
    pub state: Option<Vec<u8>>,
    /// To be copied into the VM's folder, with the name there.
    pub copies: Vec<(&'static str, File)>,
    /// Read-only disks of the VM's own, by id, to be copied there, too.
    pub own: Vec<(String, File)>,
}

/// Opens and checks. The plan is there if there are no problems.
pub fn plan(
    storage: &Storage,
    dirs: &[PathBuf],
    remap: &Remap,
    progress: &Progress,
) -> Result<(Export, std::result::Result<Plan, Vec<Problem>>)> {
    let exports =
        dirs.iter().map(|dir| Ok((dir.as_path(), read(storage, dir)?))).collect::<Result<Vec<_>>>()?;
    let Some((_, last)) = exports.last() else {
        return Err(TransferError::Refused("no export folder was given".into()));
    };
    let last = last.clone();
    check_order(&exports)?;
    let mut problems = Problems::default();
    check_files(storage, &exports, &mut problems, progress)?;
    let mut config = last.config.clone();
    let copies = boot_files(storage, dirs.last(), &mut config, remap, &mut problems);
    let own = own_disks(storage, dirs.last(), &last, remap, &mut problems);
    fit::outside_disks(
        storage,
        "the export",
        &|id| last.disks.contains_key(id),
        &mut config,
        remap,
        &|id| own.iter().any(|(own, _)| own == id),
        &mut problems,
    );
    if !problems.damage() {
        let opened = (|| {
            let mut disks = BTreeMap::new();
            for id in last.disks.keys() {
                disks.insert(id.clone(), open_disk(storage, &exports, id)?);
            }
            let (memory, state) = match remap.without_memory {
                true => (None, None),
                false => open_memory(storage, &exports)?,
            };
            Ok::<_, TransferError>((disks, memory, state))
        })();
        match opened {
            Err(TransferError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(e) => problems.add("file", e.to_string(), true),
            Ok((disks, memory, state)) => {
                match networks::of_new(&remap.nets, &last.config.nets, memory.is_some(), 1) {
                    Ok(nets) => config.nets = nets,
                    Err(e) => problems.add("network", e.to_string(), false),
                }
                if let Some(state) = &state {
                    fit::check_processor(&last.config, state, &mut problems);
                }
                let plan = Plan { export: last.clone(), config, disks, memory, state, copies, own };
                return Ok((last, if problems.0.is_empty() { Ok(plan) } else { Err(problems.0) }));
            }
        }
    }
    Ok((last, Err(problems.0)))
}

fn read(storage: &Storage, dir: &Path) -> Result<Export> {
    let path = dir.join(INDEX);
    match storage.within(dir).read_at_most(&path, DOCUMENT_MAX) {
        Err(e) if e.is_not_found() || e.kind() == std::io::ErrorKind::NotADirectory => {
            Err(TransferError::Refused(format!(
                "{} is not an export, or not a complete one: it has no {INDEX}",
                dir.display()
            )))
        }
        other => Export::decode(&other?, &path),
    }
}

/// Each but the first says the changes to the one before it.
fn check_order(exports: &[(&Path, Export)]) -> Result<()> {
    let refused = |what| Err(TransferError::Refused(what));
    let mut before: Option<(&Path, &Export)> = None;
    for (dir, export) in exports {
        let dir_shown = dir.display();
        match (&export.since, before) {
            (None, None) => {}
            (None, Some(_)) => {
                return refused(format!("{dir_shown} is a full export: give it first, or alone"));
            }
            (Some(since), None) => {
                return refused(format!(
                    "{dir_shown} contains only changes since checkpoint `{}` ({}): give the export of \
                     that checkpoint before it",
                    since.name, since.id
                ));
            }
            (Some(since), Some((parent_dir, parent))) if since.id != parent.id => {
                return refused(format!(
                    "{dir_shown} contains changes since checkpoint `{}` ({}), but {} is an export of `{}` ({})",
                    since.name,
                    since.id,
                    parent_dir.display(),
                    parent.name,
                    parent.id
                ));
            }
            (Some(_), Some((parent_dir, parent))) => {
                for (id, disk) in export.disks.iter().filter(|(_, disk)| disk.changes) {
                    if parent.disks.get(id).is_none_or(|below| below.size != disk.size) {
                        return refused(format!(
                            "{dir_shown} contains changes to disk `{id}`, but {} has no copy of that disk \
                             of the same size",
                            parent_dir.display()
                        ));
                    }
                }
                if export.memory.as_ref().is_some_and(|memory| memory.changes) && parent.memory.is_none() {
                    let parent_dir = parent_dir.display();
                    return refused(format!(
                        "{dir_shown} contains changes to memory, but {parent_dir} \
                     contains no memory"
                    ));
                }
            }
        }
        before = Some((dir, export));
    }
    Ok(())
}

fn check_files(
    storage: &Storage,
    exports: &[(&Path, Export)],
    problems: &mut Problems,
    progress: &Progress,
) -> Result<()> {
    let files = exports.iter().flat_map(|(_, export)| export.files.values());
    // What it says of lengths is not known to be true yet.
    let total = files.fold(0u64, |total, file| total.saturating_add(file.bytes));
    progress.phase("checksums", total);
    for (dir, export) in exports {
        let inside = storage.within(dir);
        for (name, recorded) in &export.files {
            let path = dir.join(name);
            let shown = path.display();
            let text = match check_file(&inside, &path, recorded, progress) {
                Ok(None) => continue,
                Ok(Some(found)) => format!("{shown} {found}"),
                Err(TransferError::Cancelled(Cancelled)) => return Err(Cancelled.into()),
                Err(TransferError::Storage(e)) if e.is_not_found() => format!("{shown} is missing"),
                Err(e) => e.to_string(),
            };
            problems.add("file", text, true);
        }
    }
    Ok(())
}

/// What is wrong with a file.
fn check_file(
    inside: &Storage,
    path: &Path,
    recorded: &FileSum,
    progress: &Progress,
) -> Result<Option<String>> {
    let file = inside.open(path, Access::ReadOnly)?;
    let len = file.len()?;
    if len != recorded.bytes {
        return Ok(Some(format!("has {len} bytes instead of {}", recorded.bytes)));
    }
    let found = sum::of_file(&file, progress)?;
    let damaged =
        || format!("is damaged: its checksum is {:08x}, but {:08x} is recorded", found.crc, recorded.crc);
    Ok((found != *recorded).then(damaged))
}

/// Decides what the VM boots from; returns what has to be copied for it.
fn boot_files(
    storage: &Storage,
    dir: Option<&PathBuf>,
    config: &mut VmConfig,
    remap: &Remap,
    problems: &mut Problems,
) -> Vec<(&'static str, File)> {
    let mut copies = Vec::new();
    let files = [(KERNEL, &mut config.kernel, &remap.kernel), (INITRD, &mut config.initrd, &remap.initrd)];
    for (name, path, other) in files {
        if let Some(other) = other {
            if let Err(why) = fit::can_boot(storage, other) {
                problems.add(name, format!("the {name} {} {why}", other.display()), false);
            }
            *path = Some(other.clone());
            continue;
        }
        match (path, dir) {
            (Some(inside), Some(dir)) if inside.is_relative() => {
                match storage.within(dir).open(&dir.join(&*inside), Access::ReadOnly) {
                    Ok(file) => copies.push((name, file)),
                    Err(e) => problems.add("file", e.to_string(), true),
                }
            }
            // What it says of this host is not believed, even if it is there.
            (Some(was), _) => {
                let was = was.display();
                let text =
                    format!("the {name} is not in the export (it was {was}): give one with --{name} FILE");
                problems.add(name, text, false);
            }
            (None, _) => {}
        }
    }
    copies
}

/// Read-only disks that the export brings along; one that the user names another image for is not.
fn own_disks(
    storage: &Storage,
    dir: Option<&PathBuf>,
    export: &Export,
    remap: &Remap,
    problems: &mut Problems,
) -> Vec<(String, File)> {
    let mut own = Vec::new();
    for disk in export.config.disks.iter().filter(|disk| disk.readonly) {
        let (id, name) = (&disk.id, own_disk(&disk.id));
        let brought = disk.path.as_os_str() == name.as_str() && export.files.contains_key(&name);
        let (Some(dir), true, false) = (dir, brought, remap.disks.contains_key(id)) else { continue };
        match storage.within(dir).open(&dir.join(&name), Access::ReadOnly) {
            Ok(file) => own.push((id.clone(), file)),
            Err(e) => problems.add("file", e.to_string(), true),
        }
    }
    own
}

fn open_disk(all: &Storage, exports: &[(&Path, Export)], id: &str) -> Result<Arc<dyn Backing>> {
    let failed = TransferError::disk(id);
    let Some(((dir, export), before)) = exports.split_last() else {
        return Err(TransferError::Refused(format!("there is no full copy of disk `{id}`")));
    };
    let Some(disk) = export.disks.get(id) else {
        return Err(TransferError::Refused(format!("disk `{id}` is not in {}", dir.display())));
    };
    let (path, storage) = (dir.join(&disk.file), &all.within(dir));
    let opened: Arc<dyn Backing> = match (disk.format, disk.layer) {
        (FileFormat::Raw, _) => Arc::new(open_base(storage, &path, DiskFormat::Raw).map_err(&failed)?),
        (FileFormat::Qcow2, _) => {
            no_backing_file(storage, &path)?;
            Arc::new(open_base(storage, &path, DiskFormat::Qcow2).map_err(&failed)?)
        }
        (FileFormat::Piton, None) => return Err(damaged(&dir.join(INDEX), "does not name a layer")),
        (FileFormat::Piton, Some(layer)) => {
            let below: Arc<dyn Backing> =
                if disk.changes { open_disk(all, before, id)? } else { Arc::new(Zeros(disk.size)) };
            let delta = FrozenDelta::open(storage, &LayerSpec { path: path.clone(), id: layer });
            let patched = delta.and_then(|delta| Patched::new(below, delta));
            Arc::new(patched.map_err(&failed)?)
        }
    };
    if opened.len() != disk.size {
        return Err(damaged(&path, format!("has {} bytes instead of {}", opened.len(), disk.size)));
    }
    Ok(opened)
}

/// No export has one: it could be any file of this host.
fn no_backing_file(storage: &Storage, path: &Path) -> Result<()> {
    let mut offset = [1; 8];
    storage.open(path, Access::ReadOnly)?.read_at(&mut offset, 8)?;
    if offset == [0; 8] {
        return Ok(());
    }
    Err(damaged(path, "names a backing file, which is not allowed in an export"))
}

type Saved = (Option<MemoryChain>, Option<Vec<u8>>);

fn open_memory(storage: &Storage, exports: &[(&Path, Export)]) -> Result<Saved> {
    let Some((dir, export)) = exports.last() else { return Ok((None, None)) };
    let Some(state) = &export.state else { return Ok((None, None)) };
    let mut specs = Vec::new();
    for (dir, export) in exports.iter().rev() {
        let Some(memory) = &export.memory else { break };
        let spec = ImageSpec { path: dir.join(&memory.file), id: export.id, crc: memory.crc };
        specs.push((storage.within(dir), spec));
        if !memory.changes {
            break;
        }
    }
    let info = StateInfo { bytes: state.bytes, crc: state.crc };
    let json = read_state(&storage.within(dir), &dir.join(&state.file), &info)?;
    let chain = MemoryChain::open_each(specs.iter().map(|(storage, spec)| (storage, spec)))?;
    Ok((Some(chain), Some(json)))
}
