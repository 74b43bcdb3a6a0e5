//! Files in checkpoints: `checkpoint find`, `cat` and `restore-file`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, Local, Utc};
use serde_json::json;

use super::args::{FileRef, FindArgs, GuardArgs, PlaceArgs, RestoreFileArgs, StateRef};
use super::copy::in_guest;
use super::error::{FAILED, InUse, Told, refused, usage};
use super::exec::connect;
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::paths::absolute;
use super::transfer::{is_running, with_live_checkpoint};
use super::units::size;
use super::{copy, guard, output, work};
use crate::folder::{VmFolder, VmName};
use crate::id::Id;
use crate::image::NodeKind;
use crate::inside::copy::to_guest;
use crate::search::{self, Found, Version, Wanted, Which};
use crate::seccomp::Thread;
use crate::storage::Storage;

const FIND: &str = "piton checkpoint find";
const CAT: &str = "piton checkpoint cat";
const RESTORE: &str = "piton checkpoint restore-file";
/// Digits of a hash that people are shown.
const HASH_SHOWN: usize = 12;

fn wanted(path: &str, place: &PlaceArgs) -> Wanted {
    Wanted { path: path.to_owned(), disk: place.disk.clone(), partition: place.partition }
}

pub fn find(args: &FindArgs, json: bool) -> anyhow::Result<()> {
    let folder = existing(&args.name)?;
    let wanted = wanted(&args.path, &args.place);
    // Held as long as its disks are read.
    let (mut vm, mut without_now) = (None, None);
    if args.as_now.is_none() {
        match Offline::open(&folder) {
            Ok(open) => vm = Some(open),
            Err(e) if is_running(&e) && args.live => {
                let command = "piton checkpoint find --live";
                return with_live_checkpoint(&folder, command, &args.guard, json, |at| {
                    let (vm, id) = at.split_once('@').unwrap_or((at, ""));
                    let mut words = vec!["checkpoint".into(), "find".into(), format!("--path={}", args.path)];
                    words.extend(args.place.disk.iter().map(|disk| format!("--disk={disk}")));
                    words.extend(args.place.partition.iter().map(|number| format!("--partition={number}")));
                    words.extend([format!("--as-now={id}"), "--".into(), vm.into()]);
                    words.into_iter().map(OsString::from).collect()
                });
            }
            Err(e) if is_running(&e) => {
                without_now = Some(
                    "the VM is running or paused: its current state was not read (--live reads it, through a temporary checkpoint)",
                );
            }
            Err(e) if e.is::<InUse>() => {
                without_now = Some("another command is working on the VM: its current state was not read");
            }
            Err(e) => return Err(e),
        }
    }
    guard::enter(&args.guard, Thread::Files, &[])?;
    let found = work::here(|progress| -> search::Result<Found> {
        let which = match (&vm, args.as_now) {
            (_, Some(id)) => Which::AllWithNow(id),
            (vm, None) => Which::All(vm.as_ref().map(|vm| (&vm.lock, &vm.definition))),
        };
        search::find(&mut search::open(&folder, &which, FIND)?, &wanted, progress)
    })??;
    if json {
        out::json(&as_json(&args.path, &found, without_now));
    } else {
        show(&args.path, &found);
        if let Some(note) = without_now {
            output::complain(note);
        }
        for unreadable in &found.unreadable {
            output::complain(&format!("{}: {}", called(&unreadable.state), unreadable.error));
        }
    }
    if found.unreadable.is_empty() { Ok(()) } else { Err(Told { code: FAILED }.into()) }
}

