//! When a VM's process makes checkpoints by itself, and which of them stay.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::kind::CheckpointType;

/// Of the newest of each of so many periods that have one; 0: none for its sake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counts {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl Counts {
    pub fn named(&self) -> [(&'static str, u32); 6] {
        [
            ("last", self.last),
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
        ]
    }
}

/// As `last=5,hourly=24`, or `none`.
impl FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut counts = Self::default();
        if text == "none" {
            return Ok(counts);
        }
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || {
                format!(
                    "`{}` is no rule: write last=5,hourly=24,daily=7,weekly=4,monthly=12,yearly=3, or some of \
                     them, or none",
                    part.escape_debug()
                )
            };
            let (name, number) = part.split_once('=').ok_or_else(wrong)?;
            let number = number.parse().map_err(|_| wrong())?;
            *match name {
                "last" => &mut counts.last,
                "hourly" => &mut counts.hourly,
                "daily" => &mut counts.daily,
                "weekly" => &mut counts.weekly,
                "monthly" => &mut counts.monthly,
                "yearly" => &mut counts.yearly,
                _ => return Err(wrong()),
            } = number;
        }
        if text.is_empty() { Err("an empty rule: write `none` for none".into()) } else { Ok(counts) }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.named().into_iter().filter(|(_, number)| *number > 0);
        let parts: Vec<String> = parts.map(|(name, number)| format!("{name}={number}")).collect();
        f.pad(&if parts.is_empty() { "none".into() } else { parts.join(",") })
    }
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    pub keep: Counts,
    /// All that are not older than the newest by more seconds than this; 0: none for its sake.
    pub within_seconds: u64,
    /// What all of them may take; 0: as much as they do.
    pub max_bytes: u64,
    /// Those too that a user made.
    pub all: bool,
}

impl Retention {
    /// Nothing is said: all stay.
    pub fn is_none(&self) -> bool {
        !self.has_rule() && self.max_bytes == 0
    }

    pub fn has_rule(&self) -> bool {
        self.keep != Counts::default() || self.within_seconds > 0
    }
}

/// When checkpoints are made without being asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// 0: never.
    pub every_seconds: u64,
    /// None: as the VM is set.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<CheckpointType>,
    /// Not if no disk was written to since the last checkpoint.
    pub only_if_changed: bool,
}

impl Schedule {
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// How often the newest checkpoint is tried in a temporary clone, and what its guest has to do there:
/// one of three things, or else run for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyPlan {
    /// 0: never.
    pub every_seconds: u64,
    /// A regular expression that its console has to match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<String>,
    /// A shell command that has to succeed in it, through its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
    /// Its agent has to answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// How long it has for it; none: as long as by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

impl VerifyPlan {
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        let asked = [self.wait_for.is_some(), self.exec.is_some(), self.agent];
        if asked.iter().filter(|asked| **asked).count() > 1 {
            return Err(
                "a verification waits for one thing: give only one of wait_for, exec and agent".into()
            );
        }
        if self.timeout_seconds == Some(0) {
            return Err("a verification needs a timeout of at least one second".into());
        }
        match self.wait_for.as_deref().map(regex::bytes::Regex::new) {
            Some(Err(e)) => Err(format!("not a regular expression: {e}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_told() {
        let counts: Counts = "last=5,hourly=24,daily=7".parse().unwrap();
        assert_eq!((counts.last, counts.hourly, counts.daily, counts.weekly), (5, 24, 7, 0));
        assert_eq!(counts.to_string(), "last=5,hourly=24,daily=7");
        assert_eq!("none".parse(), Ok(Counts::default()));
        assert_eq!(Counts::default().to_string(), "none");
        for wrong in ["", "last", "last=", "last=-1", "secondly=3", "last=5;daily=3", "last=99999999999"] {
            assert!(wrong.parse::<Counts>().is_err(), "{wrong}");
        }
    }
}
