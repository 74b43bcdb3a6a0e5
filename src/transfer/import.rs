//! Making a VM of exports: one checkpoint, and Now on it.

use std::path::PathBuf;

use super::plan::{Plan, plan};
use super::{Result, TransferError};
use crate::folder::{FolderError, Home, VmName};
use crate::history::whole::arrival::{self, About, Arrival, Contents, Memory};
use crate::history::whole::fit::{Problem, Remap};
use crate::id::Id;
use crate::progress::Progress;

/// What to import, and as what.
pub struct Wanted<'a> {
    /// A whole export, and those that say the changes since, each to the one before it.
    pub dirs: &'a [PathBuf],
    /// None: what it was called.
    pub name: Option<VmName>,
    pub new_id: bool,
    pub remap: &'a Remap,
}

/// What came, or would come, of an import.
#[derive(Debug)]
pub struct Imported {
    pub vm: VmName,
    pub checkpoint: Id,
    pub name: String,
}

/// Looks, and with `make` makes the VM if nothing is in the way.
pub fn run(
    home: &Home,
    storage: &crate::storage::Storage,
    wanted: &Wanted,
    make_it: bool,
    progress: &Progress,
) -> Result<std::result::Result<Imported, Vec<Problem>>> {
    let (export, plan) = plan(storage, wanted.dirs, wanted.remap, progress)?;
    let vm = match &wanted.name {
        Some(name) => name.clone(),
        None => export.vm.parse().map_err(FolderError::from)?,
    };
    let folder = home.folder(&vm);
    let mut problems = Vec::new();
    if storage.exists(&folder.definition_path())? {
        let text = format!("a VM named `{vm}` already exists: choose another name with --name");
        problems.push(Problem { about: "name", text, damage: false });
    }
    let plan = match plan {
        Ok(plan) if problems.is_empty() => plan,
        Ok(_) => return Ok(Err(problems)),
        Err(more) => return Ok(Err(problems.into_iter().chain(more).collect())),
    };
    let checkpoint = if wanted.new_id { Id::random().map_err(TransferError::Random)? } else { export.id };
    if make_it {
        arrival::make(&folder, arrival_of(plan), checkpoint, progress)?;
    }
    Ok(Ok(Imported { vm, checkpoint, name: export.name.to_string() }))
}

fn arrival_of(plan: Plan) -> Arrival {
    let Plan { export, config, disks, memory, state, copies, own } = plan;
    let about = About {
        name: export.name,
        note: export.note,
        kind: export.kind,
        created: export.created,
        left_out: export.left_out,
        pause_us: export.pause_us,
        capture: export.capture,
        warnings: export.warnings,
        checkpoint_type: export.checkpoint_type,
        auto_checkpoint: export.auto_checkpoint,
    };
    let contents = |file| Box::new(file) as Box<dyn Contents>;
    Arrival {
        about,
        config,
        disks,
        memory: memory.map(|memory| Box::new(memory) as Box<dyn Memory>),
        state,
        boot: copies.into_iter().map(|(name, file)| (name, contents(file))).collect(),
        own: own.into_iter().map(|(id, file)| (id, contents(file))).collect(),
    }
}
