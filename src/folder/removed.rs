//! VMs that were removed and can come back: the trash of a home.
//!
//! | name | what it is |
//! | --- | --- |
//! | `.removed-<VM>-<id>` | the folder of a VM, as it was; without a vm.json it is going for good |
//! | `removed.json` in it | when that was |
//! | `<checkpoint dir>/.removed-<VM>-<id>` | checkpoints that lay in a folder of their own |
//!
//! One rename removes it, one brings it back. What is noted, and checkpoints elsewhere, follow it, and
//! precede it on the way back; [`Removed::date`] and [`Removed::settle`] make up for what a crash
//! prevented.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FolderError, Home, VmFolder, VmLock, VmName, trust};
use crate::id::Id;
use crate::moment::Moment;
use crate::storage::DOCUMENT_MAX;

const REMOVED: &str = ".removed-";
const RECORD: &str = "removed.json";
const FORMAT: u32 = 1;

/// What `removed.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub format: u32,
    /// Counts up: the highest came last.
    pub number: u64,
    pub when: Moment,
    /// The VM's checkpoints lie there, and not in its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_dir: Option<PathBuf>,
}

/// A VM in the trash.
#[derive(Debug, Clone)]
pub struct Removed {
    /// Where it is now; its name is the one that it had.
    pub folder: VmFolder,
    pub id: Id,
    /// None: it cannot be read.
    pub removal: Option<Removal>,
    /// Cut short on its way out: there is nothing to bring back.
    pub is_going: bool,
}

fn name_of(name: &VmName, id: Id) -> String {
    format!("{REMOVED}{name}-{id}")
}

impl Home {
    /// All that is in the trash.
    pub fn removed(&self) -> Result<Vec<Removed>, FolderError> {
        trust::parent(&self.root)?;
        let names = match self.storage.list_dir(&self.root) {
            Ok(names) => names,
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let parts = |name: &str| -> Option<(VmName, Id)> {
            let (vm, id) = name.strip_prefix(REMOVED)?.rsplit_once('-')?;
            Some((vm.parse().ok()?, id.parse().ok()?))
        };
        let all = names.iter().filter_map(|name| {
            let (vm, id) = parts(name.to_str()?)?;
            let folder = VmFolder { path: self.root.join(name), ..self.folder(&vm) };
            // What another user put there is nobody's here.
            trust::folder(&folder.path).ok()?;
            let removal = folder.removal();
            let is_going = !folder.exists().unwrap_or(true);
            Some(Removed { folder, id, removal, is_going })
        });
        Ok(all.collect())
    }
}

impl VmFolder {
    fn removal(&self) -> Option<Removal> {
        trust::file(&self.path.join(RECORD)).ok()?;
        let bytes = self.storage.read_at_most(&self.path.join(RECORD), DOCUMENT_MAX).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|removal: &Removal| removal.format <= FORMAT)
    }

    /// Refuses to remove what another VM needs.
    pub fn is_free_to_go(&self) -> Result<(), FolderError> {
        match self.user_of_images()? {
            None => Ok(()),
            Some(user) => Err(FolderError::Needed { name: self.name.clone(), user }),
        }
    }

    fn removal_now(&self, number: u64, when: Moment) -> Removal {
        let checkpoint_dir = self.load().ok().and_then(|definition| definition.checkpoint_dir);
        Removal { format: FORMAT, number, when, checkpoint_dir }
    }

    /// Puts the VM into the trash. Durable when it returns; its name is free. Needs no room.
    pub fn put_away(&self, lock: &VmLock, id: Id, number: u64, when: Moment) -> Result<Removed, FolderError> {
        let removal = self.removal_now(number, when);
        let path = self.home.join(name_of(&self.name, id));
        self.storage.rename(&self.path, &path)?;
        if let Err(e) = self.sync_home() {
            if let Err(again) = self.storage.rename(&path, &self.path) {
                log::warn!("{again}");
            }
            return Err(e);
        }
        let folder = Self { path, ..self.clone() };
        let removed = Removed { folder, id, removal: Some(removal), is_going: false };
        // It is in the trash, and the next look at it makes up for what fails here.
        let noted = removed.note().and_then(|()| removed.settle(lock));
        if let Err(e) = noted {
            log::warn!("{e}");
        }
        Ok(removed)
    }
}

impl Removed {
    pub fn lock(&self) -> Result<VmLock, FolderError> {
        self.folder.take_lock()
    }

    pub fn name(&self) -> &VmName {
        &self.folder.name
    }

