//! What the VM goes through while the power may go.

use piton::checkpoint::store::{Began, Verified};
use piton::id::Id;

use crate::explore::Recording;
use crate::lab::{DISKS, Lab, Result};
use crate::model::Memory;
use crate::{removed, trash, upkeep};

pub struct Scenario {
    pub name: &'static str,
    pub run: fn(&mut Lab) -> Result<()>,
}

impl Scenario {
    pub fn record(&self, seed: u64) -> Recording {
        let mut lab = Lab::new(seed);
        (self.run)(&mut lab).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (start, log) = (lab.sim.start(), lab.sim.log());
        Recording { name: self.name.into(), start, log, expects: std::mem::take(&mut lab.expects) }
    }
}

pub fn memory(seed: u64) -> Memory {
    let pages = (0..6).map(|page| ((seed * 7 + page * 331) % 2048 * 4096, (seed * 16 + page + 1) as u8));
    Memory { pages: pages.collect(), state: format!(r#"{{"of": {seed}, "pad": "{}"}}"#, "x".repeat(600)) }
}

/// Root r, below it a with b and c below that, then d below r; Now is below c.
pub struct Family {
    pub r: Id,
    pub a: Id,
    pub b: Id,
    pub c: Id,
    pub d: Id,
}

pub fn family(lab: &mut Lab) -> Result<Family> {
    lab.scribble(4)?;
    let r = lab.create("r")?;
    lab.scribble(4)?;
    let d = lab.create("d")?;
    lab.apply(r)?;
    lab.scribble(4)?;
    let a = lab.create("a")?;
    lab.scribble(4)?;
    let b = lab.standard("b", memory(2))?;
    lab.apply(a)?;
    lab.scribble(4)?;
    let c = lab.create("c")?;
    lab.scribble(4)?;
    lab.begin();
    Ok(Family { r, a, b, c, d })
}

/// Deletes some of the family, then lets the layers merge.
fn delete(lab: &mut Lab, pick: fn(&Family) -> Vec<Id>, subtree: bool) -> Result<()> {
    let family = family(lab)?;
    for id in pick(&family) {
        lab.delete(id, subtree)?;
        lab.scribble(2)?;
    }
    lab.settle()?;
    lab.scribble(2)?;
    lab.flush()
}

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "a base gets another place",
        run: |lab| {
            family(lab)?;
            lab.flush()?;
            lab.relocate("data", "/ext/data")?;
            lab.scribble(4)?;
            lab.create("later")?;
            lab.flush()
        },
    },
    Scenario {
        name: "guest writes and flushes",
        run: |lab| {
            for _ in 0..5 {
                lab.scribble(4)?;
                lab.flush()?;
            }
            lab.create("a")?;
            for _ in 0..5 {
                lab.scribble(4)?;
                lab.flush()?;
            }
            Ok(())
        },
    },
    Scenario {
        name: "create, disks only",
        run: |lab| {
            lab.scribble(3)?;
            lab.create("first")?;
            lab.scribble(3)?;
            lab.create("second")?;
            lab.scribble(2)
        },
    },
    Scenario {
        name: "create with memory",
        run: |lab| {
            lab.scribble(3)?;
            lab.standard("first", memory(1))?;
            lab.scribble(3)?;
            lab.standard("second", memory(2))?;
            lab.scribble(2)
        },
    },
    Scenario {
        name: "apply while off",
        run: |lab| {
            lab.scribble(3)?;
            let a = lab.create("a")?;
            lab.scribble(3)?;
            let b = lab.create("b")?;
            lab.scribble(2)?;
            lab.apply_off(a)?;
            // Going there again is staying there.
            lab.call_untouched()?;
            lab.apply_off(a)?;
            assert!(!lab.definition.now.untouched);
            lab.scribble(3)?;
            lab.apply_off(b)?;
            lab.scribble(2)?;
            lab.flush()
        },
    },
    Scenario {
        name: "apply and revert",
        run: |lab| {
            lab.scribble(3)?;
            let a = lab.create("a")?;
            lab.scribble(3)?;
            let b = lab.create("b")?;
            lab.scribble(3)?;
            lab.begin();
            lab.apply(a)?;
            lab.scribble(3)?;
            lab.flush()?;
            // Revert is an apply of Now's parent.
            lab.apply(a)?;
            lab.scribble(1)?;
            lab.apply(b)
        },
    },
    Scenario {
        name: "apply, saving the current state",
        run: |lab| {
            lab.scribble(3)?;
            let a = lab.create("a")?;
            lab.scribble(3)?;
            lab.begin();
            lab.create("saved")?;
            lab.apply(a)?;
            lab.scribble(2)
        },
    },
    Scenario { name: "delete a leaf", run: |lab| delete(lab, |f| vec![f.b], false) },
    Scenario { name: "delete in the middle", run: |lab| delete(lab, |f| vec![f.a, f.b], false) },
    Scenario { name: "delete the root", run: |lab| delete(lab, |f| vec![f.r], false) },
    Scenario { name: "delete Now's parent", run: |lab| delete(lab, |f| vec![f.c], false) },
    Scenario { name: "delete one with children", run: |lab| delete(lab, |f| vec![f.d, f.a], false) },
    Scenario { name: "delete a subtree", run: |lab| delete(lab, |f| vec![f.a], true) },
    Scenario { name: "delete everything", run: |lab| delete(lab, |f| vec![f.r], true) },
    Scenario {
        name: "delete below memory deltas",
        run: |lab| {
            let first = lab.standard("first", memory(1))?;
            lab.scribble(2)?;
            let second = lab.standard("second", memory(2))?;
            lab.scribble(2)?;
            lab.standard("third", memory(3))?;
            lab.begin();
            lab.delete(first, false)?;
            lab.settle()?;
            lab.delete(second, false)?;
            lab.settle()
        },
    },
    Scenario {
        name: "a copy of memory for clones",
        run: |lab| {
            let first = lab.standard("first", memory(1))?;
            lab.scribble(2)?;
            let second = lab.standard("second", memory(2))?;
            lab.scribble(2)?;
            let third = lab.standard("third", memory(3))?;
            lab.begin();
            lab.flat(third, true)?;
            lab.flat(second, true)?;
            lab.flat(third, false)?;
            // The image of the second is full afterwards.
            lab.delete(first, false)?;
            lab.settle()?;
            lab.flat(third, true)?;
            lab.delete(third, false)?;
            lab.settle()
        },
    },
    Scenario {
        name: "rename and note",
        run: |lab| {
            let f = family(lab)?;
            lab.change(f.a, Some("renamed"), None)?;
            lab.change(f.b, None, Some("a note"))?;
            lab.change(f.a, Some("again"), Some("another note"))
        },
    },
    Scenario {
        name: "checkpoint-dir",
        run: |lab| {
            lab.checkpoint_dir("/ext")?;
            lab.scribble(2)?;
            let a = lab.standard("a", memory(3))?;
            lab.scribble(2)?;
            lab.create("b")?;
            lab.delete(a, false)?;
            lab.settle()
        },
    },
    Scenario {
        name: "disks grow",
        run: |lab| {
            lab.scribble(4)?;
            // The image itself, nothing being based on it.
            lab.resize("root", 50 * 8 - 1)?;
            lab.write("root", 48 * 8 - 3, 9)?;
            lab.resize("data", 6 * 8)?;
            lab.write("data", 5 * 8 - 2, 4)?;
            let a = lab.create("a")?;
            lab.scribble(3)?;
            lab.resize("root", 60 * 8)?;
            lab.write("root", 49 * 8 + 3, 20)?;
            lab.scribble(2)?;
            let b = lab.create("b")?;
            lab.resize("root", 66 * 8 + 5)?;
            lab.resize("data", 40 * 8)?;
            lab.write("root", 66 * 8, 5)?;
            lab.apply(a)?;
            lab.scribble(2)?;
            lab.apply(b)?;
            lab.write("root", 59 * 8, 4)?;
            // Layers of different sizes become one, at last in the image.
            lab.delete(a, false)?;
            lab.settle()?;
            lab.resize("root", 70 * 8)?;
            lab.delete(b, false)?;
            lab.settle()?;
            lab.write("root", 69 * 8, 4)
        },
    },
    Scenario {
        name: "disks come and go",
        run: |lab| {
            lab.scribble(3)?;
            let a = lab.create("a")?;
            lab.plug("more", true)?;
            lab.write("more", 20, 30)?;
            let b = lab.create("b")?;
            lab.plug("more", false)?;
            lab.scribble(2)?;
            lab.apply(b)?;
            lab.write("more", 3, 30)?;
            lab.apply(a)?;
            lab.delete(b, false)?;
            lab.settle()
        },
    },
    Scenario {
        name: "events beside it all",
        run: |lab| {
            for _ in 0..4 {
                lab.record()?;
                lab.scribble(1)?;
            }
            lab.flush()?;
            lab.create("a")?;
            // The file is renamed in between.
            for _ in 0..4 {
                lab.record()?;
            }
            lab.folder.sync_events()?;
            lab.create("b")?;
            lab.record()
        },
    },
    Scenario { name: "deleted into the trash, and back", run: trash::deleted },
    Scenario { name: "a discarded state, and back", run: trash::discarded },
    Scenario { name: "a VM removed, and back", run: removed::and_back },
    Scenario { name: "a VM removed for good", run: |lab| removed::for_good(lab, false) },
    Scenario { name: "a VM removed at once", run: |lab| removed::for_good(lab, true) },
    Scenario { name: "a VM removed with checkpoints elsewhere", run: removed::elsewhere },
    Scenario { name: "verified", run: verified },
    Scenario { name: "prune", run: upkeep::pruned },
    Scenario { name: "a schedule with rules", run: upkeep::scheduled },
    Scenario { name: "a random life", run: random },
];

