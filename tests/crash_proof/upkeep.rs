//! Rules and schedules: what a rule lets go is there or gone, what it keeps is whole, whenever the power
//! goes; and what a VM made by itself is known as such.

use piton::control::ChangeBody;
use piton::control::SetBody;
use piton::control::upkeep::{RetentionChange, ScheduleChange};
use piton::folder::Counts;
use piton::history::create::Origin;
use piton::history::{policy, prune};
use piton::id::Id;

use crate::lab::{Lab, Result};

impl Lab {
    fn set(&mut self, body: SetBody) -> Result<()> {
        let act = |lab: &mut Self| {
            let Self { folder, lock, definition, .. } = lab;
            policy::set(folder, lock, definition, &body)
        };
        self.step("set".into(), act, |_, _, _, _| {})
    }

    fn scheduled(&mut self, name: &str) -> Result<Id> {
        self.create_as(name, Origin { scheduled: true, ..Origin::default() })
    }

    /// As the VM's process does after each that it made by itself.
    fn prune(&mut self, gone: &[Id]) -> Result<()> {
        let expected = gone.to_vec();
        self.deleting(gone, |lab| {
            let Self { folder, lock, definition, .. } = lab;
            let told = prune::prune(folder, lock, definition, false)?;
            let went = told.checkpoints.iter().rev().filter(|one| !one.stays);
            assert_eq!(went.map(|one| one.checkpoint.id).collect::<Vec<_>>(), expected);
            Ok(())
        })
    }
}

fn keep(last: u32, all: bool) -> RetentionChange {
    let keep = Counts { last, ..Counts::default() };
    RetentionChange { keep: Some(keep), all: Some(all), ..RetentionChange::default() }
}

/// The rules take the root, one with a branch, and leaves; a user's and a pinned one stay.
pub fn pruned(lab: &mut Lab) -> Result<()> {
    lab.scribble(3)?;
    let root = lab.scheduled("root")?;
    lab.scribble(3)?;
    let own = lab.create("own")?;
    lab.scribble(3)?;
    let fork = lab.scheduled("fork")?;
    lab.scribble(3)?;
    let leaf = lab.scheduled("leaf")?;
    lab.apply(fork)?;
    lab.scribble(3)?;
    let pinned = lab.scheduled("pinned")?;
    let body = ChangeBody { pinned: Some(true), ..ChangeBody::default() };
    let pin = |lab: &mut Lab| lab.catalog().change(&lab.definition, &pinned.to_string(), &body).map(drop);
    lab.step("pin".into(), pin, |_, _, _, _| {})?;
    lab.scribble(3)?;
    let last = lab.scheduled("last")?;
    lab.scribble(2)?;
    lab.begin();
    lab.set(SetBody { retention: keep(1, false), ..SetBody::default() })?;
    lab.prune(&[root, fork, leaf])?;
    lab.scribble(2)?;
    // Again it finds nothing.
    lab.prune(&[])?;
    lab.settle()?;
    lab.set(SetBody { retention: keep(1, true), ..SetBody::default() })?;
    lab.prune(&[own])?;
    assert_eq!(prune::last_scheduled(&lab.catalog().manifests()?).map(|one| one.id), Some(last));
    lab.settle()
}

/// A schedule that keeps two: each round makes one, and lets one go.
pub fn scheduled(lab: &mut Lab) -> Result<()> {
    lab.scribble(3)?;
    lab.begin();
    let schedule = ScheduleChange { every_seconds: Some(60), ..ScheduleChange::default() };
    lab.set(SetBody { schedule, retention: keep(2, false), ..SetBody::default() })?;
    let mut made: Vec<Id> = Vec::new();
    for round in 0..4 {
        lab.scribble(3)?;
        made.push(lab.scheduled(&format!("round{round}"))?);
        let last = prune::last_scheduled(&lab.catalog().manifests()?).map(|one| one.id);
        assert_eq!(last, made.last().copied());
        let gone = if made.len() > 2 { vec![made.remove(0)] } else { Vec::new() };
        lab.prune(&gone)?;
    }
    lab.settle()
}
