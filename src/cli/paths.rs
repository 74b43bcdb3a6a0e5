//! Paths as users give them.

use std::path::{Path, PathBuf};

use anyhow::Context;

pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("the path {} cannot be made absolute", path.display()))
}