/// What came of trying checkpoints, twice of one, changes nothing else.
fn verified(lab: &mut Lab) -> Result<()> {
    let family = family(lab)?;
    for (id, passed) in [(family.a, true), (family.b, true), (family.b, false)] {
        let verified = Verified {
            when: "2026-11-27T12:00:00Z".parse().expect("a time"),
            passed,
            began: Began::Booted,
            until: "it ran for 10 s".into(),
            took_ms: 10_000,
            why: None,
            console: Some("console\n".repeat(1000)),
        };
        lab.step(
            "verified".into(),
            |lab| Ok(lab.catalog().store.save_verified(id, &verified)?),
            |_, _, _, _| {},
        )?;
        assert_eq!(lab.catalog().store.verified(id), Some(verified));
    }
    lab.delete(family.b, false)?;
    lab.settle()
}

fn random(lab: &mut Lab) -> Result<()> {
    let mut names = 0;
    for _ in 0..28 {
        let ids: Vec<Id> = lab.expect().must.keys().copied().collect();
        let offline: Vec<Id> =
            lab.expect().must.iter().filter(|(_, node)| node.memory.is_none()).map(|(id, _)| *id).collect();
        let choice = lab.rng.below(14);
        let pick = |lab: &mut Lab, of: &[Id]| of[lab.rng.below(of.len() as u64) as usize];
        names += 1;
        match choice {
            0..4 => lab.scribble(3)?,
            4 => lab.flush()?,
            5 | 6 => drop(lab.create(&format!("cp{names}"))?),
            7 => drop(lab.standard(&format!("cp{names}"), memory(names))?),
            8 | 9 if !offline.is_empty() => {
                let id = pick(lab, &offline);
                lab.apply(id)?;
            }
            10 | 11 if !ids.is_empty() => {
                let id = pick(lab, &ids);
                lab.delete(id, choice == 11 && names % 3 == 0)?;
            }
            12 if !ids.is_empty() => {
                let id = pick(lab, &ids);
                lab.change(id, Some(&format!("new{names}")), None)?;
            }
            13 => lab.settle()?,
            _ => lab.write(DISKS[0].0, 0, 9)?,
        }
    }
    Ok(())
}
