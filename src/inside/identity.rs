//! A new identity for a guest that continues as a copy of another one: what tells a machine from its
//! neighbours. A shell in the guest does it; what must differ comes from the host, since a copy's own
//! randomness may be its original's.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Guest, InsideError, SHELL, is_missing, meanwhile};
use crate::qga::{self, CallError, Why};

const SCRIPT: &str = include_str!("identity.sh");
/// What the agent has to allow.
pub const NEEDED: [&str; 2] = ["guest-exec", "guest-exec-status"];
const WHAT: &str = "the guest was given a new identity";
const LOOK: Duration = Duration::from_millis(20);
/// Far more than long keys and a slow DHCP server take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest reason that is told.
const WHY: usize = 200;
/// Bytes for the guest's kernel to mix in.
const RANDOM: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Randomness,
    Hostname,
    MachineId,
    SshHostKeys,
    Dhcp,
}

impl Step {
    pub const ALL: [Self; 5] =
        [Self::Randomness, Self::Hostname, Self::MachineId, Self::SshHostKeys, Self::Dhcp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Randomness => "randomness",
            Self::Hostname => "hostname",
            Self::MachineId => "machine-id",
            Self::SshHostKeys => "ssh-host-keys",
            Self::Dhcp => "dhcp",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    /// The guest has nothing of the kind.
    Skipped,
    Failed,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    pub step: Step,
    pub outcome: Outcome,
    /// Why it was not done: a guest's word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Every step failed, for one reason.
pub fn failed(reason: &str) -> Vec<Told> {
    Step::ALL.map(|step| Told { step, outcome: Outcome::Failed, reason: reason.to_owned() }).into()
}

/// Does all steps that the guest can do.
pub fn renew(guest: &mut Guest, hostname: &str) -> Result<Vec<Told>, InsideError> {
    let mut random = [0; RANDOM + 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(|error| InsideError::Host { what: "cannot get random bytes".into(), error })?;
    let (seed, id) = random.split_at_mut(RANDOM);
    // A valid UUID of version 4, as systemd makes them (machine-id(5)).
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let arg = ["-c", SCRIPT, "piton", hostname, &id].map(str::to_owned).into();
    let input = Some(qga::encode(seed));
    let exec = qga::Exec { path: SHELL.into(), arg, input, capture: true, ..qga::Exec::default() };
    let pid = match guest.exec(exec) {
        Ok(pid) => pid,
        Err(InsideError::Call(CallError { why: Why::Refused, text })) if is_missing(&text) => {
            return Err(InsideError::NotBegun(format!("the guest has no {SHELL}")));
        }
        Err(e) => return Err(e),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = guest.exec_status(pid).map_err(|e| meanwhile(WHAT, e))?;
        if status.exited {
            let said = status.out.as_deref().and_then(qga::decode).unwrap_or_default();
            return Ok(told(&String::from_utf8_lossy(&said)));
        }
        if Instant::now() >= deadline {
            let text = "the guest did not finish in time".into();
            return Err(InsideError::Lost { what: WHAT, text });
        }
        std::thread::sleep(LOOK);
    }
}

/// What the guest says of each step; one of which it says nothing failed.
fn told(said: &str) -> Vec<Told> {
    let of = |step: Step| {
        let rest = said.lines().find_map(|line| line.strip_prefix(step.name())?.strip_prefix(' '));
        let (outcome, reason) = rest.map_or(("", ""), |rest| rest.split_once(' ').unwrap_or((rest, "")));
        let (outcome, reason) = match outcome {
            "done" => (Outcome::Done, ""),
            "skipped" => (Outcome::Skipped, reason),
            "failed" => (Outcome::Failed, reason),
            _ => (Outcome::Failed, "the guest did not report on it"),
        };
        Told { step, outcome, reason: reason.trim().chars().take(WHY).collect() }
    };
    Step::ALL.map(of).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_report_is_read_with_care() {
        let long = "x".repeat(10_000);
        let said = format!(
            "noise\nrandomness done no matter\nhostname failed Read-only file system\nhostname done\n\
             machine-id\nssh-host-keys skipped {long}\ndhcpx done\n"
        );
        let told = told(&said);
        let outcomes: Vec<_> = told.iter().map(|told| (told.outcome, &told.reason[..])).collect();
        let (silent, failed) = ("the guest did not report on it", Outcome::Failed);
        assert_eq!(
            outcomes,
            [
                (Outcome::Done, ""),
                (failed, "Read-only file system"),
                (failed, silent),
                (Outcome::Skipped, &long[..WHY]),
                (failed, silent)
            ]
        );
        let json = serde_json::to_value(&told[3]).unwrap();
        assert_eq!((&json["step"], &json["outcome"]), (&"ssh-host-keys".into(), &"skipped".into()));
    }
}
