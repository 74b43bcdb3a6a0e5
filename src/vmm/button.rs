//! The power button. A guest that boots cannot take the interrupt of its press yet, and an edge that
//! comes while the interrupt is masked is lost: it is told again until it has read what happened.

use std::time::{Duration, Instant};

use crate::machine::{Machine, MachineError};

/// Before the first reminder, and between two at most.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// False if the guest cannot notice it.
pub fn press(machine: Option<&Machine>) -> Result<bool, MachineError> {
    match machine.filter(|machine| machine.is_running()) {
        Some(machine) => machine.press_power_button().map(|()| true),
        None => Ok(false),
    }
}

/// When the guest is told again of power events that it has not read.
#[derive(Default)]
pub struct Reminder {
    next: Option<Instant>,
    pause: Duration,
}

impl Reminder {
    /// None: it has read all, or does not run.
    pub fn next(&mut self, machine: Option<&Machine>) -> Option<Instant> {
        if !machine.is_some_and(|machine| machine.is_running() && machine.has_unread_power_events()) {
            *self = Self::default();
            return None;
        }
        if self.next.is_none() {
            self.pause = FIRST;
            self.next = Some(Instant::now() + FIRST);
        }
        self.next
    }

    pub fn repeat(&mut self, machine: Option<&Machine>, now: Instant) {
        if let Some(machine) = machine
            && self.next.is_some_and(|at| now >= at)
        {
            if let Err(e) = machine.repeat_power_events() {
                log::warn!("{e}");
            }
            self.pause = (self.pause * 2).min(LONGEST);
            self.next = Some(now + self.pause);
        }
    }
}
