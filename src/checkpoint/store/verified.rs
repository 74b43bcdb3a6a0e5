//! Whether a checkpoint was seen to come back: a file beside its manifest, which says nothing else of
//! it and can be missing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Result, Store, VERIFIED};
use crate::id::Id;

/// Version of the file that this piton writes; it reads this and older ones.
const FORMAT: u32 = 1;
/// Most bytes of a file that are looked at.
const MOST: u64 = 1 << 20;
/// Most bytes of console output that are kept, from its end.
pub const CONSOLE_MAX: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Began {
    /// With its memory.
    Resumed,
    Booted,
}

impl std::fmt::Display for Began {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Resumed => "resumed",
            Self::Booted => "booted",
        })
    }
}

/// What came of trying it in a temporary clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub when: DateTime<Utc>,
    pub passed: bool,
    pub began: Began,
    /// What was waited for, as a sentence's end.
    pub until: String,
    /// From when it began until it was as asked, or given up.
    pub took_ms: u64,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The last of what the guest printed; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
}

impl std::fmt::Display for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.why {
            None => write!(f, "it was {}, and {}", self.began, self.until),
            Some(why) => write!(f, "FAILED: it was {}, but {why}", self.began),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    format: u32,
    #[serde(flatten)]
    verified: Verified,
}

impl Verified {
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(&OnDisk { format: FORMAT, verified: self.clone() })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// None: it makes no sense, or is of a newer piton.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let OnDisk { format, verified } = serde_json::from_slice(bytes).ok()?;
        (1..=FORMAT).contains(&format).then_some(verified)
    }
}

impl Store {
    /// None: it was never tried, or nobody knows any more what came of it.
    pub fn verified(&self, id: Id) -> Option<Verified> {
        Verified::decode(&self.storage.read_at_most(&self.path(id).join(VERIFIED), MOST).ok()?)
    }

    /// Needs no lock of the VM: nothing else of the checkpoint changes, and the last one counts. Only a
    /// reader of the checkpoint may write it: what nobody can be writing, recovery removes.
    pub fn save_verified(&self, id: Id, verified: &Verified) -> Result<()> {
        let path = self.path(id).join(VERIFIED);
        let bytes = verified.encode().map_err(|source| super::StoreError::Manifest {
            path: path.clone(),
            source: super::ManifestError::Encode(source),
        })?;
        self.storage.replace(&path, &bytes).map_err(|e| self.refine(e))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::store::tests::{create, id, place, recover};
    use crate::checkpoint::store::{Leftover, Outcome, Recovery};

    #[test]
    fn it_is_read_as_it_was_written_and_nothing_else_is() {
        let verified = Verified {
            when: Utc::now(),
            passed: false,
            began: Began::Booted,
            until: "until".into(),
            took_ms: 7,
            why: Some("why".into()),
            console: None,
        };
        let bytes = verified.encode().unwrap();
        assert_eq!(Verified::decode(&bytes), Some(verified));
        let text = String::from_utf8(bytes).unwrap();
        assert!(Verified::decode(text.replace("\"format\": 1", "\"format\": 2").as_bytes()).is_none());
        assert!(Verified::decode(&text.as_bytes()[..40]).is_none());
        // What a later piton says besides is passed over.
        assert!(
            Verified::decode(text.replace("\"format\": 1", "\"more\": [], \"format\": 1").as_bytes())
                .is_some()
        );
    }

    #[test]
    fn a_verdict_that_is_being_written_is_left_alone() {
        let (_dir, store) = place();
        for n in 1..=2 {
            create(&store, id(n), &format!("cp{n}"), None).unwrap();
            fs::write(store.path(id(n)).join(".verified.json.77-0.tmp"), "half").unwrap();
        }
        let asked = std::cell::Cell::new(0);
        let reading = || -> Result<_> {
            asked.set(asked.get() + 1);
            Ok(vec![id(1)])
        };
        let mended = store.recover(Recovery::Mend, reading).unwrap();
        assert_eq!(mended.iter().map(|f| f.what).collect::<Vec<_>>(), [Leftover::Verdict(id(2))]);
        let there = |n| store.path(id(n)).join(".verified.json.77-0.tmp").exists();
        assert!(there(1) && !there(2));
        // Its writer has ended; one that got its name between the two looks is no failure.
        let renamed = || -> Result<_> {
            let file = store.path(id(1)).join(".verified.json.77-0.tmp");
            fs::rename(&file, store.path(id(1)).join("verified.json")).unwrap();
            Ok(Vec::new())
        };
        let mended = store.recover(Recovery::Mend, renamed).unwrap();
        assert!(mended.iter().all(|f| matches!(f.outcome, Outcome::Removed)), "{mended:?}");
        assert!(recover(&store, Recovery::Mend).unwrap().is_empty());
        // Nobody is asked where there is nothing to ask about.
        store.recover(Recovery::Mend, reading).unwrap();
        assert_eq!(asked.get(), 1);
    }
}
