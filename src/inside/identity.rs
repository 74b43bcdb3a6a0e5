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
const WHAT: &str = "its guest was given a new identity";
const LOOK: Duration = Duration::from_millis(20);
/// Exit code of a step that the guest has no use for.
const SKIPPED: i64 = 77;
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

/// Does all steps that the guest can do, each in this time.
pub fn renew(guest: &mut Guest, hostname: &str, within: Duration) -> Result<Vec<Told>, InsideError> {
    let mut random = [0; RANDOM + 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(|error| InsideError::Host { what: "cannot get random bytes".into(), error })?;
    let (seed, id) = random.split_at_mut(RANDOM);
    // A valid UUID of version 4, as systemd makes them (machine-id(5)).
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all: Vec<Told> = Vec::new();
    for step in Step::ALL {
        let reseeded = all.first().is_some_and(|told| told.outcome == Outcome::Done);
        let reseeded = if reseeded { "yes" } else { "no" };
        let arg = ["-c", SCRIPT, "piton", step.name(), hostname, &id, reseeded].map(str::to_owned).into();
        let input = (step == Step::Randomness).then(|| qga::encode(seed));
        let exec = qga::Exec { path: SHELL.into(), arg, input, capture: true, ..qga::Exec::default() };
        match run(guest, exec, within) {
            Ok(status) => all.push(told(step, &status, within)),
            Err(e) if all.is_empty() => return Err(e),
            // What was done before it stays.
            Err(e) => {
                let missing = Step::ALL.into_iter().skip(all.len());
                let reason = e.to_string();
                all.extend(missing.map(|step| Told {
                    step,
                    outcome: Outcome::Failed,
                    reason: reason.clone(),
                }));
                break;
            }
        }
    }
    Ok(all)
}

/// None: it does not end.
fn run(guest: &mut Guest, exec: qga::Exec, within: Duration) -> Result<Option<qga::ExecStatus>, InsideError> {
    let pid = match guest.exec(exec) {
        Ok(pid) => pid,
        Err(InsideError::Call(CallError { why: Why::Refused, text })) if is_missing(&text) => {
            return Err(InsideError::NotBegun(format!("the guest has no {SHELL}")));
        }
        Err(e) => return Err(e),
    };
    let deadline = Instant::now() + within;
    loop {
        let status = guest.exec_status(pid).map_err(|e| meanwhile(WHAT, e))?;
        if status.exited {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// What the guest says of a step.
fn told(step: Step, status: &Option<qga::ExecStatus>, within: Duration) -> Told {
    let Some(status) = status else {
        let reason = format!("it did not end within {} s and may still be running", within.as_secs());
        return Told { step, outcome: Outcome::Failed, reason };
    };
    let outcome = match (status.signal, status.exitcode) {
        (None, Some(0)) => return Told { step, outcome: Outcome::Done, reason: String::new() },
        (None, Some(SKIPPED)) => Outcome::Skipped,
        _ => Outcome::Failed,
    };
    let said = status.out.as_deref().and_then(qga::decode).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    Told { step, outcome, reason: last.unwrap_or("it gave no reason").chars().take(WHY).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_word_is_taken_with_care() {
        let of = |code: Option<i64>, signal, said: &str| {
            let out = Some(qga::encode(said.as_bytes()));
            let status = qga::ExecStatus { exited: true, exitcode: code, signal, out, ..Default::default() };
            let told = told(Step::SshHostKeys, &Some(status), Duration::ZERO);
            (told.outcome, told.reason)
        };
        assert_eq!(of(Some(0), None, "no matter"), (Outcome::Done, String::new()));
        assert_eq!(of(Some(77), None, "noise\n none \n\n"), (Outcome::Skipped, "none".into()));
        assert_eq!(of(Some(1), None, ""), (Outcome::Failed, "it gave no reason".into()));
        assert_eq!(of(None, Some(9), "x"), (Outcome::Failed, "x".into()));
        assert_eq!(of(None, None, "x").0, Outcome::Failed);
        assert_eq!(of(Some(1), None, &"x".repeat(10_000)).1.len(), WHY);
        let late = told(Step::Dhcp, &None, Duration::ZERO);
        assert!(late.outcome == Outcome::Failed && late.reason.contains("did not end"));
        let json = serde_json::to_value(Told { step: Step::SshHostKeys, ..late }).unwrap();
        assert_eq!((&json["step"], &json["outcome"]), (&"ssh-host-keys".into(), &"failed".into()));
    }
}