fn called(state: &search::StateName) -> String {
    if state.id.is_some() { state.name.clone() } else { "Now".into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn modified(version: &Version) -> Option<DateTime<Utc>> {
    let (seconds, nanoseconds) = version.hit.node.modified();
    DateTime::from_timestamp(seconds, nanoseconds)
}

fn place(version: &Version) -> String {
    let disk = &version.hit.disk;
    match version.hit.partition {
        Some(number) => format!("partition {number} of disk `{disk}`"),
        None => format!("disk `{disk}`"),
    }
}

fn show(path: &str, found: &Found) {
    let mut last = None;
    for version in &found.versions {
        let place = place(version);
        if last.as_ref() != Some(&place) {
            outln!("{path} on {place}");
            last = Some(place);
        }
        let time = modified(version)
            .map_or("-".into(), |time| time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string());
        let names: Vec<String> = version.states.iter().map(called).collect();
        let what = match (version.hit.node.kind(), &version.sha256) {
            (NodeKind::File, Some(sha256)) => {
                format!("{:>9}  {}", size(version.hit.node.len()), &hex(sha256)[..HASH_SHOWN])
            }
            (NodeKind::Folder, _) => "a folder".into(),
            _ => "a device, socket or pipe".into(),
        };
        outln!("  {time}  {what}  {}", names.join(", "));
    }
    if !found.missing.is_empty() {
        let names: Vec<String> = found.missing.iter().map(called).collect();
        outln!("not there: {}", names.join(", "));
    }
    for note in &found.notes {
        outln!("{note}");
    }
    if found.versions.is_empty() && found.missing.is_empty() && found.unreadable.is_empty() {
        outln!("the VM has no checkpoints");
    }
}

fn as_json(path: &str, found: &Found, without_now: Option<&str>) -> serde_json::Value {
    let states = |states: &[search::StateName]| -> Vec<serde_json::Value> {
        let checkpoints = states.iter().filter(|state| state.id.is_some());
        checkpoints.map(|state| json!({ "id": state.id, "name": state.name })).collect()
    };
    let now = |states: &[search::StateName]| states.iter().any(|state| state.id.is_none());
    let version = |version: &Version| {
        let node = &version.hit.node;
        let kind = node.kind();
        json!({
            "type": kind, "bytes": node.len(), "modified": modified(version), "mode": node.mode(),
            "uid": node.owner().0, "gid": node.owner().1,
            "sha256": version.sha256.map(|sha256| hex(&sha256)),
            "disk": version.hit.disk, "partition": version.hit.partition,
            "checkpoints": states(&version.states), "now": now(&version.states),
        })
    };
    let unreadable = |one: &search::Unreadable| json!({ "checkpoint": one.state.id.map(|_| &one.state.name), "id": one.state.id, "error": one.error });
    let notes: Vec<&str> = found.notes.iter().map(String::as_str).chain(without_now).collect();
    json!({
        "path": path,
        "versions": found.versions.iter().map(version).collect::<Vec<_>>(),
        "missing": { "checkpoints": states(&found.missing), "now": now(&found.missing) },
        "unreadable": found.unreadable.iter().map(unreadable).collect::<Vec<_>>(),
        "notes": notes,
    })
}

/// What is there, with what has to be held while it is read.
fn with_opened<T>(
    file: &FileRef,
    wanted: &Wanted,
    (guarded, writes): (&GuardArgs, &[&Path]),
    command: &str,
    work: impl FnOnce(&search::Opened) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let read = |folder: &VmFolder, which: &Which| {
        guard::enter(guarded, Thread::Files, writes)?;
        let mut shelf = search::open(folder, which, command)?;
        work(&search::open_path(&mut shelf, wanted)?)
    };
    match &file.state {
        StateRef::Checkpoint(one) => read(&existing(&one.vm)?, &Which::One(&one.checkpoint)),
        StateRef::Now(name) => {
            let folder = existing(name)?;
            let vm = Offline::open(&folder).map_err(|e| match is_running(&e) {
                true => refused(format!(
                    "the VM `{name}` is running or paused: use `piton copy {name}:{} .`, or name a \
                     checkpoint as {name}@CHECKPOINT:{0}",
                    file.path
                )),
                false => e,
            })?;
            read(&folder, &Which::Now(&vm.lock, &vm.definition))
        }
    }
}

pub fn cat(file: &FileRef, place: &PlaceArgs, guarded: &GuardArgs, json: bool) -> anyhow::Result<()> {
    if json {
        return Err(usage("`piton checkpoint cat` does not support --json: it prints the file as it is"));
    }
    // A terminal would obey what is in it.
    let shown = std::io::stdout().is_terminal();
    with_opened(file, &wanted(&file.path, place), (guarded, &[]), CAT, |opened| {
        let search::Opened::File(file) = opened else {
            return Err(search::SearchError::not_a_file(&file.path, NodeKind::Folder).into());
        };
        let mut print = |bytes: &[u8]| match shown {
            true => out::bytes(readable(bytes).as_bytes()),
            false => out::bytes(bytes),
        };
        Ok(file.stream(&mut print)?)
    })
}

/// Lines and tabs as they are, and nothing else that a terminal would obey.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let pieces = text.split_inclusive(['\n', '\t']);
    let piece = |piece: &str| match piece.char_indices().last() {
        Some((at, end @ ('\n' | '\t'))) => format!("{}{end}", out::harmless(&piece[..at])),
        _ => out::harmless(piece).into_owned(),
    };
    pieces.map(piece).collect()
}

pub fn restore_file(args: &RestoreFileArgs, json: bool) -> anyhow::Result<()> {
    if let Some((vm, path)) = args.to.as_deref().and_then(in_guest) {
        return into_guest(args, &vm, path, json);
    }
    let to = absolute(args.to.as_deref().map_or(Path::new("."), Path::new))?;
    let to = if to.is_dir() { to.join(file_name(&args.file.path)?) } else { to };
    let place = wanted(&args.file.path, &args.place);
    let guarded = (&args.guard, &[to.as_path()][..]);
    let restored = with_opened(&args.file, &place, guarded, RESTORE, |opened| {
        let storage = Storage::os();
        work::here(|progress| -> search::Result<_> {
            Ok(match opened {
                search::Opened::File(file) => {
                    Restored::File(search::restore(&storage, file, &to, args.force, progress)?)
                }
                search::Opened::Folder(folder) => {
                    Restored::Folder(search::restore_folder(&storage, folder, &to, progress)?)
                }
            })
        })?
        .map_err(Into::into)
    })?;
    if let Restored::Folder(kept) = &restored
        && kept.left_out > 0
    {
        log::warn!("skipped {} devices, sockets or pipes", kept.left_out);
    }
    if args.quiet {
        return Ok(());
    }
    let from = &args.file.path;
    match (restored, json) {
        (Restored::File(kept), true) => {
            out::json_line(&json!({ "path": kept.path, "bytes": kept.bytes }));
        }
        (Restored::File(kept), false) => {
            outln!("{from} restored to {} ({})", kept.path.display(), size(kept.bytes));
        }
        (Restored::Folder(kept), true) => out::json_line(&json!({
            "path": to, "files": kept.files, "bytes": kept.bytes, "left_out": kept.left_out,
        })),
        (Restored::Folder(kept), false) => {
            outln!("{from} restored to {} ({}, {})", to.display(), files(kept.files), size(kept.bytes));
        }
    }
    Ok(())
}

enum Restored {
    File(search::Kept),
    Folder(search::KeptFolder),
}

fn files(count: u64) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

/// What a restored file is called.
fn file_name(path: &str) -> anyhow::Result<&str> {
    match path.trim_end_matches('/').rsplit('/').next().unwrap_or_default() {
        "" | "." | ".." => Err(usage(format!(
            "{path} does not end in a name: name the file or folder to restore, or a new DEST"
        ))),
        name => Ok(name),
    }
}

/// A folder that is gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let id = Id::random().context("cannot get random bytes")?;
        let path = std::env::temp_dir().join(format!("piton-restore-{id}"));
        // Of mode 0700.
        Storage::os().create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Storage::os().remove_tree(&self.0);
    }
}

