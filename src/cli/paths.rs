//! Paths as users give them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::error::refused;

pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("the path {} cannot be made absolute", path.display()))
}

/// A folder to make, or an empty one to take the place of: a link to one is that one.
pub fn target_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(_) if path.is_symlink() => Err(refused(format!(
            "{} is a symbolic link that leads to nothing: make the folder that it names, or choose another",
            path.display()
        ))),
        Err(_) => Ok(path),
    }
}
