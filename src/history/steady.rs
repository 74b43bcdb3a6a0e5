//! Opening what others may change meanwhile: a checkpoint is looked for in several files, and
//! between one and the next somebody may have deleted or merged. What does not fit then is no
//! damage.

use std::time::Duration;

use super::{Catalog, CheckpointError, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::store::StoreError;
use crate::folder::{Definition, VmFolder};
use crate::id::Id;

/// After so many changes in a row somebody is at work for longer.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(20);

/// What was there at one look.
#[derive(PartialEq, Eq)]
struct Look {
    definition: Definition,
    manifests: Vec<Manifest>,
    damaged: Vec<Id>,
}

impl Look {
    fn take(folder: &VmFolder) -> Result<Self> {
        let definition = folder.load()?;
        let listing = Catalog::new(folder, &definition).listing()?;
        let damaged = listing.damaged.iter().map(|one| one.id).collect();
        Ok(Self { definition, manifests: listing.manifests, damaged })
    }

    /// Whether what was opened by it may have been put together of what was and what is.
    fn mixes_with(&self, now: &Self, id: Id) -> bool {
        let sums =
            |look: &Self| (look.definition.now.layer_sums.clone(), look.definition.now.merging.clone());
        let own = |look: &Self| look.manifests.iter().find(|manifest| manifest.id == id).cloned();
        sums(self) != sums(now) || own(self) != own(now)
    }
}

/// Does `open` with checkpoint `id` as it is, and once more if others got in between.
pub fn open<T, E: From<CheckpointError>>(
    folder: &VmFolder,
    id: Id,
    mut open: impl FnMut(&Definition, &Manifest) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    steadily(
        folder,
        |before, now| before.mixes_with(now, id),
        |before| match before.manifests.iter().find(|manifest| manifest.id == id) {
            Some(manifest) => Ok(open(&before.definition, manifest)),
            None => Err(gone(folder, &before.definition, id)),
        },
    )
}

/// The same with all checkpoints that there are.
pub fn open_all<T, E: From<CheckpointError>>(
    folder: &VmFolder,
    mut open: impl FnMut(&Definition, &[Manifest]) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let mixes = |before: &Look, now: &Look| before.manifests.iter().any(|one| before.mixes_with(now, one.id));
    steadily(folder, mixes, |before| Ok(open(&before.definition, &before.manifests)))
}

/// `open` says in its outer error that there is nothing to be opened.
fn steadily<T, E: From<CheckpointError>>(
    folder: &VmFolder,
    mixes: impl Fn(&Look, &Look) -> bool,
    mut open: impl FnMut(&Look) -> Result<std::result::Result<T, E>>,
) -> std::result::Result<T, E> {
    let mut last = None;
    for _ in 0..TRIES {
        let before = Look::take(folder)?;
        let opened = open(&before)?;
        let now = Look::take(folder)?;
        last = match opened {
            Ok(opened) if !mixes(&before, &now) => return Ok(opened),
            // Layers are given other parents before vm.json says so; or the merge was killed, and
            // the error is there to stay.
            Err(e) if before == now && now.definition.now.merging.is_some() => Some(e),
            Err(e) if before == now => return Err(e),
            Ok(_) | Err(_) => None,
        };
        std::thread::sleep(PAUSE);
    }
    if let Some(error) = last {
        return Err(error);
    }
    Err(CheckpointError::Refused(format!(
        "checkpoints of the VM `{}` are being changed: try again afterwards (`piton checkpoint jobs {0}` \
         shows the progress)",
        folder.name()
    ))
    .into())
}

/// Why it cannot be found any more.
fn gone(folder: &VmFolder, definition: &Definition, id: Id) -> CheckpointError {
    match Catalog::new(folder, definition).store.load(id) {
        Err(e) if !matches!(e, StoreError::Missing { .. }) => e.into(),
        _ => CheckpointError::Refused(format!("checkpoint {id} has been deleted in the meantime")),
    }
}
