//! Paths as users give them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::error::refused;

pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve the path {}", path.display()))
}

/// Of a file that a VM's definition names, which is text.
pub fn kept(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(refused(format!(
            "the path {} is not UTF-8, and those of a VM's files have to be: rename it",
            path.display()
        ))),
    }
}

/// A folder to make, or an empty one to take the place of: a link to one is that one.
pub fn target_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(_) if path.is_symlink() => Err(refused(format!(
            "{} is a dangling symbolic link: create the folder it points to, or choose another one",
            path.display()
        ))),
        Err(_) => Ok(path),
    }
}
