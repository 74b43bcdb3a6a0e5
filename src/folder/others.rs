//! The other VMs of a home, those in the trash among them: what they rest on is theirs, too.

use std::path::Path;

use super::{Definition, FolderError, Home, VmFolder, VmName};

impl VmFolder {
    pub fn home(&self) -> Home {
        Home { root: self.home.clone(), storage: self.storage.clone() }
    }

    /// Another VM of the same home.
    pub fn sibling(&self, name: &VmName) -> Self {
        self.home().folder(name)
    }

    fn other_folders(&self, removed: bool) -> Result<impl Iterator<Item = VmFolder>, FolderError> {
        let mut all = self.home().all()?;
        if removed {
            all.extend(self.home().removed()?.into_iter().map(|removed| removed.folder));
        }
        let own = self.path.clone();
        Ok(all.into_iter().filter(move |other| other.path != own))
    }

    /// The definitions of all other VMs of this home that can be read.
    pub fn others(&self) -> Result<Vec<(VmName, Definition)>, FolderError> {
        Ok(self
            .other_folders(false)?
            .filter_map(|other| Some((other.name.clone(), other.load().ok()?)))
            .collect())
    }

    /// Whether a VM of this home but this one, removed or not, has `base` for an image of a disk, or may
    /// have: of what cannot be read nothing is known.
    pub fn others_rest_on(&self, base: &Path) -> Result<bool, FolderError> {
        Ok(self.other_folders(true)?.any(|other| match other.load() {
            Ok(definition) => other.has_image(&definition, base),
            Err(FolderError::Missing { .. }) => false,
            Err(_) => true,
        }))
    }

    fn has_image(&self, definition: &Definition, image: &Path) -> bool {
        definition.config.disks.iter().any(|disk| self.path.join(&disk.path) == image)
    }

    /// A VM that is there and uses an image in this folder, as far as is known.
    pub(super) fn user_of_images(&self) -> Result<Option<VmName>, FolderError> {
        let is_here = |definition: &Definition| {
            definition
                .config
                .disks
                .iter()
                .any(|disk| disk.path.is_absolute() && disk.path.starts_with(&self.path))
        };
        Ok(self.others()?.into_iter().find(|(_, other)| is_here(other)).map(|(name, _)| name))
    }
}
