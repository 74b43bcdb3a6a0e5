//! What can be wrong with a base image, told in the same words by whoever finds it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::checkpoint::Manifest;
use crate::checkpoint::stamp::BaseChange;
use crate::config::{DiskConfig, DiskFormat};
use crate::disk::{DiskError, files_of};
use crate::folder::{VmFolder, VmName};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BaseProblem {
    pub vm: VmName,
    pub disk: String,
    pub base: PathBuf,
    /// The base, or a backing file of it.
    pub file: PathBuf,
    pub change: BaseChange,
    /// The checkpoint whose stamp it does not fit; none: the layers that lie on it.
    pub checkpoint: Option<String>,
}

impl fmt::Display for BaseProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, disk, base, file, change, .. } = self;
        if file == base {
            write!(f, "the base image {} of disk `{disk}`", base.display())?;
        } else {
            write!(f, "{}, a backing file of the base image of disk `{disk}`,", file.display())?;
        }
        match change {
            BaseChange::Gone if file == base => write!(
                f,
                " is missing: put it back, or give its new path with `piton disk relocate {vm} {disk} PATH`"
            ),
            BaseChange::Gone => f.write_str(" is missing: put it back"),
            BaseChange::Length { then, now } if file == base => write!(
                f,
                " has changed: its size is {now} bytes instead of {then}; restore the original, or give \
                 its path with `piton disk relocate {vm} {disk} PATH`"
            ),
            change => {
                match &self.checkpoint {
                    Some(checkpoint) => {
                        write!(f, " has changed since checkpoint `{checkpoint}` was created ({change})")?
                    }
                    None => write!(f, " has changed ({change})")?,
                }
                f.write_str(
                    ", so layers and checkpoints on top of it may be invalid: restore the original, or use \
                     it as it is with `piton start --force` or `piton checkpoint apply --force`",
                )
            }
        }
    }
}

/// A disk of the VM's own is named relative to its folder.
pub fn base_path(folder: &VmFolder, config: &DiskConfig) -> PathBuf {
    folder.path().join(&config.path)
}

/// What of a base can be told without opening it: whether all its files are there and, of a raw one,
/// whether it is as long as the layers above it need. `size` is theirs, if there are any.
pub fn look(
    folder: &VmFolder,
    config: &DiskConfig,
    size: Option<u64>,
) -> std::result::Result<(), Box<BaseProblem>> {
    // What else is wrong with it is said by whoever opens it.
    let (storage, path) = (folder.storage(), base_path(folder, config));
    let found = |file: &Path, change| Err(problem(folder, config, file, change, None));
    let meta = match storage.metadata(&path) {
        Err(e) if e.is_not_found() => return found(&path, BaseChange::Gone),
        Err(_) => return Ok(()),
        Ok(meta) => meta,
    };
    if config.format == DiskFormat::Raw {
        return match size {
            Some(then) if meta.len != then => found(&path, BaseChange::Length { then, now: meta.len }),
            _ => Ok(()),
        };
    }
    let files = match files_of(storage, &path, config.format) {
        Err(DiskError::Missing(file)) => return found(&file, BaseChange::Gone),
        files => files.unwrap_or_default(),
    };
    let gone = files.iter().find(|file| storage.metadata(file).is_err_and(|e| e.is_not_found()));
    gone.map_or(Ok(()), |file| found(file, BaseChange::Gone))
}

pub(super) fn problem(
    folder: &VmFolder,
    config: &DiskConfig,
    file: &Path,
    change: BaseChange,
    checkpoint: Option<&Manifest>,
) -> Box<BaseProblem> {
    Box::new(BaseProblem {
        vm: folder.name().clone(),
        disk: config.id.clone(),
        base: base_path(folder, config),
        file: file.to_owned(),
        change,
        checkpoint: checkpoint.map(|manifest| manifest.name.to_string()),
    })
}
