//! `piton checkpoint prune`, and what the rules of a VM say in words.

use hyper::Method;

use super::error::refused;
use super::manage::confirm;
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::units::size;
use super::work;
use crate::control::happened;
use crate::control::upkeep::{PruneBody, PrunedInfo};
use crate::folder::{VmFolder, VmName};
use crate::history::{merge, prune};

pub fn run(name: &VmName, dry_run: bool, yes: bool, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    if !yes && !dry_run && !confirm(&format!("Delete the checkpoints of `{name}` that no rule keeps?"))? {
        return Err(refused("nothing was deleted"));
    }
    let body = PruneBody { dry_run };
    let pruned = match work::ask::<PrunedInfo>(&folder.socket(), Method::POST, "/vm/prune", &body)? {
        Some(pruned) => pruned,
        None => offline(&folder, dry_run)?,
    };
    if json {
        out::json_line(&serde_json::json!(pruned));
    } else {
        tell(name, &pruned);
    }
    Ok(())
}

fn offline(folder: &VmFolder, dry_run: bool) -> anyhow::Result<PrunedInfo> {
    let mut vm = Offline::open(folder)?;
    let pruned = prune::prune(folder, &vm.lock, &mut vm.definition, dry_run)?;
    vm.tell(happened::pruned(&pruned));
    if !dry_run
        && let Err(e) = work::here(|progress| merge::settle(folder, &vm.lock, &mut vm.definition, progress))?
    {
        log::warn!("layers that could be merged are not merged yet: {e}");
    }
    Ok(pruned)
}

fn tell(vm: &VmName, pruned: &PrunedInfo) {
    if pruned.checkpoints.is_empty() {
        return outln!("the VM `{vm}` has no checkpoints");
    }
    let width = pruned.checkpoints.iter().map(|one| one.checkpoint.name.as_str().chars().count()).max();
    for one in &pruned.checkpoints {
        let what = match (one.stays, pruned.dry_run) {
            (true, _) => "stays  ",
            (false, true) => "goes   ",
            (false, false) => "deleted",
        };
        outln!("{what}  {:<width$}  {}", one.checkpoint.name.as_str(), one.why, width = width.unwrap_or(0));
    }
    let verb = if pruned.dry_run { "would be" } else { "is" };
    outln!("{} {verb} freed", size(pruned.bytes));
}
