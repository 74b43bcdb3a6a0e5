//! Tries the states that a crash could have left of a recorded scenario.

use std::collections::BTreeSet;

use piton::storage::sim::{Image, Logged, Op, Point, Rng, Sim, points};

use crate::check::check;
use crate::lab::Lab;
use crate::model::Expect;

/// Failures of a scenario that are told in full.
const TOLD: usize = 3;
/// A recovered VM of so many has its layers merged, too.
const SETTLE: u64 = 8;
/// The recovery of so many states is itself interrupted.
const TWICE: u64 = 12;
/// Epochs from here on are those after a recovery.
const RECOVERED: u32 = 1 << 30;

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub name: String,
    /// Changes and syncs of the scenario.
    pub operations: usize,
    /// Moments at which the power went, and at how many all whole choices were tried.
    pub moments: usize,
    pub exhausted: usize,
    /// Different states that were recovered from: after one crash; after a crash in the recovery
    /// from it; after a kill, with and without a power cut during or after the recovery from that.
    pub once: usize,
    pub twice: usize,
    pub killed: usize,
    pub failures: usize,
    pub told: Vec<String>,
}

impl Report {
    pub fn states(&self) -> usize {
        self.once + self.twice + self.killed
    }
}

/// What a scenario leaves to be tried.
pub struct Recording {
    pub name: String,
    pub start: Image,
    pub log: Vec<Logged>,
    pub expects: Vec<Expect>,
}

/// The first failure among the states that one crash can leave.
pub fn first_failure(recording: &Recording, states: usize, seed: u64) -> Option<String> {
    let mut rng = Rng::new(seed);
    let points = points(&recording.start, &recording.log);
    let each = (states / points.len()).max(24);
    for point in &points {
        let expect = &recording.expects[point.epoch as usize];
        for choice in point.choices(each, &mut rng).0 {
            if let Err(e) = check(&Sim::mount(point.state(&choice)), expect, false) {
                return Some(e);
            }
        }
    }
    None
}

struct Explorer<'a> {
    recording: &'a Recording,
    rng: Rng,
    report: Report,
    tried: BTreeSet<(u64, u32)>,
}

/// About `states` of them, chosen by `seed`.
pub fn explore(recording: &Recording, states: usize, seed: u64) -> Report {
    let operations = recording.log.iter().filter(|l| !matches!(l.op, Op::Mark(_))).count();
    let report = Report { name: recording.name.clone(), operations, ..Report::default() };
    let mut explorer = Explorer { recording, rng: Rng::new(seed), report, tried: BTreeSet::new() };
    explorer.cuts(states / 2);
    explorer.kills(states / 4);
    explorer.report
}

