//! VMs and checkpoints as files: export, import, what changed, and disks to be read over a socket.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use hyper::Method;

use super::args::{ExportArgs, ExportCheckpointArgs, FitArgs, GuardArgs, ImportArgs, ServeArgs, Since};
use super::error::{FAILED, InUse, REFUSED, Told, refused, usage};
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::paths::{absolute, target_folder};
use super::units::size;
use super::{guard, output, work};
use crate::control::{CheckpointInfo, CreateBody, DeleteBody, DeletedInfo};
use crate::disk::Backing;
use crate::folder::{CheckpointType, Home, VmFolder, VmName};
use crate::history::seal;
use crate::history::whole::fit::{Problem, Remap};
use crate::history::whole::source::Source;
use crate::nbd;
use crate::progress::Progress;
use crate::seccomp::Thread;
use crate::storage::Storage;
use crate::transfer::format::{Export, FileFormat};
use crate::transfer::import::{self, Wanted};
use crate::transfer::{Result as TransferResult, export};

pub fn export_checkpoint(args: &ExportCheckpointArgs, json: bool) -> anyhow::Result<()> {
    let (folder, dir) = (existing(&args.checkpoint.vm)?, target_folder(&args.dir)?);
    guard::enter(&args.guard, Thread::Files, &with_beside(&dir))?;
    let since = since(args.since.as_ref(), &args.checkpoint.vm)?;
    let export = work::here(|progress| {
        write(&folder, &args.checkpoint.checkpoint, since, &dir, args.format, progress)
    })??;
    tell(&folder, &export, &dir, json)?;
    Ok(())
}

/// An export is written beside its folder, also if that is there, and then takes its place.
fn with_beside(dir: &Path) -> [&Path; 2] {
    [dir, dir.parent().unwrap_or(dir)]
}

fn since<'a>(since: Option<&'a Since>, vm: &VmName) -> anyhow::Result<Option<&'a str>> {
    since.map(|since| since.of(vm)).transpose().map_err(usage)
}

fn write(
    folder: &VmFolder,
    checkpoint: &str,
    since: Option<&str>,
    dir: &Path,
    format: FileFormat,
    progress: &Progress,
) -> TransferResult<Export> {
    const COMMAND: &str = "piton checkpoint export";
    let source = Source::checkpoint(folder, checkpoint, COMMAND)?;
    let since = since.map(|since| Source::checkpoint(folder, since, COMMAND)).transpose()?;
    export::write(folder.storage(), &source, since.as_ref(), dir, format, progress)
}

fn tell(folder: &VmFolder, export: &Export, dir: &Path, json: bool) -> anyhow::Result<()> {
    let mut config = folder.load()?.config;
    config.disks.retain(|disk| export.disks.contains_key(&disk.id));
    let unchecked = seal::unchecked(folder, &config)?;
    if json {
        let mut result = serde_json::json!(export);
        result["unchecked"] = unchecked.into();
        out::json(&result);
        return Ok(());
    }
    let what = match &export.since {
        Some(since) => format!("changes from `{}` to `{}`", since.name, export.name),
        None => format!("`{}`", export.name),
    };
    let memory = export.memory.as_ref().map(|memory| format!(", memory {}", size(memory.stored_bytes)));
    let disks = match export.disks.len() {
        1 => "1 disk".to_owned(),
        count => format!("{count} disks"),
    };
    outln!(
        "{what} of the VM `{}` exported to {}: {disks}{}",
        export.vm,
        dir.display(),
        memory.unwrap_or_default()
    );
    for left in export.left_out.iter().filter(|left| !export.brings(&left.disk)) {
        outln!("disk `{}` is not included: it is {}", left.disk, left.why);
    }
    output::unchecked(&unchecked);
    for warning in &export.warnings {
        output::complain(&format!("warning: {warning}"));
    }
    Ok(())
}

