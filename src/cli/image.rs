//! `piton image`: what is inside a disk image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{ImageArgs, ImageCommand};
use super::error::refused;
use super::guard;
use super::out::{self, outln};
use super::paths::absolute;
use super::units::size;
use crate::config::DiskFormat;
use crate::disk::{self, Backing, Base, DiskError, backing, open_base};
use crate::history::contents::Contents;
use crate::image::{self, Entry, Menu, Survey, Volume};
use crate::seccomp::Thread;
use crate::storage::Storage;

pub fn run(command: ImageCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ImageCommand::Show(args) => show(&args, json),
        ImageCommand::Extract { image, dir, entry } => extract(&image, dir.as_deref(), entry, json),
    }
}

/// An image, open to be read.
struct Opened {
    path: PathBuf,
    format: DiskFormat,
    base: Arc<Base>,
    survey: Survey,
}

fn open(args: &ImageArgs, writes: &[&Path]) -> anyhow::Result<Opened> {
    guard::enter(&args.guard, Thread::Files, writes)?;
    let storage = Storage::os();
    let path = absolute(&args.file)?;
    let named = args.backing.iter().map(|path| absolute(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let read = || -> Result<(DiskFormat, Base), DiskError> {
        let format = disk::probe(&storage, &path, false)?;
        if format == DiskFormat::Qcow2 {
            backing::check(&storage, &path, &named)?;
        }
        Ok((format, open_base(&storage, &path, format)?))
    };
    let (format, base) = read().map_err(|e| refused(e.to_string()))?;
    let base = Arc::new(base);
    let survey = Survey::of(Arc::new(Contents(base.clone())));
    let survey = survey.map_err(|e| refused(format!("{}: {e}", path.display())))?;
    Ok(Opened { path, format, base, survey })
}

fn show(args: &ImageArgs, json: bool) -> anyhow::Result<()> {
    let image = open(args, &[])?;
    let stored = Storage::os().metadata(&image.path)?.allocated;
    let (menu, problem) = match image::menu_of(&image.survey) {
        Ok(Menu { entries, default }) => (entries, default),
        Err(e) => (Vec::new(), Err(e.to_string())),
    };
    let default = problem.as_ref().ok().copied();
    let problem = problem.err();
    if json {
        out::json(&as_json(&image, stored, &menu, default, problem.as_deref()));
        return Ok(());
    }
    outln!("{}", image.path.display());
    outln!(
        "format      {}, virtual size {}, disk size {}",
        image.format,
        size(image.base.len()),
        size(stored)
    );
    let table = match image.survey.table {
        image::TableKind::Gpt => "GPT",
        image::TableKind::Mbr => "MBR",
        image::TableKind::None => "none",
    };
    outln!("partitions  {table}");
    image.survey.notes.iter().for_each(|note| outln!("            {note}"));
    for volume in &image.survey.volumes {
        outln!("  {}", volume_line(volume));
        if let Some(why) = volume.broken() {
            outln!("     {why}");
        }
    }
    for (volume, system) in image.survey.volumes.iter().filter_map(|one| Some((one, one.system()?))) {
        outln!("system      {} on {}", system.name, volume.name());
        let there = |is: bool| if is { "installed" } else { "not installed" };
        outln!(
            "            guest agent {}, cloud-init {}",
            there(image::has_agent(volume)),
            there(image::has_cloud_init(volume))
        );
    }
    for (number, entry) in (1..).zip(&menu) {
        let mark = if default == Some(number - 1) { "*" } else { " " };
        outln!("{mark}{number:>3}  {}", entry.title);
        if default == Some(number - 1) {
            outln!("      kernel {}", entry.kernel.path);
            entry.initrds.iter().for_each(|initrd| outln!("      initrd {}", initrd.path));
            outln!("      {}", image::cmdline_of(&image.survey, entry));
        }
    }
    match problem {
        None => outln!("`piton run NAME --image {}` boots the entry marked *", image.path.display()),
        Some(why) => outln!("`piton run --image` cannot boot it: {why}"),
    }
    Ok(())
}

fn volume_line(volume: &Volume) -> String {
    let number = volume.partition.as_ref().map_or_else(|| "-".into(), |one| one.number.to_string());
    let label = volume.found.label.as_deref().map(|label| format!(" `{label}`")).unwrap_or_default();
    let uuid = volume.found.uuid.as_deref().map(|uuid| format!(" {uuid}")).unwrap_or_default();
    format!("{number:>2}  {:>9}  {}{label}{uuid}", size(volume.part.len), volume.found.kind.as_str())
}

fn as_json(
    image: &Opened,
    stored: u64,
    menu: &[Entry],
    default: Option<usize>,
    problem: Option<&str>,
) -> serde_json::Value {
    let volume = |volume: &Volume| {
        let partition = volume.partition.as_ref();
        let system = volume.system().map(|system| {
            serde_json::json!({
                "name": system.name, "id": system.id, "version": system.version,
                "agent": image::has_agent(volume), "cloud_init": image::has_cloud_init(volume),
            })
        });
        serde_json::json!({
            "partition": partition.map(|one| one.number),
            "start": volume.part.start, "bytes": volume.part.len,
            "type": partition.map(|one| &one.kind), "name": partition.map(|one| &one.name),
            "partition_uuid": volume.partition_uuid(),
            "file_system": volume.found.kind, "uuid": volume.found.uuid, "label": volume.found.label,
            "problem": volume.broken(), "system": system,
        })
    };
    let entry = |(index, entry): (usize, &Entry)| {
        let paths: Vec<&String> = entry.initrds.iter().map(|file| &file.path).collect();
        serde_json::json!({
            "number": index + 1, "title": entry.title, "id": entry.id, "origin": entry.origin,
            "kernel": entry.kernel.path, "initrds": paths,
            "cmdline": image::cmdline_of(&image.survey, entry),
        })
    };
    serde_json::json!({
        "image": image.path, "format": image.format, "bytes": image.base.len(), "stored_bytes": stored,
        "table": image.survey.table, "notes": image.survey.notes,
        "volumes": image.survey.volumes.iter().map(volume).collect::<Vec<_>>(),
        "entries": menu.iter().enumerate().map(entry).collect::<Vec<_>>(),
        "default": default.map(|index| index + 1), "problem": problem,
    })
}

fn extract(args: &ImageArgs, dir: Option<&Path>, number: Option<usize>, json: bool) -> anyhow::Result<()> {
    let dir = absolute(dir.unwrap_or(Path::new(".")))?;
    let image = open(args, &[&dir])?;
    let failed = |e: image::ImageError| refused(format!("{}: {e}", image.path.display()));
    let menu = image::menu_of(&image.survey).map_err(failed)?;
    let entry = image::choose(&menu, number).map_err(failed)?;
    let payload = image::load(&image.survey, entry).map_err(failed)?;
    let storage = Storage::os();
    let kernel = dir.join("kernel");
    write(&storage, &kernel, &payload.kernel)?;
    let initrd = match &payload.initrd {
        None => None,
        Some(bytes) => {
            let path = dir.join("initrd");
            write(&storage, &path, bytes).inspect_err(|_| {
                // Half of it is of no use.
                let _ = storage.remove_file(&kernel);
            })?;
            Some(path)
        }
    };
    storage.sync_dir(&dir)?;
    if json {
        out::json_line(&serde_json::json!({
            "title": payload.title, "kernel": kernel, "initrd": initrd, "cmdline": payload.cmdline,
        }));
        return Ok(());
    }
    outln!("entry    {}", payload.title);
    outln!("kernel   {} ({})", kernel.display(), size(payload.kernel.len() as u64));
    if let (Some(path), Some(bytes)) = (&initrd, &payload.initrd) {
        outln!("initrd   {} ({})", path.display(), size(bytes.len() as u64));
    }
    outln!("cmdline  {}", payload.cmdline);
    Ok(())
}

/// A file that was not there, durable.
fn write(storage: &Storage, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = storage.create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            refused(format!("{} already exists: remove it, or choose another folder", path.display()))
        }
        std::io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(path);
            refused(format!("the folder {} does not exist: create it first", parent.display()))
        }
        _ => e.into(),
    })?;
    file.write_at(bytes, 0).and_then(|()| file.sync_data()).inspect_err(|_| {
        let _ = storage.remove_file(path);
    })?;
    Ok(())
}
