//! A counter that is kept in memory and on every writable disk, so that a
//! restore that pairs memory and disks of different instants is found out.
//!
//! Slot `seq % 16` of the last 64 KiB of a disk holds step `seq`. A step is
//! written and flushed on all disks before memory counts it, so at the start of
//! a tick the newest slot of every disk is exactly the one memory names.

use crate::cpu::tsc;
use crate::disk::{Disk, Error, Op};
use crate::hash;
use crate::memory::Dma;
use crate::say;
use crate::time::Every;

pub const AREA: u64 = 64 << 10;
const SLOT: usize = 4096;
const SLOTS: u64 = AREA / SLOT as u64;
const MAGIC: u64 = 0x4c4e_524a_4e54_4950;
/// A tick later than this was preceded by a pause, and one that came early by a
/// TSC that went back: everything is read back.
const GAP_US: u64 = 100_000;

struct Member {
    disk: usize,
    area: Dma,
}

pub struct Journal {
    members: [Option<Member>; crate::virtio::MAX_DISKS],
    pub on: bool,
    pub broken: bool,
    /// Steps that have gone through one after the other; those of them that the
    /// ring still holds must be there.
    run: u64,
    pub seq: u64,
    pub ticks: u64,
    boot: u64,
    set: u64,
    pub every: Every,
    quiet: Every,
    pub errors: u64,
}

#[derive(Clone, Copy)]
struct Step {
    seq: u64,
    boot: u64,
    set: u64,
}

/// A valid slot's content: magic, seq, boot, set, disk, filler, checksum.
fn decode(words: &[u64], disk: usize) -> Option<Step> {
    let (&check, body) = words.split_last()?;
    let step = Step { seq: body[1], boot: body[2], set: body[3] };
    (body[0] == MAGIC && body[4] == disk as u64 && check == hash::sum(body)).then_some(step)
}

fn encode(words: &mut [u64], disk: usize, step: Step) {
    let last = words.len() - 1;
    words[..5].copy_from_slice(&[MAGIC, step.seq, step.boot, step.set, disk as u64]);
    hash::fill(&mut words[5..last], step.boot, step.seq);
    words[last] = hash::sum(&words[..last]);
}

fn slot_at(seq: u64) -> usize {
    (seq % SLOTS) as usize * SLOT
}

impl Journal {
    pub fn new(dma: &mut Dma, disks: &[Option<Disk>]) -> Self {
        let mut members = [const { None }; crate::virtio::MAX_DISKS];
        for (index, disk) in disks.iter().enumerate() {
            if disk.as_ref().is_some_and(|d| !d.read_only && d.bytes() >= 2 * AREA)
                && dma.len() >= AREA as usize
            {
                members[index] = Some(Member { disk: index, area: dma.split(AREA as usize) });
            }
        }
        Self {
            members,
            on: false,
            broken: false,
            run: 0,
            seq: 0,
            ticks: 0,
            boot: hash::word(tsc(), 1),
            set: hash::word(tsc(), 2),
            every: Every::new(20_000),
            quiet: Every::new(1_000_000),
            errors: 0,
        }
    }

    pub fn disks(&self) -> usize {
        self.members.iter().flatten().count()
    }

    /// Whether the journal keeps the end of this disk to itself.
    pub fn owns(&self, disk: usize) -> bool {
        self.on && self.members.get(disk).is_some_and(Option::is_some)
    }

    /// Reads what the disks hold and goes on from there.
    pub fn start(&mut self, disks: &mut [Option<Disk>]) {
        if self.disks() == 0 {
            say!("evt no disk, journal off");
            return;
        }
        let mut newest: Option<Step> = None;
        let mut lowest = u64::MAX;
        for member in self.members.iter_mut().flatten() {
            // Without knowing what is there, any step could contradict it.
            if let Err(e) = member.read_all(disks) {
                say!("evt journal error disk={} {e}, journal off", member.disk);
                return;
            }
            let found = member.newest();
            say!("evt journal found disk={} seq={}", member.disk, found.map_or(0, |s| s.seq));
            let Some(step) = found else { continue };
            lowest = lowest.min(step.seq);
            if let Some(n) = newest
                && n.set != step.set
            {
                say!(
                    "evt journal MISMATCH disk={} memory={:016x} disk_seq={:016x} sets differ",
                    member.disk,
                    n.set,
                    step.set
                );
                self.broken = true;
            }
            if newest.is_none_or(|n| step.seq > n.seq) {
                newest = Some(step);
            }
        }
        if let Some(step) = newest {
            // A power cut may fall between the disks' writes of one step, not of two.
            if step.seq - lowest > 1 {
                say!("evt journal MISMATCH disk=all memory={} disk_seq={lowest}", step.seq);
                self.broken = true;
            }
            self.seq = step.seq;
            self.set = step.set;
        }
        self.run = 0;
        self.on = true;
        self.every.restart();
    }

    pub fn stop(&mut self) {
        self.on = false;
    }

    /// Does a step if it is due.
    pub fn poll(&mut self, disks: &mut [Option<Disk>]) {
        if self.on
            && !self.broken
            && let Some(took) = self.every.take()
        {
            let jumped = took > GAP_US || took < self.every.period_us;
            let full = jumped || self.ticks.is_multiple_of(SLOTS / 2);
            let done = if full { self.check(disks) } else { self.check_newest(disks) };
            if let Err((disk, e)) = done.and_then(|()| self.step(disks)) {
                self.errors += 1;
                if self.errors == 1 || self.quiet.take().is_some() {
                    say!("evt journal error disk={disk} seq={} {e}", self.seq);
                }
            }
        }
    }

