//! A VM's folder: its name, its definition (vm.json), its lock and where everything else in it
//! lies.

mod definition;
mod happened;
mod holder;
mod kind;
mod last_run;
mod name;
mod others;
mod removed;
mod rename;
pub mod trust;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::config::ConfigError;
use crate::id::Id;
use crate::storage::{Access, DOCUMENT_MAX, File, FileKind, Lock, Staged, Storage, StorageError};
use definition::{FORMAT, OnDisk, crc_of};

pub use holder::Holder;

pub use definition::{Definition, Merging, Now, Origin, Relocating, default_trash};
pub use happened::{Happened, What};
pub use kind::CheckpointType;
pub use last_run::{Ending, LastRun};
pub use name::{NameError, VmName};
pub use removed::{Removal, Removed};
pub use trust::TrustError;
pub use upkeep::{Counts, Retention, Schedule, VerifyPlan};

const DEFINITION: &str = "vm.json";
const CRC: &str = "crc";
const LOCK: &str = "lock";
const LAST_RUN: &str = "last-run.json";
/// Folders of VMs that are being made, or that a crash cut short; no name of a VM begins so.
const STAGING: &str = ".clone-";
/// Longest path of a Unix socket, without its final NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot tell where VMs are stored: set PITON_HOME, XDG_DATA_HOME or HOME")]
    NoHome,
    #[error(
        "a VM named `{name}` already exists: start it with `piton start {name}`, or remove it with \
     `piton rm {name}`"
    )]
    Taken { name: VmName },
    #[error("there is no VM `{name}` in {}: `piton list` shows all VMs", home.display())]
    Missing { name: VmName, home: PathBuf },
    #[error("the VM `{0}` is in use: it is running, or another command is working on it")]
    Busy(VmName),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the path of the control socket, {}, is too long ({len} bytes, at most {SOCKET_PATH_MAX}): \
     set PITON_HOME to a shorter path", path.display())]
    SocketPath { path: PathBuf, len: usize },
    #[error("{} was written by a newer version of piton (format {found}, this version supports up to \
     {FORMAT}): use that version", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("{} is damaged: {error}", path.display())]
    Damaged { path: PathBuf, error: String },
    #[error("{} has an invalid definition: {error}", path.display())]
    Impossible { path: PathBuf, error: ConfigError },
    #[error("cannot rename the VM `{name}`: {why}")]
    NotRenamed { name: VmName, why: String },
    #[error("cannot restore the VM `{name}`: {why}")]
    NotRestored { name: VmName, why: String },
    #[error("cannot remove the VM `{name}`: the VM `{user}` uses an image in its folder")]
    Needed { name: VmName, user: VmName },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The folder that holds all VMs of a user.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    storage: Storage,
}

impl Home {
    /// `$PITON_HOME`, else `$XDG_DATA_HOME/piton`, else `~/.local/share/piton`.
    pub fn from_env(storage: Storage) -> Result<Self, FolderError> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = var("PITON_HOME")
            .or_else(|| var("XDG_DATA_HOME").map(|data| data.join("piton")))
            .or_else(|| var("HOME").map(|home| home.join(".local/share/piton")))
            .ok_or(FolderError::NoHome)?;
        let root = std::path::absolute(&root).unwrap_or(root);
        Ok(Self::at(root, storage))
    }

    /// The folder `root`, an absolute path.
    pub fn at(root: PathBuf, storage: Storage) -> Self {
        Self { root, storage }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn folder(&self, name: &VmName) -> VmFolder {
        VmFolder {
            name: name.clone(),
            path: self.root.join(name.as_str()),
            home: self.root.clone(),
            storage: self.storage.clone(),
        }
    }

    /// Makes the folder if there is none yet.
    pub fn make(&self) -> Result<(), FolderError> {
        make_all(&self.storage, &self.root)
    }

    /// Of `piton api`. No name of a VM begins so.
    pub fn api_socket(&self) -> PathBuf {
        self.root.join(".api.sock")
    }

    /// All folders here whose name is a VM's, by name.
    pub fn all(&self) -> Result<Vec<VmFolder>, FolderError> {
        trust::parent(&self.root)?;
        let names = match self.storage.list_dir(&self.root) {
            Ok(names) => names,
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let vms = names.iter().filter_map(|name| name.to_str()?.parse().ok());
        Ok(vms.map(|name| self.folder(&name)).filter(VmFolder::may_be_one).collect())
    }
}

fn make_all(storage: &Storage, dir: &Path) -> Result<(), FolderError> {
    if storage.exists(dir)? {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_all(storage, parent)?;
    }
    match storage.create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e.into()),
        _ => Ok(()),
    }
}

