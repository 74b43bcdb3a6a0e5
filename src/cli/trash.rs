//! `piton undo` and `piton trash`: what was taken away comes back, or goes for good.

use hyper::Method;

use super::args::{TrashCommand, UndoArgs};
use super::error::refused;
use super::going_back::{go_offline, keep_now};
use super::manage::confirm;
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::units::size;
use super::{removed, work};
use crate::checkpoint::tree::short;
use crate::control::trash::{EmptiedInfo, TrashEntry, TrashInfo, TrashKind, UndoBody};
use crate::control::{GoBack, NoBody, State, UndoneInfo, VmInfo, happened};
use crate::folder::{Happened, VmFolder, VmName, What};
use crate::history::trash::{self, Entry};
use crate::history::{Catalog, merge};
use crate::moment::shown;

pub fn undo(args: &UndoArgs, json: bool) -> anyhow::Result<()> {
    if removed::is_meant(&args.name)? {
        return removed::restore(&args.name, None, json);
    }
    let folder = existing(&args.name)?;
    let body = UndoBody { no_undo: args.no_undo };
    let undone = match work::ask::<UndoneInfo>(&folder.socket(), Method::POST, "/vm/undo", &body)? {
        Some(undone) => undone,
        None => {
            let vm = Offline::open(&folder)?;
            let entry = trash::last(&Catalog::new(&folder, &vm.definition), &vm.definition)?;
            take_back(vm, &entry, true, body)?
        }
    };
    tell(&undone, json);
    Ok(())
}

pub fn run(command: TrashCommand, json: bool) -> anyhow::Result<()> {
    match command {
        TrashCommand::List { name: None } => removed::list(json),
        TrashCommand::List { name: Some(name) } => list(&name, json),
        TrashCommand::Restore { name, entry: Some(entry), no_undo, .. } => {
            restore(&name, &entry, no_undo, json)
        }
        TrashCommand::Restore { name, entry: None, new_name, .. } => {
            removed::restore(&name, new_name.as_ref(), json)
        }
        TrashCommand::Empty { name: Some(name), entry, yes } => {
            if entry.is_none() && removed::is_meant(&name)? {
                return removed::empty(Some(&name), yes, json);
            }
            empty(&name, entry.as_deref(), yes, json)
        }
        TrashCommand::Empty { name: None, yes, .. } => removed::empty(None, yes, json),
    }
}

fn list(name: &VmName, json: bool) -> anyhow::Result<()> {
    // Read without the lock: manifests are only ever replaced whole.
    let folder = existing(name)?;
    let definition = folder.load()?;
    let info = trash::info(&Catalog::new(&folder, &definition), &definition)?;
    if json {
        out::json(&serde_json::json!(info));
    } else {
        show(name, &info);
    }
    Ok(())
}

fn show(vm: &VmName, info: &TrashInfo) {
    if info.entries.is_empty() {
        outln!("the trash of the VM `{vm}` is empty");
    } else {
        outln!("{:<8}  {:<20}  {:<20}  {:>9}  WHAT", "ENTRY", "SINCE", "UNTIL", "SIZE");
        for entry in &info.entries {
            let (id, since, until) = (short(entry.id), shown(&entry.when), shown(&entry.until));
            outln!("{id:<8}  {since}  {until}  {:>9}  {}", size(entry.bytes), what(entry));
        }
        outln!("emptying the trash would free {}", size(info.bytes));
    }
    if info.trash_seconds == 0 {
        outln!("the trash is off: `piton set {vm} --trash 24h` turns it on");
    }
}

fn what(entry: &TrashEntry) -> String {
    match entry.kind {
        TrashKind::CurrentState => {
            let ran = if entry.ran { ", running" } else { "" };
            format!("state before: {}{ran}", entry.why)
        }
        TrashKind::Checkpoints => {
            let names: Vec<_> = entry.checkpoints.iter().map(|info| format!("`{}`", info.name)).collect();
            format!("{}: {}", entry.why, names.join(", "))
        }
    }
}