/// Another process reads the disks: it may talk to nobody, and this one has to.
fn into_guest(args: &RestoreFileArgs, vm: &VmName, path: &str, json: bool) -> anyhow::Result<()> {
    let name = file_name(&args.file.path)?;
    let folder = existing(vm)?;
    let mut guest = connect(&folder, &copy::NEEDED, "reading and writing files from the host")?;
    let scratch = Scratch::new()?;
    let FileRef { state, path: from } = &args.file;
    let from = match state {
        StateRef::Checkpoint(one) => format!("{}@{}:{from}", one.vm, one.checkpoint),
        StateRef::Now(name) => format!("{name}:{from}"),
    };
    let there = scratch.0.join(name);
    let mut words: Vec<OsString> = ["checkpoint", "restore-file", "--quiet"].map(Into::into).into();
    words.extend(args.place.disk.iter().map(|disk| format!("--disk={disk}").into()));
    words.extend(args.place.partition.iter().map(|number| format!("--partition={number}").into()));
    words.extend(args.guard.no_seccomp.then(|| "--no-seccomp".into()));
    words.extend(args.guard.no_landlock.then(|| "--no-landlock".into()));
    words.extend(json.then(|| "--json".into()));
    words.extend(["--".into(), from.into(), there.clone().into()]);
    work::in_a_process(words)?;
    let copied = work::here(|progress| to_guest(&mut guest, &there, path, progress))??;
    match json {
        true => {
            out::json_line(&json!({ "vm": vm, "path": path, "files": copied.files, "bytes": copied.bytes }));
        }
        false => {
            let what = if copied.files == 1 { String::new() } else { format!("{}, ", files(copied.files)) };
            outln!("{} restored to {path} in the VM `{vm}` ({what}{})", args.file.path, size(copied.bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_printed_to_it() {
        assert_eq!(readable(b"a\tb\n\x1b[2J\r\nc\xff"), "a\tb\n\\u{1b}[2J\\r\nc\u{fffd}");
    }

    #[test]
    fn files_are_named_with_their_state() {
        let parsed: FileRef = "web@2026-11-27T06:00:11Z:/etc/a:/b".parse().unwrap();
        let StateRef::Checkpoint(one) = &parsed.state else { panic!() };
        assert_eq!((one.checkpoint.as_str(), parsed.path.as_str()), ("2026-11-27T06:00:11Z", "/etc/a:/b"));
        assert!("web:etc".parse::<FileRef>().is_err() && "web@a".parse::<FileRef>().is_err());
        assert!(matches!("web:/a".parse::<FileRef>().unwrap().state, StateRef::Now(_)));
    }
}
