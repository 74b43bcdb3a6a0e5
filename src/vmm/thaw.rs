//! File systems that a checkpoint froze and could not thaw: its guest's agent was asked and did not
//! answer. It is asked until it does. What is sent to it waits for it in the guest, so nobody waits
//! here: its first word is an event, and then it is given the thaw.

use std::time::{Duration, Instant};

use crate::agent;
use crate::machine::Machine;

/// Before the first reminder, and between two at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// When the agent is next reminded.
#[derive(Default)]
pub struct Thaw {
    next: Option<Instant>,
    pause: Duration,
}

impl Thaw {
    /// None: nothing is frozen, as far as is known, or the guest does not run.
    pub fn next(&mut self, machine: Option<&Machine>) -> Option<Instant> {
        if !is_due(machine) {
            *self = Self::default();
            return None;
        }
        if self.next.is_none() {
            self.pause = FIRST;
            self.next = Some(Instant::now() + FIRST);
        }
        self.next
    }

    pub fn poke(&mut self, machine: Option<&Machine>, now: Instant) {
        if let Some(machine) = machine
            && self.next.is_some_and(|at| now >= at)
        {
            agent::poke(&machine.agent());
            self.pause = (self.pause * 2).min(LONGEST);
            self.next = Some(now + self.pause);
        }
    }
}

fn is_due(machine: Option<&Machine>) -> bool {
    machine.is_some_and(|machine| machine.is_running() && machine.agent().is_thaw_due())
}

/// Asks an agent that has just been heard of.
pub fn again(machine: Option<&Machine>) {
    let Some(machine) = machine.filter(|machine| machine.is_running()) else { return };
    let port = machine.agent();
    if !port.is_thaw_due() || !port.is_open() {
        return;
    }
    match agent::thaw_again(&*port) {
        Ok(()) => log::info!("the guest's file systems have been thawed"),
        Err(e) => log::warn!("the guest's file systems may still be frozen: {e}"),
    }
}

/// What the user should know of it.
pub fn warning(machine: Option<&Machine>) -> Option<String> {
    machine.filter(|machine| machine.agent().is_thaw_due()).map(|_| {
        "the guest's file systems may be frozen: its agent did not respond to the thaw after a \
         checkpoint; piton keeps trying"
            .into()
    })
}
