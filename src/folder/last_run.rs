//! How the last run of a VM ended, for whoever was not there to see it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Most characters of a reason that are kept: parts of it may come from the guest.
const WHY_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// None: nobody was there to look at a clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<DateTime<Utc>>,
    #[serde(flatten)]
    pub how: Ending,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "lowercase")]
pub enum Ending {
    /// The guest shut down.
    Off,
    /// By a user or a signal.
    Ended { by: String },
    /// The guest could not go on.
    Crashed { why: String },
    /// The process that ran it went without a word: it was killed, or the host went down.
    Killed,
}

/// Version of the file that this piton writes; it reads this and older ones.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    /// Absent: written before there was a version.
    #[serde(default = "first")]
    format: u32,
    #[serde(flatten)]
    last: LastRun,
}

const fn first() -> u32 {
    1
}

impl LastRun {
    /// None if it is not known, or makes no sense.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let OnDisk { format, last } = serde_json::from_slice(bytes).ok()?;
        (1..=FORMAT).contains(&format).then_some(last)
    }

    pub(super) fn encode(mut self) -> serde_json::Result<Vec<u8>> {
        if let Ending::Ended { by: text } | Ending::Crashed { why: text } = &mut self.how {
            *text = text.chars().take(WHY_MAX).collect();
        }
        serde_json::to_vec(&OnDisk { format: FORMAT, last: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_run_ended_is_kept() {
        let ended = Some(Utc::now());
        let all = [Ending::Off, Ending::Ended { by: "me".into() }, Ending::Crashed { why: "x".into() }];
        for how in all.into_iter().chain([Ending::Killed]) {
            let last = LastRun { ended, how };
            assert_eq!(LastRun::decode(&last.clone().encode().unwrap()), Some(last));
        }
        let long = LastRun { ended, how: Ending::Crashed { why: "\u{e4}".repeat(100_000) } };
        assert!(long.encode().unwrap().len() < 4096);
        assert_eq!(LastRun::decode(b"garbage"), None);
        assert_eq!(LastRun::decode(br#"{"how":"off"}"#), Some(LastRun { ended: None, how: Ending::Off }));
        assert_eq!(LastRun::decode(br#"{"format":2,"how":"off"}"#), None);
    }
}
