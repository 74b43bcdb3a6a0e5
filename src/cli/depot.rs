//! `piton push`, `piton pull` and `piton depot`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::args::{DepotArgs, DepotCommand, PullArgs, PushArgs};
use super::error::{FAILED, Told, refused, usage};
use super::manage::confirm;
use super::named::existing;
use super::out::{self, outln};
use super::paths::absolute;
use super::transfer::{in_the_way, remap};
use super::units::size;
use super::{guard, output, work};
use crate::depot::keys::Secret;
use crate::depot::location::{Location, Place, Title};
use crate::depot::manifest::Manifest;
use crate::depot::open::Depot;
use crate::depot::pace::Pace;
use crate::depot::store::Store;
use crate::depot::{DepotError, copy, prune, pull as pulling, push as pushing, verify};
use crate::folder::Home;
use crate::history::seal;
use crate::history::whole::source::Source;
use crate::progress::Progress;
use crate::seccomp::Thread;
use crate::storage::Storage;

/// What is read came from elsewhere; a folder is no reason to reach the network.
fn confine(args: &DepotArgs, places: &[&Place]) -> anyhow::Result<()> {
    let network = places.iter().any(|place| place.folder().is_none());
    let folders = places.iter().filter_map(|place| place.folder()).map(absolute);
    let folders = folders.collect::<anyhow::Result<Vec<_>>>()?;
    let folders: Vec<&Path> = folders.iter().map(|folder| folder.as_path()).collect();
    guard::enter(&args.guard, if network { Thread::Depot } else { Thread::Import }, &folders)
}

fn secret(file: Option<&PathBuf>) -> anyhow::Result<Option<Secret>> {
    let read = |path: &PathBuf| Ok::<_, anyhow::Error>(Secret::read(&Storage::os(), &absolute(path)?)?);
    file.map(read).transpose()
}

fn store(place: &Place, args: &DepotArgs, progress: &Progress) -> Result<Arc<dyn Store>, DepotError> {
    place.open(&Storage::os(), Pace::new(args.bandwidth), progress)
}

fn open(
    place: &Place,
    args: &DepotArgs,
    secret: Option<&Secret>,
    progress: &Progress,
) -> Result<Depot, DepotError> {
    Depot::open(store(place, args, progress)?, secret)
}

/// A depot as a whole is meant.
fn whole(url: &Location) -> anyhow::Result<&Place> {
    match &url.title {
        None => Ok(&url.place),
        Some(title) => Err(usage(format!("name the depot alone, without `{title}`"))),
    }
}

fn titled(url: &Location) -> anyhow::Result<&Title> {
    url.title.as_ref().ok_or_else(|| {
        usage(format!(
            "name the checkpoint, too: {0}/VM@CHECKPOINT; `piton depot list {0}` lists them",
            url.place
        ))
    })
}

pub fn push(args: &PushArgs, json: bool) -> anyhow::Result<()> {
    let place = &args.url.place;
    confine(&args.depot, &[place])?;
    let folder = existing(&args.checkpoint.vm)?;
    let secret = secret(args.depot.key_file.as_ref())?;
    let (made, pushed, unchecked) = work::here(|progress| -> anyhow::Result<_> {
        let source = Source::checkpoint(&folder, &args.checkpoint.checkpoint, "piton push")?;
        let title = args
            .url
            .title
            .clone()
            .unwrap_or_else(|| Title { vm: folder.name().clone(), checkpoint: source.manifest.name.clone() });
        let (depot, made) = Depot::open_or_create(store(place, &args.depot, progress)?, secret.as_ref())?;
        let pushed = pushing::push(&depot, folder.storage(), &source, &title, false, progress)?;
        let mut config = source.manifest.config.clone();
        config.disks.retain(|disk| source.disks.contains_key(&disk.id));
        Ok((made, pushed, seal::unchecked(&folder, &config)?))
    })??;
    if json {
        let mut told = serde_json::json!(pushed);
        told["depot"] = place.to_string().into();
        told["depot_created"] = made.into();
        told["unchecked"] = serde_json::json!(unchecked);
        out::json(&told);
        return Ok(());
    }
    if made {
        let how = if secret.is_some() { ", which is encrypted" } else { "" };
        outln!("a new depot has been made at {place}{how}");
    }
    let title = &pushed.title;
    if pushed.already {
        outln!("the checkpoint is in the depot at {place} already, as `{title}`");
    } else {
        outln!(
            "the checkpoint is in the depot at {place} as `{title}`: {} of {} were new, {} sent",
            size(pushed.sent.new_bytes),
            size(pushed.bytes),
            size(pushed.sent.sent_bytes)
        );
    }
    for left in &pushed.left_out {
        outln!("disk `{}` is not included: it is {}", left.disk, left.why);
    }
    output::unchecked(&unchecked);
    for warning in &pushed.warnings {
        output::complain(&format!("warning: {warning}"));
    }
    Ok(())
}

