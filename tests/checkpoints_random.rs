//! Checkpoints under random operations, and under a kill at random moments. The seed is printed;
//! `PITON_TEST_SEED` replays it.

mod ckpt_common;
mod common;

use std::collections::BTreeMap;

use ckpt_common::kills::{kill_lab, kill_vm, killed_at, running, whole};
use ckpt_common::{Dice, Lab, MIB, Node, pattern, same, unchanged};
use common::Terminal;

const DISKS: [&str; 2] = ["a", "b"];
/// The journal writes to the end of each disk whenever it likes.
const JOURNAL: usize = 64 << 10;
const MOST: usize = 7;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    Paused,
    Stopped,
}

/// What a point in the VM's life holds, as far as the test has made it.
#[derive(Clone)]
struct Content {
    disks: [Vec<u8>; 2],
    /// The guest's checksum of its memory, if it was filled since the boot.
    memory: Option<String>,
}

struct Checkpoint {
    parent: Option<String>,
    content: Content,
    /// None: it was made while the VM was off.
    standard: bool,
    stored: Node,
}

/// The VM, and next to it what it must be like.
struct Model {
    lab: Lab,
    dice: Dice,
    console: Option<Terminal>,
    state: State,
    tree: BTreeMap<String, Checkpoint>,
    parent: Option<String>,
    now: Content,
    names: u64,
}

impl Model {
    fn new() -> Self {
        let lab = Lab::new();
        let disks = [std::fs::read(&lab.a).unwrap(), std::fs::read(&lab.b).unwrap()];
        lab.piton(&format!("run demo --detach --cpus 2 --memory 64M {}", lab.disks())).ok();
        let mut model = Self {
            lab,
            dice: Dice::from_env("random operations"),
            console: None,
            state: State::Running,
            tree: BTreeMap::new(),
            parent: None,
            now: Content { disks, memory: None },
            names: 0,
        };
        model.attach();
        model.guest().ready();
        model
    }

    fn guest(&mut self) -> &mut Terminal {
        self.console.as_mut().expect("the VM runs")
    }

    fn attach(&mut self) {
        self.console = Some(self.lab.attach("demo"));
    }

    fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("c{}", self.names)
    }

    fn any(&mut self) -> Option<String> {
        let names: Vec<String> = self.tree.keys().cloned().collect();
        if names.is_empty() { None } else { Some(self.dice.pick(&names).clone()) }
    }

    fn step(&mut self) {
        match self.dice.below(16) {
            0..3 => self.create(),
            3..6 => self.apply(),
            6 => self.revert(),
            7..9 => self.delete(),
            9 => self.rename(),
            10 => self.restart(),
            11 => self.kill(),
            _ => self.write(),
        }
        if self.tree.len() > MOST {
            self.delete();
        }
    }

    fn run_on(&mut self) {
        match self.state {
            State::Running => {}
            State::Paused => {
                self.lab.piton("resume demo").ok();
            }
            State::Stopped => {
                self.lab.piton("start demo").ok();
                self.attach();
                self.guest().ready();
                self.now.memory = None;
            }
        }
        self.state = State::Running;
    }

    fn write(&mut self) {
        self.run_on();
        for _ in 0..=self.dice.below(3) {
            let n = self.dice.below(2);
            let seed = self.dice.below(1 << 32) + 1;
            let len = 512 * (1 + self.dice.below(128));
            let offset = 512 * self.dice.below((4 * MIB - JOURNAL as u64 - len) / 512);
            let at = offset as usize..(offset + len) as usize;
            let content = if self.dice.below(6) == 0 {
                self.guest().ok(&format!("blk {n} zero {offset} {len}"));
                vec![0; len as usize]
            } else {
                self.guest().ok(&format!("blk {n} write {offset} {len} {seed}"));
                pattern(seed, offset, len)
            };
            self.now.disks[n as usize][at].copy_from_slice(&content);
            self.guest().ok(&format!("blk {n} flush"));
        }
        if self.dice.coin() {
            let seed = self.dice.below(1 << 32) + 1;
            self.guest().ok(&format!("fill 2 {seed}"));
            self.now.memory = Some(self.guest().ok("sum"));
        }
        eprintln!("wrote");
    }

    fn create(&mut self) {
        let name = self.fresh_name();
        eprintln!("create {name} while {:?}", self.state);
        self.lab.create(&name);
        self.made(name);
    }

    /// Takes note of a checkpoint of Now.
    fn made(&mut self, name: String) {
        let stored = self.lab.node(&name);
        let mut content = self.now.clone();
        for (disk, content) in DISKS.iter().zip(&mut content.disks) {
            let rest = content.len() - JOURNAL;
            same(
                &format!("disk `{disk}` of the new `{name}`"),
                &content[..rest],
                &stored.disks[*disk][..rest],
            );
            content.copy_from_slice(&stored.disks[*disk]);
        }
        let standard = self.state != State::Stopped;
        assert_eq!(stored.sums[0].is_some(), standard);
        let node = Checkpoint { parent: self.parent.clone(), content, standard, stored };
        self.tree.insert(name.clone(), node);
        self.parent = Some(name);
    }

    fn apply(&mut self) {
        let Some(name) = self.any() else { return };
        let run = if self.dice.coin() { "--run" } else { "" };
        let save = self.dice.below(4) == 0;
        let saved = self.fresh_name();
        let how = if save { format!("--save-current={saved}") } else { "--discard-current".to_owned() };
        eprintln!("apply {name} {how} {run} while {:?}", self.state);
        self.lab.cp(&format!("apply demo@{name} {how} {run}")).ok();
        if save {
            self.made(saved);
        }
        self.landed(&name, !run.is_empty());
    }

    fn landed(&mut self, name: &str, run: bool) {
        let node = &self.tree[name];
        let standard = node.standard;
        self.now = node.content.clone();
        self.parent = Some(name.to_owned());
        if !standard {
            self.console = None;
            self.now.memory = None;
            if run {
                // It boots from its disks, in a process of its own.
                self.attach();
                self.state = State::Running;
            } else {
                self.lab.ended();
                self.state = State::Stopped;
            }
            return;
        }
        if self.state == State::Stopped {
            self.attach();
        }
        self.state = if run { State::Running } else { State::Paused };
    }

    fn revert(&mut self) {
        let Some(name) = self.parent.clone() else {
            self.lab.cp("revert demo --yes").fails(3, &["revert"]);
            return;
        };
        let run = self.dice.coin();
        eprintln!("revert to {name}, run: {run}, while {:?}", self.state);
        self.lab.cp(&format!("revert demo --yes {}", if run { "--run" } else { "" })).ok();
        self.landed(&name, run);
    }

    fn delete(&mut self) {
        let Some(name) = self.any() else { return };
        let subtree = self.dice.below(5) == 0;
        eprintln!("delete {name}, subtree: {subtree}, while {:?}", self.state);
        let option = if subtree { "--subtree" } else { "" };
        self.lab.cp(&format!("delete demo@{name} --yes {option}")).ok();
        let mut gone = vec![name.clone()];
        while let Some((more, _)) = self.tree.iter().find(|(name, node)| {
            let below = node.parent.as_ref().is_some_and(|parent| gone.contains(parent));
            subtree && below && !gone.contains(name)
        }) {
            gone.push(more.clone());
        }
        let heir = self.tree[&name].parent.clone();
        self.tree.retain(|name, _| !gone.contains(name));
        let parents = self.tree.values_mut().map(|node| &mut node.parent).chain([&mut self.parent]);
        for parent in parents {
            if parent.as_ref().is_some_and(|parent| gone.contains(parent)) {
                parent.clone_from(&heir);
            }
        }
    }

    fn rename(&mut self) {
        let Some(name) = self.any() else { return };
        let new = self.fresh_name();
        eprintln!("rename {name} to {new} while {:?}", self.state);
        self.lab.cp(&format!("rename demo@{name} {new}")).ok();
        let node = self.tree.remove(&name).unwrap();
        self.tree.insert(new.clone(), node);
        let parents = self.tree.values_mut().map(|node| &mut node.parent).chain([&mut self.parent]);
        for parent in parents.filter(|parent| parent.as_ref() == Some(&name)) {
            *parent = Some(new.clone());
        }
    }

    fn restart(&mut self) {
        eprintln!("restart while {:?}", self.state);
        if self.state != State::Stopped {
            self.lab.stop();
            self.off();
        }
        self.check();
        self.run_on();
    }

    fn off(&mut self) {
        self.console = None;
        self.state = State::Stopped;
    }

    fn kill(&mut self) {
        eprintln!("kill while {:?}", self.state);
        if self.state != State::Stopped {
            kill_vm(&self.lab);
            self.off();
        }
    }

    fn check(&mut self) {
        let name = |parent: &Option<String>| parent.clone().unwrap_or_else(|| "-".into());
        let mut parents: BTreeMap<_, _> =
            self.tree.iter().map(|(own, node)| (own.clone(), name(&node.parent))).collect();
        parents.insert("Now".into(), name(&self.parent));
        assert_eq!(self.lab.parents(), parents);
        for (name, node) in &self.tree {
            let found = self.lab.node(name);
            assert_eq!(node.stored.sums, found.sums, "memory and state of `{name}`");
            for disk in DISKS {
                same(&format!("disk `{disk}` of `{name}`"), &node.stored.disks[disk], &found.disks[disk]);
            }
        }
        self.lab.template_is_untouched();
        match self.state {
            State::Running => {
                let memory = self.now.memory.clone();
                let guest = self.guest();
                guest.journal();
                if let Some(sum) = memory {
                    assert_eq!(guest.ok("sum"), sum);
                }
            }
            State::Paused => {}
            State::Stopped => {
                for (disk, content) in DISKS.iter().zip(&self.now.disks) {
                    let rest = content.len() - JOURNAL;
                    same(&format!("disk `{disk}` of Now"), &content[..rest], &self.lab.now(disk)[..rest]);
                }
                self.lab.tidy();
            }
        }
    }
}