/// Paths of a VM, whether it exists or not.
#[derive(Debug, Clone)]
pub struct VmFolder {
    name: VmName,
    path: PathBuf,
    home: PathBuf,
    storage: Storage,
}

/// The right to change a VM; given back when dropped, or when the process dies.
#[derive(Debug)]
pub struct VmLock {
    _file: File,
    /// vm.json may hold what was taken back: it could be neither made durable nor replaced.
    behind: AtomicBool,
}

impl VmLock {
    /// Its owner is to save again what he goes by, as soon as that can be done.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    pub fn fall_behind(&self) {
        self.behind.store(true, Ordering::Relaxed);
    }
}

impl VmFolder {
    pub fn name(&self) -> &VmName {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    pub fn definition_path(&self) -> PathBuf {
        self.path.join(DEFINITION)
    }

    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What a detached VMM has to say.
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("piton.log")
    }

    /// Where the checkpoints of a VM so defined lie.
    pub fn checkpoints(&self, definition: &Definition) -> PathBuf {
        match &definition.checkpoint_dir {
            Some(dir) => dir.join(self.name.as_str()),
            None => self.path.join("checkpoints"),
        }
    }

    pub fn disks(&self) -> PathBuf {
        self.path.join("disks")
    }

    /// Checksums of the base image of a disk, if it has some.
    pub fn base_sums(&self, disk: &str) -> PathBuf {
        self.disks().join(format!("{disk}.base-sums"))
    }

    /// The folder for layers and disks of the VM's own, made if there is none yet.
    pub fn make_disks_folder(&self) -> Result<PathBuf, FolderError> {
        let path = self.disks();
        if !self.storage.exists(&path)? {
            self.storage.create_dir(&path)?;
            self.storage.sync_dir(&self.path)?;
        }
        Ok(path)
    }

    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Where programs of the host meet those of the guest.
    pub fn vsock_socket(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }

    fn exists(&self) -> Result<bool, FolderError> {
        Ok(self.storage.exists(&self.definition_path())?)
    }

    /// Whether there is a VM; of a folder that cannot be looked into it is not known that there is none.
    fn may_be_one(&self) -> bool {
        match self.storage.metadata(&self.path) {
            Ok(meta) => meta.kind == FileKind::Dir && self.exists().unwrap_or(true),
            Err(_) => false,
        }
    }

    /// Refuses a folder that another user could change under us.
    fn check_trust(&self) -> Result<(), FolderError> {
        trust::parent(&self.home)?;
        trust::folder(&self.path)?;
        Ok(trust::file(&self.definition_path())?)
    }

    /// And a path too long to listen on.
    fn check(&self) -> Result<(), FolderError> {
        let socket = self.socket();
        let len = socket.as_os_str().len();
        if len > SOCKET_PATH_MAX {
            return Err(FolderError::SocketPath { path: socket, len });
        }
        self.check_trust()
    }

    /// Makes the folder and locks it; refused where a VM is already.
    pub fn create(&self) -> Result<VmLock, FolderError> {
        self.check()?;
        make_all(&self.storage, &self.home)?;
        if self.exists()? {
            return Err(FolderError::Taken { name: self.name.clone() });
        }
        match self.storage.create_dir(&self.path) {
            // A folder without a definition is what an interrupted creation left.
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => {}
        }
        self.storage.sync_dir(&self.home)?;
        self.lock_leftover()
    }