pub fn pull(args: &PullArgs, json: bool) -> anyhow::Result<()> {
    let title = titled(&args.url)?;
    let place = &args.url.place;
    confine(&args.depot, &[place])?;
    let storage = Storage::os();
    let home = Home::from_env(storage.clone())?;
    let (remap, secret) = (remap(&args.fit)?, secret(args.depot.key_file.as_ref())?);
    let wanted = pulling::Wanted { title, vm: args.name.clone(), new_id: args.new_id, remap: &remap };
    let outcome = work::here(|progress| {
        let depot = open(place, &args.depot, secret.as_ref(), progress)?;
        pulling::pull(depot, &home, &storage, &wanted, !args.check, progress)
    })??;
    let problems = match &outcome {
        Ok(_) => &[][..],
        Err(problems) => problems,
    };
    if json && (args.check || outcome.is_ok()) {
        let pulled = outcome.as_ref().ok();
        out::json(&serde_json::json!({
            "pulled": pulled.is_some() && !args.check,
            "vm": pulled.map(|pulled| &pulled.vm),
            "checkpoint": pulled.map(|pulled| pulled.checkpoint),
            "problems": problems,
        }));
    } else if let Ok(pulled) = &outcome {
        let (vm, name) = (&pulled.vm, &pulled.name);
        if args.check {
            outln!("no problems found: it can be pulled as `{vm}`");
        } else {
            outln!(
                "the VM `{vm}` has been pulled with checkpoint `{name}`: `piton checkpoint revert {vm}` goes \
                 to the checkpoint, `piton start {vm}` boots from the disks"
            );
        }
    }
    in_the_way("pull", problems, json && args.check)
}

pub fn run(command: &DepotCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DepotCommand::List { url, depot } => list(url, depot, json),
        DepotCommand::Show { url, depot } => show(url, depot, json),
        DepotCommand::Verify { url, quick, depot } => verified(url, *quick, depot, json),
        DepotCommand::Prune { url, dry_run, alone, depot } => pruned(url, *dry_run, *alone, depot, json),
        DepotCommand::Copy { from, to, to_key_file, depot } => {
            copied(from, to, to_key_file.as_ref(), depot, json)
        }
        DepotCommand::Rm { url, yes, depot } => forget(url, *yes, depot, json),
        DepotCommand::Key { file } => {
            let file = absolute(file)?;
            Secret::random()?.write(&Storage::os(), &file)?;
            match json {
                true => out::json(&serde_json::json!({ "key_file": file })),
                false => outln!(
                    "a key has been written to {}: keep a copy elsewhere, nothing can be read without it",
                    file.display()
                ),
            }
            Ok(())
        }
    }
}

fn all(depot: &Depot) -> Result<Vec<Manifest>, DepotError> {
    let mut manifests = Vec::new();
    for object in depot.manifests()? {
        // One that was removed meanwhile is not there.
        manifests.extend(depot.read_manifest(&object)?);
    }
    manifests.sort_by_key(|manifest| (manifest.title_vm.clone(), manifest.created, manifest.title.clone()));
    Ok(manifests)
}

fn in_short(manifest: &Manifest) -> serde_json::Value {
    let bytes: u64 = manifest.streams().iter().map(|(_, stream)| stream.bytes).sum();
    serde_json::json!({
        "title": manifest.title().to_string(),
        "id": manifest.id,
        "name": manifest.name,
        "note": manifest.note,
        "vm": manifest.vm,
        "type": manifest.kind,
        "created": manifest.created,
        "pushed": manifest.pushed,
        "bytes": bytes,
    })
}

