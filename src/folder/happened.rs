//! What happened to a VM: a line of JSON for each event, in events.jsonl, with an older file beside it.
//!
//! Only who has the VM's lock writes. A line is not waited for until it is durable: what the power takes
//! is the end of the file, and a torn line is skipped by whoever reads, and not continued by who writes.

use std::borrow::Cow;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{VmFolder, VmLock};
use crate::id::Id;
use crate::storage::{Access, File, StorageError};

const NOW: &str = "events.jsonl";
const FORMER: &str = "events.1.jsonl";
/// events.jsonl is renamed when it has grown to this, in bytes.
const LIMIT: u64 = 1 << 20;
/// What is read of a file: a limit that was passed by one line, and more.
const MOST: u64 = 2 * LIMIT;
/// Most characters of a text that are kept: parts of it may come from the guest.
const TEXT_MAX: usize = 1000;

/// The names of events, as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Its process is there.
    Started,
    /// Its process came to an orderly end.
    Stopped,
    /// The guest could not go on.
    Crashed,
    /// The process before this one was killed, or the host went down.
    Interrupted,
    /// What a crash had left was put right.
    Repaired,
    Paused,
    Resumed,
    /// The guest was booted anew.
    Reset,
    /// There is no room for what the guest writes: it is paused.
    OutOfRoom,
    CheckpointCreated,
    CheckpointApplied,
    CheckpointDeleted,
    CheckpointChanged,
    /// What the rules do not keep was deleted.
    Pruned,
    /// Something was taken back from the trash.
    Undone,
    TrashEmptied,
    Cloned,
    SettingsChanged,
    DisksChanged,
    Renamed,
    /// The checkpoint whose time had come could not be made.
    ScheduleFailed,
    /// What was asked for was tried and undone.
    JobFailed,
    JobCancelled,
    MergeFailed,
    NetworkDown,
    NetworkUp,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Interrupted => "interrupted",
            Self::Repaired => "repaired",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Reset => "reset",
            Self::OutOfRoom => "out-of-room",
            Self::CheckpointCreated => "checkpoint-created",
            Self::CheckpointApplied => "checkpoint-applied",
            Self::CheckpointDeleted => "checkpoint-deleted",
            Self::CheckpointChanged => "checkpoint-changed",
            Self::Pruned => "pruned",
            Self::Undone => "undone",
            Self::TrashEmptied => "trash-emptied",
            Self::Cloned => "cloned",
            Self::SettingsChanged => "settings-changed",
            Self::DisksChanged => "disks-changed",
            Self::Renamed => "renamed",
            Self::ScheduleFailed => "schedule-failed",
            Self::JobFailed => "job-failed",
            Self::JobCancelled => "job-cancelled",
            Self::MergeFailed => "merge-failed",
            Self::NetworkDown => "network-down",
            Self::NetworkUp => "network-up",
        }
    }
}

/// One event, as it is written and read. Its name is text, because a newer piton may have written it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    pub time: DateTime<Utc>,
    pub event: Cow<'static, str>,
    /// The checkpoint that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Id>,
    /// In words.
    pub text: String,
}

impl Happened {
    pub fn now(what: What, text: impl Into<String>) -> Self {
        Self { time: Utc::now(), event: what.name().into(), checkpoint: None, text: text.into() }
    }

    pub fn of(self, checkpoint: Id) -> Self {
        Self { checkpoint: Some(checkpoint), ..self }
    }

    /// None for a line that is torn or makes no sense.
    pub fn decode(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    fn encode(&self) -> Option<Vec<u8>> {
        let text = self.text.chars().take(TEXT_MAX).collect();
        // Nothing in it cannot be written down.
        let mut line = serde_json::to_vec(&Self { text, ..self.clone() }).ok()?;
        line.push(b'\n');
        Some(line)
    }
}

impl VmFolder {
    /// The older file, then the one that is written to.
    pub fn event_files(&self) -> [PathBuf; 2] {
        [FORMER, NOW].map(|name| self.path.join(name))
    }

