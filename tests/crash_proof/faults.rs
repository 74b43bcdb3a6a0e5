//! A full disk and a failing one, at each change in turn: the operation is done or as if it had
//! not been asked for, the guest goes on, and nothing is left over.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use piton::storage::sim::{Fault, Image, Op, Sim, crash};

use crate::check::{HOME, check};
use crate::lab::{Lab, Result};
use crate::model::{Expect, NodeModel};
use crate::scenarios::{Family, family, memory};

const SEED: u64 = 5;

struct Case {
    name: &'static str,
    run: fn(&mut Lab, &Family) -> Result<()>,
}

const CASES: &[Case] = &[
    Case { name: "create", run: |lab, _| lab.create("new").map(drop) },
    Case { name: "create with memory", run: |lab, _| lab.standard("new", memory(9)).map(drop) },
    Case { name: "apply", run: |lab, f| lab.apply(f.a) },
    Case { name: "delete a leaf", run: |lab, f| lab.delete(f.b, false) },
    Case { name: "delete one with children", run: |lab, f| lab.delete(f.a, false) },
    Case { name: "delete the root", run: |lab, f| lab.delete(f.r, false) },
    Case { name: "delete a subtree", run: |lab, f| lab.delete(f.r, true) },
    Case {
        name: "delete below a memory delta",
        run: |lab, _| {
            let named = |node: &NodeModel| node.names[0] == "lower";
            let lower = lab.expect().must.iter().find(|(_, node)| named(node)).map(|(id, _)| *id);
            lab.delete(lower.unwrap(), false)
        },
    },
    Case { name: "rename", run: |lab, f| lab.change(f.d, Some("other"), None) },
    Case { name: "merge", run: |lab, _| lab.settle() },
    Case { name: "guest", run: |lab, _| lab.scribble(3).and_then(|()| lab.flush()) },
];

/// Where each case begins. The merge has something to merge.
fn prepared(case: &Case) -> (Image, Expect, Family) {
    let mut lab = Lab::new(SEED);
    let family = family(&mut lab).unwrap();
    if case.name == "merge" {
        for id in [family.d, family.b, family.a] {
            lab.delete(id, false).unwrap();
        }
        lab.begin();
    }
    if case.name == "delete below a memory delta" {
        lab.standard("lower", memory(11)).unwrap();
        lab.scribble(2).unwrap();
        lab.standard("upper", memory(12)).unwrap();
        lab.begin();
    }
    (lab.sim.live(), lab.expect().clone(), family)
}

/// Runs the case with this fault; `None` if it ended before the fault came.
fn tried(
    case: &Case,
    (image, expect, family): &(Image, Expect, Family),
    fault: Fault,
    at: u64,
) -> std::result::Result<Option<bool>, String> {
    let sim = Sim::mount(image.clone());
    let mut lab = Lab::adopt(sim.clone(), expect.clone(), 0, SEED).map_err(|e| e.to_string())?;
    sim.plan(Some(fault));
    let run = std::panic::catch_unwind(AssertUnwindSafe(|| (case.run)(&mut lab, family)));
    let done = run.map_err(|_| "piton panicked".to_owned())?;
    if sim.changes() <= at {
        return done.map(|()| None).map_err(|e| format!("without a fault: {e}"));
    }
    sim.plan(None);
    lab.catch_up();
    // The images of a checkpoint that stays are nobody else's.
    let linked =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("memory."));
    let tree = sim.live().tree(Path::new(HOME)).map_err(|e| e.to_string())?;
    if let (Err(e), Fault::Error { lasting: false, .. }, Some((path, _))) =
        (&done, fault, tree.iter().find(|(path, _)| linked(path)))
    {
        return Err(format!("{} is left of what failed: {e}", path.display()));
    }
    // The guest goes on, unless a flush failed: that is final for the open file, and said.
    let sync_failed = sim.log().iter().any(|logged| matches!(logged.op, Op::SyncFailed { .. }));
    if !lab.disks.live.is_empty() {
        let went_on = lab.scribble(2).and_then(|()| lab.flush());
        if let Err(e) = went_on
            && !sync_failed
        {
            return Err(format!("the guest cannot go on: {e}"));
        }
    }
    // What failed is tried again, now that the disk is well: it has to be as good as if it had never
    // failed, whatever is in memory only.
    let lost = piton::history::lost::list(&lab.folder).map_err(|e| e.to_string())?;
    if case.name == "merge" && lost.is_empty() {
        lab.settle().map_err(|e| format!("once more: {e}"))?;
    }
    let now = lab.expect().clone();
    drop(lab);
    let killed = Sim::resume(sim.start(), &sim.log());
    check(&killed, &now, true).map_err(|e| format!("after it: {e}"))?;
    let end = crash::end(&sim.start(), &sim.log());
    let choice = end.random_choice(&mut piton::storage::sim::Rng::new(at));
    let cut = Sim::mount(end.state(&choice));
    check(&cut, &now, false)
        .map_err(|e| format!("after it and a power cut: {e}\n{}", end.describe(&choice)))?;
    Ok(Some(done.is_ok()))
}

#[test]
fn after_an_error_of_the_disk_all_is_as_before_or_done() {
    let all = std::env::var_os("PITON_PROOF_STATES").is_some();
    println!(
        "| operation | changes | faults | done all the same | failures |\n| --- | ---: | ---: | ---: | ---: |"
    );
    let mut failures = Vec::new();
    for case in CASES {
        let start = prepared(case);
        let (mut changes, mut faults, mut done, failed) = (0, 0, 0, failures.len());
        'case: for at in 0.. {
            let kinds = [(libc::ENOSPC, false), (libc::EIO, false), (libc::ENOSPC, true), (libc::EIO, true)];
            for (index, (errno, lasting)) in kinds.into_iter().enumerate() {
                // A short run takes one kind at each change, another at the next.
                if !all && index as u64 != at % 4 {
                    continue;
                }
                let what = if errno == libc::EIO { "EIO" } else { "ENOSPC" };
                let how = if lasting { "from then on" } else { "once" };
                match tried(case, &start, Fault::Error { at, errno, lasting }, at) {
                    Ok(None) => break 'case,
                    Ok(Some(ok)) => done += u32::from(ok),
                    Err(e) => failures.push(format!("{}: {what} at change {at}, {how}: {e}", case.name)),
                }
                faults += 1;
            }
            changes = at + 1;
        }
        println!("| {} | {changes} | {faults} | {done} | {} |", case.name, failures.len() - failed);
        assert!(changes > 2, "{}: {changes}", case.name);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
