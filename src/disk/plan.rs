//! Which way two layers become one.

use std::ops::Range;

use super::delta_format::BLOCK;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The upper layer down into the lower one; the lower file stays.
    Commit,
    /// The lower layer up into the upper one; the upper file stays.
    Pull,
}

/// Which way, and which blocks have to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub direction: Direction,
    pub runs: Vec<Range<u64>>,
}

impl Plan {
    /// Of the runs of blocks that each layer holds, sorted and apart.
    pub fn new(lower: &[Range<u64>], upper: &[Range<u64>], direction: Option<Direction>) -> Self {
        let up = subtract(lower, upper);
        let direction = direction.unwrap_or(if count(upper) < count(&up) {
            Direction::Commit
        } else {
            // Of two equals the one that relinks one layer only.
            Direction::Pull
        });
        let runs = match direction {
            Direction::Commit => upper.to_vec(),
            Direction::Pull => up,
        };
        Self { direction, runs }
    }

    pub fn bytes(&self) -> u64 {
        count(&self.runs) * BLOCK
    }
}

fn count(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// What of `from` is not in `without`.
fn subtract(from: &[Range<u64>], without: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut holes = without.iter().peekable();
    for run in from {
        let mut at = run.start;
        while at < run.end {
            while holes.next_if(|hole| hole.end <= at).is_some() {}
            match holes.peek().filter(|hole| hole.start < run.end) {
                None => {
                    rest.push(at..run.end);
                    break;
                }
                Some(hole) => {
                    if at < hole.start {
                        rest.push(at..hole.start);
                    }
                    at = hole.end;
                }
            }
        }
    }
    rest
}
