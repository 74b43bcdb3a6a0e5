//! What a VM's settings say about its checkpoints, and how they are changed.

use std::path::Path;

use super::create::{self, Origin, Subject};
use super::production::{self, Failure};
use super::saving::save;
use super::{Catalog, CheckpointError, Result, delete};
use crate::agent::AgentError;
use crate::checkpoint::Manifest;
use crate::config::{Forward, VmConfig, validate_forwards};
use crate::control::{CreateBody, DeleteBody, SetBody};
use crate::folder::{CheckpointType, Definition, FolderError, VmFolder, VmLock, trust};
use crate::history::{disks, seal};
use crate::progress::Progress;

/// Makes a checkpoint of the type that is asked for, or else of the one that is set.
pub fn create(mut subject: Subject, body: &CreateBody, progress: &Progress) -> Result<Manifest> {
    let kind = kind(subject.folder, subject.definition, body)?;
    let production = matches!(kind, CheckpointType::Production | CheckpointType::ProductionOnly);
    let running = subject.machine.as_ref().map(|machine| machine.is_running());
    if let Some(running) = running.filter(|_| production) {
        let (why, tried) = if running {
            match production::create(subject.again(), body, progress) {
                Ok(manifest) => return Ok(manifest),
                Err(Failure::Other(e)) => return Err(e),
                Err(Failure::Agent(e)) => {
                    (e.to_string(), !matches!(e, AgentError::Absent | AgentError::Lacks(_)))
                }
            }
        } else {
            ("the VM is paused, so its guest cannot freeze its file systems".to_owned(), false)
        };
        if kind == CheckpointType::ProductionOnly {
            let text =
                format!("cannot create a production checkpoint, and the VM allows no other type: {why}");
            return Err(if tried {
                CheckpointError::NoProduction(text)
            } else {
                CheckpointError::Refused(text)
            });
        }
        subject.origin.fallback = Some(why);
    }
    create::create(subject, body, progress)
}

fn kind(folder: &VmFolder, definition: &Definition, body: &CreateBody) -> Result<CheckpointType> {
    let name = folder.name();
    if definition.checkpoint_type == CheckpointType::Disabled {
        return Err(CheckpointError::Refused(format!(
            "checkpoints of the VM `{name}` are disabled, as going back could corrupt data that its guest \
             shares with other machines (docs/when-not-to.md); `piton set {name} --checkpoint-type \
             production` enables them"
        )));
    }
    match body.kind {
        Some(CheckpointType::Disabled) => Err(CheckpointError::Refused(
            "`disabled` is a setting, not a checkpoint type: use standard, production or production-only"
                .into(),
        )),
        asked => Ok(asked.unwrap_or(definition.checkpoint_type)),
    }
}

/// Changes the settings, all that are given or none.
pub fn set(folder: &VmFolder, lock: &VmLock, definition: &mut Definition, body: &SetBody) -> Result<()> {
    let mut next = definition.clone();
    next.forwards = forwards(definition, body)?;
    next.config = hardware(&definition.config, body)?;
    if let Some(kind) = body.checkpoint_type {
        next.checkpoint_type = kind;
    }
    if body.seal_base {
        seal::want(folder, &mut next)?;
    }
    if let Some(on) = body.auto_checkpoint {
        next.auto_checkpoint = on;
    }
    if let Some(seconds) = body.trash_seconds {
        next.trash_seconds = seconds;
    }
    next.retention = body.retention.on(next.retention);
    next.schedule = body.schedule.on(next.schedule);
    if let Some(verify) = &body.verify {
        verify.check().map_err(CheckpointError::Refused)?;
        next.verify = verify.clone();
    }
    if next.schedule.kind == Some(CheckpointType::Disabled) {
        return Err(CheckpointError::Refused(
            "`disabled` is not a type that a checkpoint can have: --every 0 ends the schedule".into(),
        ));
    }
    if next.auto_checkpoint && next.checkpoint_type == CheckpointType::Disabled {
        return Err(CheckpointError::Refused(format!(
            "the VM `{}` cannot have automatic checkpoints while checkpoints are disabled: \
             use --auto-checkpoint off, or another --checkpoint-type",
            folder.name()
        )));
    }
    if let Some(dir) =
        body.checkpoint_dir.as_deref().filter(|dir| definition.checkpoint_dir.as_deref() != Some(dir))
    {
        next.checkpoint_dir = Some(dir.to_owned());
        make_dir(folder, definition, &next, dir)?;
    }
    if next == *definition { Ok(()) } else { save(folder, lock, definition, next) }
}

