//! `piton disk`: the disks of a VM that is off, and the images below them.

use std::path::{Path, PathBuf};

use super::args::DiskCommand;
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::paths::kept;
use super::units::size as shown;
use super::{disks, work};
use crate::config::DiskArg;
use crate::folder::{Definition, Happened, VmFolder, VmName, What};
use crate::history::disk_changes::{self, NewSize};
use crate::history::relocate::relocate;
use crate::history::{Catalog, merge};

pub fn run(command: DiskCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DiskCommand::Add { name, disk, backing } => add(&name, disk, &backing, json),
        DiskCommand::Remove { name, disk, discard } => remove(&name, &disk, discard, json),
        DiskCommand::Resize { name, disk, size } => resize(&name, &disk, size, json),
        DiskCommand::Relocate { name, disk, path } => move_base(&name, &disk, &path, json),
    }
}

/// The first of `disk0`, `disk1` and so on that nothing of the VM has.
fn free_id(folder: &VmFolder, definition: &Definition) -> anyhow::Result<String> {
    let manifests = Catalog::new(folder, definition).listing()?.manifests;
    let configs = manifests.iter().map(|manifest| &manifest.config).chain([&definition.config]);
    let taken: Vec<&str> = configs.flat_map(|config| &config.disks).map(|disk| disk.id.as_str()).collect();
    let first = definition.config.disks.len();
    let mut ids = (first..).map(|number| format!("disk{number}"));
    Ok(ids.find(|id| !taken.contains(&id.as_str())).unwrap_or_default())
}

/// Said of a VM that has checkpoints: they were made with other disks.
fn keep(folder: &VmFolder, vm: &Offline) -> anyhow::Result<&'static str> {
    let any = !Catalog::new(folder, &vm.definition).manifests()?.is_empty();
    Ok(if any { "; its checkpoints keep theirs, and going back to one brings them back" } else { "" })
}

fn told(vm: &Offline, what: String) {
    vm.tell([Happened::now(What::DisksChanged, what)]);
}

fn add(name: &VmName, arg: DiskArg, backing: &[PathBuf], json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let mut vm = Offline::open(&folder)?;
    let id = match &arg.id {
        Some(id) => id.clone(),
        None => free_id(&folder, &vm.definition)?,
    };
    let (asked, size) = (arg.format, arg.size);
    let mut disk = disks::named(id.clone(), arg)?;
    disk.format = match asked {
        Some(format) => format,
        None => disks::look_at(&disk)?,
    };
    disks::check_images(std::slice::from_ref(&disk), backing)?;
    let done = disk_changes::add(&folder, &vm.lock, &mut vm.definition, disk, size)?;
    told(&vm, format!("disk `{id}` was added"));
    if json {
        out::json_line(&serde_json::json!({"vm": name, "disk": id, "size": done.to}));
        return Ok(());
    }
    outln!("the VM `{name}` has the disk `{id}` ({}) from now on{}", shown(done.to), keep(&folder, &vm)?);
    Ok(())
}

fn remove(name: &VmName, id: &str, discard: bool, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let mut vm = Offline::open(&folder)?;
    let disk = disk_changes::find(&folder, &vm.definition, id)?.clone();
    disk_changes::remove(&folder, &vm.lock, &mut vm.definition, id, discard)?;
    told(&vm, format!("disk `{id}` was removed"));
    let path = folder.path().join(&disk.path);
    if json {
        out::json_line(&serde_json::json!({"vm": name, "disk": id, "path": path}));
        return Ok(());
    }
    outln!(
        "the VM `{name}` no longer has the disk `{id}`; its image {} is still there{}",
        path.display(),
        keep(&folder, &vm)?
    );
    Ok(())
}

fn resize(name: &VmName, id: &str, size: NewSize, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let mut vm = Offline::open(&folder)?;
    let done = disk_changes::resize(&folder, &vm.lock, &mut vm.definition, id, size)?;
    if done.from != done.to {
        told(&vm, format!("disk `{id}` has grown from {} to {} bytes", done.from, done.to));
    }
    // It is larger already, and reads the same wherever this stops.
    let merged = work::here(|progress| merge::settle(&folder, &vm.lock, &mut vm.definition, progress));
    if let Err(e) = merged.and_then(|merged| Ok(merged?)) {
        log::warn!("layers could not be merged yet: {e:#}");
    }
    if json {
        out::json_line(&serde_json::json!({"vm": name, "disk": id, "from": done.from, "size": done.to}));
    } else if done.from == done.to {
        outln!("the disk `{id}` of the VM `{name}` is already as large as {}", shown(done.to));
    } else {
        outln!(
            "the disk `{id}` of the VM `{name}` has grown from {} to {}; the guest can now grow the partitions \
             and file systems on it{}",
            shown(done.from),
            shown(done.to),
            keep(&folder, &vm)?
        );
    }
    Ok(())
}

fn move_base(name: &VmName, disk: &str, path: &Path, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let path = kept(path)?;
    let mut vm = Offline::open(&folder)?;
    let done = relocate(&folder, &vm.lock, &mut vm.definition, disk, &path)?;
    told(&vm, format!("the base image of disk `{disk}` is now {}", path.display()));
    if json {
        let result = serde_json::json!({
            "vm": name, "disk": disk, "from": done.from, "path": done.to, "checkpoints": done.checkpoints,
        });
        out::json_line(&result);
        return Ok(());
    }
    let checkpoints = match done.checkpoints {
        0 => String::new(),
        1 => ", also for its checkpoint".into(),
        n => format!(", also for its {n} checkpoints"),
    };
    outln!("the base image of disk `{disk}` of the VM `{name}` is now {}{checkpoints}", done.to.display());
    Ok(())
}
