//! What a path of a guest leads to, asked of its shell.

use std::time::Duration;

use super::{Guest, InsideError, SHELL};
use crate::qga;

const LOOK: Duration = Duration::from_millis(5);

/// What a path of the guest leads to.
pub struct Found {
    pub what: What,
    pub has_tar: bool,
    /// Of a link: what it leads to, as the guest says.
    pub real: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Folder,
    File,
    /// A device or the like.
    Special,
    /// A link to what is not there.
    Broken,
    Nothing,
    /// Nor is the folder there that it would be in.
    NoParent,
}

/// Asks the guest's shell; none if it has none.
pub fn find(guest: &mut Guest, path: &str) -> Result<Option<Found>, InsideError> {
    const SCRIPT: &str = "if [ -d \"$1\" ]; then w=d; elif [ -e \"$1\" ] && [ ! -f \"$1\" ]; then w=s; \
        elif [ -e \"$1\" ]; then w=f; elif [ -L \"$1\" ]; then w=l; \
        elif [ -d \"$2\" ]; then w=n; else w=x; fi; \
        command -v tar >/dev/null 2>&1 && echo \"$w t\" || echo \"$w -\"; \
        [ ! -L \"$1\" ] || readlink -f -- \"$1\"";
    if !guest.allows("guest-exec") || !guest.has_shell()? {
        return Ok(None);
    }
    // A slash behind a link would hide that it is one.
    let bare = match path.trim_end_matches('/') {
        "" => "/",
        bare => bare,
    };
    let arg = ["-c", SCRIPT, "piton", bare, split(path).0].map(str::to_owned).to_vec();
    let exec = qga::Exec { path: SHELL.into(), arg, capture: true, ..qga::Exec::default() };
    let pid = guest.exec(exec)?;
    let status = loop {
        let status = guest.exec_status(pid)?;
        if status.exited {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    let said = status.out.as_deref().and_then(qga::decode).unwrap_or_default();
    let what = match said.first() {
        Some(b'd') => What::Folder,
        Some(b'f') => What::File,
        Some(b's') => What::Special,
        Some(b'l') => What::Broken,
        Some(b'n') => What::Nothing,
        Some(b'x') => What::NoParent,
        _ => return Err(InsideError::NotBegun("its shell is not working".into())),
    };
    let real = said.get(4..).and_then(|rest| rest.strip_suffix(b"\n")).map(<[u8]>::to_vec);
    Ok(Some(Found { what, has_tar: said.get(2) == Some(&b't'), real }))
}

/// The folder of a path of the guest, and the name in it. The path is absolute.
pub fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((folder, name)) => (folder, name),
        None => ("/", path),
    }
}