/// The hardware that a change of the settings leads to. Checkpoints keep what they were made with.
fn hardware(config: &VmConfig, body: &SetBody) -> Result<VmConfig> {
    let next = VmConfig {
        memory: body.memory.unwrap_or(config.memory),
        cpus: body.cpus.unwrap_or(config.cpus),
        cmdline: body.cmdline.clone().unwrap_or_else(|| config.cmdline.clone()),
        ..config.clone()
    };
    next.validate().map_err(|e| CheckpointError::Refused(e.to_string()))?;
    Ok(next)
}

/// The forwards that a change of the settings leads to.
pub fn forwards(definition: &Definition, body: &SetBody) -> Result<Vec<Forward>> {
    let mut forwards = definition.forwards.clone();
    for gone in &body.no_forward {
        let before = forwards.len();
        forwards.retain(|one| one != gone);
        if forwards.len() == before {
            return Err(CheckpointError::Refused(format!("there is no forward {gone} to remove")));
        }
    }
    // One that is there already is there.
    let fresh =
        body.forward.iter().filter(|one| !definition.forwards.contains(one) || body.no_forward.contains(one));
    forwards.extend(fresh);
    // Those that there are stay, whatever network the VM has now.
    if !body.forward.is_empty() {
        validate_forwards(&definition.config.nets, &forwards)
            .map_err(|e| CheckpointError::Refused(e.to_string()))?;
    }
    Ok(forwards)
}

/// Checkpoints that the VM has would be lost from sight, so it must have none.
fn make_dir(folder: &VmFolder, definition: &Definition, next: &Definition, dir: &Path) -> Result<()> {
    let listing = Catalog::new(folder, definition).listing()?;
    if !listing.manifests.is_empty() || !listing.damaged.is_empty() {
        return Err(CheckpointError::Refused(format!(
            "the VM `{}` has checkpoints: their folder can only be changed while there are none",
            folder.name()
        )));
    }
    if !dir.is_absolute() || !dir.is_dir() {
        return Err(CheckpointError::Refused(format!("{} is not a folder: create it first", dir.display())));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&folder.checkpoints(next), folder.path()) {
        return Err(CheckpointError::Refused(format!(
            "{} contains the VM's folder: checkpoints would be mixed with its other files; choose another \
             folder",
            dir.display()
        )));
    }
    trust::parent(dir).and_then(|()| trust::folder(&folder.checkpoints(next))).map_err(FolderError::from)?;
    let taken = Catalog::new(folder, next).listing();
    if taken.is_ok_and(|found| !found.manifests.is_empty() || !found.damaged.is_empty()) {
        return Err(CheckpointError::Refused(format!(
            "{} holds checkpoints of another VM: choose another folder",
            folder.checkpoints(next).display()
        )));
    }
    // Made now, so that its absence later means that its disk is not mounted.
    let own = folder.checkpoints(next);
    let storage = folder.storage();
    if !storage.exists(&own)? {
        storage.create_dir(&own)?;
        storage.sync_dir(dir)?;
    }
    Ok(())
}

/// Before a VM that is off boots: its automatic checkpoint, if it is to have one and has no other.
pub fn at_start(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<Option<Manifest>> {
    let catalog = Catalog::new(folder, definition);
    if !definition.auto_checkpoint || !catalog.shown(definition)?.0.is_empty() {
        return Ok(None);
    }
    let sums = catalog.layer_sums(definition)?;
    let Definition { config, now, .. } = &*definition;
    let disks = disks::open(folder, config, &now.tops, &sums, &Default::default())?;
    let origin = Origin { automatic: true, ..Origin::default() };
    let subject =
        Subject { folder, lock, definition, disks: &disks.live, machine: None, pending: None, origin };
    create::create(subject, &CreateBody::default(), &Progress::default()).map(Some)
}

/// After the guest has shut down by itself: what a start made is not needed any more.
pub fn at_shutdown(folder: &VmFolder, lock: &VmLock, definition: &mut Definition) -> Result<()> {
    let (manifests, _) = Catalog::new(folder, definition).shown(definition)?;
    for manifest in manifests.iter().filter(|manifest| manifest.automatic && !manifest.keeping.pinned) {
        delete::run(folder, lock, definition, manifest.id, DeleteBody::default())?;
    }
    Ok(())
}