    /// Locks an existing VM.
    pub fn lock(&self) -> Result<VmLock, FolderError> {
        self.must_exist()?;
        self.check()?;
        self.take_lock()
    }

    /// Locks a folder that holds no VM: what a failed creation leaves.
    pub fn lock_leftover(&self) -> Result<VmLock, FolderError> {
        let lock = self.take_lock()?;
        if self.exists()? {
            return Err(FolderError::Taken { name: self.name.clone() });
        }
        Ok(lock)
    }

    /// Refuses one that is not there, and one that others could have written.
    pub fn must_exist(&self) -> Result<(), FolderError> {
        self.check_trust()?;
        if self.exists()? {
            return Ok(());
        }
        Err(FolderError::Missing { name: self.name.clone(), home: self.home.clone() })
    }

    /// Whether a VM can be made here; what an interrupted creation left is removed.
    pub fn make_room(&self) -> Result<(), FolderError> {
        self.check()?;
        if self.exists()? {
            return Err(FolderError::Taken { name: self.name.clone() });
        }
        if self.storage.exists(&self.path)? {
            let lock = self.lock_leftover()?;
            self.storage.remove_tree(&self.path)?;
            drop(lock);
        }
        Ok(())
    }

    /// A folder in this VM's to make another VM in, locked, which nobody takes for a VM. A VM that runs
    /// can write nowhere else.
    pub fn stage(&self, other: &Self, mark: Id) -> Result<(Self, VmLock), FolderError> {
        let path = self.path.join(format!("{STAGING}{}-{mark}", other.name));
        self.storage.create_dir(&path)?;
        let staged = Self { path, ..other.clone() };
        let lock = staged.take_lock()?;
        Ok((staged, lock))
    }

    /// Makes what was staged this VM, in one step. Durable after [`Self::sync_home`].
    pub fn publish(&self, staged: &Self) -> Result<(), FolderError> {
        Ok(self.storage.rename(&staged.path, &self.path)?)
    }

    /// Makes the names of the VMs durable.
    pub fn sync_home(&self) -> Result<(), FolderError> {
        Ok(self.storage.sync_dir(&self.home)?)
    }

    /// Removes what is left in this folder of VMs whose making was cut short.
    pub fn sweep(&self) -> Result<(), FolderError> {
        self.sweep_in(&self.path)
    }

    /// The same for what was made beside it by an older piton.
    pub fn sweep_home(&self) -> Result<(), FolderError> {
        self.sweep_in(&self.home)
    }

    fn sweep_in(&self, dir: &Path) -> Result<(), FolderError> {
        for name in self.storage.list_dir(dir)? {
            if name.to_str().is_some_and(|name| name.starts_with(STAGING)) {
                let left = Self { path: dir.join(name), ..self.clone() };
                // Whoever is at work on it holds its lock.
                if let Ok(lock) = left.take_lock() {
                    self.storage.remove_tree(&left.path)?;
                    drop(lock);
                }
            }
        }
        Ok(())
    }

