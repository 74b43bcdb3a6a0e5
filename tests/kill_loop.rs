//! kill -9 at random moments of random operations, again and again on one VM whose guest keeps a
//! journal. `PITON_KILLS` says how often (scripts/kill-loop), `PITON_TEST_SEED` replays. With
//! `PITON_POWER` the power goes instead (scripts/power-cuts).

mod ckpt_common;
mod common;

use std::collections::BTreeMap;

use ckpt_common::cuts::{self, Told};
use ckpt_common::kills::{kill_lab, killed_at, running};
use ckpt_common::{Dice, Lab, Node, same};
use common::Terminal;

const OPERATIONS: [&str; 9] =
    ["create", "create-stop", "create-off", "apply", "revert", "delete", "delete-off", "rename", "restart"];
/// More than so many checkpoints, and some are deleted; fewer where each takes seconds to look at.
fn most() -> usize {
    if cuts::are_on() { 4 } else { 6 }
}

/// Where the guest writes what tells states apart: one region on each disk.
const REGION: &str = "64K 64K";

/// The tree as names and parents, with what the guest had flushed at each point.
#[derive(Clone, PartialEq, Debug)]
struct Book {
    parents: BTreeMap<String, String>,
    seeds: BTreeMap<String, u64>,
}

impl Book {
    fn names(&self) -> Vec<String> {
        self.parents.keys().filter(|name| *name != "Now").cloned().collect()
    }

    fn insert(&mut self, name: &str) {
        let parent = std::mem::replace(self.parents.get_mut("Now").unwrap(), name.to_owned());
        self.parents.insert(name.to_owned(), parent);
        self.seeds.insert(name.to_owned(), self.seeds["Now"]);
    }

    fn go(&mut self, name: &str) {
        self.parents.insert("Now".into(), name.to_owned());
        self.seeds.insert("Now".into(), self.seeds[name]);
    }

    fn remove(&mut self, name: &str) {
        let heir = self.parents.remove(name).unwrap();
        self.seeds.remove(name);
        self.rewire(name, &heir);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let (parent, seed) = (self.parents.remove(from).unwrap(), self.seeds.remove(from).unwrap());
        self.parents.insert(to.to_owned(), parent);
        self.seeds.insert(to.to_owned(), seed);
        self.rewire(from, to);
    }

    fn rewire(&mut self, from: &str, to: &str) {
        self.parents.values_mut().filter(|parent| *parent == from).for_each(|parent| to.clone_into(parent));
    }
}

/// What became of one kind of operation.
#[derive(Default)]
struct Row {
    kills: u32,
    said_done: u32,
    found_done: u32,
}

struct Loop {
    lab: Lab,
    dice: Dice,
    book: Book,
    nodes: BTreeMap<String, Node>,
    seed: u64,
    /// The guest's checksum of its memory, by seed.
    sums: BTreeMap<u64, String>,
    table: BTreeMap<&'static str, Row>,
}

impl Loop {
    /// The guest makes its state different from every other, and flushes that.
    fn write(&mut self) -> Terminal {
        let mut console = running(&self.lab);
        // In the emulated host the guest would leave little of the CPU to the commands.
        console.ok(if cuts::are_on() { "journal tick 40" } else { "journal tick 1" });
        self.seed += 1;
        for disk in 0..2 {
            console.ok(&format!("blk {disk} write {REGION} {}", self.seed));
            console.ok(&format!("blk {disk} flush"));
        }
        console.ok(&format!("fill 2 {}", self.seed));
        self.sums.insert(self.seed, console.ok("sum"));
        self.book.seeds.insert("Now".into(), self.seed);
        console
    }

    fn turn(&mut self) {
        let mut console = Some(self.write());
        let mut kind = *self.dice.pick(&OPERATIONS);
        let names = self.book.names();
        if names.len() > most() {
            kind = if self.dice.coin() { "delete" } else { "delete-off" };
        } else if names.is_empty() {
            kind = "create";
        }
        if kind.ends_with("-off") {
            console = None;
            self.lab.stop();
        }
        let fresh = format!("c{}", self.seed);
        let any = if names.is_empty() { String::new() } else { self.dice.pick(&names).clone() };
        let parent = self.book.parents["Now"].clone();
        if kind == "revert" && parent == "-" {
            kind = "restart";
        }
        let run = if self.dice.coin() { "--run" } else { "" };
        let mut after = self.book.clone();
        let line = match kind {
            "create" | "create-off" => format!("checkpoint create demo {fresh}"),
            "create-stop" => format!("checkpoint create demo {fresh} --mode stop"),
            "apply" => format!("checkpoint apply demo@{any} --discard-current {run}"),
            "revert" => format!("checkpoint revert demo --yes {run}"),
            "delete" | "delete-off" => format!("checkpoint delete demo@{any} --yes"),
            "rename" => format!("checkpoint rename demo@{any} {fresh}"),
            _ => "stop demo --force".to_owned(),
        };
        match kind {
            "create" | "create-off" | "create-stop" => after.insert(&fresh),
            "apply" => after.go(&any),
            "revert" => after.go(&parent),
            "delete" | "delete-off" => after.remove(&any),
            "rename" => after.rename(&any, &fresh),
            _ => {}
        }
        // Some die before they begin, some in the middle, some when they are done.
        let within = *self.dice.pick(&[20, 100, 300, 1000]);
        eprintln!("{line}, killed within {within} ms");
        let told = if cuts::are_on() {
            // In the emulated host everything takes longer.
            let mut told = cuts::cut_at(&self.lab, &line, within * 6, &mut self.dice, console);
            // After going back the guest may have told of steps that are not to be there any more.
            told.step = told.step.filter(|_| kind != "apply" && kind != "revert");
            told
        } else {
            drop(console);
            let done = killed_at(&self.lab, &line, within, &mut self.dice, !kind.ends_with("-off"));
            Told { done, step: None }
        };
        self.judge(kind, told, after);
    }