fn list(url: &Location, args: &DepotArgs, json: bool) -> anyhow::Result<()> {
    let place = whole(url)?;
    confine(args, &[place])?;
    let secret = secret(args.key_file.as_ref())?;
    let manifests = work::here(|progress| all(&open(place, args, secret.as_ref(), progress)?))??;
    if json {
        out::json(&manifests.iter().map(in_short).collect());
        return Ok(());
    }
    if manifests.is_empty() {
        outln!("there are no checkpoints in the depot at {place}");
        return Ok(());
    }
    let mut rows = vec![["CHECKPOINT", "TYPE", "CREATED", "SIZE"].map(str::to_owned)];
    for one in &manifests {
        let bytes = one.streams().iter().map(|(_, stream)| stream.bytes).sum();
        let created = one.created.format("%Y-%m-%d %H:%M UTC").to_string();
        rows.push([one.title().to_string(), one.kind.to_string(), created, size(bytes)]);
    }
    for line in output::lined_up(&rows) {
        outln!("{}", line.trim_end());
    }
    Ok(())
}

fn show(url: &Location, args: &DepotArgs, json: bool) -> anyhow::Result<()> {
    let place = &url.place;
    confine(args, &[place])?;
    let secret = secret(args.key_file.as_ref())?;
    match &url.title {
        Some(title) => {
            let manifest =
                work::here(|progress| open(place, args, secret.as_ref(), progress)?.manifest(title))??;
            if json {
                let mut told = in_short(&manifest);
                told["config"] = serde_json::json!(manifest.config);
                told["left_out"] = serde_json::json!(manifest.left_out);
                told["warnings"] = serde_json::json!(manifest.warnings);
                told["contents"] = (manifest.streams().iter())
                    .map(|(what, stream)| serde_json::json!({ "what": what, "bytes": stream.bytes }))
                    .collect();
                out::json(&told);
                return Ok(());
            }
            outln!("checkpoint  {}", manifest.title());
            outln!("id          {}", manifest.id);
            outln!("of          {}@{}", manifest.vm, manifest.name);
            outln!("type        {}", manifest.kind);
            outln!("created     {}", manifest.created.format("%Y-%m-%d %H:%M:%S UTC"));
            outln!("pushed      {}", manifest.pushed.format("%Y-%m-%d %H:%M:%S UTC"));
            if !manifest.note.is_empty() {
                outln!("note        {}", manifest.note);
            }
            outln!("vCPUs       {}", manifest.config.cpus);
            for (what, stream) in manifest.streams() {
                outln!("contains    {what}, {}", size(stream.bytes));
            }
            for left in &manifest.left_out {
                if !manifest.own.contains_key(&left.disk) {
                    outln!("not here    disk `{}`: it is {}", left.disk, left.why);
                }
            }
            for warning in &manifest.warnings {
                output::complain(&format!("warning: {warning}"));
            }
        }
        None => {
            let (header, count, packs, bytes) = work::here(|progress| -> Result<_, DepotError> {
                let depot = open(place, args, secret.as_ref(), progress)?;
                let packs = depot.store.list(crate::depot::open::PACKS)?;
                let bytes: u64 = packs.iter().map(|pack| pack.bytes).sum();
                Ok((depot.header.clone(), depot.manifests()?.len(), packs.len(), bytes))
            })??;
            let cipher = header.encryption.as_ref().map(|encryption| encryption.cipher.as_str());
            if json {
                out::json(&serde_json::json!({
                    "depot": place.to_string(), "id": header.id, "created": header.created,
                    "encryption": cipher, "checkpoints": count, "packs": packs, "bytes": bytes,
                }));
                return Ok(());
            }
            outln!("depot        {place}");
            outln!("id           {}", header.id);
            outln!("created      {}", header.created.format("%Y-%m-%d %H:%M:%S UTC"));
            outln!("encryption   {}", cipher.unwrap_or("none"));
            outln!("checkpoints  {count}");
            let of = if packs == 1 { "1 pack".to_owned() } else { format!("{packs} packs") };
            outln!("stored       {} in {of}", size(bytes));
        }
    }
    Ok(())
}

fn verified(url: &Location, quick: bool, args: &DepotArgs, json: bool) -> anyhow::Result<()> {
    let place = &url.place;
    confine(args, &[place])?;
    let secret = secret(args.key_file.as_ref())?;
    let verified = work::here(|progress| {
        let depot = open(place, args, secret.as_ref(), progress)?;
        verify::verify(depot, url.title.as_ref(), quick, progress)
    })??;
    if json {
        out::json(&serde_json::json!(verified));
    } else {
        let how = if quick { "looked for" } else { "read and checked" };
        let checkpoints = match verified.checkpoints {
            1 => "1 checkpoint".to_owned(),
            count => format!("{count} checkpoints"),
        };
        outln!("{checkpoints}, {} chunks {how}: {}", verified.chunks, size(verified.bytes));
        for (whose, damage) in &verified.damage {
            for what in damage {
                match whose.as_str() {
                    "" => outln!("damaged: {what}"),
                    title => outln!("damaged: `{title}`: {what}"),
                }
            }
        }
        if verified.damage.is_empty() {
            outln!("no damage found");
        }
    }
    if verified.damage.is_empty() { Ok(()) } else { Err(Told { code: FAILED }.into()) }
}

