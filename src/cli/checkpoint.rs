//! Commands on checkpoints. A running VM is asked; of one that is off, the folder is worked on
//! under its lock.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::anyhow;
use hyper::Method;

use super::args::{ApplyArgs, CheckpointCommand, CheckpointRef};
use super::error::{refused, usage};
use super::going_back::{go_offline, hint, keep_now};
use super::manage::{confirm, has_ended, in_use, lock, must_run};
use super::named::{existing, home};
use super::offline::{Offline, answer, find};
use super::out::{self, outln};
use super::{background, diff, output, proof, prune, search, temporary, transfer, verify, work};
use crate::checkpoint::Manifest;
use crate::config::VmConfig;
use crate::control::client::{self, Wait};
use crate::control::happened;
use crate::control::jobs::{JobInfo, JobList};
use crate::control::{
    ApplyBody, ChangeBody, CheckpointInfo, CreateBody, DeleteBody, DeletedInfo, GoBack, RevertBody, State,
    TreeInfo, VmInfo,
};
use crate::folder::{Definition, VmFolder, VmName};
use crate::history::create::{Origin, Subject};
use crate::history::disks;
use crate::history::{
    self, Catalog, CheckpointError, Finding, apply, base_problems, lost, memory, merge, networks, policy,
    recover, seal, sealing, trash,
};
use crate::id::Id;
use crate::progress::Cancelled;

/// How long the process of a VM that went back to being off may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(command: CheckpointCommand, json: bool) -> anyhow::Result<()> {
    match command {
        CheckpointCommand::Create {
            name,
            checkpoint,
            note,
            pause_after,
            kind,
            freeze_timeout,
            mode,
            full,
            compress,
            max_pause,
            no_wait,
        } => {
            let freeze_timeout_ms =
                freeze_timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let body = CreateBody {
                name: checkpoint,
                note,
                pause_after,
                kind,
                freeze_timeout_ms,
                mode,
                full,
                compress,
                max_pause_ms: max_pause,
            };
            let folder = existing(&name)?;
            if no_wait {
                let asked = work::ask_for_later(&folder.socket(), Method::POST, "/vm/checkpoints", &body);
                output::job(&must_run(&folder, asked)?, json);
            } else {
                let info = create_checkpoint(&folder, &body)?;
                print_info(&info, json, |info| created(&folder, info));
            }
        }
        CheckpointCommand::Jobs { name } => jobs(&existing(&name)?, json)?,
        CheckpointCommand::Cancel { name, job } => {
            let folder = existing(&name)?;
            let path = format!("/vm/jobs/{job}");
            let job: JobInfo = must_run(&folder, client::delete(&folder.socket(), &path, &()))?;
            if json {
                output::job(&job, json);
            } else {
                outln!("job {} ({}) is being cancelled", job.id, job.kind);
            }
        }
        CheckpointCommand::List { name, flat } => list(&existing(&name)?, flat, json)?,
        CheckpointCommand::Show { checkpoint } => {
            let folder = existing(&checkpoint.vm)?;
            let manifest = find(&folder, &checkpoint.checkpoint)?;
            let definition = folder.load()?;
            let details = history::details(&Catalog::new(&folder, &definition), &definition, &manifest)?;
            if json {
                out::json(&serde_json::json!(details));
            } else {
                output::show_checkpoint(&manifest, &details.info);
            }
        }
        CheckpointCommand::Rename { checkpoint, new_name } => {
            let info = change(&checkpoint, ChangeBody { name: Some(new_name), ..Default::default() })?;
            print_info(&info, json, |info| outln!("the checkpoint has been renamed to `{}`", info.name));
        }
        CheckpointCommand::Note { checkpoint, text } => {
            let info = change(&checkpoint, ChangeBody { note: Some(text), ..Default::default() })?;
            print_info(&info, json, |info| outln!("the note of `{}` has been replaced", info.name));
        }
        CheckpointCommand::Pin { checkpoint } => pin(&checkpoint, true, json)?,
        CheckpointCommand::Unpin { checkpoint } => pin(&checkpoint, false, json)?,
        CheckpointCommand::Apply(args) => apply_checkpoint(args, json)?,
        CheckpointCommand::Revert { name, run, force, no_undo, cold, yes } => {
            revert(&existing(&name)?, RevertBody { run, force, no_undo, cold }, yes, json)?;
        }
        CheckpointCommand::Delete { checkpoint, subtree, dry_run, no_wait, no_undo, yes } => {
            delete_checkpoint(&checkpoint, DeleteBody { subtree, dry_run, no_undo }, no_wait, yes, json)?;
        }
        CheckpointCommand::Prune { name, dry_run, yes } => prune::run(&name, dry_run, yes, json)?,
        CheckpointCommand::VerifyDue { names } => proof::due(&names, json)?,
        CheckpointCommand::Verify { checkpoint, boot, guard: _ } if boot.boot => {
            proof::run(&checkpoint, &boot, json)?;
        }
        CheckpointCommand::Verify { checkpoint, guard, .. } => verify::run(&checkpoint, &guard, json)?,
        CheckpointCommand::Export(args) => transfer::export_checkpoint(&args, json)?,
        CheckpointCommand::Diff(args) => diff::diff(&args, json)?,
        CheckpointCommand::Serve(args) => transfer::serve(&args, json)?,
        CheckpointCommand::Find(args) => search::find(&args, json)?,
        CheckpointCommand::Cat { file, place, guard } => search::cat(&file, &place, &guard, json)?,
        CheckpointCommand::RestoreFile(args) => search::restore_file(&args, json)?,
    }
    Ok(())
}