fn restore(name: &VmName, reference: &str, no_undo: bool, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let body = UndoBody { no_undo };
    let definition = folder.load()?;
    // Found here, so that no name has to be put into a path.
    let entry = trash::find(&Catalog::new(&folder, &definition), &definition, reference)?;
    let path = format!("/vm/trash/{}/restore", entry.how.entry);
    let undone = match work::ask::<UndoneInfo>(&folder.socket(), Method::POST, &path, &body)? {
        Some(undone) => undone,
        None => {
            let vm = Offline::open(&folder)?;
            let id = entry.how.entry.to_string();
            let entry = trash::find(&Catalog::new(&folder, &vm.definition), &vm.definition, &id)?;
            take_back(vm, &entry, false, body)?
        }
    };
    tell(&undone, json);
    Ok(())
}

/// Takes an entry back into a VM that is off.
fn take_back(mut vm: Offline, entry: &Entry, by_undo: bool, body: UndoBody) -> anyhow::Result<UndoneInfo> {
    let folder = vm.folder;
    let info = trash::entry_info(&Catalog::new(folder, &vm.definition), &vm.definition, entry)?;
    let undone = Happened::now(What::Undone, format!("undone: {}", info.why));
    let gone_to = match entry.state() {
        None => {
            trash::restore(folder, &vm.definition, entry)?;
            vm.tell([undone]);
            None
        }
        Some(manifest) => {
            let why = if by_undo { "undo" } else { "restore from the trash" };
            keep_now(&mut vm, why.into(), by_undo, body.no_undo)?;
            vm.tell([undone]);
            drop(vm);
            go_offline(folder, manifest, entry.how.ran, GoBack::default(), &[])?
        }
    };
    let vm = match gone_to {
        Some(info) => info,
        None => VmInfo::new(folder, &folder.load()?, State::Stopped, None),
    };
    Ok(UndoneInfo { entry: info, vm })
}

fn tell(undone: &UndoneInfo, json: bool) {
    let UndoneInfo { entry, vm } = undone;
    if json {
        return out::json_line(&serde_json::json!(undone));
    }
    match entry.kind {
        TrashKind::Checkpoints => {
            entry.checkpoints.iter().for_each(|info| outln!("checkpoint `{}` has been restored", info.name));
        }
        TrashKind::CurrentState => {
            outln!("the VM `{}` is back to its state before the {}, {}", vm.name, entry.why, vm.state);
        }
    }
}

fn empty(name: &VmName, reference: Option<&str>, yes: bool, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let definition = folder.load()?;
    let entry = reference.map(|reference| {
        trash::find(&Catalog::new(&folder, &definition), &definition, reference).map(|entry| entry.how.entry)
    });
    let entry = entry.transpose()?;
    let question = match entry {
        Some(id) => format!("Permanently delete the entry {} from the trash of the VM `{name}`?", short(id)),
        None => format!("Permanently delete everything in the trash of the VM `{name}`?"),
    };
    if !yes && !confirm(&question)? {
        return Err(refused("nothing was deleted"));
    }
    let path = entry.map_or_else(|| "/vm/trash".to_owned(), |id| format!("/vm/trash/{id}"));
    let emptied = match work::ask::<EmptiedInfo>(&folder.socket(), Method::DELETE, &path, &NoBody {})? {
        Some(emptied) => emptied,
        None => empty_offline(&folder, entry.map(|id| id.to_string()).as_deref())?,
    };
    if json {
        out::json_line(&serde_json::json!(emptied));
    } else if emptied.entries.is_empty() {
        outln!("the trash of the VM `{name}` is empty");
    } else {
        for entry in &emptied.entries {
            outln!("permanently deleted: {}", what(entry));
        }
        outln!("{} freed", size(emptied.bytes));
    }
    Ok(())
}

fn empty_offline(folder: &VmFolder, reference: Option<&str>) -> anyhow::Result<EmptiedInfo> {
    let mut vm = Offline::open(folder)?;
    let emptied = trash::empty(folder, &vm.lock, &mut vm.definition, reference)?;
    vm.tell(happened::emptied(&emptied));
    if let Err(e) = work::here(|progress| merge::settle(folder, &vm.lock, &mut vm.definition, progress))? {
        log::warn!("layers could not be merged yet: {e}");
    }
    Ok(emptied)
}