    fn note(&self) -> Result<(), FolderError> {
        let path = self.folder.path.join(RECORD);
        let bytes = serde_json::to_vec(&self.removal)
            .map_err(|e| FolderError::Damaged { path: path.clone(), error: e.to_string() })?;
        Ok(self.folder.storage.replace(&path, &bytes)?)
    }

    /// Where checkpoints lie that are not in the VM's folder, and where they go while it is removed.
    fn elsewhere(&self) -> Option<(PathBuf, PathBuf)> {
        let dir = self.removal.as_ref()?.checkpoint_dir.as_ref()?;
        Some((dir.join(self.name().as_str()), dir.join(name_of(self.name(), self.id))))
    }

    /// Checkpoints that do not lie in its folder.
    pub fn checkpoints_elsewhere(&self) -> Option<PathBuf> {
        self.elsewhere().map(|(_, aside)| aside)
    }

    fn move_dir(&self, from: &Path, to: &Path) -> Result<(), FolderError> {
        self.folder.storage.rename(from, to)?;
        Ok(self.folder.storage.sync_parent(to)?)
    }

    /// Takes along checkpoints that lie elsewhere, unless they are somebody else's by now, or their file
    /// system is not there.
    pub fn settle(&self, _lock: &VmLock) -> Result<(), FolderError> {
        let Some((from, to)) = self.elsewhere() else { return Ok(()) };
        let dir = self.removal.as_ref().and_then(|removal| removal.checkpoint_dir.as_ref());
        let is_theirs = match self.folder.sibling(self.name()).load() {
            Ok(theirs) => theirs.checkpoint_dir.as_ref() == dir,
            Err(FolderError::Missing { .. }) => false,
            Err(_) => true,
        };
        let storage = &self.folder.storage;
        if is_theirs || self.is_going || storage.exists(&to)? || !storage.exists(&from)? {
            return Ok(());
        }
        // Whoever removed it may have been killed before its new name was durable.
        self.folder.sync_home()?;
        self.move_dir(&from, &to)
    }

    /// Whose time cannot be read has been here from now on.
    pub fn date(&mut self, _lock: &VmLock, now: Moment) -> Result<(), FolderError> {
        if self.removal.is_none() && !self.is_going {
            self.removal = Some(self.folder.removal_now(0, now));
            self.note()?;
        }
        Ok(())
    }

    /// Brings it back as `name`.
    pub fn restore(&self, _lock: &VmLock, name: &VmName) -> Result<VmFolder, FolderError> {
        let storage = &self.folder.storage;
        let back = self.folder.sibling(name);
        back.make_room()?;
        // Whoever removed it may have been killed before its new name was durable.
        self.folder.sync_home()?;
        if let Some((at, aside)) = self.elsewhere() {
            let refuse = |why| Err(FolderError::NotRestored { name: self.name().clone(), why });
            match (storage.exists(&aside)?, storage.exists(&at)?) {
                _ if name != self.name() => {
                    let at = at.display();
                    return refuse(format!("its checkpoints are in {at}, a folder that needs its own name"));
                }
                (true, true) => return refuse(format!("{} exists: move it away first", at.display())),
                (true, false) => self.move_dir(&aside, &at)?,
                // It had not got away.
                (false, true) => {}
                (false, false) => {
                    let aside = aside.display();
                    return refuse(format!("{aside} does not exist: is its file system mounted?"));
                }
            }
        }
        // It says nothing of a VM that is there.
        storage.remove_file_if_exists(&self.folder.path.join(RECORD))?;
        storage.sync_dir(&self.folder.path)?;
        storage.rename(&self.folder.path, &back.path)?;
        self.folder.sync_home()?;
        Ok(back)
    }

    /// Removes it for good. The definition goes first: what is left after a crash does not come back.
    /// The folder goes last: as long as there is something of the VM, it is known where.
    pub fn purge(&mut self, lock: &VmLock) -> Result<(), FolderError> {
        if let Err(e) = self.date(lock, Moment::now()) {
            log::debug!("{e}");
        }
        let storage = &self.folder.storage;
        self.settle(lock)?;
        storage.remove_file_if_exists(&self.folder.definition_path())?;
        storage.sync_dir(&self.folder.path)?;
        if let Some((_, aside)) = self.elsewhere()
            && storage.exists(&aside)?
        {
            storage.remove_tree(&aside)?;
            storage.sync_parent(&aside)?;
        }
        storage.remove_tree(&self.folder.path)?;
        self.folder.sync_home()
    }
}
