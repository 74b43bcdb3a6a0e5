//! `piton rm`, and VMs that were removed: listing, restoring, deleting them for good.

use serde::Serialize;

use super::args::{Command, RmArgs};
use super::each::in_turn;
use super::error::refused;
use super::manage::{confirm, in_use, info};
use super::named::{existing, home};
use super::out::{self, outln};
use super::units::size;
use crate::checkpoint::tree::short;
use crate::folder::{Removed, VmName};
use crate::history::removed::{self, RemovedVm};
use crate::id::Id;
use crate::moment::{shown, span};

/// Before a command that makes, lists or removes VMs, what was removed long enough ago goes for good.
pub fn tidy_before(command: &Command) {
    let tidies = matches!(
        command,
        Command::Run(_)
            | Command::Start(_)
            | Command::Clone(_)
            | Command::Import(_)
            | Command::Rm(_)
            | Command::List(_)
            | Command::Trash(_)
            | Command::Undo(_)
    );
    if tidies && let Ok(home) = home() {
        removed::tidy(&home);
    }
}

#[derive(Serialize)]
struct Told {
    removed: VmName,
    /// In the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    trash: Option<Id>,
    #[serde(skip)]
    kept: u64,
}

pub fn remove(args: &RmArgs, json: bool) -> anyhow::Result<()> {
    // One after another: each is asked about.
    in_turn(
        &args.names,
        json,
        |folder| {
            let name = folder.name();
            let lock = folder.lock().map_err(|e| in_use(folder, e))?;
            let kept = if args.no_undo { 0 } else { removed::seconds(folder) };
            let question = match kept {
                0 => format!(
                    "Permanently delete the VM `{name}` and everything in {}?",
                    folder.path().display()
                ),
                _ => format!("Remove the VM `{name}`? It stays in the trash for {}.", span(kept)),
            };
            if !args.yes && !confirm(&question)? {
                return Err(refused(format!("the VM `{name}` was not removed")));
            }
            let trash = removed::remove(folder, &lock, args.no_undo)?.map(|removed| removed.id);
            Ok(Told { removed: name.clone(), trash, kept })
        },
        |Told { removed, trash, kept }| {
            outln!("the VM `{removed}` has been removed");
            if trash.is_some() {
                outln!("`piton undo {removed}` restores it, for {}", span(*kept));
            }
        },
    )
}

/// Whether there is no VM of this name, but a removed one.
pub fn is_meant(name: &VmName) -> anyhow::Result<bool> {
    let home = home()?;
    let is_there = home.folder(name).must_exist().is_ok();
    Ok(!is_there && removed::find(&home, name.as_str())?.is_some())
}

fn find(name: &VmName) -> anyhow::Result<Removed> {
    if let Some(found) = removed::find(&home()?, name.as_str())? {
        return Ok(found);
    }
    if existing(name).is_ok() {
        return Err(refused(format!(
            "the VM `{name}` was not removed: name an entry of its trash, which `piton trash list {name}` shows"
        )));
    }
    Err(refused(format!("there is no removed VM `{name}`: `piton trash list` shows all of them")))
}

pub fn list(json: bool) -> anyhow::Result<()> {
    let list = removed::describe_all(&removed::list(&home()?)?);
    if json {
        out::json(&serde_json::json!(list));
        return Ok(());
    }
    if list.removed.is_empty() {
        outln!("no removed VM is in the trash; `piton trash list VM` shows the trash of a VM");
        return Ok(());
    }
    outln!("{:<8}  {:<20}  {:<20}  {:>9}  VM", "ID", "SINCE", "UNTIL", "SIZE");
    for RemovedVm { id, name, when, until, bytes } in &list.removed {
        let (since, until) = (shown(when), shown(until));
        outln!("{:<8}  {since}  {until}  {:>9}  {name}", short(*id), size(*bytes));
    }
    outln!("emptying the trash would free {}", size(list.bytes));
    Ok(())
}

pub fn restore(name: &VmName, new_name: Option<&VmName>, json: bool) -> anyhow::Result<()> {
    let found = find(name)?;
    let new = new_name.unwrap_or(found.name());
    if home()?.folder(new).must_exist().is_ok() {
        let id = short(found.id);
        return Err(refused(format!(
            "a VM named `{new}` already exists: choose another name with `piton trash restore {id} --name NEW`"
        )));
    }
    let told = removed::describe(&found);
    let back = removed::restore(&found, new)?;
    if json {
        // What is damaged has come back, too.
        out::json_line(&serde_json::json!({ "restored": told, "vm": info(&back).ok() }));
    } else {
        outln!("the VM `{new}` has been restored");
    }
    Ok(())
}

pub fn empty(name: Option<&VmName>, yes: bool, json: bool) -> anyhow::Result<()> {
    let mut going = match name {
        Some(name) => vec![find(name)?],
        None => removed::list(&home()?)?,
    };
    let question = match &going[..] {
        [one] => format!("Permanently delete the removed VM `{}`?", one.name()),
        _ => format!("Permanently delete all removed VMs ({})?", going.len()),
    };
    if !yes && !going.is_empty() && !confirm(&question)? {
        return Err(refused("nothing was deleted"));
    }
    let told = removed::describe_all(&going);
    for one in &mut going {
        if !removed::purge(one)? {
            return Err(refused(format!("another command is working on the removed VM `{}`", one.name())));
        }
    }
    if json {
        out::json_line(&serde_json::json!(told));
    } else if told.removed.is_empty() {
        outln!("no removed VM is in the trash");
    } else {
        told.removed.iter().for_each(|vm| outln!("permanently deleted: the removed VM `{}`", vm.name));
        outln!("{} freed", size(told.bytes));
    }
    Ok(())
}