fn jobs(folder: &VmFolder, json: bool) -> anyhow::Result<()> {
    let asked =
        answer(client::ask::<JobList>(&folder.socket(), Method::GET, "/vm/jobs", None, Wait::default()))?;
    // Jobs go with the process.
    let list = asked.unwrap_or(JobList { jobs: Vec::new() });
    if json {
        out::json(&serde_json::json!(list));
    } else {
        output::jobs(folder.name(), &list);
    }
    Ok(())
}

fn print_info(info: &CheckpointInfo, json: bool, tell: impl FnOnce(&CheckpointInfo)) {
    if json { out::json_line(&serde_json::json!(info)) } else { tell(info) }
}

fn create_checkpoint(folder: &VmFolder, body: &CreateBody) -> anyhow::Result<CheckpointInfo> {
    if let Some(info) = work::ask(&folder.socket(), Method::POST, "/vm/checkpoints", body)? {
        return Ok(info);
    }
    let mut vm = Offline::open(folder)?;
    loop {
        let sums = Catalog::new(folder, &vm.definition).layer_sums(&vm.definition)?;
        let Definition { config, now, .. } = &vm.definition;
        let disks = disks::open(folder, config, &now.tops, &sums, &Default::default())?;
        let subject = Subject {
            folder,
            lock: &vm.lock,
            definition: &mut vm.definition,
            disks: &disks.live,
            machine: None,
            pending: None,
            origin: Origin::default(),
        };
        match work::here(|progress| policy::create(subject, body, progress))? {
            // What was thrown away is in nobody's way.
            Err(e) if e.is_full() && trash::drop_oldest(folder, &vm.lock, &mut vm.definition)? => {}
            made => {
                let made = Catalog::new(folder, &vm.definition).as_shown(&vm.definition, made?);
                let info = CheckpointInfo::from(&made);
                vm.tell([happened::created(&info)]);
                return Ok(info);
            }
        }
    }
}

/// Tells what was made. That there is no agent is told by the first checkpoint that wanted one; it
/// would be the same sentence after each.
fn created(folder: &VmFolder, info: &CheckpointInfo) {
    let told_before = |manifest: &Manifest| manifest.fallback.is_some() && manifest.id != info.id;
    let manifests =
        folder.load().ok().and_then(|definition| Catalog::new(folder, &definition).manifests().ok());
    let explain = info.fallback.is_some() && !manifests.is_some_and(|all| all.iter().any(told_before));
    output::created(folder.name(), info, explain);
}

fn list(folder: &VmFolder, flat: bool, json: bool) -> anyhow::Result<()> {
    // Read without the lock: manifests are only ever replaced whole.
    let definition = folder.load()?;
    let tree: TreeInfo = history::tree(&Catalog::new(folder, &definition), &definition)?;
    let state = match client::get(&folder.socket()) {
        Ok(info) => info.state,
        Err(_) => State::Stopped,
    };
    if json {
        out::json(&serde_json::json!(tree));
    } else if flat {
        output::flat(&tree);
    } else {
        output::tree(folder.name(), &tree, state);
    }
    for damaged in &tree.damaged {
        output::complain(damaged);
    }
    if tree.pending_merges > 0 && !json {
        output::complain(&pending(tree.pending_merges));
    }
    Ok(())
}

