//! Whose word is taken: what vm.json and manifests name is opened with the user's rights, so nobody
//! else may be able to write them, or to put others in their place.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(
        "{} belongs to another user (uid {owner}): run piton as that user, or set PITON_HOME to a folder of your own",
        path.display()
    )]
    OtherUser { path: PathBuf, owner: u32 },
    #[error(
        "other users can write to {0} (mode {mode:03o}), and so could make piton open any of your files: \
         check its contents, then run `chmod go-w {0}`",
        path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "{} is a symbolic link, which a VM's folder must not be: move the folder itself here, or set \
         PITON_HOME to where it is",
        .0.display()
    )]
    Link(PathBuf),
    #[error("{} is not a folder, but is where a VM's folder should be", .0.display())]
    NotAFolder(PathBuf),
}

/// Mode bits that let others write.
const GROUP_OR_OTHERS: u32 = 0o022;
const OTHERS: u32 = 0o002;
/// That let others see what is there.
const GROUP_OR_OTHERS_LOOK: u32 = 0o055;
/// In a folder with this bit each may rename and remove only what is his own.
const STICKY: u32 = 0o1000;

fn user() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// What is there, links not followed; none if nothing is, or nothing that can be looked at.
fn look(path: &Path) -> Option<Metadata> {
    std::fs::symlink_metadata(path).ok()
}

fn private(path: &Path, meta: &Metadata) -> Result<(), TrustError> {
    let (path, owner, mode) = (path.to_owned(), meta.uid(), meta.mode() & 0o7777);
    if owner != user() {
        Err(TrustError::OtherUser { path, owner })
    } else if mode & GROUP_OR_OTHERS != 0 {
        Err(TrustError::Writable { path, mode })
    } else {
        Ok(())
    }
}

/// A folder that only the user can change. One that is not there is none's.
pub fn folder(path: &Path) -> Result<(), TrustError> {
    let Some(meta) = look(path) else { return Ok(()) };
    if meta.is_symlink() {
        return Err(TrustError::Link(path.to_owned()));
    }
    if !meta.is_dir() {
        return Err(TrustError::NotAFolder(path.to_owned()));
    }
    private(path, &meta)
}

/// A file that only the user can change; what else may be there is for whoever opens it.
pub fn file(path: &Path) -> Result<(), TrustError> {
    match look(path) {
        Some(meta) if meta.is_file() => private(path, &meta),
        _ => Ok(()),
    }
}

/// A folder in which nobody else can put another thing in the place of the user's. A group that may
/// write there is the user's choice.
pub fn parent(path: &Path) -> Result<(), TrustError> {
    // It may be a link: the user named it.
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let (path, owner, mode) = (path.to_owned(), meta.uid(), meta.mode() & 0o7777);
    let is_closed = mode & GROUP_OR_OTHERS_LOOK == 0;
    if owner != user() && (owner != 0 || is_closed) {
        Err(TrustError::OtherUser { path, owner })
    } else if mode & OTHERS != 0 && mode & STICKY == 0 {
        Err(TrustError::Writable { path, mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_others_can_change_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("vm")).unwrap();
        fs::write(at("vm.json"), "{}").unwrap();
        symlink(at("vm"), at("link")).unwrap();
        assert!(matches!(folder(&at("link")), Err(TrustError::Link(_))));
        assert!(matches!(folder(&at("vm.json")), Err(TrustError::NotAFolder(_))));
        assert!(folder(&at("nothing")).is_ok() && file(&at("nothing")).is_ok());
        let mode = |name: &str, mode| fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        for (bits, good) in [(0o700, true), (0o755, true), (0o775, false), (0o757, false), (0o1777, false)] {
            mode("vm", bits);
            assert_eq!(folder(&at("vm")).is_ok(), good, "{bits:o}");
        }
        for (bits, good) in [(0o600, true), (0o644, true), (0o664, false), (0o606, false)] {
            mode("vm.json", bits);
            assert_eq!(file(&at("vm.json")).is_ok(), good, "{bits:o}");
        }
        for (bits, good) in [(0o755, true), (0o775, true), (0o777, false), (0o1777, true)] {
            mode("vm", bits);
            assert_eq!(parent(&at("link")).is_ok(), good, "{bits:o}");
        }
    }
}
