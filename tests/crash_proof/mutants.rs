//! The proof can fail: each storage here forgets one kind of sync, or changes the order of two
//! steps, and must be caught.
//!
//! What such a storage would do is done to the record of one that is sound: reads do not depend on
//! syncs, so it is the same record that the worse storage would have made.

use piton::storage::sim::{Logged, Op};

use crate::explore::{Recording, first_failure};
use crate::scenarios::ALL;

const SEED: u64 = 7;

type Log = Vec<Logged>;

struct Mutant {
    name: &'static str,
    scenario: &'static str,
    spoil: fn(Log) -> Log,
}

fn name(logged: &Logged) -> String {
    logged.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Forgets fdatasync of files whose name `of` finds.
fn no_sync(log: Log, of: impl Fn(&str) -> bool) -> Log {
    let spared = |logged: &Logged| !matches!(logged.op, Op::SyncFile { .. }) || !of(&name(logged));
    log.into_iter().filter(spared).collect()
}

/// Forgets fsync of folders whose path ends so.
fn no_folder_sync(log: Log, end: &str) -> Log {
    let spared = |logged: &Logged| {
        !matches!(logged.op, Op::SyncDir { .. }) || !logged.path.to_string_lossy().ends_with(end)
    };
    log.into_iter().filter(spared).collect()
}

/// Forgets the fdatasync of a layer that comes just before (`first`) or just after its bitmap pages
/// are written.
fn no_flush_sync(log: Log, first: bool) -> Log {
    let is_page = |logged: &Logged| matches!(logged.op, Op::Write { offset: 8192..0x10_0000, .. });
    let kept = |at: usize| {
        let Op::SyncFile { ino } = log[at].op else { return true };
        let of_it =
            |l: &&Logged| matches!(l.op, Op::Write { ino: i, .. } | Op::SyncFile { ino: i } if i == ino);
        let next = if first { log[at + 1..].iter().find(of_it) } else { log[..at].iter().rev().find(of_it) };
        !(name(&log[at]).ends_with(".delta") && next.is_some_and(is_page))
    };
    (0..log.len()).filter(|at| kept(*at)).map(|at| log[at].clone()).collect()
}

/// Does what `what` finds before what `over` finds, if that comes before it in one step.
fn sooner(log: Log, what: impl Fn(&Logged) -> bool, over: impl Fn(&Logged, &Logged) -> bool) -> Log {
    let mut done: Log = Vec::new();
    for logged in log {
        let mut at = done.len();
        if what(&logged) {
            let step = done.iter().rposition(|l| matches!(l.op, Op::Mark(_))).map_or(0, |mark| mark + 1);
            at = (step..at).rev().find(|at| over(&done[*at], &logged)).unwrap_or(at);
        }
        done.insert(at, logged);
    }
    done
}

fn renames(logged: &Logged, start: &str) -> bool {
    matches!(logged.op, Op::Rename { .. }) && name(logged).starts_with(start)
}

fn syncs_the_same(before: &Logged, rename: &Logged) -> bool {
    matches!((&before.op, &rename.op), (Op::SyncFile { ino: a }, Op::Rename { ino: b, .. }) if a == b)
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "layers are not synced",
        scenario: "guest writes and flushes",
        spoil: |log| no_sync(log, |name| name.ends_with(".delta")),
    },
    Mutant {
        name: "the base is not synced",
        scenario: "create, disks only",
        spoil: |log| no_sync(log, |name| name == "root"),
    },
    Mutant {
        name: "bitmap pages before the data that they stand for",
        scenario: "guest writes and flushes",
        spoil: |log| no_flush_sync(log, true),
    },
    Mutant {
        name: "bitmap pages are not synced",
        scenario: "guest writes and flushes",
        spoil: |log| no_flush_sync(log, false),
    },
    Mutant {
        name: "vm.json is not synced before it is put in place",
        scenario: "apply and revert",
        spoil: |log| no_sync(log, |name| name.starts_with(".vm.json")),
    },
    Mutant {
        name: "a new manifest is not synced",
        scenario: "create, disks only",
        spoil: |log| no_sync(log, |name| name == "manifest.json"),
    },
    Mutant {
        name: "a changed manifest is not synced",
        scenario: "rename and note",
        spoil: |log| no_sync(log, |name| name.starts_with(".manifest.json")),
    },
    Mutant {
        name: "memory is not synced",
        scenario: "create with memory",
        spoil: |log| no_sync(log, |name| name == "memory"),
    },
    Mutant {
        name: "a copy of memory is not synced",
        scenario: "a copy of memory for clones",
        spoil: |log| no_sync(log, |name| name == "memory-flat"),
    },
    Mutant {
        name: "a copy of memory goes before its manifest stops to name it",
        scenario: "a copy of memory for clones",
        spoil: |log| {
            sooner(
                log,
                |l| matches!(l.op, Op::Remove { .. }) && name(l) == "memory-flat",
                |before, _| renames(before, ".manifest.json"),
            )
        },
    },
    Mutant {
        name: "state is not synced",
        scenario: "create with memory",
        spoil: |log| no_sync(log, |name| name == "state"),
    },
    Mutant {
        name: "checksums are not synced",
        scenario: "create, disks only",
        spoil: |log| no_sync(log, |name| name.contains(".sums.")),
    },
    Mutant {
        name: "the VM's folder is not synced",
        scenario: "apply and revert",
        spoil: |log| no_folder_sync(log, "/demo"),
    },
    Mutant {
        name: "the folder of layers is not synced",
        scenario: "create, disks only",
        spoil: |log| no_folder_sync(log, "/disks"),
    },
    Mutant {
        name: "the folder of checkpoints is not synced",
        scenario: "create, disks only",
        spoil: |log| no_folder_sync(log, "/checkpoints"),
    },
    Mutant {
        name: "the folder of a new checkpoint is not synced",
        scenario: "create, disks only",
        spoil: |log| {
            let is_staging =
                |l: &Logged| matches!(l.op, Op::SyncDir { .. }) && name(l).starts_with(".staging-");
            log.into_iter().filter(|l| !is_staging(l)).collect()
        },
    },
    Mutant {
        name: "vm.json is put in place before its data",
        scenario: "apply and revert",
        spoil: |log| sooner(log, |l| renames(l, ".vm.json"), syncs_the_same),
    },
    Mutant {
        name: "a manifest is put in place before its data",
        scenario: "rename and note",
        spoil: |log| sooner(log, |l| renames(l, ".manifest.json"), syncs_the_same),
    },
    Mutant {
        name: "a checkpoint is published before its files",
        scenario: "create with memory",
        spoil: |log| {
            sooner(
                log,
                |l| renames(l, ".staging-"),
                |before, _| matches!(before.op, Op::SyncFile { .. }) && name(before) == "manifest.json",
            )
        },
    },
    Mutant {
        name: "a layer goes before vm.json knows of it",
        scenario: "delete everything",
        spoil: |log| {
            sooner(
                log,
                |l| matches!(l.op, Op::Remove { .. }) && name(l).ends_with(".delta"),
                |before, _| renames(before, ".vm.json"),
            )
        },
    },
    Mutant {
        name: "the home is not synced",
        scenario: "a VM removed, and back",
        spoil: |log| no_folder_sync(log, "/home"),
    },
    Mutant {
        name: "what says that a VM was removed goes after it is back",
        scenario: "a VM removed, and back",
        spoil: |log| {
            let mut log = log;
            // Its folder is not synced before.
            let last = log.iter().rposition(|l| renames(l, ".removed-")).expect("it came back");
            let synced = log[..last].iter().rposition(|l| matches!(l.op, Op::SyncDir { .. }));
            log.remove(synced.expect("a sync"));
            log
        },
    },
    Mutant {
        name: "the folder of checkpoints elsewhere is not synced",
        scenario: "a VM removed with checkpoints elsewhere",
        spoil: |log| no_folder_sync(log, "/ext"),
    },
    Mutant {
        name: "checkpoints elsewhere go before the definition",
        scenario: "a VM removed with checkpoints elsewhere",
        spoil: |log| {
            let gone = |l: &Logged| {
                matches!(l.op, Op::Remove { .. }) && l.path.starts_with("/ext") && name(l) == "manifest.json"
            };
            sooner(log, gone, |before, _| matches!(before.op, Op::Remove { .. }) && name(before) == "vm.json")
        },
    },
    Mutant {
        name: "the definition of a VM that goes is not gone before the rest",
        scenario: "a VM removed for good",
        spoil: |log| {
            let is_sync = |l: &Logged| matches!(l.op, Op::SyncDir { .. }) && name(l).starts_with(".removed-");
            let last = log.iter().rposition(is_sync).expect("a sync");
            log.into_iter().enumerate().filter(|(at, _)| *at != last).map(|(_, l)| l).collect()
        },
    },
];

#[test]
fn every_mutant_is_caught() {
    let mut missed = Vec::new();
    for mutant in MUTANTS {
        let scenario = ALL.iter().find(|scenario| scenario.name == mutant.scenario).unwrap();
        let sound = scenario.record(SEED);
        let log = (mutant.spoil)(sound.log.clone());
        let same = sound.log.len() == log.len()
            && sound.log.iter().zip(&log).all(|(a, b)| a.to_string() == b.to_string());
        assert!(!same, "{} changes nothing", mutant.name);
        match first_failure(&Recording { log, ..sound }, 1000, SEED) {
            Some(error) => println!("{}: {error}", mutant.name),
            None => missed.push(mutant.name),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
