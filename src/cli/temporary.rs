//! VMs that live as long as the command that made them. Each is called after the note that the command
//! leaves in the folder of the VM that it is a clone of: where nobody holds the note, nobody needs the
//! clone.

use std::time::Duration;

use super::manage::has_ended;
use super::named::home;
use crate::control::VmInfo;
use crate::control::client::{self, ClientError};
use crate::folder::{FolderError, Home, VmFolder, VmName};
use crate::history::readers::{self, Reading};

const PREFIX: &str = "verify-";
/// Digits of the note's id in a name.
const DIGITS: usize = 16;
/// How long a process that is cut off may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn name_for(note: &Reading) -> Result<VmName, crate::folder::NameError> {
    format!("{PREFIX}{}", &note.id().to_string()[..DIGITS]).parse()
}

/// The beginning of the note's id that a temporary VM is called after.
fn note_of(name: &VmName) -> Option<&str> {
    let digits = name.as_str().strip_prefix(PREFIX)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

/// Ends what runs of it, and removes it.
pub fn remove(folder: &VmFolder) -> anyhow::Result<()> {
    match client::post_within::<VmInfo>(&folder.socket(), "/vm/kill", &(), PATIENCE) {
        Ok(_) | Err(ClientError::NotRunning | ClientError::Ended) => {}
        Err(e) => log::warn!("{e}"),
    }
    if !has_ended(folder, PATIENCE)
        && let Some(holder) = folder.holder()?
    {
        holder.kill()?;
        holder.has_ended(PATIENCE)?;
    }
    let lock = match folder.lock() {
        Ok(lock) => lock,
        // Another command was faster.
        Err(FolderError::Missing { .. }) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    Ok(folder.remove(&lock)?)
}

/// Those whose command was killed, of this VM or of any.
pub fn left(home: &Home, of: Option<&VmName>) -> anyhow::Result<Vec<VmFolder>> {
    let mut left = Vec::new();
    for folder in home.all()? {
        let Some(note) = note_of(folder.name()) else { continue };
        // One that a user called so is no clone, or is none of a VM that has such a note.
        let Some(origin) = folder.load().ok().and_then(|definition| definition.cloned_from) else { continue };
        if of.is_none_or(|of| *of == origin.vm) && !readers::is_held(&home.folder(&origin.vm), note)? {
            left.push(folder);
        }
    }
    Ok(left)
}

/// Removes those that are left of any VM.
pub fn sweep() -> anyhow::Result<()> {
    for folder in left(&home()?, None)? {
        log::info!("removing {}, which a killed command left", folder.name());
        remove(&folder)?;
    }
    Ok(())
}

/// A temporary VM, removed when dropped.
pub struct Temporary(pub VmFolder);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = remove(&self.0) {
            log::warn!("the temporary VM `{}` was not removed: {e}", self.0.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn only_whole_names_are_meant() {
        let note = |name: &str| note_of(&name.parse().unwrap()).map(str::to_owned);
        let id = Id::from_bytes([0xab; 16]).to_string();
        assert_eq!(note(&format!("verify-{}", &id[..16])), Some("ab".repeat(8)));
        for name in ["verify-web", "verify-abcdabcdabcdabcg", "verify-abcdabcdabcdabcda", "web"] {
            assert_eq!(note(name), None, "{name}");
        }
    }
}