    pub fn record(&self, lock: &VmLock, event: &Happened) -> Result<(), StorageError> {
        self.record_within(lock, event, LIMIT)
    }

    /// Records what was done. That stays done, so failing to tell of it is no error.
    pub fn tell(&self, lock: &VmLock, events: impl IntoIterator<Item = Happened>) {
        for event in events {
            if let Err(e) = self.record(lock, &event) {
                log::warn!("an event of the VM `{}` is not recorded: {e}", self.name());
            }
        }
    }

    /// With a file that is renamed when it has grown to `limit`.
    pub fn record_within(&self, _lock: &VmLock, event: &Happened, limit: u64) -> Result<(), StorageError> {
        let Some(mut line) = event.encode() else { return Ok(()) };
        let [former, now] = self.event_files();
        let mut file = self.open_events(&now)?;
        let mut len = file.len()?;
        if len >= limit {
            self.storage.rename(&now, &former)?;
            (file, len) = (self.open_events(&now)?, 0);
        }
        let mut last = [b'\n'];
        if len > 0 {
            file.read_at(&mut last, len - 1)?;
        }
        if last != *b"\n" {
            line.insert(0, b'\n');
        }
        file.write_at(&line, len).inspect_err(|_| {
            // What was written of it is no line; who writes next sees to it if this fails, too.
            let _ = file.set_len(len);
        })
    }

    /// Makes what was recorded durable.
    pub fn sync_events(&self) -> Result<(), StorageError> {
        let [_, now] = self.event_files();
        match self.storage.open(&now, Access::ReadWrite) {
            Ok(file) => file.sync_data().and_then(|()| self.storage.sync_dir(&self.path)),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn open_events(&self, path: &std::path::Path) -> Result<File, StorageError> {
        match self.storage.open(path, Access::ReadWrite) {
            Err(e) if e.is_not_found() => self.storage.create_new(path),
            opened => opened,
        }
    }

    /// All that is known, the oldest first.
    pub fn events(&self) -> Result<Vec<Happened>, StorageError> {
        let mut events = Vec::new();
        for path in self.event_files() {
            let bytes = match self.storage.read_at_most(&path, MOST) {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            };
            events.extend(bytes.split(|byte| *byte == b'\n').filter_map(Happened::decode));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Home;
    use crate::storage::Storage;

    #[test]
    fn events_are_kept_up_to_a_limit_and_torn_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Home::at(dir.path().join("home"), Storage::os()).folder(&"demo".parse().unwrap());
        let lock = folder.create().unwrap();
        assert_eq!(folder.events().unwrap(), []);
        folder.sync_events().unwrap();
        let event = |n: usize| Happened::now(What::Paused, format!("{n:04}\n\u{e4}"));
        let all: Vec<Happened> = (0..100).map(event).collect();
        for (n, event) in all.iter().enumerate() {
            if n == 95 {
                let [_, now] = folder.event_files();
                let mut bytes = std::fs::read(&now).unwrap();
                bytes.extend(b"{\"time\": \"torn");
                std::fs::write(&now, bytes).unwrap();
            }
            folder.record_within(&lock, event, 2000).unwrap();
        }
        let kept = folder.events().unwrap();
        assert!(kept.len() > 20 && kept.len() < 80, "{}", kept.len());
        assert_eq!(kept, all[100 - kept.len()..]);
        folder.sync_events().unwrap();
        let long = Happened::now(What::Crashed, "\u{e4}".repeat(1 << 20)).of(Id::from_bytes([7; 16]));
        folder.record(&lock, &long).unwrap();
        let last = folder.events().unwrap().pop().unwrap();
        assert_eq!((last.text.chars().count(), last.checkpoint), (TEXT_MAX, long.checkpoint));
    }
}