/// The active state: of a VM that is off what it would start from, of one that runs a checkpoint
/// that is gone afterwards.
pub fn export_now(args: &ExportArgs, json: bool) -> anyhow::Result<()> {
    let (folder, dir) = (existing(&args.name)?, target_folder(&args.dir)?);
    let since = since(args.since.as_ref(), &args.name)?;
    match Offline::open(&folder) {
        Ok(vm) => {
            guard::enter(&args.guard, Thread::Files, &with_beside(&dir))?;
            let export = work::here(|progress| {
                let source = Source::now(&folder, &vm.lock, &vm.definition)?;
                let since =
                    since.map(|since| Source::checkpoint(&folder, since, "piton export")).transpose()?;
                export::write(folder.storage(), &source, since.as_ref(), &dir, args.format, progress)
            })??;
            tell(&folder, &export, &dir, json)
        }
        Err(e) if !is_running(&e) => Err(e),
        Err(_) if !args.live => Err(refused(format!(
            "the VM `{name}` is running or paused: use --live to export it through a temporary \
             checkpoint, or stop it first with `piton stop {name}`",
            name = args.name
        ))),
        Err(_) => with_live_checkpoint(&folder, "piton export --live", &args.guard, json, |at| {
            let mut words: Vec<OsString> = ["checkpoint", "export", at].map(Into::into).into();
            words.push(format!("--format={}", args.format).into());
            words.extend(since.map(|since| format!("--since={since}").into()));
            words.extend(["--".into(), dir.into()]);
            words
        }),
    }
}

pub(super) fn is_running(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(InUse { state: Some(_), .. }))
}

/// Runs a command on a checkpoint of a VM that runs, which is deleted afterwards. `words` makes the
/// command of the checkpoint's VM@ID.
pub(super) fn with_live_checkpoint(
    folder: &VmFolder,
    command: &str,
    guard: &GuardArgs,
    json: bool,
    words: impl FnOnce(&str) -> Vec<OsString>,
) -> anyhow::Result<()> {
    let socket = folder.socket();
    let body = CreateBody {
        note: format!("temporary, made by `{command}`, which deletes it when done"),
        // The current state is all of it, whatever checkpoints of the VM usually are.
        kind: Some(CheckpointType::Standard),
        ..Default::default()
    };
    let created: Option<CheckpointInfo> = work::ask(&socket, Method::POST, "/vm/checkpoints", &body)?;
    let Some(CheckpointInfo { id, .. }) = created else {
        return Err(refused(format!("the VM `{}` has just stopped: try again", folder.name())));
    };
    // A process of its own, as this one has to ask the VM once more: who reads files may not.
    let flags = [(json, "--json"), (guard.no_seccomp, "--no-seccomp"), (guard.no_landlock, "--no-landlock")];
    let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| OsString::from(flag));
    let mut words = words(&format!("{}@{id}", folder.name()));
    words.splice(2..2, flags);
    let done = work::in_a_process(words);
    // Whatever became of it.
    let path = format!("/vm/checkpoints/{id}");
    if let Err(e) = work::ask::<DeletedInfo>(
        &socket,
        Method::DELETE,
        &path,
        &DeleteBody { no_undo: true, ..Default::default() },
    ) {
        output::complain(&format!(
            "warning: cannot delete the temporary checkpoint {id} of `{command}`: {e}"
        ));
    }
    done
}

pub fn import(args: &ImportArgs, json: bool) -> anyhow::Result<()> {
    guard::enter(&args.guard, Thread::Import, &[])?;
    let storage = Storage::os();
    let home = Home::from_env(storage.clone())?;
    let dirs = args.dirs.iter().map(|dir| absolute(dir)).collect::<anyhow::Result<Vec<_>>>()?;
    let remap = remap(&args.fit)?;
    let wanted = Wanted { dirs: &dirs, name: args.name.clone(), new_id: args.new_id, remap: &remap };
    let outcome = work::here(|progress| import::run(&home, &storage, &wanted, !args.check, progress))??;
    let problems = match &outcome {
        Ok(_) => &[][..],
        Err(problems) => problems,
    };
    if json && (args.check || outcome.is_ok()) {
        let (vm, checkpoint) = match &outcome {
            Ok(imported) => (Some(&imported.vm), Some(imported.checkpoint)),
            Err(_) => (None, None),
        };
        let done = outcome.is_ok() && !args.check;
        out::json(
            &serde_json::json!({ "imported": done, "vm": vm, "checkpoint": checkpoint, "problems": problems }),
        );
    } else if let Ok(imported) = &outcome {
        let (vm, name) = (&imported.vm, &imported.name);
        if args.check {
            outln!("no problems found: it can be imported as `{vm}`");
        } else {
            outln!(
                "the VM `{vm}` has been imported with checkpoint `{name}`: `piton checkpoint revert {vm}` \
                 goes to the checkpoint, `piton start {vm}` boots from the disks"
            );
        }
    }
    in_the_way("import", problems, json && args.check)
}

