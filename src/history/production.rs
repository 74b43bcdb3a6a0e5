//! Making a production checkpoint: stage, freeze, switch, thaw, publish. Only the disks are of
//! that instant, and the guest has written to them all that belongs there.
//!
//! The agent's answers are waited for on the owner's thread, so nothing else happens to the VM
//! meanwhile; how long that can take is bounded by the agent's time-outs and the freeze's.

use std::collections::BTreeMap;
use std::time::Duration;

use super::create::{Subject, announce, conclude, describe, describe_disks, take_back};
use super::overlay::{self, Frozen, Staged, stage_overlays};
use super::saving::remove_unless_named;
use super::{Catalog, CheckpointError, reserve, sealing};
use crate::agent::{self, Agent, AgentError, Outcome};
use crate::checkpoint::{Kind, Manifest};
use crate::control::CreateBody;
use crate::disk::Disk;
use crate::disk::layer::LayerSpec;
use crate::id::Id;
use crate::machine::{Machine, Stood};
use crate::progress::{Cancelled, Progress};
use crate::storage::Storage;

/// Longest time that the guest's file systems are frozen unless another one is asked for.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest and longest that can be asked for.
pub const FREEZE_TIMEOUT_MIN: Duration = Duration::from_millis(1);
pub const FREEZE_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Why there is no production checkpoint. The VM goes on as before.
#[derive(Debug)]
pub enum Failure {
    /// For want of an agent that does its part: another type of checkpoint may do.
    Agent(AgentError),
    Other(CheckpointError),
}

impl<E: Into<CheckpointError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Of a subject with a machine that runs.
pub fn create(subject: Subject, body: &CreateBody, progress: &Progress) -> Result<Manifest, Failure> {
    let Subject { folder, lock, definition, disks, machine, pending: _, origin } = subject;
    let limit = freeze_timeout(body)?;
    let catalog = Catalog::new(folder, definition);
    let name = catalog.new_name(body.name.as_ref())?;
    let id = Id::random().map_err(CheckpointError::Random)?;
    let Some(machine) = machine else { return Err(Failure::Agent(AgentError::Absent)) };
    let port = machine.agent();
    if port.is_thaw_due() {
        agent::thaw_again(&*port).map_err(Failure::Agent)?;
    }
    progress.phase("agent", 0);
    let mut agent = Agent::connect(&*port, progress).map_err(Failure::Agent)?;

    reserve::keep(folder, definition);

    // stage
    // What the disks have not written yet is written now and not in the freeze.
    for disk in disks.values() {
        disk.flush()?;
    }
    let staging = catalog.store.stage(id)?;
    let staged = stage_overlays(folder, disks)?;
    let before = definition.clone();
    let overlays: BTreeMap<String, LayerSpec> =
        staged.iter().map(|(disk, one)| (disk.clone(), one.overlay.spec())).collect();
    if let Err(e) = announce(folder, lock, definition, id, &staged) {
        drop(staged);
        remove_unless_named(folder, definition, &overlays.into_values().collect::<Vec<_>>());
        return Err(e.into());
    }

    // freeze, switch, thaw
    progress.phase("freeze", 0);
    let storage = folder.storage().clone();
    let mut layers = BTreeMap::new();
    let frozen = agent.while_frozen(limit, || switch(storage, machine, staged, &mut layers));
    drop(agent);
    let failure = match (frozen.outcome, frozen.stayed) {
        (Outcome::Switched(Ok(pause)), Ok(())) => {
            let published = (|| {
                progress.phase("sync", 0);
                for disk in disks.values() {
                    disk.flush()?;
                }
                let mut manifest = describe(folder, &before, id, name, body)?;
                manifest.kind = Kind::Production;
                manifest.pause_us = pause.map(micros);
                manifest.frozen_us = Some(micros(frozen.took));
                manifest.automatic = origin.automatic;
                manifest.keeping.scheduled = origin.scheduled;
                describe_disks(folder, &layers, &mut manifest)?;
                sealing::seal_below(folder, lock, definition, disks, &manifest)?;
                if let Err(e) = frozen.thawed {
                    manifest.warnings.push(format!(
                        "{e}: the guest's file systems may still be frozen; piton thaws them when its \
                         agent connects again"
                    ));
                }
                catalog.store.publish(staging, &manifest)?;
                Ok(manifest)
            })();
            return Ok(conclude(folder, lock, definition, id, published)?);
        }
        (Outcome::Switched(Err(e)), _) => e.into(),
        (Outcome::Switched(Ok(_)), Err(e)) | (Outcome::NotFrozen(e), _) => called_off(e),
    };
    drop(staging);
    take_back(folder, lock, definition, before, overlays, &layers);
    Err(failure)
}

/// A cancel is meant for the checkpoint, whatever its type would have been.
fn called_off(error: AgentError) -> Failure {
    match error {
        AgentError::CalledOff => Failure::Other(Cancelled.into()),
        other => Failure::Agent(other),
    }
}

fn freeze_timeout(body: &CreateBody) -> Result<Duration, CheckpointError> {
    let asked = body.freeze_timeout_ms.map_or(FREEZE_TIMEOUT, Duration::from_millis);
    if !(FREEZE_TIMEOUT_MIN..=FREEZE_TIMEOUT_MAX).contains(&asked) {
        return Err(CheckpointError::Refused(format!(
            "the freeze timeout must be between 1 and {} ms, not {}",
            FREEZE_TIMEOUT_MAX.as_millis(),
            asked.as_millis()
        )));
    }
    Ok(asked)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Lets the disks write to the staged layers, while no vCPU runs; returns how long that was.
/// `layers` are what those that do wrote to until then, after an error, too.
fn switch(
    storage: Storage,
    machine: &mut Machine,
    staged: BTreeMap<String, Staged>,
    layers: &mut BTreeMap<String, Frozen>,
) -> Result<Option<Duration>, CheckpointError> {
    let Stood { value: (outcome, switched), pause } = machine.stand_still(move |_| {
        let mut layers = BTreeMap::new();
        let outcome = overlay::switch(&storage, staged, &mut layers);
        (outcome, layers)
    })?;
    layers.extend(switched);
    outcome.map(|()| pause)
}
