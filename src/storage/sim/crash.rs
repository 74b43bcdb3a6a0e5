//! From a record of changes to the states that a crash could have left.
//!
//! # What is left out, and why that is sound
//! A crash between two changes leaves a state that a crash just before the next sync can leave as
//! well, with the later changes lost. So it is enough to look just before each sync, where what
//! is expected changes ([`Op::Mark`]), and at the end; and not even there if nothing came since
//! the last look. States that read the same under the same expectation are for the caller to try
//! once ([`Image::print`]).

use super::image::{Content, Image, SECTOR, mix};
use super::op::{Ino, Logged, Op};

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }
}

/// What became of one change that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Lost,
    Whole,
    /// Each part of `granule` bytes is there or not, by `seed`.
    Torn {
        granule: u64,
        seed: u64,
    },
}

#[derive(Clone, Debug)]
struct Pending {
    logged: Logged,
    /// Synced, but something that must come before it is not: always there.
    forced: bool,
    /// An fdatasync failed on it: no later one is of any help.
    doomed: bool,
    /// The length of the file after it, if it changes that.
    len: Option<u64>,
}

/// What of a change can be there by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data { tears: bool },
    Len,
    Name,
}

/// A moment at which the power may go.
#[derive(Clone, Debug)]
pub struct Point {
    /// How many entries of the log came before.
    pub at: usize,
    /// What the last mark said.
    pub epoch: u32,
    durable: Image,
    pending: Vec<Pending>,
    /// Index into `pending`, and which part of it.
    units: Vec<(usize, Part)>,
}

/// The moment after all of `log`.
pub fn end(start: &Image, log: &[Logged]) -> Point {
    let mut cursor = Cursor { durable: start.clone(), live: start.clone(), pending: Vec::new() };
    let mut epoch = 0;
    for logged in log {
        match logged.op {
            Op::Mark(next) => epoch = next,
            _ => cursor.take(logged),
        }
    }
    cursor.point(log.len(), epoch)
}

/// What is read of a file whose cached contents were dropped by the last entry of `log`.
pub(super) fn reread(start: &Image, log: &[Logged], ino: Ino) -> Option<Content> {
    end(start, log).durable.file(ino).cloned()
}

/// All moments worth looking at.
pub fn points(start: &Image, log: &[Logged]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut cursor = Cursor { durable: start.clone(), live: start.clone(), pending: Vec::new() };
    let (mut epoch, mut news) = (0, true);
    for (at, logged) in log.iter().enumerate() {
        if matches!(logged.op, Op::SyncFile { .. } | Op::SyncDir { .. } | Op::SyncFailed { .. } | Op::Mark(_))
            && std::mem::take(&mut news)
        {
            points.push(cursor.point(at, epoch));
        }
        match logged.op {
            Op::Mark(next) => {
                news |= next != epoch;
                epoch = next;
            }
            _ => {
                let before = cursor.pending.len();
                cursor.take(logged);
                news |= cursor.pending.len() > before;
            }
        }
    }
    if news || points.is_empty() {
        points.push(cursor.point(log.len(), epoch));
    }
    points
}

/// The file or folder whose sync makes a change durable.
fn object(op: &Op) -> Ino {
    match op {
        Op::Make { dir, .. } | Op::Link { dir, .. } | Op::Remove { dir, .. } | Op::Rename { dir, .. } => *dir,
        Op::Write { ino, .. }
        | Op::SetLen { ino, .. }
        | Op::Punch { ino, .. }
        | Op::SyncFile { ino }
        | Op::SyncDir { ino }
        | Op::SyncFailed { ino }
        | Op::Reread { ino, .. } => *ino,
        Op::Mark(_) => Ino::MAX,
    }
}

struct Cursor {
    durable: Image,
    live: Image,
    pending: Vec<Pending>,
}

impl Cursor {
    fn take(&mut self, logged: &Logged) {
        match logged.op {
            Op::Mark(_) => {}
            Op::SyncFile { ino } | Op::SyncDir { ino } => self.sync(ino),
            Op::SyncFailed { ino } => {
                let hit = self.pending.iter_mut().filter(|p| !p.forced && object(&p.logged.op) == ino);
                hit.for_each(|p| p.doomed = true);
            }
            Op::Reread { ino, seed } => self.reread(ino, seed),
            _ => self.push(logged),
        }
    }

    fn reread(&mut self, ino: Ino, seed: u64) {
        let (point, mut rng) = (self.point(0, 0), Rng::new(seed));
        let keep = |(index, _): &(usize, Part)| {
            let lost = point.pending.get(*index).is_some_and(|pending| pending.doomed) && rng.below(2) == 1;
            if lost { Keep::Lost } else { Keep::Whole }
        };
        let choice: Vec<Keep> = point.units.iter().map(keep).collect();
        let Some(content) = point.state(&choice).file(ino).cloned() else { return };
        for image in [&mut self.durable, &mut self.live] {
            if let Some(file) = image.file_mut(ino) {
                *file = content.clone();
            }
        }
        self.pending.retain(|pending| object(&pending.logged.op) != ino);
    }

    fn push(&mut self, logged: &Logged) {
        if let Op::Make { ino, folder, .. } = logged.op {
            self.durable.allocate(ino, folder);
        }
        let before = self.live.file(object(&logged.op)).map(|file| file.size());
        self.live.apply(&logged.op, 0);
        let after = self.live.file(object(&logged.op)).map(|file| file.size());
        let len = if before == after { None } else { after };
        self.pending.push(Pending { logged: logged.clone(), forced: false, doomed: false, len });
    }

