//! What a VM's process does by itself when its time has come.
//!
//! Time is counted by [`Moment`]s, which setting the host's clock does not change, and in which a
//! host that sleeps goes on. What a process waits with does not, so it looks again now and then.

use std::time::Duration;

use crate::moment::Moment;

/// Between two looks at the time.
const LOOK: Duration = Duration::from_secs(60);
/// Seconds before what was due and could not be done is tried again.
const AGAIN: u64 = 60;
/// A start is not held up by what has waited for long.
const CALM: u64 = 2;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Things in the trash have had their time.
    Trash,
    /// A checkpoint.
    Checkpoint,
}

/// What decides when there is something to do.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Seconds until the first thing in the trash has had its time.
    pub trash: Option<u64>,
    /// Seconds from one checkpoint to the next; 0: none are made.
    pub every: u64,
    /// When the last of these was made.
    pub made: Option<Moment>,
    /// The checkpoints cannot be read just now: neither of these is known.
    pub unreadable: bool,
}

/// When there is something to do next, and what.
pub struct Chores {
    started: Moment,
    look: Option<Look>,
    /// When the trash was last emptied in vain.
    in_vain: Option<Moment>,
    /// When a checkpoint was last tried, or a schedule was set.
    tried: Option<Moment>,
    /// The VM had a schedule when it was looked at last.
    was_scheduled: bool,
}

/// What was found.
struct Look {
    at: Moment,
    runs: bool,
    /// Seconds from then on. None: nothing.
    first: Option<(u64, Option<Chore>)>,
}

impl Chores {
    pub fn new(now: Moment) -> Self {
        Self { started: now, look: None, in_vain: None, tried: None, was_scheduled: true }
    }

    /// How long there is nothing to do; none: as long as nothing changes. `runs`: the guest does. What
    /// is due while it does not is made once it does.
    pub fn wait(&mut self, now: &Moment, runs: bool, facts: impl FnOnce() -> Facts) -> Option<Duration> {
        let look = self.look.take().filter(|look| look.runs == runs);
        let look =
            look.unwrap_or_else(|| Look { at: now.clone(), runs, first: self.first(now, runs, facts()) });
        let left = look.first.map(|(left, _)| Duration::from_secs(left.saturating_sub(now.since(&look.at))));
        self.look = Some(look);
        left.map(|left| left.min(LOOK))
    }

    fn first(&mut self, now: &Moment, runs: bool, facts: Facts) -> Option<(u64, Option<Chore>)> {
        let Facts { trash, every, made, unreadable } = facts;
        let calm = CALM.saturating_sub(now.since(&self.started));
        let pause = self.in_vain.as_ref().map_or(0, |past| AGAIN.saturating_sub(now.since(past)));
        let trash = trash.map(|left| (left.max(pause), Some(Chore::Trash)));
        if every > 0 && !self.was_scheduled {
            // From when it was set.
            self.tried = Some(now.clone());
        }
        self.was_scheduled = every > 0;
        // One that failed just now is not tried again at once.
        let past = [made.as_ref(), self.tried.as_ref()].into_iter().flatten();
        let since = past.map(|past| now.since(past)).min().unwrap_or(u64::MAX);
        let checkpoint = (every > 0 && runs).then(|| (every.saturating_sub(since), Some(Chore::Checkpoint)));
        let again = unreadable.then_some((AGAIN, None));
        let first = trash.into_iter().chain(checkpoint).chain(again).min_by_key(|(left, _)| *left);
        first.map(|(left, chore)| (left.max(calm), chore))
    }

    /// Something changed.
    pub fn look_again(&mut self) {
        self.look = None;
    }

    /// What is to be done now, once.
    pub fn due(&mut self, now: &Moment, runs: bool) -> Option<Chore> {
        let look = self.look.as_ref().filter(|look| look.runs == runs)?;
        let (left, chore) = look.first?;
        if now.since(&look.at) < left {
            return None;
        }
        self.look = None;
        if chore == Some(Chore::Checkpoint) {
            self.tried = Some(now.clone());
        }
        chore
    }

