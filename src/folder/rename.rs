//! A VM gets another name: its folder does, in one step.

use super::{FolderError, VmFolder, VmLock, VmName};

impl VmFolder {
    /// Durable when it returns. Refused where a VM has that name, where the checkpoints lie in a folder
    /// of their own, which has the VM's name too, and where another VM uses an image in this folder.
    pub fn rename(&self, _lock: &VmLock, name: &VmName) -> Result<VmFolder, FolderError> {
        let refuse = |why: String| FolderError::NotRenamed { name: self.name.clone(), why };
        let definition = self.load()?;
        if definition.checkpoint_dir.is_some() {
            let dir = self.checkpoints(&definition);
            return Err(refuse(format!(
                "its checkpoints are in {}, a folder with the same name",
                dir.display()
            )));
        }
        for disk in definition.config.disks.iter().filter(|disk| disk.path.is_relative()) {
            let image = self.path.join(&disk.path);
            if self.others_rest_on(&image)? {
                return Err(refuse(format!("another VM uses {}", image.display())));
            }
        }
        let renamed = self.sibling(name);
        renamed.make_room()?;
        self.storage.rename(&self.path, &renamed.path)?;
        self.sync_home()?;
        Ok(renamed)
    }
}
