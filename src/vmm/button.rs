//! The power button. A guest that boots cannot take the interrupt of its press yet, and an edge that
//! comes while the interrupt is masked is lost: it is told again until it has read what happened.

use std::time::Duration;

use super::reminder::Reminder;
use crate::machine::{Machine, MachineError};

/// How often the guest is told again.
pub fn reminder() -> Reminder {
    Reminder::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// False if the guest cannot notice it.
pub fn press(machine: Option<&Machine>) -> Result<bool, MachineError> {
    match machine.filter(|machine| machine.is_running()) {
        Some(machine) => machine.press_power_button().map(|()| true),
        None => Ok(false),
    }
}

/// Whether a guest that runs has not read what happened.
pub fn is_unread(machine: Option<&Machine>) -> bool {
    machine.is_some_and(|machine| machine.is_running() && machine.has_unread_power_events())
}

pub fn repeat(machine: Option<&Machine>) {
    if let Some(Err(e)) = machine.map(Machine::repeat_power_events) {
        log::warn!("{e}");
    }
}