    /// What came of emptying the trash: whether all went whose time was over.
    pub fn emptied(&mut self, now: &Moment, all: bool) {
        self.in_vain = (!all).then(|| now.clone());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `seconds` after the host started.
    fn moment(seconds: u64) -> Moment {
        Moment { at: chrono::DateTime::UNIX_EPOCH, boot: Some("a".into()), uptime: 1000 + seconds }
    }

    /// The trash of a VM, as a process empties it: ends of what is in it, on a clock that can be set.
    struct Trash {
        chores: Chores,
        ends: Vec<u64>,
        /// Cannot be deleted until then.
        stuck: u64,
    }

    impl Trash {
        /// All that the process does up to `until`, which begins at `now`; what it did when.
        fn run(&mut self, mut now: u64, until: u64) -> Vec<(u64, usize)> {
            let mut did = Vec::new();
            loop {
                if self.chores.due(&moment(now), true) == Some(Chore::Trash) {
                    let before = self.ends.len();
                    let stuck = now < self.stuck;
                    self.ends.retain(|end| *end > now || stuck);
                    self.chores.emptied(&moment(now), !stuck);
                    did.push((now, before - self.ends.len()));
                }
                let trash = self.ends.iter().map(|end| end.saturating_sub(now)).min();
                let facts = Facts { trash, ..Facts::default() };
                match self.chores.wait(&moment(now), true, || facts) {
                    Some(left) if now + left.as_secs() <= until => now += left.as_secs(),
                    _ => return did,
                }
            }
        }
    }

    #[test]
    fn each_thing_in_the_trash_goes_when_its_time_is_over() {
        let mut trash = Trash { chores: Chores::new(moment(0)), ends: vec![0, 3, 4, 200], stuck: 0 };
        // The one does not hold up the next.
        assert_eq!(trash.run(0, 1000), [(2, 1), (3, 1), (4, 1), (200, 1)]);
        // What cannot go is tried again, neither at once nor never.
        let mut trash = Trash { chores: Chores::new(moment(0)), ends: vec![10, 11], stuck: 100 };
        assert_eq!(trash.run(0, 1000), [(10, 0), (70, 0), (130, 2)]);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_looked_at_again() {
        let mut chores = Chores::new(moment(0));
        let unknown = Facts { unreadable: true, ..Facts::default() };
        assert_eq!(chores.wait(&moment(5), true, || unknown.clone()), Some(Duration::from_secs(AGAIN)));
        assert_eq!(chores.due(&moment(5 + AGAIN), true), None);
        let facts = Facts { trash: Some(0), ..Facts::default() };
        chores.wait(&moment(5 + AGAIN), true, || facts);
        assert_eq!(chores.due(&moment(5 + AGAIN), true), Some(Chore::Trash));
    }

    #[derive(Clone, Copy, Debug)]
    enum Guest {
        Runs,
        IsPaused,
        /// With the host.
        Sleeps,
    }

    proptest! {
        /// However long a guest is paused and the host sleeps, and whatever the clock is set to: what was
        /// missed is made once, and soon, and never two within one interval.
        #[test]
        fn what_was_missed_is_made_once(
            every in 1..5000u64,
            steps in prop::collection::vec(
                (
                    1..20_000u64,
                    prop_oneof![Just(Guest::Runs), Just(Guest::IsPaused), Just(Guest::Sleeps)],
                    -4_000_000_000..4_000_000_000i64,
                ),
                1..40,
            ),
        ) {
            let mut chores = Chores::new(moment(0));
            let (mut now, mut made) = (0u64, vec![0u64]);
            for (long, guest, clock) in steps {
                let end = now + long;
                let at = chrono::DateTime::from_timestamp(clock, 0).unwrap();
                let set = |seconds| Moment { at, ..moment(seconds) };
                let runs = matches!(guest, Guest::Runs);
                if !matches!(guest, Guest::Sleeps) {
                    loop {
                        if chores.due(&set(now), runs).is_some() {
                            prop_assert!(runs);
                            made.push(now);
                        }
                        let last = Moment { at: chrono::DateTime::UNIX_EPOCH, ..moment(made[made.len() - 1]) };
                        let facts = Facts { every, made: Some(last), ..Facts::default() };
                        match chores.wait(&set(now), runs, || facts) {
                            Some(left) if now + left.as_secs() <= end => now += left.as_secs(),
                            _ => break,
                        }
                    }
                }
                now = end;
                if runs && long > LOOK.as_secs() {
                    prop_assert!(now - made[made.len() - 1] <= every + LOOK.as_secs());
                }
            }
            prop_assert!(made.windows(2).all(|two| two[1] - two[0] >= every), "{:?}", made);
        }
    }

    #[test]
    fn one_that_fails_is_tried_an_interval_later() {
        let mut chores = Chores::new(moment(0));
        let facts = || Facts { every: 100, made: Some(moment(0)), ..Facts::default() };
        let mut tried = Vec::new();
        for now in 0..350 {
            if chores.due(&moment(now), true).is_some() {
                tried.push(now);
            }
            chores.wait(&moment(now), true, facts);
        }
        assert_eq!(tried, [100, 200, 300]);
        // Also where nobody knows when the last one was made, so that it is said what is wrong.
        let mut chores = Chores::new(moment(0));
        let facts = || Facts { every: 100, unreadable: true, ..Facts::default() };
        let mut tried = Vec::new();
        for now in 0..250 {
            if chores.due(&moment(now), true).is_some() {
                tried.push(now);
            }
            chores.wait(&moment(now), true, facts);
        }
        assert_eq!(tried, [2, 102, 202]);
    }
}