fn pending(merges: usize) -> String {
    let what = if merges == 1 { "layer merge is" } else { "layer merges are" };
    format!("{merges} {what} pending and will free disk space")
}

fn change(target: &CheckpointRef, body: ChangeBody) -> anyhow::Result<CheckpointInfo> {
    let folder = existing(&target.vm)?;
    // Resolved here, so that no name has to be put into a path.
    let id = find(&folder, &target.checkpoint)?.id.to_string();
    if let Some(info) = answer(client::patch(&folder.socket(), &format!("/vm/checkpoints/{id}"), &body))? {
        return Ok(info);
    }
    let vm = Offline::open(&folder)?;
    let manifest = Catalog::new(vm.folder, &vm.definition).change(&vm.definition, &id, &body)?;
    let info = CheckpointInfo::from(&manifest);
    vm.tell([happened::changed(&info)]);
    Ok(info)
}

fn pin(target: &CheckpointRef, pinned: bool, json: bool) -> anyhow::Result<()> {
    let info = change(target, ChangeBody { pinned: Some(pinned), ..Default::default() })?;
    print_info(&info, json, |info| match pinned {
        true => outln!("checkpoint `{}` is pinned: it cannot be deleted", info.name),
        false => outln!("checkpoint `{}` is no longer pinned", info.name),
    });
    Ok(())
}

fn apply_checkpoint(args: ApplyArgs, json: bool) -> anyhow::Result<()> {
    let (target, save_current) = args.target_and_save().map_err(usage)?;
    let folder = existing(&target.vm)?;
    let how = GoBack { force: args.force, clock: args.clock, share: args.share, cold: args.cold };
    let mut manifest = apply::seen_as(find(&folder, &target.checkpoint)?, how);
    manifest.config.nets =
        networks::renamed(&args.networks.nets, &manifest.config.nets, manifest.memory.is_some())?;
    let definition = folder.load()?;
    let kept = trash::is_on(&definition, args.no_undo);
    let question = if kept {
        "Save the current state as a checkpoint first? Otherwise it goes to the trash."
    } else {
        "Save the current state as a checkpoint first? Otherwise it will be lost."
    };
    let save = match (&save_current, args.discard_current) {
        (Some(_), _) => true,
        (None, true) => false,
        (None, false) if std::io::stdin().is_terminal() => confirm(question)?,
        (None, false) => {
            return Err(refused(
                "the current state would be lost: use --save-current to save it as a checkpoint first, \
                 or --discard-current to discard it",
            ));
        }
    };
    let body = ApplyBody {
        save_current: save,
        discard_current: !save,
        name: save_current.flatten(),
        run: args.run,
        no_undo: args.no_undo,
        how,
        net: args.networks.nets,
    };
    let before = Before::of(&folder, &definition);
    let path = format!("/vm/checkpoints/{}/apply", manifest.id);
    if let Some(info) = work::ask::<VmInfo>(&folder.socket(), Method::POST, &path, &body)? {
        return landed(&folder, &manifest, &before, Some(info), body.run, body.how.force, json);
    }
    if body.save_current {
        Offline::open_to_go_to(&folder, manifest.id, body.how)?;
        let info = create_checkpoint(&folder, &CreateBody { name: body.name, ..Default::default() })?;
        if !json {
            created(&folder, &info);
        }
    } else if kept {
        let mut vm = Offline::open_to_go_to(&folder, manifest.id, body.how)?;
        let why = format!("apply of `{}`", manifest.name);
        keep_now(&mut vm, why, false, body.no_undo)?;
    }
    let info = go_offline(&folder, &manifest, body.run, body.how, &body.net)?;
    landed(&folder, &manifest, &before, info, body.run, body.how.force, json)
}

/// What a VM was before it went back.
struct Before {
    config: VmConfig,
    sizes: BTreeMap<String, u64>,
}

impl Before {
    fn of(folder: &VmFolder, definition: &Definition) -> Self {
        let sizes = disks::sizes(folder, &definition.now.tops);
        Self { config: definition.config.clone(), sizes }
    }
}