    fn sync(&mut self, ino: Ino) {
        // Behind one that is doomed nothing may overtake it.
        let held = self.pending.iter().any(|p| p.doomed && object(&p.logged.op) == ino);
        let (durable, mut rest) = (&mut self.durable, Vec::new());
        for mut pending in std::mem::take(&mut self.pending) {
            if object(&pending.logged.op) != ino || pending.doomed {
                rest.push(pending);
            } else if held {
                pending.forced = true;
                rest.push(pending);
            } else if let Op::Make { .. } = pending.logged.op {
                durable.apply_names(&pending.logged.op);
            } else {
                durable.apply(&pending.logged.op, 0);
            }
        }
        self.pending = rest;
    }

    fn point(&self, at: usize, epoch: u32) -> Point {
        let mut units = Vec::new();
        for (index, pending) in self.pending.iter().enumerate().filter(|(_, p)| !p.forced) {
            match &pending.logged.op {
                Op::Write { offset, data, .. } => {
                    let tears = offset / SECTOR != (offset + data.len() as u64).saturating_sub(1) / SECTOR;
                    units.push((index, Part::Data { tears }));
                }
                Op::Punch { len, .. } => units.push((index, Part::Data { tears: *len > SECTOR })),
                Op::SetLen { .. } => {}
                _ => units.push((index, Part::Name)),
            }
            if pending.len.is_some() {
                units.push((index, Part::Len));
            }
        }
        Point { at, epoch, durable: self.durable.clone(), pending: self.pending.clone(), units }
    }
}

impl Point {
    /// How many changes may be there or not.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Up to about `most` ways of what may be there, and whether these are all but for torn ones.
    pub fn choices(&self, most: usize, rng: &mut Rng) -> (Vec<Vec<Keep>>, bool) {
        let count = self.units.len();
        let keep = |kept: bool| if kept { Keep::Whole } else { Keep::Lost };
        let mut choices = Vec::new();
        let whole = count < 16 && 1usize << count <= most;
        if whole {
            for set in 0..1u64 << count {
                choices.push((0..count).map(|unit| keep(set >> unit & 1 == 1)).collect());
            }
        } else {
            choices.push(vec![Keep::Lost; count]);
            choices.push(vec![Keep::Whole; count]);
            // Each by itself, and all but it; of many, some.
            for _ in 0..count.min(most / 4) {
                let one = rng.below(count as u64) as usize;
                let kept = rng.below(2) == 1;
                choices.push((0..count).map(|unit| keep((unit == one) == kept)).collect());
            }
        }
        let tears = self.units.iter().any(|(_, part)| *part == Part::Data { tears: true });
        let torn = if tears && whole { most / 2 } else { 0 };
        let wanted = if whole { choices.len() + torn } else { most };
        while choices.len() < wanted {
            choices.push(self.random_choice(rng));
        }
        (choices, whole)
    }

    pub fn random_choice(&self, rng: &mut Rng) -> Vec<Keep> {
        // How much is lost differs from crash to crash.
        let (chance, torn) = (rng.below(9), rng.below(2) == 1);
        let one = |(_, part): &(usize, Part)| {
            if torn && *part == (Part::Data { tears: true }) && rng.below(2) == 1 {
                let granule = if rng.below(2) == 1 { SECTOR } else { 8 * SECTOR };
                return Keep::Torn { granule, seed: rng.draw() };
            }
            if rng.below(8) < chance { Keep::Whole } else { Keep::Lost }
        };
        self.units.iter().map(one).collect()
    }

    /// The disk with that much of what was not synced.
    pub fn state(&self, choice: &[Keep]) -> Image {
        let mut image = self.durable.clone();
        let mut lens = std::collections::BTreeMap::new();
        let mut units = self.units.iter().zip(choice).peekable();
        for (index, pending) in self.pending.iter().enumerate() {
            let (mut body, mut len) =
                if pending.forced { (Keep::Whole, pending.len) } else { (Keep::Lost, None) };
            while let Some(((_, part), keep)) = units.next_if(|((unit, _), _)| *unit == index) {
                match part {
                    Part::Len if *keep != Keep::Lost => len = pending.len,
                    Part::Len => {}
                    Part::Data { .. } | Part::Name => body = *keep,
                }
            }
            let keep = |at: u64| match body {
                Keep::Lost => false,
                Keep::Whole => true,
                Keep::Torn { granule, seed } => mix(seed ^ mix(at / granule)) & 1 == 1,
            };
            let ino = object(&pending.logged.op);
            match &pending.logged.op {
                Op::Write { offset, data, .. } => {
                    if let Some(file) = image.file_mut(ino) {
                        lens.entry(ino).or_insert(file.size());
                        file.write(*offset, data, &keep);
                    }
                }
                Op::Punch { offset, len, .. } => {
                    if let Some(file) = image.file_mut(ino) {
                        file.punch(*offset..offset + len, &keep);
                    }
                }
                Op::SetLen { .. } => {}
                op if body == Keep::Whole => image.apply_names(op),
                _ => {}
            }
            if let Some(len) = len
                && let Some(file) = image.file_mut(ino)
            {
                let known = lens.insert(ino, len).unwrap_or(file.size());
                if len < known {
                    file.set_len(len);
                }
            }
        }
        for (ino, len) in lens {
            if let Some(file) = image.file_mut(ino) {
                file.set_len(len);
            }
        }
        image
    }

    /// What a choice means, a line for each change.
    pub fn describe(&self, choice: &[Keep]) -> String {
        let lines = self.units.iter().zip(choice).map(|((index, part), keep)| {
            let part = if *part == Part::Len { " (its length)" } else { "" };
            let keep = match keep {
                Keep::Lost => "lost".into(),
                Keep::Whole => "kept".into(),
                Keep::Torn { granule, .. } => format!("torn at {granule}"),
            };
            format!("    {keep:<13} {}{part}\n", self.pending[*index].logged)
        });
        lines.collect()
    }
}