    fn judge(&mut self, kind: &'static str, Told { done, step }: Told, after: Book) {
        if self.lab.state() != "stopped" {
            // The command was over before its process was to be killed.
            self.lab.stop();
        }
        self.lab.ended();
        // Half of the time the start itself mends what there is to mend.
        if self.dice.coin() {
            self.lab.piton("doctor demo --repair").ok();
            self.lab.tidy();
        }
        let mut console = running(&self.lab);
        if let Some(step) = step {
            let found = cuts::step_found(&console);
            assert!(found >= step, "the guest had flushed step {step} and finds {found}");
        }
        console.journal();
        let parents = self.lab.parents();
        // A delete gives children and Now their new parent one by one, before the old one goes.
        let midway = kind.starts_with("delete")
            && parents.keys().eq(self.book.parents.keys())
            && parents.iter().all(|(name, parent)| {
                *parent == self.book.parents[name] || after.parents.get(name) == Some(parent)
            });
        if midway {
            self.book.parents.clone_from(&parents);
        }
        let found = if parents == after.parents { &after } else { &self.book };
        assert_eq!(parents, found.parents, "neither before nor after");
        // Where the trees are the same, the disks tell.
        let mut verify = |seed: u64| {
            (0..2).all(|disk| console.ask(&format!("blk {disk} verify {REGION} {seed}")).starts_with("ok"))
        };
        let book = match (verify(after.seeds["Now"]), verify(self.book.seeds["Now"])) {
            (true, _) if parents == after.parents => after.clone(),
            (_, true) if parents == self.book.parents => self.book.clone(),
            _ => panic!("what the guest had flushed is not there"),
        };
        assert!(!done || book == after, "it was said to be done");
        let row = self.table.entry(kind).or_default();
        row.kills += 1;
        row.said_done += u32::from(done);
        let is_after = book == after;
        row.found_done += u32::from(is_after);
        self.book = book;

        let nodes = self.lab.nodes();
        for (name, node) in &nodes {
            let Some(old) = self.nodes.get(name) else { continue };
            // The sum of memory is of its image, which changes when images merge; the guest tells
            // at the end whether it holds the same.
            assert_eq!(
                (old.sums[0].is_some(), old.sums[1]),
                (node.sums[0].is_some(), node.sums[1]),
                "`{name}`"
            );
            for (disk, content) in &node.disks {
                same(&format!("disk `{disk}` of `{name}`"), &old.disks[disk], content);
            }
        }
        self.nodes = nodes;
        assert!(!self.lab.console_log("demo").contains("MISMATCH"));
        self.lab.template_is_untouched();
        // scripts/power-cuts counts these.
        eprintln!(
            "held: {kind} said={} found={} step={}",
            u8::from(done),
            u8::from(is_after),
            u8::from(step.is_some())
        );
    }
}

#[test]
fn nothing_is_lost_however_often_it_is_killed() {
    let kills: u32 = std::env::var("PITON_KILLS").map_or(12, |kills| kills.parse().expect("a number"));
    let (lab, dice) = kill_lab();
    let book = Book {
        parents: BTreeMap::from([("Now".to_owned(), "-".to_owned())]),
        seeds: BTreeMap::from([("Now".to_owned(), 0)]),
    };
    let mut all = Loop {
        lab,
        dice,
        book,
        nodes: BTreeMap::new(),
        seed: 0,
        sums: BTreeMap::new(),
        table: BTreeMap::new(),
    };
    // Something to work on.
    for name in ["first", "second", "third"] {
        all.write();
        all.lab.create(name);
        all.book.insert(name);
    }
    all.nodes = all.lab.nodes();
    for turn in 0..kills {
        eprint!("{turn}: ");
        all.turn();
    }
    // Each checkpoint that holds memory goes on as a guest.
    for name in all.book.names() {
        if all.nodes[&name].sums[0].is_some() {
            all.lab.apply(&name, "--run");
            let mut console = running(&all.lab);
            let seed = all.book.seeds[&name];
            console.ok(&format!("blk 0 verify {REGION} {seed}"));
            assert_eq!(console.ok("sum"), all.sums[&seed], "memory of `{name}`");
            console.journal();
        }
    }
    all.lab.stop();
    all.lab.tidy();
    println!("{:<12} {:>6} {:>10} {:>11}", "operation", "kills", "said done", "found done");
    for (kind, Row { kills, said_done, found_done }) in &all.table {
        println!("{kind:<12} {kills:>6} {said_done:>10} {found_done:>11}");
    }
    println!("{kills} kills, 0 violations");
}
