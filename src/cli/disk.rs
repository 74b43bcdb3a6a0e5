//! `piton disk`: the images below a VM's disks.

use std::path::Path;

use super::args::DiskCommand;
use super::named::existing;
use super::offline::Offline;
use super::out::outln;
use super::paths::absolute;
use crate::folder::VmName;
use crate::history::relocate::relocate;

pub fn run(command: DiskCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DiskCommand::Relocate { name, disk, path } => move_base(&name, &disk, &path, json),
    }
}

fn move_base(name: &VmName, disk: &str, path: &Path, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let path = absolute(path)?;
    let mut vm = Offline::open(&folder)?;
    let done = relocate(&folder, &vm.lock, &mut vm.definition, disk, &path)?;
    if json {
        let result = serde_json::json!({
            "vm": name, "disk": disk, "from": done.from, "path": done.to, "checkpoints": done.checkpoints,
        });
        outln!("{result}");
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
