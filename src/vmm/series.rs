//! Merges that are under way while the guest runs, and what their threads do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use super::message::Message;
use crate::control::jobs::Job;
use crate::disk::DiskError;
use crate::disk::layer::LayerSpec;
use crate::disk::live::LiveDisk;
use crate::disk::merge::Merge;
use crate::disk::outlook::Outlook;
use crate::folder::Merging;
use crate::history::merge::copy;
use crate::history::pair::{Checked, GoOn, Pair};
use crate::id::Id;
use crate::progress::Progress;
use crate::storage::Storage;

/// Bytes that the guest's requests can wait for: they are moved while they do.
const SMALL: u64 = 1 << 20;
/// After so many rounds in vain twice as much is small, up to [`LARGEST`]: a guest that writes as
/// fast as it is merged waits a little longer.
const PATIENCE: u32 = 4;
const LARGEST: u64 = 64 << 20;
/// Then the guest writes faster than it can be merged, which is left for quieter times.
pub const MOST_ROUNDS: u32 = 40;

/// What is small in this round.
pub fn small(round: u32) -> u64 {
    (SMALL << (round / PATIENCE).min(32)).min(LARGEST)
}

/// All the merges that there are to do at the time.
pub struct Series {
    pub job: Job,
    pub running: Option<Running>,
    /// Fresh overlays that each disk got for it.
    pub rounds: BTreeMap<String, u32>,
    /// A layer that was found to be sound, into which the one that the guest writes to can go.
    pub sound: Option<Id>,
    /// Threads so far.
    pub threads: u64,
}

/// A thread at work on one pair.
pub struct Running {
    /// What it says at its end is about this one and no earlier one.
    pub number: u64,
    pub pair: Pair,
    /// Once it is begun.
    pub begun: Option<Begun>,
    pub stop: Arc<AtomicBool>,
    pub thread: JoinHandle<Outcome>,
}

/// A merge that is written down.
#[derive(Clone)]
pub struct Begun {
    pub merging: Merging,
    pub outlook: Option<Outlook>,
}

/// What a thread comes back with.
pub enum Outcome {
    /// Both layers are as they were written, and durable.
    Verified(Checked),
    /// The one layer holds all of both, durably.
    Copied(Box<Merge>),
    /// The layers are one.
    Merged,
    /// It was stopped, or it failed, and everything reads as before.
    Stopped(DiskError),
    /// It failed at its very end; vm.json says how to go on.
    Halfway(DiskError),
}

/// The layers of a pair as the thread has them.
pub enum Way {
    /// The guest reads through them.
    Live(Arc<LiveDisk>),
    /// Only checkpoints do.
    Aside,
}

/// Tells the owner that a thread is at its end, however it got there.
pub struct Tell {
    pub sender: Sender<Message>,
    pub number: u64,
}

impl Drop for Tell {
    fn drop(&mut self) {
        // At the VM's end nobody waits for it any more.
        let _ = self.sender.send(Message::Merged(self.number));
    }
}

impl Way {
    pub fn cancel(&self, merge: Merge) {
        let cancelled = match self {
            Self::Live(disk) => disk.cancel_merge(merge),
            Self::Aside => Ok(()),
        };
        if let Err(e) = cancelled {
            log::warn!("{e}");
        }
    }

    pub fn copy(&self, mut merge: Merge, progress: &Progress, go_on: &dyn Fn() -> GoOn) -> Outcome {
        match copy(&mut merge, progress, go_on).and_then(|()| merge.sync()) {
            Ok(()) => Outcome::Copied(Box::new(merge)),
            Err(e) => {
                self.cancel(merge);
                Outcome::Stopped(e)
            }
        }
    }

    pub fn finish(
        &self,
        storage: &Storage,
        mut merge: Merge,
        children: &[LayerSpec],
        outlook: Option<&Outlook>,
    ) -> Outcome {
        let finished = match self {
            Self::Live(disk) => disk.finish_merge(storage, merge, children, outlook),
            Self::Aside => merge.finish(storage, children).map(|_| ()),
        };
        finished.map_or_else(Outcome::Halfway, |()| Outcome::Merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_grows_with_the_rounds_and_ends() {
        assert_eq!(small(0), SMALL);
        assert_eq!(small(PATIENCE - 1), SMALL);
        assert_eq!(small(PATIENCE), 2 * SMALL);
        assert_eq!(small(MOST_ROUNDS), LARGEST);
        assert_eq!(small(u32::MAX), LARGEST);
    }
}