fn pruned(url: &Location, dry_run: bool, alone: bool, args: &DepotArgs, json: bool) -> anyhow::Result<()> {
    let place = whole(url)?;
    confine(args, &[place])?;
    let secret = secret(args.key_file.as_ref())?;
    let grace = if alone { Duration::ZERO } else { prune::GRACE };
    let pruned = work::here(|progress| {
        let open = || open(place, args, secret.as_ref(), progress);
        let first = prune::prune(open()?, grace, dry_run, progress)?;
        if !alone || dry_run {
            return Ok(first);
        }
        // What was condemned just now goes at once.
        let second = prune::prune(open()?, grace, false, progress)?;
        Ok::<_, DepotError>(prune::Pruned {
            condemned: second.condemned,
            condemned_bytes: second.condemned_bytes,
            removed: first.removed + second.removed,
            removed_bytes: first.removed_bytes + second.removed_bytes,
            ..first
        })
    })??;
    if json {
        out::json(&serde_json::json!(pruned));
        return Ok(());
    }
    outln!(
        "{} checkpoints need {} of {} packs' chunks, {} are not needed",
        pruned.checkpoints,
        size(pruned.needed_bytes),
        pruned.packs,
        size(pruned.unneeded_bytes)
    );
    let (are, will) = if dry_run { ("would be", "would go") } else { ("have been", "go") };
    if pruned.repacked_bytes > 0 {
        outln!("{} {are} packed anew", size(pruned.repacked_bytes));
    }
    outln!("{} packs {are} removed: {}", pruned.removed, size(pruned.removed_bytes));
    if pruned.condemned > 0 {
        let hours = grace.as_secs() / 3600;
        outln!(
            "{} packs {will} with a prune in {hours} hours or later: {}",
            pruned.condemned,
            size(pruned.condemned_bytes)
        );
    }
    Ok(())
}

fn copied(
    from: &Location,
    to: &Location,
    to_key: Option<&PathBuf>,
    args: &DepotArgs,
    json: bool,
) -> anyhow::Result<()> {
    let place = whole(to)?;
    confine(args, &[&from.place, place])?;
    let (secret, to_secret) = (secret(args.key_file.as_ref())?, secret(to_key)?);
    let copied = work::here(|progress| {
        let source = Arc::new(open(&from.place, args, secret.as_ref(), progress)?);
        let titles: Vec<Title> = match &from.title {
            Some(title) => vec![title.clone()],
            None => all(&source)?.iter().map(Manifest::title).collect(),
        };
        let (target, _) = Depot::open_or_create(store(place, args, progress)?, to_secret.as_ref())?;
        titles
            .iter()
            .map(|title| copy::copy(&source, &target, title, progress))
            .collect::<Result<Vec<_>, _>>()
    })??;
    if json {
        out::json(&serde_json::json!(copied));
        return Ok(());
    }
    for one in &copied {
        match one.already {
            true => outln!("`{}` is in the depot at {place} already", one.title),
            false => outln!(
                "`{}` has been copied to the depot at {place}: {} sent",
                one.title,
                size(one.sent.sent_bytes)
            ),
        }
    }
    if copied.is_empty() {
        outln!("there are no checkpoints in the depot at {}", from.place);
    }
    Ok(())
}

fn forget(url: &Location, yes: bool, args: &DepotArgs, json: bool) -> anyhow::Result<()> {
    let title = titled(url)?;
    if !yes && !confirm(&format!("Delete `{title}` from the depot at {}?", url.place))? {
        return Err(refused("nothing was deleted"));
    }
    confine(args, &[&url.place])?;
    let secret = secret(args.key_file.as_ref())?;
    work::here(|progress| prune::forget(&open(&url.place, args, secret.as_ref(), progress)?, title))??;
    match json {
        true => out::json(&serde_json::json!({ "deleted": title.to_string() })),
        false => outln!(
            "`{title}` has been deleted from the depot; `piton depot prune {}` frees what only it needed",
            url.place
        ),
    }
    Ok(())
}