/// Tells where the VM is. With `run` one that has no memory to go on from is booted, with `force` over
/// bases that have changed, too.
fn landed(
    folder: &VmFolder,
    manifest: &Manifest,
    before: &Before,
    mut info: Option<VmInfo>,
    run: bool,
    force: bool,
    json: bool,
) -> anyhow::Result<()> {
    let name = folder.name();
    let is_off = info.as_ref().is_none_or(|info| info.state == State::Stopped);
    if run && is_off {
        // The process that ran it ends first; it may have layers to merge.
        if !has_ended(folder, PATIENCE) {
            return Err(anyhow!(
                "the VM `{name}` is at checkpoint `{}`, but its process is still exiting: boot it with \
                `piton start {name}`",
                manifest.name
            ));
        }
        let words = ["start", name.as_str()].into_iter().chain(force.then_some("--force"));
        info = Some(background::start(words.map(Into::into))?);
    }
    let state = info.as_ref().map_or(State::Stopped, |info| info.state);
    let unchecked = seal::unchecked(folder, &manifest.config)?;
    if json {
        let info = match info {
            Some(info) => info,
            None => VmInfo::new(folder, &folder.load()?, State::Stopped, None),
        };
        let mut result = serde_json::json!(info);
        result["unchecked"] = unchecked.into();
        out::json_line(&result);
        return Ok(());
    }
    let next = match state {
        State::Running => "running".to_owned(),
        State::Paused => format!("paused; `piton resume {name}` resumes it"),
        State::Stopped => format!("stopped; `piton start {name}` boots it"),
        State::Unresponsive => format!("unresponsive: see `piton show {name}`"),
    };
    outln!("the VM `{name}` is at checkpoint `{}`, {next}", manifest.name);
    let sizes = disks::sizes(folder, &folder.load()?.now.tops);
    output::hardware_is_back((&before.config, &before.sizes), (&manifest.config, &sizes));
    output::unchecked(&unchecked);
    Ok(())
}

fn revert(folder: &VmFolder, body: RevertBody, yes: bool, json: bool) -> anyhow::Result<()> {
    let definition = folder.load()?;
    let how = GoBack { force: body.force, cold: body.cold, ..Default::default() };
    let manifest = apply::seen_as(Catalog::new(folder, &definition).parent_of_now(&definition)?, how);
    let after = match trash::is_on(&definition, body.no_undo) {
        true => hint(folder),
        false => "all changes since then will be lost".into(),
    };
    let question = format!("Go back to checkpoint `{}`? ({after})", manifest.name);
    if !yes && !confirm(&question)? {
        return Err(refused("nothing was changed"));
    }
    let before = Before::of(folder, &definition);
    if let Some(info) = work::ask::<VmInfo>(&folder.socket(), Method::POST, "/vm/revert", &body)? {
        return landed(folder, &manifest, &before, Some(info), body.run, body.force, json);
    }
    if trash::is_on(&definition, body.no_undo) {
        let mut vm = Offline::open_to_go_to(folder, manifest.id, how)?;
        let why = format!("revert to `{}`", manifest.name);
        keep_now(&mut vm, why, false, body.no_undo)?;
    }
    let info = go_offline(folder, &manifest, body.run, how, &[])?;
    landed(folder, &manifest, &before, info, body.run, body.force, json)
}

fn delete_checkpoint(
    target: &CheckpointRef,
    body: DeleteBody,
    no_wait: bool,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    let folder = existing(&target.vm)?;
    let definition = folder.load()?;
    let (id, name) = Catalog::new(&folder, &definition).resolve_any(&definition, &target.checkpoint)?;
    let what = if body.subtree { " and all its descendants" } else { "" };
    if !yes && !body.dry_run && !confirm(&format!("Delete checkpoint `{name}`{what}?"))? {
        return Err(refused("nothing was deleted"));
    }
    let path = format!("/vm/checkpoints/{id}");
    let asked = work::ask::<DeletedInfo>(&folder.socket(), Method::DELETE, &path, &body)?;
    let runs = asked.is_some();
    let deleted = match asked {
        Some(deleted) => deleted,
        None => delete_offline(&folder, id, body, no_wait)?,
    };
    if json {
        out::json_line(&serde_json::json!(deleted));
    } else {
        output::deleted(&deleted);
        if deleted.trash.is_some() {
            outln!("{}", hint(&folder));
        }
    }
    let wait = !no_wait && std::io::stderr().is_terminal();
    let merged = match deleted.merge_job.filter(|_| wait) {
        Some(job) => work::watch(&folder.socket(), job)?,
        None => None,
    };
    if deleted.merge_later && !json {
        output::merges(folder.name(), runs, merged.as_ref());
    }
    Ok(())
}