#[test]
fn random_operations_keep_every_checkpoint() {
    let mut model = Model::new();
    let steps: u32 = std::env::var("PITON_TEST_STEPS").map_or(50, |steps| steps.parse().unwrap());
    for step in 0..steps {
        eprint!("{step}: ");
        model.step();
        model.check();
    }
    // Each once more as a guest sees it.
    for name in model.tree.keys().cloned().collect::<Vec<_>>() {
        model.lab.apply(&name, "--run");
        model.landed(&name, true);
        model.check();
        model.run_on();
        model.check();
    }
    model.run_on();
    model.lab.stop();
    model.off();
    model.check();
    assert!(!model.lab.console_log("demo").contains("MISMATCH"));
    while !model.tree.is_empty() {
        model.delete();
        model.check();
    }
    assert!(model.lab.deltas("a").is_empty());
    assert_eq!(model.lab.deltas("b").len(), 1);
}

#[test]
fn killed_while_creating() {
    let (lab, mut dice) = kill_lab();
    let mut made = 0;
    let mut before = BTreeMap::new();
    for n in 0..10 {
        let mut console = running(&lab);
        console.ok("journal tick 1");
        console.ok(&format!("fill 8 {}", n + 1));
        console.ok("dirty 8 50");
        console.ok(&format!("blk 0 write {} 64K {}", n * 65536, n + 1));
        let done = killed_at(&lab, &format!("checkpoint create demo c{n}"), 50, &mut dice, true);
        let names = whole(&lab, &before, None);
        let there = names.contains(&format!("c{n}"));
        assert!(there || !done, "c{n} was said to be made");
        made += u32::from(there);
        if there {
            before.insert(format!("c{n}"), lab.node(&format!("c{n}")));
            assert_eq!(lab.parents()["Now"], format!("c{n}"));
        }
    }
    eprintln!("{made} of 10 were made");
    for name in before.keys() {
        lab.apply(name, "--run");
        let mut console = running(&lab);
        console.ok("dirty check");
        let seq = console.journal();
        console.journal_goes_on(seq + 1);
    }
    lab.stop();
    lab.tidy();
    unchanged(&before, &lab.nodes());
}

