//! Writing an export: into a folder beside the one asked for, which becomes that one by a rename
//! when all of it is there and durable.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use chrono::Utc;

use super::format::{
    DiskFile, Export, FileFormat, INDEX, INITRD, KERNEL, MemoryFile, Since, StateFile, own_disk,
};
use super::{Result, TransferError, sum};
use crate::checkpoint::stamp::FileStamp;
use crate::checkpoint::state::write_state;
use crate::config::{DiskFormat, VmConfig};
use crate::disk::{Backing, flat, qcow2_write, suspects};
use crate::folder::{FolderError, trust};
use crate::history::whole::arrival::{copy, remove};
use crate::history::whole::memory;
use crate::history::whole::source::Source;
use crate::progress::Progress;
use crate::storage::{Access, File, FileKind, Lock, Storage};

const DISKS: &str = "disks";
const MEMORY: &str = "memory";
const STATE: &str = "state";
/// In the folder while it is written, for nobody to write into the same one.
const LOCK: &str = "lock";

/// Writes `source`, or what differs in it from `since`, to the folder `dir`. After an error or when
/// it is called off nothing is left.
pub fn write(
    storage: &Storage,
    source: &Source,
    since: Option<&Source>,
    dir: &Path,
    format: FileFormat,
    progress: &Progress,
) -> Result<Export> {
    let staged = Staged::begin(storage, dir)?;
    let mut writer = Writer { storage, dir: &staged.path, source, since, format, progress };
    let export = writer.write()?;
    staged.publish(dir)?;
    Ok(export)
}

/// The folder while it is written; gone with all in it when dropped.
struct Staged<'a> {
    storage: &'a Storage,
    path: PathBuf,
    _lock: File,
    published: bool,
}

impl<'a> Staged<'a> {
    fn begin(storage: &'a Storage, dir: &Path) -> Result<Self> {
        let refused = |what: String| Err(TransferError::Refused(what));
        let Some(name) = dir.file_name() else {
            return refused(format!("cannot create {}", dir.display()));
        };
        match storage.metadata(dir) {
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
            Ok(meta) if meta.kind != FileKind::Dir => {
                return refused(format!(
                    "{} is not a folder: choose another one to export to",
                    dir.display()
                ));
            }
            Ok(_) if !storage.list_dir(dir)?.is_empty() => {
                return refused(format!(
                    "the folder {} is not empty: choose another one to export to",
                    dir.display()
                ));
            }
            Ok(meta) => {
                let parent = storage.metadata(dir.parent().unwrap_or(dir))?;
                if parent.dev != meta.dev {
                    return refused(format!(
                        "{0} is a mount point: export to a folder in it, such as {0}/export",
                        dir.display()
                    ));
                }
            }
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let path = dir.with_file_name(hidden);
        // Whoever else can write there would choose what is exported, and to where.
        trust::folder(&path).map_err(FolderError::from)?;
        if let Err(e) = storage.create_dir(&path) {
            if e.is_not_found() {
                let parent = dir.parent().unwrap_or(dir).display();
                return refused(format!("the folder {parent} does not exist: create it first"));
            }
            if e.kind() != std::io::ErrorKind::AlreadyExists {
                return Err(e.into());
            }
        }
        let lock = path.join(LOCK);
        let lock = match storage.create_new(&lock) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                storage.open(&lock, Access::ReadWrite)?
            }
            other => other?,
        };
        if lock.lock(Lock::Exclusive).is_err() {
            return refused(format!("another export to {} is in progress", dir.display()));
        }
        // What an export that was killed left there.
        for name in storage.list_dir(&path)?.iter().filter(|name| *name != LOCK) {
            remove(storage, &path.join(name))?;
        }
        Ok(Self { storage, path, _lock: lock, published: false })
    }

    fn publish(mut self, dir: &Path) -> Result<()> {
        self.storage.sync_dir(&self.path)?;
        // An empty folder there is replaced.
        self.storage.rename(&self.path, dir)?;
        self.published = true;
        // Not before: whoever found the folder without it would take it for one that was left.
        self.storage.remove_file(&dir.join(LOCK))?;
        self.storage.sync_dir(dir)?;
        Ok(self.storage.sync_parent(dir)?)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(e) = self.storage.remove_tree(&self.path) {
            log::warn!("cannot remove the unfinished export: {e}");
        }
    }
}

