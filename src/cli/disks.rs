//! Disks as the command line names them.

use std::path::PathBuf;

use super::error::{refused, usage};
use super::paths::{absolute, kept};
use crate::config::{ConfigError, DiskArg, DiskConfig, DiskFormat};
use crate::disk::{self, DiskError, backing};
use crate::storage::Storage;

/// What kind of image a disk is.
pub fn look_at(disk: &DiskConfig) -> anyhow::Result<DiskFormat> {
    disk::probe(&Storage::os(), &disk.path, !disk.readonly && !disk.overlay).map_err(|e| match e {
        DiskError::Foreign { .. } => refused(format!("{e}; or add ,format=raw to use it as a raw image")),
        e => refused(e.to_string()),
    })
}

/// A disk as the words have it; nothing is known of its file yet.
pub fn named(id: String, arg: DiskArg) -> anyhow::Result<DiskConfig> {
    if arg.size.is_some() && !arg.overlay {
        return Err(usage(ConfigError::DiskSizeAlone(id)));
    }
    Ok(DiskConfig {
        id,
        path: kept(&arg.path)?,
        format: DiskFormat::Raw,
        readonly: arg.readonly,
        passthrough: arg.passthrough,
        overlay: arg.overlay,
    })
}

/// Refuses images that lead to files which nobody named, and one that would be written twice.
pub fn check_images(disks: &[DiskConfig], named: &[PathBuf]) -> anyhow::Result<()> {
    let storage = Storage::os();
    let named = named.iter().map(|path| absolute(path)).collect::<anyhow::Result<Vec<_>>>()?;
    for disk in disks.iter().filter(|disk| disk.format == DiskFormat::Qcow2) {
        backing::check(&storage, &disk.path, &named).map_err(|e| refused(e.to_string()))?;
    }
    match backing::given_twice(&storage, disks) {
        None => Ok(()),
        Some(twice) => Err(refused(twice.to_string())),
    }
}