#[test]
fn killed_while_applying() {
    let (lab, mut dice) = kill_lab();
    let mut console = running(&lab);
    for n in 0..3 {
        console.ok(&format!("fill 8 {}", n + 1));
        console.ok(&format!("blk 0 write 0 64K {}", n + 1));
        console.ok(&format!("blk 1 write 0 64K {}", n + 1));
        lab.create(&format!("c{n}"));
    }
    let before = lab.nodes();
    for n in 0..10 {
        let mut console = running(&lab);
        let target = n % 3;
        console.ok("blk 0 write 0 64K 99");
        console.ok("blk 0 flush");
        let option = if dice.coin() { "--run" } else { "" };
        let line = format!("checkpoint apply demo@c{target} --discard-current {option}");
        let done = killed_at(&lab, &line, 60, &mut dice, true);
        whole(&lab, &before, None);
        let parent = lab.parents()["Now"].clone();
        let mut console = running(&lab);
        // The one or the other.
        let there = console.ask(&format!("blk 0 verify 0 64K {}", target + 1)).starts_with("ok");
        if there {
            assert_eq!(parent, format!("c{target}"));
            console.ok(&format!("blk 1 verify 0 64K {}", target + 1));
        } else {
            assert!(!done, "it was said to be at c{target}");
            console.ok("blk 0 verify 0 64K 99");
        }
    }
    lab.stop();
    lab.tidy();
    unchanged(&before, &lab.nodes());
    assert!(lab.names().len() == 3 && lab.deltas("a").len() <= 4, "{:?}", lab.deltas("a"));
}

#[test]
fn killed_while_deleting() {
    let (lab, mut dice) = kill_lab();
    for n in 0..12 {
        let mut console = running(&lab);
        let mut now = Vec::new();
        for m in 0..3 {
            let seed = n * 10 + m + 1;
            now.push((m * 128 * 1024, seed));
            console.ok(&format!("blk 0 write {} 128K {seed}", m * 128 * 1024));
            console.ok(&format!("blk 1 write {} 128K {seed}", m * 128 * 1024));
            lab.create(&format!("n{n}m{m}"));
        }
        console.ok("blk 0 flush");
        console.ok("blk 1 flush");
        let before = lab.nodes();
        let names = lab.names();
        let victim = dice.pick(&names).clone();
        let line = format!("checkpoint delete demo@{victim} --yes");
        let done = match n % 3 {
            // While it runs.
            0 => killed_at(&lab, &line, 12, &mut dice, true),
            // While it is off, which merges.
            1 => {
                lab.stop();
                killed_at(&lab, &line, 25, &mut dice, false)
            }
            // In the merge at the end of a run.
            _ => {
                lab.cp(&format!("delete demo@{victim} --yes")).ok();
                killed_at(&lab, "stop demo --force", 25, &mut dice, true);
                true
            }
        };
        let names = whole(&lab, &before, Some(&victim));
        assert!(!done || !names.contains(&victim), "{victim} was said to be deleted");
        let mut console = running(&lab);
        for (offset, seed) in now {
            console.ok(&format!("blk 0 verify {offset} 128K {seed}"));
            console.ok(&format!("blk 1 verify {offset} 128K {seed}"));
        }
    }
    lab.stop();
    lab.tidy();
    for name in lab.names() {
        lab.delete(&name);
    }
    lab.tidy();
    assert!(lab.deltas("a").is_empty());
    assert_eq!(lab.deltas("b").len(), 1);
}
