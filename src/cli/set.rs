//! `piton set`: the settings of many VMs at once.

use super::args::SetArgs;
use super::each::tell;
use super::named::existing;
use super::offline::{Offline, answer};
use super::{limits, output, work};
use crate::control::client;
use crate::control::upkeep::{RetentionChange, ScheduleChange};
use crate::control::{SetBody, State, VmInfo, happened};
use crate::folder::{VerifyPlan, VmFolder};
use crate::history::{policy, seal};

/// A name that is wrong changes nothing. Otherwise each VM is set or not by itself, and what
/// went wrong is told.
pub fn run(args: SetArgs, json: bool) -> anyhow::Result<()> {
    let folders = args.names.iter().map(existing).collect::<anyhow::Result<Vec<VmFolder>>>()?;
    let body = SetBody {
        checkpoint_type: args.checkpoint_type,
        auto_checkpoint: args.auto_checkpoint.map(|switch| switch.is_on()),
        trash_seconds: args.trash,
        retention: RetentionChange {
            keep: args.keep,
            within_seconds: args.keep_within,
            max_bytes: args.max_size,
            all: args.keep_all.map(|switch| switch.is_on()),
        },
        schedule: ScheduleChange {
            every_seconds: args.every,
            kind: args.every_type,
            only_if_changed: args.only_if_changed.map(|switch| switch.is_on()),
        },
        verify: args.verify_every.map(|every_seconds| VerifyPlan {
            every_seconds,
            wait_for: args.wait_for,
            exec: args.exec,
            agent: args.agent,
            timeout_seconds: args.timeout,
        }),
        seal_base: args.seal_base,
        checkpoint_dir: args.checkpoint_dir.map(std::path::absolute).transpose()?,
        forward: args.forwards,
        no_forward: args.no_forwards,
        memory: args.memory,
        cpus: args.cpus,
        cmdline: args.cmdline,
    };
    if let Some(memory) = body.memory {
        limits::check_memory(memory)?;
    }
    let results = folders.iter().map(|folder| (folder, set(folder, &body)));
    tell(results, json, true, |info| {
        if body.changes_hardware() { output::hardware(info) } else { output::settings(info) }
    })
}

fn set(folder: &VmFolder, body: &SetBody) -> anyhow::Result<VmInfo> {
    if let Some(info) = answer(client::patch(&folder.socket(), "/vm", body))? {
        return Ok(info);
    }
    let mut vm = Offline::open(folder)?;
    policy::set(folder, &vm.lock, &mut vm.definition, body)?;
    vm.tell([happened::set()]);
    if body.seal_base {
        work::here(|progress| seal::seal_all(folder, &vm.lock, &mut vm.definition, progress))??;
    }
    Ok(VmInfo::new(folder, &vm.definition, State::Stopped, None))
}
