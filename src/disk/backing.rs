//! The other files that an image names as its backing files. Whoever wrote the image chose them, so
//! none is opened on its word alone: when a disk is added, the user has to have named each.

use std::path::{Path, PathBuf};

use super::probe::QCOW2_MAGIC as MAGIC;
use super::{DiskError, Result, inspect};
use crate::config::DiskConfig;
use crate::storage::{Access, Storage};

/// Longest name that the format has room for.
const NAME_MAX: usize = 1023;
/// A chain that leads into itself ends somewhere.
const MAX_DEPTH: usize = 64;

/// The files below `image`, top down. What is wrong with them is for whoever opens them.
pub fn files(storage: &Storage, image: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut next = named_in(storage, image)?;
    while let Some(path) = next {
        next = named_in(storage, &path).unwrap_or_default();
        found.push(path);
        if found.len() >= MAX_DEPTH {
            break;
        }
    }
    Ok(found)
}

/// Refuses an image that leads to files which are not among `named`.
pub fn check(storage: &Storage, image: &Path, named: &[PathBuf]) -> Result<()> {
    let is_named = |path: &PathBuf| named.iter().any(|named| same_file(storage, named, path));
    let unnamed: Vec<PathBuf> = files(storage, image)?.into_iter().filter(|path| !is_named(path)).collect();
    if unnamed.is_empty() {
        return Ok(());
    }
    Err(DiskError::Unnamed { path: image.to_owned(), unnamed })
}

/// One file that two disks of a VM would write, or that one would write under the other.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disks `{a}` and `{b}` are the same file, {}: use it only once, or add ,readonly or ,overlay to \
     both",
    path.display()
)]
pub struct GivenTwice {
    pub a: String,
    pub b: String,
    pub path: PathBuf,
}

/// The first file that is given twice and cannot be shared.
pub fn given_twice<'a>(
    storage: &Storage,
    disks: impl IntoIterator<Item = &'a DiskConfig>,
) -> Option<GivenTwice> {
    let disks: Vec<_> = disks.into_iter().collect();
    let shares = |disk: &DiskConfig| disk.readonly || disk.overlay;
    let mut pairs = disks.iter().enumerate().flat_map(|(i, a)| disks[..i].iter().map(move |b| (*b, *a)));
    let (a, b) = pairs.find(|(a, b)| !(shares(a) && shares(b)) && same_file(storage, &a.path, &b.path))?;
    Some(GivenTwice { a: a.id.clone(), b: b.id.clone(), path: b.path.clone() })
}

/// Whether both names lead to one file.
pub fn same_file(storage: &Storage, a: &Path, b: &Path) -> bool {
    let id = |path: &Path| storage.metadata(path).ok().map(|meta| (meta.dev, meta.ino));
    a == b || id(a).is_some_and(|a| id(b) == Some(a))
}

fn named_in(storage: &Storage, image: &Path) -> Result<Option<PathBuf>> {
    inspect(storage, image)?;
    let file = storage.open_named(image, Access::ReadOnly)?;
    let mut header = [0; 20];
    if file.read_up_to(&mut header, 0)? < header.len() || header[..4] != MAGIC {
        return Ok(None);
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let (offset, len) = (number(&header[8..16]), number(&header[16..20]));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(NAME_MAX)];
    let got = file.read_up_to(&mut name, offset)?;
    let name = String::from_utf8_lossy(&name[..got]).into_owned();
    let name = name.strip_prefix("file:").unwrap_or(&name);
    Ok(Some(image.parent().unwrap_or(Path::new("")).join(name)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn image(path: &Path, backing: &str) {
        let mut bytes = vec![0; 4096];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&1024u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
        bytes[1024..1024 + backing.len()].copy_from_slice(backing.as_bytes());
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn every_file_of_a_chain_has_to_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("low"), [0; 512]).unwrap();
        image(&at("mid"), "file:low");
        image(&at("top"), at("mid").to_str().unwrap());
        assert_eq!(files(&storage, &at("top")).unwrap(), [at("mid"), at("low")]);
        assert!(check(&storage, &at("low"), &[]).is_ok());
        let error = check(&storage, &at("top"), &[at("mid")]).unwrap_err().to_string();
        assert!(error.contains("/low") && !error.contains("/mid,"), "{error}");
        std::os::unix::fs::symlink(at("low"), at("other")).unwrap();
        assert!(check(&storage, &at("top"), &[at("mid"), at("other")]).is_ok());
        // One that is its own, and one that leads to nothing.
        image(&at("ring"), "ring");
        assert!(files(&storage, &at("ring")).unwrap().len() <= MAX_DEPTH);
        image(&at("lost"), "/nowhere/at all");
        assert!(check(&storage, &at("lost"), &[]).is_err());
    }
}