/// What this host brings for a VM that comes from elsewhere.
pub(super) fn remap(args: &FitArgs) -> anyhow::Result<Remap> {
    let mut remap = Remap {
        kernel: args.kernel.as_deref().map(absolute).transpose()?,
        initrd: args.initrd.as_deref().map(absolute).transpose()?,
        backing: args.backing.iter().map(|path| absolute(path)).collect::<anyhow::Result<_>>()?,
        without_memory: args.without_memory,
        nets: args.networks.nets.clone(),
        ..Default::default()
    };
    for (id, path) in &args.disks {
        if remap.disks.insert(id.clone(), absolute(path)?).is_some() {
            return Err(usage(format!("disk `{id}` is given twice")));
        }
    }
    Ok(remap)
}

/// An error if there are problems; `told`: they have been said.
pub(super) fn in_the_way(verb: &str, problems: &[Problem], told: bool) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let damage = problems.iter().any(|problem| problem.damage);
    if told {
        return Err(Told { code: if damage { FAILED } else { REFUSED } }.into());
    }
    let sentences: Vec<&str> = problems.iter().map(|problem| problem.text.as_str()).collect();
    let text = format!("cannot {verb}: {}", sentences.join("; "));
    Err(if damage { anyhow!(text) } else { refused(text) })
}

pub fn serve(args: &ServeArgs, json: bool) -> anyhow::Result<()> {
    let folder = existing(&args.checkpoint.vm)?;
    let socket = absolute(&args.socket)?;
    let mut signals = signal_hook::iterator::Signals::new(super::signals::ending())
        .context("cannot set up signal handling")?;
    // Made first: what reads the disks can make none, and connect to none.
    let mut server = nbd::Server::bind(&socket)?;
    guard::enter(&args.guard, Thread::Serve, &[&socket])?;
    let mut source = Source::checkpoint(&folder, &args.checkpoint.checkpoint, "piton checkpoint serve")?;
    let disks = std::mem::take(&mut source.disks);
    let names: Vec<String> = disks.keys().cloned().collect();
    if let Some(wanted) = args.disk.as_ref().filter(|wanted| !names.contains(wanted)) {
        return Err(refused(format!(
            "checkpoint `{}` has no disk `{wanted}`: it has {}",
            source.name(),
            names.join(", ")
        )));
    }
    let description = format!("checkpoint {} of {}", source.name(), folder.name());
    // In the guest's order, as the first is the one that has no need of a name.
    let order = source.manifest.config.disks.iter().map(|disk| &disk.id);
    let mut disks = disks;
    let exports: Vec<nbd::Export> = order
        .filter(|id| args.disk.as_ref().is_none_or(|wanted| wanted == *id))
        .filter_map(|id| Some((id, disks.remove(id)?)))
        .map(|(name, disk)| nbd::Export {
            name: name.clone(),
            description: description.clone(),
            disk: Arc::new(disk) as Arc<dyn Backing>,
        })
        .collect();
    if exports.is_empty() {
        return Err(refused(format!("checkpoint `{}` has no disks", source.name())));
    }
    let names: Vec<String> = exports.iter().map(|export| export.name.clone()).collect();
    server.serve(exports)?;
    if json {
        out::json_line(&serde_json::json!({ "socket": socket, "disks": names }));
    } else {
        for name in &names {
            outln!("nbd+unix:///{name}?socket={}", socket.display());
        }
        output::complain("serving until Ctrl-C");
    }
    signals.forever().next();
    drop(server);
    drop(source);
    Ok(())
}