struct Writer<'a> {
    storage: &'a Storage,
    dir: &'a Path,
    source: &'a Source,
    since: Option<&'a Source>,
    format: FileFormat,
    progress: &'a Progress,
}

impl Writer<'_> {
    fn write(&mut self) -> Result<Export> {
        let manifest = &self.source.manifest;
        let mut config = manifest.config.clone();
        let mut warnings = manifest.warnings.clone();
        let disks = self.disks(&mut config)?;
        let memory = self.memory()?;
        let state = self.state()?;
        let own = self.own_disks(&mut config)?;
        for (name, path, stamp) in
            [(KERNEL, &mut config.kernel, &manifest.kernel), (INITRD, &mut config.initrd, &manifest.initrd)]
        {
            self.boot_file(name, path, stamp.as_ref(), &mut warnings)?;
        }
        let mut export = Export {
            id: manifest.id,
            name: manifest.name.clone(),
            note: manifest.note.clone(),
            kind: manifest.kind,
            created: manifest.created,
            exported: Utc::now(),
            vm: manifest.vm.clone(),
            config,
            checkpoint_type: self.source.checkpoint_type,
            auto_checkpoint: self.source.auto_checkpoint,
            since: self.since.map(|since| Since { id: since.manifest.id, name: since.manifest.name.clone() }),
            disks,
            left_out: manifest.left_out.clone(),
            memory,
            state,
            pause_us: manifest.pause_us,
            capture: manifest.capture,
            files: BTreeMap::new(),
            piton: env!("CARGO_PKG_VERSION").into(),
            warnings,
        };
        self.sums(&mut export, own)?;
        let path = self.dir.join(INDEX);
        let bytes = export.encode(&path)?;
        let file = self.storage.create_new(&path)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        Ok(export)
    }

    fn disks(&self, config: &mut VmConfig) -> Result<BTreeMap<String, DiskFile>> {
        let dir = self.dir.join(DISKS);
        self.storage.create_dir(&dir)?;
        let mut files = BTreeMap::new();
        for config in &mut config.disks {
            let Some(disk) = self.source.disks.get(&config.id) else { continue };
            let before = self.since.and_then(|since| since.disks.get(&config.id));
            let before = before.filter(|before| before.len() == disk.len());
            let format = if before.is_some() { FileFormat::Piton } else { self.format };
            let extension = match format {
                FileFormat::Raw => "raw",
                FileFormat::Qcow2 => "qcow2",
                FileFormat::Piton => "delta",
            };
            let file = format!("{DISKS}/{}.{extension}", config.id);
            let path = self.dir.join(&file);
            let failed = TransferError::disk(&config.id);
            let layer = match (before, format) {
                (Some(before), _) => {
                    let suspects = suspects::suspects(before, disk).map_err(&failed)?;
                    let total = suspects.iter().map(|range| range.end - range.start).sum();
                    self.progress.phase("changes of disks", total);
                    let layer =
                        flat::write_changes(self.storage, &path, disk, before, &suspects, self.progress);
                    Some(layer.map_err(&failed)?.id())
                }
                (None, FileFormat::Piton) => {
                    self.progress.phase("disks", disk.len());
                    let layer = flat::write_layer(self.storage, &path, disk, self.progress);
                    Some(layer.map_err(&failed)?.id())
                }
                (None, format) => {
                    self.progress.phase("disks", disk.len());
                    let write =
                        if format == FileFormat::Raw { flat::write_raw } else { qcow2_write::write_qcow2 };
                    write(self.storage, &path, disk, self.progress).map_err(&failed)?;
                    None
                }
            };
            let (size, changes) = (disk.len(), before.is_some());
            config.path = file.clone().into();
            config.format = if format == FileFormat::Qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw };
            files.insert(config.id.clone(), DiskFile { file, format, size, layer, changes });
        }
        self.storage.sync_dir(&dir)?;
        Ok(files)
    }

    fn memory(&self) -> Result<Option<MemoryFile>> {
        let Some(chain) = &self.source.memory else { return Ok(None) };
        let (path, id) = (self.dir.join(MEMORY), self.source.manifest.id);
        let before = self.since.and_then(|since| Some((since.manifest.id, since.memory.as_ref()?)));
        let before = before.filter(|(_, before)| before.ranges() == chain.ranges());
        self.progress.phase("memory", chain.ranges().iter().map(|(_, len)| len).sum());
        let info = match before {
            Some(before) => memory::write_changes(self.storage, &path, id, chain, before, self.progress)?,
            None => memory::write_full(self.storage, &path, id, chain, self.progress)?,
        };
        Ok(Some(MemoryFile {
            file: MEMORY.into(),
            guest_bytes: info.guest_bytes,
            stored_bytes: info.stored_bytes,
            crc: info.crc,
            changes: before.is_some(),
        }))
    }

    fn state(&self) -> Result<Option<StateFile>> {
        let Some(state) = &self.source.state else { return Ok(None) };
        let info = write_state(self.storage, &self.dir.join(STATE), state)?;
        Ok(Some(StateFile { file: STATE.into(), bytes: info.bytes, crc: info.crc }))
    }

    /// Copies what the VM boots from, if it still is what it was.
    fn boot_file(
        &self,
        name: &str,
        path: &mut Option<PathBuf>,
        stamp: Option<&FileStamp>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(original) = path else { return Ok(()) };
        match stamp {
            Some(stamp) if stamp.is_current(self.storage).unwrap_or(false) => {
                let from = self.storage.open_named(&stamp.path, Access::ReadOnly)?;
                copy(self.storage, &from, &self.dir.join(name), self.progress)?;
                *original = name.into();
            }
            _ => warnings.push(format!(
                "the {name} {} has changed since the checkpoint or is missing, so it is not in the export",
                original.display()
            )),
        }
        Ok(())
    }

    /// Read-only disks in the VM's own folder, such as cloud-init's: no checkpoint holds them, as they
    /// never change, but without them the VM is not whole. Returns their names in the export.
    fn own_disks(&self, config: &mut VmConfig) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for disk in config.disks.iter_mut().filter(|disk| disk.readonly && disk.path.is_relative()) {
            let from = self.storage.open(&self.source.folder.join(&disk.path), Access::ReadOnly)?;
            let name = own_disk(&disk.id);
            copy(self.storage, &from, &self.dir.join(&name), self.progress)?;
            disk.path = name.clone().into();
            names.push(name);
        }
        self.storage.sync_dir(&self.dir.join(DISKS))?;
        Ok(names)
    }

    fn sums(&self, export: &mut Export, own: Vec<String>) -> Result<()> {
        let mut names: Vec<String> = export.disks.values().map(|disk| disk.file.clone()).collect();
        names.extend(own);
        names.extend(export.memory.iter().map(|memory| memory.file.clone()));
        names.extend(export.state.iter().map(|state| state.file.clone()));
        let boot =
            export.boot_files().filter(|(_, path)| path.is_relative()).map(|(name, _)| name.to_owned());
        names.extend(boot);
        let mut total = 0;
        for name in &names {
            total += self.storage.metadata(&self.dir.join(name))?.len;
        }
        self.progress.phase("checksums", total);
        for name in names {
            let file = self.storage.open(&self.dir.join(&name), Access::ReadOnly)?;
            let sum = sum::of_file(&file, self.progress)?;
            export.files.insert(name, sum);
        }
        Ok(())
    }
}
