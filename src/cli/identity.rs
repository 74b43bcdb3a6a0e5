//! `piton clone --new-identity`: each clone's guest gets an identity of its own.

use std::time::{Duration, Instant};

use super::error::{FAILED, Told, sentence, usage};
use super::exec::connect;
use super::output::complain;
use crate::folder::{VmFolder, VmName};
use crate::inside::InsideError;
use crate::inside::identity::{self, NEEDED, Outcome};
use crate::qga::Why;
use crate::seed::check_hostname;

/// How long an agent may take to be there again. One that was there at the checkpoint still is.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

/// Before anything is made: whether every clone's name can be its guest's.
pub fn check(names: &[VmName]) -> anyhow::Result<()> {
    names.iter().try_for_each(|name| check_hostname(&name.to_string())).map_err(usage)
}

/// Does what can be done in each guest, in all at once.
pub fn renew(folders: &[VmFolder], within: Duration) -> Vec<Vec<identity::Told>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = folders.iter().map(|folder| scope.spawn(move || one(folder, within))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|told| told.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn one(folder: &VmFolder, within: Duration) -> Vec<identity::Told> {
    let hostname = folder.name().to_string();
    let deadline = Instant::now() + PATIENCE;
    let guest = loop {
        match connect(folder, &NEEDED, "running commands from the host") {
            Err(e) if is_early(&e) && Instant::now() < deadline => std::thread::sleep(LOOK),
            guest => break guest,
        }
    };
    let told = guest.and_then(|mut guest| Ok(identity::renew(&mut guest, &hostname, within)?));
    told.unwrap_or_else(|e| identity::failed(&sentence(&e)))
}

/// Whether an agent may answer later.
fn is_early(error: &anyhow::Error) -> bool {
    let Some(InsideError::Call(e)) = error.downcast_ref() else { return false };
    matches!(e.why, Why::Absent | Why::Broken | Why::Silent)
}

/// For a clone's line: what it has now.
pub fn words(told: &[identity::Told]) -> &'static str {
    match () {
        () if told.iter().all(|told| told.outcome != Outcome::Failed) => " with a new identity",
        () if told.iter().any(|told| told.outcome == Outcome::Done) => " with a part of a new identity",
        () => "",
    }
}

/// Says what was not done, and fails if the guest should have been able to.
pub fn finish<'a>(each: impl Iterator<Item = (&'a VmFolder, &'a Vec<identity::Told>)>) -> anyhow::Result<()> {
    let mut failed = false;
    for (folder, told) in each {
        let name = folder.name();
        let of = |outcome| told.iter().filter(move |told| told.outcome == outcome);
        failed |= of(Outcome::Failed).next().is_some();
        if let Some(first) = told.first()
            && told.iter().all(|told| told.outcome == Outcome::Failed && told.reason == first.reason)
        {
            complain(&format!("{name}: no new identity: {}", first.reason));
            continue;
        }
        for (outcome, word) in [(Outcome::Failed, "failed"), (Outcome::Skipped, "skipped")] {
            for told in of(outcome) {
                complain(&format!("{name}: new identity: {} {word}: {}", told.step.name(), told.reason));
            }
        }
    }
    if failed { Err(Told { code: FAILED }.into()) } else { Ok(()) }
}
