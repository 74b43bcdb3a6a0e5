//! What a VM boots whose kernel is on one of its disks.

use std::sync::Arc;

use super::message::VmmError;
use crate::config::VmConfig;
use crate::folder::VmFolder;
use crate::history::contents::Contents;
use crate::history::disks::{OpenDisks, base_path};
use crate::image::{self, Payload, Survey};

/// Kernel, initrd and command line as they are on the disk now.
pub fn find(folder: &VmFolder, config: &VmConfig, disks: &OpenDisks) -> Result<Option<Payload>, VmmError> {
    let Some(id) = &config.boot_disk else { return Ok(None) };
    let is_it = |disk: &&crate::config::DiskConfig| disk.id == *id;
    let path = config.disks.iter().find(is_it).map(|disk| base_path(folder, disk)).unwrap_or_default();
    let Some(disk) = disks.machine.iter().find(|disk| disk.id == *id) else { return Ok(None) };
    let read = || {
        let survey = Survey::of(Arc::new(Contents(disk.disk.clone())))?;
        let menu = image::menu_of(&survey)?;
        image::load(&survey, image::choose(&menu, None)?)
    };
    let found = read().map_err(|error| VmmError::Image { disk: id.clone(), path, error: Box::new(error) })?;
    log::info!("`{}` is booted: {} of disk `{id}`", found.title, found.kernel_path);
    Ok(Some(found))
}