    /// Reads all slots of all disks back; often enough that no slot is overwritten
    /// without having been looked at.
    pub fn check(&mut self, disks: &mut [Option<Disk>]) -> Result<(), (usize, Error)> {
        for member in self.members.iter_mut().flatten() {
            member.read_all(disks).map_err(|e| (member.disk, e))?;
            let found = member.newest();
            if self.run > 0 {
                compare(member.disk, self.seq, self.boot, found, &mut self.broken);
            }
            // A disk of another instant that was put in place between a tick's check
            // and its write has the newest step, but not those just before it.
            for seq in (self.seq + 1).saturating_sub(self.run.min(SLOTS))..self.seq {
                let held = decode(member.area.words(slot_at(seq), SLOT), member.disk);
                compare(member.disk, seq, self.boot, held, &mut self.broken);
            }
        }
        Ok(())
    }

    /// Reads back the newest slot, and the one after it, which must be older.
    fn check_newest(&mut self, disks: &mut [Option<Disk>]) -> Result<(), (usize, Error)> {
        if self.run == 0 {
            return Ok(());
        }
        let at = [slot_at(self.seq), slot_at(self.seq + 1)];
        let mut slots = [[0; 2]; crate::virtio::MAX_DISKS];
        for member in self.members.iter().flatten() {
            let Some(disk) = &mut disks[member.disk] else { continue };
            let base = disk.bytes() - AREA;
            for (slot, at) in slots[member.disk].iter_mut().zip(at) {
                *slot = disk
                    .submit(Op::Read, base + at as u64, member.area.part(at, SLOT))
                    .ok_or((member.disk, Error::Timeout))?;
            }
            disk.kick();
        }
        let mut outcome = Ok(());
        for member in self.members.iter_mut().flatten() {
            let Some(disk) = &mut disks[member.disk] else { continue };
            let mut found: Option<Step> = None;
            let mut whole = true;
            for (slot, at) in slots[member.disk].into_iter().zip(at) {
                if let Err(e) = disk.finish(slot) {
                    outcome = Err((member.disk, e));
                    whole = false;
                }
                let step = decode(member.area.words(at, SLOT), member.disk);
                found = [found, step].into_iter().flatten().max_by_key(|s| s.seq);
            }
            if whole {
                compare(member.disk, self.seq, self.boot, found, &mut self.broken);
            }
        }
        outcome
    }

    fn step(&mut self, disks: &mut [Option<Disk>]) -> Result<(), (usize, Error)> {
        if self.broken {
            return Ok(());
        }
        let step = Step { seq: self.seq + 1, boot: self.boot, set: self.set };
        let at = slot_at(step.seq);
        for op in [Op::Write, Op::Flush] {
            let mut slots = [None; crate::virtio::MAX_DISKS];
            for member in self.members.iter_mut().flatten() {
                let Some(disk) = &mut disks[member.disk] else { continue };
                if matches!(op, Op::Flush) && !disk.has_flush() {
                    continue;
                }
                if matches!(op, Op::Write) {
                    encode(member.area.words(at, SLOT), member.disk, step);
                }
                let place = disk.bytes() - AREA + at as u64;
                let slot = disk.submit(op, place, member.area.part(at, SLOT));
                slots[member.disk] = Some(slot.ok_or((member.disk, Error::Timeout))?);
                disk.kick();
            }
            let mut outcome = Ok(());
            for (index, slot) in slots.into_iter().enumerate() {
                if let (Some(slot), Some(disk)) = (slot, &mut disks[index])
                    && let Err(e) = disk.finish(slot)
                {
                    outcome = Err((index, e));
                }
            }
            if outcome.is_err() {
                // Some disks may hold this step and some not: what is on them is
                // taken as it is until a step has gone through whole.
                self.run = 0;
                return outcome;
            }
        }
        self.seq = step.seq;
        self.run += 1;
        self.ticks += 1;
        Ok(())
    }
}

fn compare(disk: usize, seq: u64, boot: u64, found: Option<Step>, broken: &mut bool) {
    // One contradiction is enough to be told.
    if !*broken && !found.is_some_and(|s| s.seq == seq && s.boot == boot) {
        let disk_seq = found.map_or(0, |s| s.seq);
        let other = if found.is_some_and(|s| s.boot != boot) { " boot differs" } else { "" };
        say!("evt journal MISMATCH disk={disk} memory={seq} disk_seq={disk_seq}{other}");
        *broken = true;
    }
}

impl Member {
    fn read_all(&mut self, disks: &mut [Option<Disk>]) -> Result<(), Error> {
        let Some(disk) = &mut disks[self.disk] else { return Ok(()) };
        disk.read(disk.bytes() - AREA, self.area.part(0, AREA as usize))
    }

    fn newest(&mut self) -> Option<Step> {
        let index = self.disk;
        let words = self.area.words(0, AREA as usize);
        words.chunks(SLOT / 8).filter_map(|w| decode(w, index)).max_by_key(|s| s.seq)
    }
}
