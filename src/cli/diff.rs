//! `piton checkpoint diff`: what differs between two states, in ranges and, if wanted, in files.

use std::ffi::OsString;
use std::path::Path;

use super::args::{DiffArgs, StateRef};
use super::error::refused;
use super::named::existing;
use super::offline::Offline;
use super::out::{self, outln};
use super::paths::absolute;
use super::transfer::{is_running, with_live_checkpoint};
use super::units::size;
use super::{guard, work};
use crate::folder::VmFolder;
use crate::history::whole::source::Source;
use crate::search::{self, Change, ChangedFiles, Pair};
use crate::seccomp::Thread;
use crate::storage::Storage;
use crate::transfer::compare::{self, Changes, Comparison};

const COMMAND: &str = "piton checkpoint diff";
/// Ranges, and files, that people are shown.
const RANGES_SHOWN: usize = 16;
const FILES_SHOWN: usize = 200;

type Found = (Comparison, Option<ChangedFiles>);

pub fn diff(args: &DiffArgs, json: bool) -> anyhow::Result<()> {
    let data = args.data.as_deref().map(absolute).transpose()?;
    let data_file: Vec<&Path> = data.iter().map(|path| path.as_path()).collect();
    let open = |vm: &VmFolder, checkpoint: &str| Source::checkpoint(vm, checkpoint, COMMAND);
    let a_folder = existing(&args.a.vm)?;
    let (changes, files) = match &args.b {
        StateRef::Checkpoint(b) => {
            guard::enter(&args.guard, Thread::Files, &data_file)?;
            let (a, b) = (open(&a_folder, &args.a.checkpoint)?, open(&existing(&b.vm)?, &b.checkpoint)?);
            compare_all(a, b, data.as_deref(), args.files)?
        }
        StateRef::Now(name) => {
            let folder = existing(name)?;
            match Offline::open(&folder) {
                Ok(vm) => {
                    guard::enter(&args.guard, Thread::Files, &data_file)?;
                    let a = open(&a_folder, &args.a.checkpoint)?;
                    let b = Source::now(&folder, &vm.lock, &vm.definition)?;
                    compare_all(a, b, data.as_deref(), args.files)?
                }
                Err(e) if !is_running(&e) => return Err(e),
                Err(_) if !args.live => {
                    return Err(refused(format!(
                        "the VM `{name}` is running or paused: use --live to compare it through a \
                         temporary checkpoint, or stop it first with `piton stop {name}`"
                    )));
                }
                Err(_) => {
                    let command = "piton checkpoint diff --live";
                    return with_live_checkpoint(&folder, command, &args.guard, json, |b| {
                        let a = format!("{}@{}", args.a.vm, args.a.checkpoint);
                        let mut words: Vec<OsString> = ["checkpoint", "diff"].map(Into::into).into();
                        words.extend(args.files.then(|| "--files".into()));
                        if let Some(data) = &data {
                            words.extend(["--data".into(), data.into()]);
                        }
                        words.extend(["--".into(), a.into(), b.into()]);
                        words
                    });
                }
            }
        }
    };
    if json {
        let mut result = serde_json::json!(changes);
        if let Some(files) = files {
            result["files"] = serde_json::json!(files);
        }
        out::json(&result);
        return Ok(());
    }
    for (disk, changed) in &changes.disks {
        show_changes(&format!("disk `{disk}`"), changed);
    }
    match &changes.memory {
        Some(changed) => show_changes("memory", changed),
        None => outln!("memory: not compared, as it is missing in one or differs in size"),
    }
    for disk in &changes.incomparable {
        outln!("disk `{disk}`: not compared, as it is missing in one");
    }
    if let Some(files) = &files {
        show_files(files);
    }
    Ok(())
}

/// Both are kept as they are until all was compared.
fn compare_all(mut a: Source, mut b: Source, data: Option<&Path>, files: bool) -> anyhow::Result<Found> {
    work::here(|progress| {
        let found = compare::run(&Storage::os(), &a, &b, data, progress)?;
        if !files {
            return Ok((found, None));
        }
        let pair = |(disk, changes): (&String, &Changes)| {
            let ranges = changes.ranges.iter().map(|range| range.offset..range.offset + range.length);
            let (before, after) = (a.disks.remove(disk)?, b.disks.remove(disk)?);
            Some(Pair { disk: disk.clone(), before, after, ranges: ranges.collect() })
        };
        let pairs = found.disks.iter().filter_map(pair).collect();
        let files = search::changed_files(pairs, progress)?;
        Ok((found, Some(files)))
    })?
}

fn show_changes(what: &str, changes: &Changes) {
    if changes.ranges.is_empty() {
        outln!("{what}: identical");
        return;
    }
    let count = changes.ranges.len();
    let ranges = if count == 1 { "range" } else { "ranges" };
    outln!("{what}: {} in {count} {ranges}", size(changes.bytes));
    for range in changes.ranges.iter().take(RANGES_SHOWN) {
        outln!("  {:#012x}  {}", range.offset, size(range.length));
    }
    if changes.ranges.len() > RANGES_SHOWN {
        outln!("  and {} more; --json lists all", changes.ranges.len() - RANGES_SHOWN);
    }
}

fn show_files(files: &ChangedFiles) {
    let mut last = None;
    for file in files.changes.iter().take(FILES_SHOWN) {
        let place = (&file.disk, file.partition);
        if last != Some(place) {
            match file.partition {
                Some(number) => outln!("files on partition {number} of disk `{}`:", file.disk),
                None => outln!("files on disk `{}`:", file.disk),
            }
            last = Some(place);
        }
        let sign = match file.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        let bytes = match (file.before, file.after) {
            (Some(before), Some(after)) if before != after => {
                format!("  {} -> {}", size(before), size(after))
            }
            (_, Some(bytes)) | (Some(bytes), _) => format!("  {}", size(bytes)),
            (None, None) => String::new(),
        };
        let slash = if file.kind == crate::image::NodeKind::Folder { "/" } else { "" };
        outln!("  {sign} {}{slash}{bytes}", file.path);
    }
    let more = files.changes.len().saturating_sub(FILES_SHOWN);
    if files.truncated {
        outln!("  and more than {more} others; --json lists {}", files.changes.len());
    } else if more > 0 {
        outln!("  and {more} more; --json lists all");
    }
    if files.changes.is_empty() && files.notes.is_empty() {
        outln!("files: no difference");
    }
    for note in &files.notes {
        outln!("{note}");
    }
}
