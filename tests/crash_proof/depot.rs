//! A depot in a folder, and a VM that is pulled out of it, when the power goes or the process dies.

use std::path::{Path, PathBuf};

use piton::depot::location::{Place, Title};
use piton::depot::open::Depot;
use piton::depot::pace::Pace;
use piton::depot::{pull, push, verify};
use piton::folder::Home;
use piton::history::whole::fit::Remap;
use piton::history::whole::source::Source;
use piton::progress::Progress;
use piton::storage::sim::{Op, Rng, Sim, points};

use crate::lab::Lab;
use crate::model::stamps;
use crate::scenarios::memory;

const DEPOT: &str = "/depot";
const OTHER: &str = "/other";

/// Epochs of the log: from when on something has to be there.
const PUSHED_ONE: u32 = 1;
const PUSHED_TWO: u32 = 2;
const PULLED: u32 = 3;

fn title(checkpoint: &str) -> Title {
    format!("demo@{checkpoint}").parse().unwrap()
}

fn depot(sim: &Sim) -> piton::depot::Result<Depot> {
    let place = Place::Folder(DEPOT.into());
    let store = place.open(&sim.storage(), Pace::default(), &Progress::default())?;
    Depot::open_or_create(store, None).map(|(depot, _)| depot)
}

fn push(lab: &Lab, checkpoint: &str) {
    let source = Source::checkpoint(&lab.folder, checkpoint, "the proof").unwrap();
    let storage = lab.sim.storage();
    push::push(&depot(&lab.sim).unwrap(), &storage, &source, &title(checkpoint), true, &Progress::default())
        .unwrap();
}

/// The VM `web` in the other home; whether it was made.
fn pull(sim: &Sim) -> Result<bool, String> {
    let (storage, home) = (sim.storage(), Home::at(PathBuf::from(OTHER), sim.storage()));
    // The state of the proof's VM is no machine's.
    let remap = Remap { without_memory: true, ..Remap::default() };
    let title = title("two");
    let wanted =
        pull::Wanted { title: &title, vm: Some("web".parse().unwrap()), new_id: false, remap: &remap };
    let depot = depot(sim).map_err(|e| e.to_string())?;
    let pulled = pull::pull(depot, &home, &storage, &wanted, true, &Progress::default());
    Ok(pulled.map_err(|e| e.to_string())?.is_ok())
}

/// What the disks of `web` hold; none if it is not there.
fn web(sim: &Sim) -> Result<Option<Vec<Vec<u32>>>, String> {
    let folder = Home::at(PathBuf::from(OTHER), sim.storage()).folder(&"web".parse().unwrap());
    if folder.must_exist().is_err() {
        return Ok(None);
    }
    let source = Source::checkpoint(&folder, "two", "the proof").map_err(|e| format!("`web`: {e}"))?;
    source.disks.values().map(|disk| stamps(disk)).collect::<Result<_, _>>().map(Some)
}

/// What must hold in a state, if `epoch` is what had been said by then.
fn check(sim: &Sim, epoch: u32, disks: &[Vec<u32>]) -> Result<(), String> {
    let found = depot(sim).map_err(|e| e.to_string())?;
    let there = found.manifests().map_err(|e| e.to_string())?.len();
    let least = epoch.min(PUSHED_TWO) as usize;
    if there < least || there > 2 {
        return Err(format!("{there} checkpoints are in the depot, {least} were said to be"));
    }
    let verified = verify::verify(found, None, false, &Progress::default()).map_err(|e| e.to_string())?;
    // A pack or index that was cut off is in the way of nothing, as no manifest needs it.
    if let Some((whose, damage)) = verified.damage.iter().find(|(whose, _)| !whose.is_empty()) {
        return Err(format!("{whose}: {damage:?}"));
    }
    let web_before = web(sim)?;
    if epoch >= PULLED && web_before.is_none() {
        return Err("the VM that was pulled is gone".into());
    }
    if there == 2 && web_before.is_none() && !pull(sim)? {
        return Err("it cannot be pulled once more".into());
    }
    match web(sim)? {
        Some(found) if found != disks => Err("the VM that was pulled reads otherwise".into()),
        None if there == 2 => Err("what was pulled is not there".into()),
        _ => Ok(()),
    }
}

#[test]
fn a_push_to_a_folder_and_a_pull_from_it_are_whole_or_not_at_all() {
    let seed = crate::number("PITON_PROOF_SEED", 1);
    let states = crate::number("PITON_PROOF_STATES", 150);
    let mut lab = Lab::new(seed);
    lab.scribble(4).unwrap();
    lab.standard("one", memory(1)).unwrap();
    lab.scribble(4).unwrap();
    lab.standard("two", memory(2)).unwrap();
    for dir in [DEPOT, OTHER] {
        lab.sim.storage().create_dir(Path::new(dir)).unwrap();
    }
    lab.flush().unwrap();
    lab.sim.settle();
    lab.sim.mark(0);
    push(&lab, "one");
    lab.sim.mark(PUSHED_ONE);
    push(&lab, "two");
    lab.sim.mark(PUSHED_TWO);
    assert_eq!(pull(&lab.sim), Ok(true));
    lab.sim.mark(PULLED);
    let disks = web(&lab.sim).unwrap().unwrap();
    let source = Source::checkpoint(&lab.folder, "two", "the proof").unwrap();
    let original: Vec<_> = source.disks.values().map(|disk| stamps(disk).unwrap()).collect();
    assert_eq!(disks, original);

    let (start, log) = (lab.sim.start(), lab.sim.log());
    let mut rng = Rng::new(seed);
    let moments = points(&start, &log);
    let each = (states as usize / moments.len()).max(2);
    let (mut tried, mut failures) = (0, Vec::new());
    for point in &moments {
        for choice in point.choices(each, &mut rng).0 {
            tried += 1;
            if let Err(e) = check(&Sim::mount(point.state(&choice)), point.epoch, &disks) {
                failures.push(format!(
                    "power cut after entry {} of the log: {e}\n{}",
                    point.at,
                    point.describe(&choice)
                ));
            }
        }
    }
    let mut epoch = 0;
    for (at, logged) in log.iter().enumerate() {
        if let Op::Mark(mark) = logged.op {
            epoch = mark;
            continue;
        }
        tried += 1;
        if let Err(e) = check(&Sim::resume(start.clone(), &log[..at]), epoch, &disks) {
            failures.push(format!("killed before entry {at} of the log, {logged}: {e}"));
        }
    }
    println!("{tried} states of {} moments", moments.len());
    assert!(
        failures.is_empty(),
        "{} of {tried} states:\n{}",
        failures.len(),
        failures[..failures.len().min(3)].join("\n")
    );
}