fn delete_offline(folder: &VmFolder, id: Id, body: DeleteBody, no_wait: bool) -> anyhow::Result<DeletedInfo> {
    let mut vm = Offline::open(folder)?;
    let mut deleted = trash::delete(folder, &vm.lock, &mut vm.definition, id, body)?;
    vm.tell(happened::deleted(&deleted));
    if deleted.trash.is_some() {
        trash::bound(folder, &vm.lock, &mut vm.definition)?;
    } else if !body.dry_run {
        // The checkpoint is gone; merging can be done any time.
        let settled = if no_wait {
            Err(CheckpointError::Cancelled(Cancelled))
        } else {
            work::here(|progress| merge::settle(folder, &vm.lock, &mut vm.definition, progress))?
        };
        match settled {
            Err(CheckpointError::Cancelled(_)) => deleted.merge_later = true,
            Err(e) => log::warn!("layers could not be merged yet: {e}"),
            Ok(()) => {}
        }
    }
    Ok(deleted)
}

/// Frozen layers that nothing checks; those that lost their checksums are mended if that is accepted.
fn unchecked_layers(
    folder: &VmFolder,
    definition: &Definition,
    accepted: bool,
) -> anyhow::Result<Vec<Finding>> {
    let listing = Catalog::new(folder, definition).listing()?;
    let sealing::Unchecked { fresh, lost } = sealing::unchecked(folder, definition, &listing)?;
    let fresh = fresh.into_iter().map(|layer| Finding {
        text: format!("{} has no checksums yet", layer.path.display()),
        mended: true,
    });
    let lost = lost.into_iter().map(|layer| Finding {
        text: format!(
            "{} has no checksums, so damage in it would go unnoticed; if you trust it, `piton doctor {} \
             --repair --accept-unchecked` computes new ones",
            layer.path.display(),
            folder.name()
        ),
        mended: accepted,
    });
    Ok(fresh.chain(lost).collect())
}

pub fn doctor(name: &VmName, repair: bool, accept_unchecked: bool, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let lock = lock(&folder).map_err(|e| in_use(&folder, e))?;
    let mut definition = folder.load()?;
    let mut findings = recover(&folder, &lock, &mut definition, repair)?;
    let bases = base_problems(&Catalog::new(&folder, &definition), &definition)?;
    // An interrupted one is among the findings already, and what it lies on is seen after it.
    let merges = match definition.now.merging {
        Some(_) => 0,
        None if !bases.is_empty() => 0,
        None => merge::pending(&Catalog::new(&folder, &definition), &definition)?,
    };
    if merges > 0 {
        findings.push(Finding { text: pending(merges), mended: true });
    }
    for clone in temporary::left(&home()?, Some(name))? {
        findings.push(Finding {
            text: format!("the temporary VM `{}` was left by a command that was killed", clone.name()),
            mended: true,
        });
        if repair {
            temporary::remove(&clone)?;
        }
    }
    let lost = lost::list(&folder)?;
    findings.extend(lost.into_iter().map(|lost| Finding { text: lost.to_string(), mended: false }));
    findings.extend(unchecked_layers(&folder, &definition, accept_unchecked)?);
    if accept_unchecked {
        sealing::accept(&folder, &lock, &mut definition)?;
    }
    let missing = memory::missing(&Catalog::new(&folder, &definition))?;
    findings.extend(missing.into_iter().map(|text| Finding { text, mended: false }));
    let sound_bases = bases.is_empty();
    findings.extend(bases.into_iter().map(|problem| Finding { text: problem.to_string(), mended: false }));
    if repair && sound_bases {
        work::here(|progress| merge::settle(&folder, &lock, &mut definition, progress))??;
    }
    if json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| serde_json::json!({ "finding": finding.text, "mendable": finding.mended, "mended": finding.mended && repair }))
            .collect();
        out::json(&serde_json::json!(list));
    } else if findings.is_empty() {
        outln!("no problems found in the VM `{name}`");
    } else {
        for finding in &findings {
            let what = match (finding.mended, repair) {
                (true, true) => "",
                (true, false) => " (--repair fixes it)",
                (false, _) => " (piton cannot fix this)",
            };
            outln!("{}{what}", finding.text);
        }
    }
    if findings.iter().any(|finding| !finding.mended) {
        return Err(anyhow!("the VM `{name}` is damaged"));
    }
    Ok(())
}