    fn take_lock(&self) -> Result<VmLock, FolderError> {
        let path = self.path.join(LOCK);
        let file = match self.storage.create_new(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.storage.open(&path, Access::ReadWrite)?
            }
            other => other?,
        };
        match file.lock(Lock::Exclusive) {
            // Renamed or removed since it was opened, it is the lock of something else.
            Ok(())
                if self.storage.metadata(&path).ok().map(|found| found.ino) != Some(file.metadata()?.ino) =>
            {
                Err(FolderError::Busy(self.name.clone()))
            }
            Ok(()) => Ok(VmLock { _file: file, behind: AtomicBool::new(false) }),
            Err(StorageError::InUse { .. }) => Err(FolderError::Busy(self.name.clone())),
            Err(e) => Err(e.into()),
        }
    }

    /// The process that runs or works on the VM, if one does.
    pub fn holder(&self) -> std::io::Result<Option<Holder>> {
        Holder::of(&self.path.join(LOCK))
    }

    pub fn load(&self) -> Result<Definition, FolderError> {
        self.must_exist()?;
        let path = self.definition_path();
        let bytes = self.storage.read_at_most(&path, DOCUMENT_MAX)?;
        let damaged = |error: String| FolderError::Damaged { path: path.clone(), error };
        // The version is looked at first: a newer format may have anything beside it.
        let mut value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let format = value.get("format").and_then(Value::as_u64);
        let found = format.ok_or_else(|| damaged("it has no format version".into()))?;
        if found > FORMAT.into() {
            return Err(FolderError::Newer { path, found });
        }
        let recorded = value.as_object_mut().and_then(|fields| fields.remove(CRC));
        let found = crc_of(value.clone());
        let definition: Definition = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        if let Err(error) = definition.config.validate() {
            return Err(FolderError::Impossible { path, error });
        }
        // None: written by an older piton, or by hand.
        if let Some(recorded) = recorded.filter(|recorded| recorded.as_u64() != Some(found.into())) {
            return Err(damaged(format!("its checksum is {found}, but {recorded} is recorded")));
        }
        if let Some(dir) = &definition.checkpoint_dir {
            trust::parent(dir)?;
            trust::folder(&self.checkpoints(&definition))?;
        }
        Ok(definition)
    }

    /// Replaces vm.json in one step.
    pub fn save(&self, lock: &VmLock, definition: &Definition) -> Result<(), FolderError> {
        let mut staged = self.stage_definition(lock, definition)?;
        staged.content()()?;
        self.place_definition(lock, &mut staged)
    }

    /// Writes what vm.json is to be, beside it.
    pub fn stage_definition(&self, _lock: &VmLock, definition: &Definition) -> Result<Staged, FolderError> {
        let path = self.definition_path();
        let encode = || {
            let crc = crc_of(serde_json::to_value(definition)?);
            serde_json::to_vec_pretty(&OnDisk { definition, crc })
        };
        let mut bytes =
            encode().map_err(|e| FolderError::Damaged { path: path.clone(), error: e.to_string() })?;
        bytes.push(b'\n');
        Ok(self.storage.stage(&path, &bytes)?)
    }

    /// Puts it in place, durably, once its content is.
    pub fn place_definition(&self, lock: &VmLock, staged: &mut Staged) -> Result<(), FolderError> {
        staged.place()?;
        lock.behind.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// To be called while the socket is there still: one that is found with no process behind it
    /// was left by a process that was killed.
    pub fn save_last_run(&self, _lock: &VmLock, last: LastRun) -> Result<(), FolderError> {
        let path = self.path.join(LAST_RUN);
        let bytes =
            last.encode().map_err(|e| FolderError::Damaged { path: path.clone(), error: e.to_string() })?;
        Ok(self.storage.replace(&path, &bytes)?)
    }

    /// Of a VM that does not run. None: it never ran, or nothing is known of it.
    pub fn last_run(&self) -> Option<LastRun> {
        if self.storage.exists(&self.socket()).unwrap_or(false) {
            return Some(LastRun { ended: None, how: Ending::Killed });
        }
        LastRun::decode(&self.storage.read(&self.path.join(LAST_RUN)).ok()?)
    }

    /// Removes the VM with all that is in its folder. The definition goes first: what is left
    /// after a crash is no VM any more.
    pub fn remove(&self, _lock: &VmLock) -> Result<(), FolderError> {
        let elsewhere = match self.load() {
            Ok(definition) => definition.checkpoint_dir.is_some().then(|| self.checkpoints(&definition)),
            // What cannot be read cannot say; the folder goes all the same.
            Err(_) => None,
        };
        self.storage.remove_file_if_exists(&self.definition_path())?;
        self.storage.sync_dir(&self.path)?;
        if let Some(dir) = elsewhere.filter(|dir| dir.exists()) {
            self.storage.remove_tree(&dir)?;
        }
        self.storage.remove_tree(&self.path)?;
        self.storage.sync_dir(&self.home)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