impl Explorer<'_> {
    /// The power goes.
    fn cuts(&mut self, states: usize) {
        let points = points(&self.recording.start, &self.recording.log);
        self.report.moments = points.len();
        let each = (states / points.len()).max(4);
        for point in &points {
            let (choices, all) = point.choices(each, &mut self.rng);
            self.report.exhausted += usize::from(all);
            for choice in &choices {
                let image = point.state(choice);
                if !self.tried.insert((image.print(), point.epoch)) {
                    continue;
                }
                self.report.once += 1;
                let expect = &self.recording.expects[point.epoch as usize];
                let sim = Sim::mount(image);
                let settle = self.rng.below(SETTLE) == 0;
                let result = check(&sim, expect, settle);
                let recovered = result.as_ref().map_or(0, |seen| seen.recovered_at);
                self.judge(result.map(drop), expect, || at(self.recording, point, choice));
                if recovered > 0 && self.rng.below(TWICE) == 0 {
                    self.again(&sim, recovered, expect, || at(self.recording, point, choice));
                }
            }
        }
    }

    /// The power goes once more, while recovery is at work.
    fn again(&mut self, sim: &Sim, recovered: usize, expect: &Expect, first: impl Fn() -> String) {
        let (start, log) = (sim.start(), sim.log());
        let points = points(&start, &log[..recovered]);
        // Most recoveries are short; of a long one, moments all over it.
        for point in points.iter().step_by(points.len().div_ceil(6).max(1)) {
            for choice in point.choices(2, &mut self.rng).0 {
                self.report.twice += 1;
                let result = check(&Sim::mount(point.state(&choice)), expect, false);
                self.judge(result.map(drop), expect, || {
                    format!("{}  and in the recovery from that {}", first(), moment(&log, point, &choice))
                });
            }
        }
    }

    /// The process is killed, and the power goes during or after the recovery from that.
    fn kills(&mut self, states: usize) {
        let log = &self.recording.log;
        let changes: Vec<usize> = (0..log.len()).filter(|at| !matches!(log[*at].op, Op::Mark(_))).collect();
        // Each is worth about this many states.
        let most = (states / 24).max(2);
        let step = changes.len().div_ceil(most).max(1);
        let first = self.rng.below(step as u64) as usize;
        for at in changes.iter().skip(first).step_by(step) {
            let epoch = log[..*at].iter().rev().find_map(|l| match l.op {
                Op::Mark(epoch) => Some(epoch),
                _ => None,
            });
            let expect = &self.recording.expects[epoch.unwrap_or(0) as usize];
            let sim = Sim::resume(self.recording.start.clone(), &log[..*at]);
            let killed = || format!("killed before entry {at} of the log: {}\n", log[*at]);
            self.report.killed += 1;
            let seen = match check(&sim, expect, false) {
                Ok(seen) => seen,
                Err(e) => {
                    self.judge(Err(e), expect, killed);
                    continue;
                }
            };
            if seen.is_gone {
                continue;
            }
            let narrowed = expect.narrowed(&seen.checkpoints);
            let expect = &expect.brought_back();
            let seed = self.rng.draw();
            let lived = match live_on(&sim, narrowed, seed) {
                Ok(lived) => lived,
                Err(e) => {
                    let error = format!("the VM cannot go on after recovery: {e}");
                    self.judge(Err(error), expect, killed);
                    continue;
                }
            };
            let (start, log) = (sim.start(), sim.log());
            let points: Vec<Point> =
                points(&start, &log).into_iter().filter(|point| point.at > *at).collect();
            let first = self.rng.below(2) as usize;
            for point in points.iter().skip(first).step_by(points.len().div_ceil(12).max(1)) {
                let later = point.epoch.checked_sub(RECOVERED).map(|epoch| &lived[epoch as usize]);
                let expect = later.unwrap_or(expect);
                for choice in point.choices(2, &mut self.rng).0 {
                    self.report.killed += 1;
                    let result = check(&Sim::mount(point.state(&choice)), expect, false);
                    self.judge(result.map(drop), expect, || {
                        format!("{}  and after that {}", killed(), moment(&log, point, &choice))
                    });
                }
            }
        }
    }

    fn judge(&mut self, result: Result<(), String>, expect: &Expect, whence: impl FnOnce() -> String) {
        let Err(error) = result else { return };
        self.report.failures += 1;
        if self.report.told.len() < TOLD {
            let doing = &expect.doing;
            self.report.told.push(format!("{}, {doing}: {error}\n  {}", self.report.name, whence()));
        }
    }
}

/// What a VM does that was recovered after a kill.
fn live_on(sim: &Sim, expect: Expect, seed: u64) -> Result<Vec<Expect>, String> {
    let live = |lab: &mut Lab| {
        lab.scribble(2)?;
        lab.flush()?;
        lab.scribble(2)?;
        lab.create("after the kill")?;
        lab.scribble(2)
    };
    let mut lab = Lab::adopt(sim.clone(), expect, RECOVERED, seed).map_err(|e| e.to_string())?;
    live(&mut lab).map_err(|e| e.to_string())?;
    Ok(std::mem::take(&mut lab.expects))
}

fn at(recording: &Recording, point: &Point, choice: &[piton::storage::sim::crash::Keep]) -> String {
    moment(&recording.log, point, choice)
}

fn moment(log: &[Logged], point: &Point, choice: &[piton::storage::sim::crash::Keep]) -> String {
    let before = point.at.saturating_sub(6);
    let last: String = log[before..point.at].iter().map(|logged| format!("    {logged}\n")).collect();
    format!(
        "power cut after entry {} of the log, the last of which are\n{last}  and of what was not synced\n{}",
        point.at,
        point.describe(choice)
    )
}
