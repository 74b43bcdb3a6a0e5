//! File systems that a checkpoint froze and could not thaw: its guest's agent was asked and did not
//! answer. It is asked until it does. What is sent to it waits for it in the guest, so nobody waits
//! here: its first word is an event, and then it is given the thaw.

use std::time::Duration;

use super::reminder::Reminder;
use crate::agent;
use crate::machine::Machine;

/// How often the agent is reminded.
pub fn reminder() -> Reminder {
    Reminder::new(Duration::from_secs(1), Duration::from_secs(60))
}

/// Whether something may be frozen, as far as is known, in a guest that runs.
pub fn is_due(machine: Option<&Machine>) -> bool {
    machine.is_some_and(|machine| machine.is_running() && machine.agent().is_thaw_due())
}

pub fn poke(machine: Option<&Machine>) {
    if let Some(machine) = machine {
        agent::poke(&machine.agent());
    }
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
